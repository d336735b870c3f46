//! Services: restarts, health, published ports, exec, cp, forward.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;

use e2e::{Home, finish, wait_until};

fn get(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(std::time::Duration::from_secs(5))).ok()?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    (!text.is_empty()).then_some(text)
}

/// An HTTP service in the machine on port 80.
const HTTPD: &str = "mkdir -p /tmp/www; echo hello > /tmp/www/index.html; exec httpd -f -p 80 -h /tmp/www";

#[test]
fn a_service_is_restarted_with_backoff_until_it_is_stopped() {
    let home = Home::new();
    let app = home.app();
    home.ok(&[
        "run",
        "-d",
        "--name",
        "flaky",
        "--kind",
        "service",
        &app,
        "--",
        "sh",
        "-c",
        "echo up; exit 1",
    ]);
    wait_until("three starts", || home.json(&["status", "flaky"])["starts"].as_u64() >= Some(3));
    assert!(home.ok(&["logs", "flaky"]).matches("up").count() >= 3);
    home.ok(&["stop", "flaky"]);
    assert_eq!(home.state("flaky"), "gone");
}

#[test]
fn a_published_port_reaches_the_service_and_health_makes_it_ready() {
    let home = Home::new();
    let app = home.app();
    let args = ["run", "-d", "--name", "web", "--kind", "service", "--health-http", "80/", "-p", "0:80"];
    home.ok(&[&args[..], &[&app, "--", "sh", "-c", HTTPD]].concat());
    wait_until("web to be ready", || home.json(&["status", "web"])["ready"] == true);
    let status = home.json(&["status", "web"]);
    let port = u16::try_from(status["ports"][0]["host_port"].as_u64().unwrap()).unwrap();
    assert!(get(port).unwrap().ends_with("hello\n"));
    home.kill_server();
    wait_until("the next server to publish the port again", || {
        home.run(&["ps"]);
        let status = home.json(&["status", "web"]);
        let port = u16::try_from(status["ports"][0]["host_port"].as_u64().unwrap_or(0)).unwrap();
        get(port).is_some_and(|page| page.ends_with("hello\n"))
    });
}

#[test]
fn exec_cp_and_forward_reach_into_the_machine() {
    let home = Home::new();
    let app = home.app();
    home.ok(&["run", "-d", "--name", "box", &app, "--", "sh", "-c", HTTPD]);
    home.wait_for_running("box");
    let program = home.json(&["status", "box"])["runs"].as_str().unwrap().to_owned();
    let ran = home.run(&["exec", "box", "--", &program, "sh", "-c", "echo in; echo err >&2; exit 5"]);
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (5, "in\n", "err\n"));
    let mut command = home.command(["exec", "-i", "box", "--", &program, "cat"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"through").unwrap();
    assert_eq!(finish(child).stdout, "through");

    let local = home.path().join("there");
    std::fs::create_dir_all(local.join("deep")).unwrap();
    std::fs::write(local.join("deep/file"), "content").unwrap();
    home.ok(&["cp", local.to_str().unwrap(), "box:/tmp"]);
    let back = home.path().join("back");
    std::fs::create_dir(&back).unwrap();
    home.ok(&["cp", "box:/tmp/there", back.to_str().unwrap()]);
    assert_eq!(std::fs::read_to_string(back.join("there/deep/file")).unwrap(), "content");

    let port = { std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port() };
    let mapping = format!("{port}:80");
    let mut forward = home.command(["forward", "box", &mapping]).stderr(Stdio::null()).spawn().unwrap();
    wait_until("the forwarded port", || get(port).is_some_and(|page| page.ends_with("hello\n")));
    forward.kill().unwrap();
    forward.wait().unwrap();
}

#[test]
fn exec_with_a_terminal_has_one_of_the_right_size() {
    let home = Home::new();
    let app = home.app();
    home.ok(&["run", "-d", "--name", "box", &app, "--", "sleep", "1000"]);
    home.wait_for_running("box");
    let program = home.json(&["status", "box"])["runs"].as_str().unwrap().to_owned();
    let line = format!(
        "stty rows 33 cols 101; CALVE_HOME={} {} exec -it box -- {program} sh -c 'tty; stty size; exit 4'; echo code=$?",
        home.path().display(),
        e2e::bin_dir().join("calve").display()
    );
    // script(1) gives the client a terminal, as a person has.
    let output = std::process::Command::new("script").args(["-qec", &line, "/dev/null"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("/dev/pts/") && text.contains("33 101") && text.contains("code=4"), "{text}");
}
