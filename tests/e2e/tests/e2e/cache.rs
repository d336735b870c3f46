//! The cache as a user runs it, and as real Nix uses it. Nix's stores are temporary ones: nothing is left in `/nix/store`.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use e2e::{Home, Ran, wait_until};

/// `calve cache serve` that ends with the test.
pub struct Serving {
    child: Child,
    pub url: String,
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn serve(home: &Home, dir: &Path, args: &[&str]) -> Serving {
    serve_with(home, dir, args, &[])
}

/// With variables of the environment.
pub fn serve_with(home: &Home, dir: &Path, args: &[&str], environment: &[(&str, &str)]) -> Serving {
    let address = home.path().join(format!("{}.address", dir.file_name().unwrap().display()));
    let mut command = home.command(["cache", "serve", "--listen", "127.0.0.1:0", "--dir"]);
    command.arg(dir).arg("--address-file").arg(&address).args(args).stderr(Stdio::null());
    command.envs(environment.iter().copied());
    let child = command.spawn().expect("the binary runs");
    let mut url = String::new();
    wait_until("the cache to listen", || {
        url = std::fs::read_to_string(&address).unwrap_or_default();
        !url.is_empty()
    });
    Serving { child, url }
}

/// Real Nix with settings, a home and a store of its own.
pub struct Nix {
    dir: PathBuf,
    /// Where its programs are, if not on the path.
    bin: Option<PathBuf>,
}

impl Nix {
    pub fn new(home: &Home, name: &str, conf: &str) -> Self {
        let dir = home.path().join(name);
        std::fs::create_dir_all(dir.join("conf")).unwrap();
        let conf = format!(
            "build-users-group =\nsubstituters =\nexperimental-features = nix-command\nsandbox = false\n\
             connect-timeout = 20\n{conf}\n"
        );
        std::fs::write(dir.join("conf/nix.conf"), conf).unwrap();
        Self { dir, bin: None }
    }

    /// The programs of another version.
    fn with_programs_of(self, bin: Option<&Path>) -> Self {
        Self { bin: bin.map(Path::to_owned), ..self }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = match &self.bin {
            Some(bin) => Command::new(bin.join(program)),
            None => Command::new(program),
        };
        command.env("HOME", &self.dir).env("NIX_CONF_DIR", self.dir.join("conf"));
        command.env_remove("NIX_REMOTE").stdin(Stdio::null());
        command
    }

    pub fn run(&self, program: &str, args: &[&str]) -> Ran {
        let mut command = self.command(program);
        command.args(args);
        Ran::of(command)
    }

    #[track_caller]
    pub fn ok(&self, program: &str, args: &[&str]) -> String {
        let ran = self.run(program, args);
        assert_eq!(ran.code, 0, "{program} {args:?}: {ran:?}");
        ran.stdout.trim().to_owned()
    }

    pub fn store(&self) -> String {
        self.dir.join("root").display().to_string()
    }

    /// A tree in its store, with files, a link, and an executable.
    pub fn add(&self, name: &str, text: &str) -> String {
        let tree = self.dir.join(name);
        std::fs::create_dir_all(tree.join("bin/empty")).unwrap();
        std::fs::write(tree.join("text"), text.repeat(2000)).unwrap();
        std::fs::copy("/bin/busybox", tree.join("bin/busybox")).unwrap();
        std::os::unix::fs::symlink("bin/busybox", tree.join("link")).unwrap();
        self.ok("nix-store", &["--store", &self.store(), "--add", tree.to_str().unwrap()])
    }

    /// The same tree as a path that no content address vouches for: without a trusted signature nobody takes it.
    fn add_unaddressed(&self, name: &str, text: &str) -> String {
        let added = self.add(name, text);
        let path = format!("/nix/store/0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-{name}");
        let (from, to) = (format!("{}{added}", self.store()), format!("{}{path}", self.store()));
        assert!(Command::new("cp").args(["-a", &from, &to]).status().unwrap().success());
        let hash = self.ok("nix-hash", &["--type", "sha256", &to]);
        let size = self.command("nix-store").args(["--dump", &to]).output().unwrap();
        let entry = format!("{path}\n{hash}\n{}\n\n0\n", size.stdout.len());
        let file = self.dir.join("entry");
        std::fs::write(&file, entry).unwrap();
        let mut load = self.command("nix-store");
        load.args(["--store", &self.store(), "--load-db"]).stdin(std::fs::File::open(file).unwrap());
        assert!(load.status().unwrap().success());
        path
    }
}

fn there_is_nix() -> bool {
    Command::new("nix").arg("--version").output().is_ok_and(|output| output.status.success())
}

pub fn netrc(home: &Home, name: &str, token: &str) -> String {
    let file = home.path().join(name);
    let line = |host| format!("machine {host} login any password {token}\n");
    std::fs::write(&file, ["127.0.0.1", "127.0.0.2"].map(line).concat()).unwrap();
    file.display().to_string()
}

#[test]
fn nix_copies_to_a_private_cache_and_back_and_trusts_its_key() {
    assert!(there_is_nix(), "Nix is not installed");
    copies_there_and_back(None);
}

#[test]
fn a_newer_nix_copies_to_a_private_cache_and_back_and_trusts_its_key() {
    let Some(bin) = std::env::var_os("CALVE_NEWER_NIX") else {
        eprintln!("not shown: CALVE_NEWER_NIX names no directory with the programs of a newer Nix");
        return;
    };
    copies_there_and_back(Some(Path::new(&bin)));
}

/// With Nix's programs in a directory, or on the path.
fn copies_there_and_back(bin: Option<&Path>) {
    let nix = |home: &Home, name: &str, conf: &str| Nix::new(home, name, conf).with_programs_of(bin);
    let home = Home::alone();
    let dir = home.path().join("cache");
    let serving = serve(&home, &dir, &[]);
    let dir = dir.to_str().unwrap();
    let token = home.ok(&["cache", "token", "add", "ci", "--push", "--dir", dir]);
    let key = home.ok(&["cache", "key", "--dir", dir]);
    let netrc = netrc(&home, "netrc", token.trim());

    let here = nix(&home, "here", &format!("netrc-file = {netrc}"));
    let path = here.add_unaddressed("tree", "some text\n");
    let stranger = nix(&home, "stranger", "");
    let refused = stranger.run("nix", &["copy", "--store", &here.store(), "--to", &serving.url, &path]);
    assert_ne!(refused.code, 0, "{refused:?}");
    here.ok("nix", &["copy", "--store", &here.store(), "--to", &serving.url, &path]);
    // Who has just pushed remembers what was said then; somebody else hears of the signature.
    let asking = nix(&home, "asking", &format!("netrc-file = {netrc}"));
    let known = asking.ok("nix", &["path-info", "--store", &serving.url, "--json", &path]);
    let name = key.split(':').next().unwrap();
    assert!(known.contains(&format!("\"{name}:")), "{known}");

    // Another user of Nix, who trusts the key, and checks signatures.
    let trusting = format!("netrc-file = {netrc}\nrequire-sigs = true\ntrusted-public-keys = {key}");
    let there = nix(&home, "there", &trusting);
    there.ok("nix", &["copy", "--store", &there.store(), "--from", &serving.url, &path]);
    there.ok("nix-store", &["--store", &there.store(), "--verify-path", &path]);
    let text = std::fs::read_to_string(format!("{}{path}/text", there.store())).unwrap();
    assert!(text.starts_with("some text\n"));

    let substituting = format!("{trusting}\nsubstituters = {}", serving.url);
    let third = nix(&home, "third", &substituting);
    third.ok("nix-store", &["--store", &third.store(), "--realise", &path]);
    third.ok("nix-store", &["--store", &third.store(), "--verify-path", &path]);

    let distrustful = format!("netrc-file = {netrc}\nrequire-sigs = true\ntrusted-public-keys =");
    let fourth = nix(&home, "fourth", &distrustful);
    let refused = fourth.run("nix", &["copy", "--store", &fourth.store(), "--from", &serving.url, &path]);
    assert_ne!(refused.code, 0, "{refused:?}");

    home.ok(&["cache", "verify", "--dir", dir]);
    let info = home.json(&["cache", "info", "--dir", dir]);
    assert_eq!(info["paths"], 1);
}

#[test]
fn a_cache_behind_another_gives_what_that_one_has() {
    assert!(there_is_nix(), "Nix is not installed");
    let home = Home::alone();
    let (first_dir, second_dir) = (home.path().join("first"), home.path().join("second"));
    let first = serve(&home, &first_dir, &["--public"]);
    let first_dir = first_dir.to_str().unwrap();
    let token = home.ok(&["cache", "token", "add", "ci", "--push", "--dir", first_dir]);
    let key = home.ok(&["cache", "key", "--dir", first_dir]);
    let here = Nix::new(&home, "here", &format!("netrc-file = {}", netrc(&home, "netrc", token.trim())));
    let path = here.add("tree", "other text\n");
    let to = format!("{}?compression=zstd&write-nar-listing=true", first.url);
    here.ok("nix", &["copy", "--store", &here.store(), "--to", &to, &path]);

    let second =
        serve(&home, &second_dir, &["--public", "--upstream", &first.url, "--trusted-key", key.trim()]);
    let there = Nix::new(&home, "there", &format!("require-sigs = true\ntrusted-public-keys = {key}"));
    there.ok("nix", &["copy", "--store", &there.store(), "--from", &second.url, &path]);
    there.ok("nix-store", &["--store", &there.store(), "--verify-path", &path]);
    assert_eq!(home.json(&["cache", "info", "--dir", second_dir.to_str().unwrap()])["paths"], 1);
}

#[test]
fn tokens_are_listed_revoked_and_named_in_errors() {
    let home = Home::alone();
    let dir = home.path().join("cache");
    let _serving = serve(&home, &dir, &[]);
    let dir = dir.to_str().unwrap();
    let token = home.ok(&["cache", "token", "add", "ci", "--dir", dir]);
    assert!(token.starts_with("calve_"));
    let listed = home.ok(&["cache", "token", "ls", "--dir", dir]);
    assert!(listed.contains("ci") && listed.contains("pull") && !listed.contains(token.trim()));
    let twice = home.run(&["cache", "token", "add", "ci", "--dir", dir]);
    assert_eq!(twice.code, 125);
    assert!(twice.stderr.contains("already a token called ci"), "{twice:?}");
    home.ok(&["cache", "token", "rm", "ci", "--dir", dir]);
    assert_eq!(home.run(&["cache", "token", "rm", "ci", "--dir", dir]).code, 127);
    let none = home.run(&["cache", "info", "--dir", "/nonexistent"]);
    assert_eq!(none.code, 127);
    assert!(none.stderr.contains("there is no cache in /nonexistent"), "{none:?}");
}

#[test]
fn a_plain_tree_is_pushed_pulled_compared_and_shown() {
    let home = Home::alone();
    let dir = home.path().join("cache");
    let serving = serve(&home, &dir, &[]);
    let dir = dir.to_str().unwrap();
    let token = home.ok(&["cache", "token", "add", "ci", "--push", "--dir", dir]);
    let key = home.ok(&["cache", "key", "--dir", dir]);
    let with_token = |home: &Home, args: &[&str]| {
        let mut command = home.command(args);
        command.env("CALVE_CACHE_TOKEN", token.trim()).env("CALVE_CACHE", &serving.url);
        Ran::of(command)
    };
    let tree = home.path().join("tree");
    std::fs::create_dir_all(tree.join("bin")).unwrap();
    std::fs::copy("/bin/busybox", tree.join("bin/busybox")).unwrap();
    std::fs::write(tree.join("text"), "one").unwrap();
    let tree = tree.to_str().unwrap();

    let denied = home.run(&["push", tree, "--to", &serving.url]);
    assert_eq!(denied.code, 125, "{denied:?}");
    assert!(denied.stderr.contains("CALVE_CACHE_TOKEN"), "{denied:?}");
    let pushed = with_token(&home, &["push", tree, "--json"]);
    assert_eq!(pushed.code, 0, "{pushed:?}");
    let pushed: serde_json::Value = serde_json::from_str(&pushed.stdout).unwrap();
    let path = pushed["roots"][0].as_str().unwrap().to_owned();
    assert_eq!(pushed["pushed"][0].as_str(), Some(path.as_str()));
    let again = with_token(&home, &["push", &path, "--json"]);
    let again: serde_json::Value = serde_json::from_str(&again.stdout).unwrap();
    assert_eq!((again["bytes_moved"].as_u64(), again["pushed"].as_array().map(Vec::len)), (Some(0), Some(0)));

    let other = Home::alone();
    let untrusting = with_token(&other, &["pull", &path, "--private"]);
    assert_ne!(untrusting.code, 0, "{untrusting:?}");
    let pulled = with_token(&other, &["pull", &path, "--private", "--trusted-key", key.trim()]);
    assert_eq!(pulled.code, 0, "{pulled:?}");
    let base = path.rsplit('/').next().unwrap();
    let text = other.path().join("data/store").join(base).join("text");
    assert_eq!(std::fs::read_to_string(text).unwrap(), "one");

    std::fs::write(format!("{tree}/text"), "two").unwrap();
    let changed = home.json(&["diff", &path, tree]);
    assert!(changed["moved_bytes"].as_u64().unwrap() < changed["after_bytes"].as_u64().unwrap());
    assert_eq!(changed["packages"][0]["rebuild"], true);
    let shown = with_token(&home, &["closure", tree, "--cache", &serving.url, "--json"]);
    let shown: serde_json::Value = serde_json::from_str(&shown.stdout).unwrap();
    assert_eq!(shown["paths"][0]["missing_in"][0].as_str(), Some(serving.url.as_str()));
    let gone = with_token(
        &home,
        &[
            "pull",
            "/nix/store/0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-none",
            "--private",
            "--trusted-key",
            key.trim(),
        ],
    );
    assert_eq!(gone.code, 127, "{gone:?}");
}

#[test]
fn pins_are_set_listed_and_removed() {
    let home = Home::alone();
    let dir = home.path().join("cache");
    let tree = home.path().join("tree");
    std::fs::write(&tree, "some text").unwrap();
    drop(serve(&home, &dir, &[]));
    let dir = dir.to_str().unwrap();
    let pushed = home.json(&["push", tree.to_str().unwrap(), "--to", dir]);
    let path = pushed["roots"][0].as_str().unwrap();
    home.ok(&["cache", "pin", "--dir", dir, "fleet", path]);
    let listed = home.ok(&["cache", "info", "--dir", dir, "--json"]);
    assert!(listed.contains("\"fleet\"") && listed.contains(path), "{listed}");
    assert!(home.ok(&["cache", "info", "--dir", dir]).contains("fleet"));
    let everything = ["cache", "gc", "--dir", dir, "--max-age", "0s", "--grace", "0s"];
    assert!(home.ok(&everything).contains("1 path stays"));
    home.ok(&["cache", "unpin", "--dir", dir, "fleet"]);
    assert!(!home.ok(&["cache", "info", "--dir", dir, "--json"]).contains("fleet"));
    assert!(home.ok(&everything).contains("0 paths stay"));
}
