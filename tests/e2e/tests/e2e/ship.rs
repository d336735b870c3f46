//! A server that never saw the client's files: closures go to its cache and from there into its own store.

use std::process::{Child, Command, Stdio};

use e2e::{Home, Ran, wait_until};

use super::cache::{Nix, netrc};

/// A server with a home of its own that listens on TCP; by its address it could be on another host.
struct Remote {
    home: Home,
    child: Child,
    url: String,
    token: String,
}

impl Drop for Remote {
    fn drop(&mut self) {
        // Machines first: the server's home cannot be told to end them once it is gone.
        self.home.run(&["rm", "--all"]);
        self.home.run(&["server", "stop"]);
        let _ = self.child.wait();
    }
}

impl Remote {
    fn start() -> Self {
        let home = Home::new();
        let mut command = home.command(["server", "--listen", "127.0.0.2:0"]);
        let child = command.stderr(Stdio::null()).spawn().expect("the binary runs");
        let mut url = String::new();
        wait_until("the server to listen", || {
            let status = home.run(&["server", "status", "--json"]);
            let status: serde_json::Value = serde_json::from_str(&status.stdout).unwrap_or_default();
            let listens = status["listens"].as_array().cloned().unwrap_or_default();
            let tcp = listens.iter().filter_map(|at| at.as_str()).find(|at| at.starts_with("http://"));
            url = tcp.unwrap_or_default().to_owned();
            !url.is_empty()
        });
        let token = std::fs::read_to_string(home.path().join("data/token")).expect("a token");
        Self { home, child, url, token: token.trim().to_owned() }
    }

    /// `calve ARGS` in the client's home, against this server.
    fn asked(&self, client: &Home, args: &[&str]) -> Ran {
        let mut command = client.command(args);
        command.env("CALVE_SERVER", &self.url).env("CALVE_TOKEN", &self.token);
        Ran::of(command)
    }

    /// Bytes of chunks in its cache.
    fn cached_bytes(&self) -> u64 {
        self.home.json(&["cache", "info"])["chunk_bytes"].as_u64().expect("a number")
    }
}

/// An app that no other test's store holds; gives the program and the file beside it that may be changed.
fn app(client: &Home) -> (String, std::path::PathBuf) {
    let program = client.app();
    let text = client.path().join("app/text");
    std::fs::write(&text, client.path().display().to_string()).expect("a file");
    (program, text)
}

#[test]
fn a_server_that_never_saw_the_files_runs_them_and_gets_each_chunk_once() {
    let (remote, client) = (Remote::start(), Home::new());
    let (program, text) = app(&client);
    let run = || remote.asked(&client, &["run", &program, "--", "echo", "hi"]);

    let first = run();
    assert_eq!((first.code, first.stdout.as_str()), (0, "hi\n"), "{first:?}");
    assert!(first.stderr.contains("sent 1 of 1 paths"), "{first:?}");
    let whole = remote.cached_bytes();
    assert!(whole > 100_000, "the program was shipped: {whole}");

    let second = run();
    assert_eq!((second.code, second.stdout.as_str(), second.stderr.as_str()), (0, "hi\n", ""));
    assert_eq!(remote.cached_bytes(), whole);

    std::fs::write(text, "changed").unwrap();
    let third = run();
    assert_eq!((third.code, third.stdout.as_str()), (0, "hi\n"), "{third:?}");
    assert!(third.stderr.contains("sent 1 of 1 paths"), "{third:?}");
    let more = remote.cached_bytes() - whole;
    assert!(more < whole / 4, "a changed file of 7 bytes moved {more} of {whole}");

    // What lies in its store is the very path that the client meant.
    remote.home.ok(&["cache", "verify"]);
    let machines: serde_json::Value =
        serde_json::from_str(&remote.asked(&client, &["ps", "-a", "--json"]).stdout).unwrap();
    let runs = machines[2]["runs"].as_str().unwrap();
    let path = runs.strip_suffix("/bin/busybox").expect("the program");
    let place = remote.home.path().join("data/store").join(path.strip_prefix("/nix/store/").unwrap());
    assert_eq!(std::fs::read_to_string(place.join("text")).unwrap(), "changed");
    // Nix gives the same path to the same tree: computed, not added.
    let nar = |dir: &std::path::Path| {
        let dumped = Command::new("nix-store").arg("--dump").arg(dir).output().expect("Nix is installed");
        assert!(dumped.status.success());
        dumped.stdout
    };
    assert!(nar(&place) == nar(&client.path().join("app")));
}

#[test]
fn collecting_garbage_keeps_what_a_machine_runs_until_it_ends() {
    let (remote, client) = (Remote::start(), Home::new());
    let (program, _) = app(&client);
    let ran = remote.asked(&client, &["run", "-d", "--name", "kept", &program, "--", "sleep", "1000"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    remote.home.wait_for_running("kept");
    let paths = || {
        remote.home.ok(&["cache", "gc", "--max-age", "1s", "--grace", "1s"]);
        remote.home.json(&["cache", "info"])["paths"].as_u64().expect("a number")
    };
    assert_eq!(paths(), 1);
    remote.home.ok(&["rm", "kept"]);
    // As soon as what was used is a second old.
    wait_until("the path to be collected", || paths() == 0);
}

#[test]
fn a_local_server_can_be_sent_what_it_shares_anyway() {
    let home = Home::new();
    let (program, _) = app(&home);
    let mut command = home.command(["run", &program, "--", "echo", "hi"]);
    command.env("CALVE_SHIP", "always");
    let ran = Ran::of(command);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "hi\n"), "{ran:?}");
    assert_eq!(home.json(&["cache", "info"])["paths"], 1);
    let other = Home::new();
    let (program, _) = app(&other);
    other.ok(&["run", &program, "--", "true"]);
    assert!(!other.path().join("data/cache").exists(), "a run that ships nothing makes no cache");
}

#[test]
fn nix_copies_into_the_cache_of_a_server_and_only_with_a_token() {
    let remote = Remote::start();
    let url = format!("{}/cache", remote.url);
    let home = Home::alone();
    let stranger = Nix::new(&home, "stranger", "");
    let path = stranger.add("tree", "a tree for a server\n");
    let refused = stranger.run("nix", &["copy", "--store", &stranger.store(), "--to", &url, &path]);
    assert_ne!(refused.code, 0, "{refused:?}");
    assert!(!remote.home.path().join("data/cache").exists(), "a stranger makes no cache");

    let file = netrc(&home, "netrc", &remote.token);
    let asking = Nix::new(&home, "asking", &format!("netrc-file = {file}"));
    asking.ok("nix", &["copy", "--store", &stranger.store(), "--to", &url, &path]);
    let token = remote.home.ok(&["cache", "token", "add", "ci"]);
    let key = remote.home.ok(&["cache", "key"]);
    let file = netrc(&home, "netrc-ci", token.trim());
    let trusting = Nix::new(
        &home,
        "trusting",
        &format!("netrc-file = {file}\nrequire-sigs = true\ntrusted-public-keys = {key}"),
    );
    trusting.ok("nix", &["copy", "--store", &trusting.store(), "--from", &url, &path]);
    trusting.ok("nix-store", &["--store", &trusting.store(), "--verify-path", &path]);
    // A token of the cache opens the cache alone.
    let mut command = home.command(["ps"]);
    command.env("CALVE_SERVER", &remote.url).env("CALVE_TOKEN", token.trim());
    let denied = Ran::of(command);
    assert_ne!(denied.code, 0, "{denied:?}");
}
