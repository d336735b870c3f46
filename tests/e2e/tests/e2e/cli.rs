//! Bad input gets one clear sentence with a hint and the right exit code.

use e2e::Home;

#[track_caller]
fn refused(home: &Home, args: &[&str], sentence: &str) {
    let ran = home.run(args);
    assert_ne!(ran.code, 0, "calve {args:?} succeeded: {ran:?}");
    assert!(ran.stderr.to_lowercase().contains(&sentence.to_lowercase()), "calve {args:?}: {}", ran.stderr);
    assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
    assert!(ran.stdout.is_empty(), "talk on stdout: {}", ran.stdout);
}

#[test]
fn bad_input_gets_one_clear_sentence() {
    let home = Home::new();
    let app = home.app();
    let not_executable = home.path().join("data.txt");
    std::fs::write(&not_executable, "just text").unwrap();
    refused(
        &home,
        &["run", "/nix/store/0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-absent/bin/x"],
        "0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-absent",
    );
    refused(&home, &["run", "./does-not-exist"], "does-not-exist");
    refused(&home, &["run", not_executable.to_str().unwrap()], "execut");
    refused(&home, &["run", "/bin/bash"], "dynamically linked");
    refused(&home, &["run", "--ttl", "soon", &app], "soon");
    refused(&home, &["run", "--ttl", "0s", &app], "ttl");
    refused(&home, &["run", "--memory", "lots", &app], "lots");
    refused(&home, &["run", "--name", "No_Good", &app], "No_Good");
    refused(&home, &["run", "--driver", "docker", &app], "docker");
    refused(&home, &["run", "-p", "80:http", &app], "http");
    refused(&home, &["status", "nobody"], "nobody");
    refused(&home, &["logs", "nobody"], "nobody");
    refused(&home, &["exec", "nobody", "--", "true"], "nobody");
    refused(&home, &["stop", "nobody"], "nobody");
    assert!(home.json(&["ps", "-a"]).as_array().unwrap().is_empty(), "nothing half-made");
}

#[test]
fn an_environment_of_ten_megabytes_is_refused() {
    let home = Home::new();
    let file = home.path().join("env");
    let line = "x".repeat(100_000);
    let text: String = (0..100).map(|i| format!("V{i}={line}\n")).collect();
    std::fs::write(&file, text).unwrap();
    refused(&home, &["run", "--env-file", file.to_str().unwrap(), &home.app(), "--", "true"], "environment");
}

#[test]
fn a_taken_name_is_refused_until_it_is_removed() {
    let home = Home::alone();
    let app = home.app();
    home.ok(&["run", "--name", "one", &app, "--", "true"]);
    refused(&home, &["run", "--name", "one", &app, "--", "true"], "one");
    home.ok(&["rm", "one"]);
    home.ok(&["run", "--name", "one", &app, "--", "true"]);
    home.wait_for_state("one", "gone");
    home.ok(&["prune"]);
    assert!(home.json(&["ps", "-a"]).as_array().unwrap().is_empty());
}

#[test]
fn read_verbs_speak_json_and_completions_are_scripts() {
    let home = Home::new();
    home.ok(&["run", "--name", "one", &home.app(), "--", "echo", "hi"]);
    assert_eq!(home.json(&["ps", "-a"])[0]["name"], "one");
    assert_eq!(home.json(&["status", "one"])["kind"], "job");
    assert!(home.json(&["doctor"]).as_array().is_some_and(|checks| checks.len() > 5));
    assert!(home.json(&["server", "status"])["pid"].is_number());
    let log = home.ok(&["logs", "--json", "one"]);
    let entry: serde_json::Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    assert_eq!(entry["channel"], "stdout");
    let events = home.ok(&["events", "--json"]);
    for event in ["declared", "started", "exited", "stopped"] {
        assert!(events.contains(&format!("\"{event}\"")), "no {event} in {events}");
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(home.ok(&["completions", shell]).contains("calve"));
    }
}
