//! Plugins: the example in Python, and plugins that lie, hang, write garbage or die. Each gives one clear error, and no machine is
//! made twice by any of it. What is the same for every provider is in `conformance.rs`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use calve_core::{MachineId, Timestamp};
use calve_provider::exec::{Exec, Settings};
use calve_provider::mark::{OwnerKey, Subject, Until};
use calve_provider::{ErrorKind, Order, Pace, Provider, ProviderError};

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/plugins/directory.py");

/// A directory with the configuration, and the machines of the example.
struct Stage {
    dir: tempfile::TempDir,
}

impl Stage {
    fn set() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn machines(&self) -> PathBuf {
        self.dir.path().join("machines")
    }

    /// The example, where this script does not take its place: `$1` is the request, `$example` runs the example on it.
    fn provider(&self, script: &str) -> Exec {
        self.with(script, Duration::from_secs(60))
    }

    fn with(&self, script: &str, answer: Duration) -> Exec {
        let plugin = self.dir.path().join("plugin");
        let example = format!("python3 {EXAMPLE} {}", self.machines().display());
        let text = format!(
            "cd {}\nread -r asked\nexample() {{ echo \"$asked\" | {example}; }}\n{script}\n",
            self.dir.path().display()
        );
        std::fs::write(&plugin, text).unwrap();
        let config = self.dir.path().join("providers");
        std::fs::write(&config, format!("lab /bin/sh {}\n", plugin.display())).unwrap();
        private(&config);
        let variable = |name: &str| (name == "CALVE_PROVIDERS").then(|| config.display().to_string());
        let pace = Pace {
            attempts: 2,
            backoff: Duration::from_millis(5),
            answer,
            rate: Duration::from_secs(60),
            settle: Duration::from_millis(50),
        };
        Exec::new(Settings::from_environment(&variable).unwrap(), pace)
    }

    /// How many machines there are, whatever is shown.
    fn count(&self) -> usize {
        let files = std::fs::read_dir(self.machines()).into_iter().flatten().flatten();
        files.filter(|file| file.path().extension().is_some_and(|extension| extension == "json")).count()
    }
}

fn private(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

fn order(number: u128) -> Order {
    let owner = OwnerKey::from_seed(&[1; 32]);
    let subject =
        Subject { id: MachineId::new(Timestamp(1), number), attempt: 1, name: format!("run-{number}") };
    Order {
        key: subject.key(),
        tags: owner.tags(&subject, Until::Never),
        name: subject.name,
        region: "lab".to_owned(),
        size: String::new(),
        image: String::new(),
        user_data: "#!calve 1".to_owned(),
    }
}

fn is_named(error: &ProviderError, words: &str) {
    let text = error.to_string();
    assert!(text.starts_with("exec: the plugin lab ") && text.contains(words), "{text}");
}

#[tokio::test]
async fn the_example_makes_lists_tags_and_destroys_machines_that_say_they_are_simulated() {
    let stage = Stage::set();
    let provider = stage.provider("example");
    let account = provider.check().await.unwrap();
    assert!(account.name.contains("lab (simulated"), "{account:?}");
    let order = order(1);
    let made = provider.create(&order).await.unwrap();
    assert_eq!(provider.create(&order).await.unwrap().id, made.id);
    assert_eq!((made.id.as_str(), made.status.as_str(), stage.count()), ("lab/1", "simulated", 1));
    provider.add_tag(&made.id, "calve:x").await.unwrap();
    let listed = provider.list("calve:x").await.unwrap();
    assert_eq!((listed.machines.len(), listed.machines[0].region.as_str()), (1, "lab"));
    assert!(listed.unix_s.is_some());
    provider.remove_tag("calve:x").await.unwrap();
    assert!(provider.list("calve:x").await.unwrap().machines.is_empty());
    assert_eq!(provider.sizes().await.unwrap()[0].slug, "small");
    assert_eq!(provider.regions().await.unwrap()[0].slug, "lab");
    assert!(provider.images().await.unwrap().is_empty());
    for _ in 0..2 {
        provider.destroy(&made.id).await.unwrap();
    }
    assert_eq!(stage.count(), 0);
    let huge = provider.create(&Order { size: "huge".to_owned(), ..order.clone() }).await.unwrap_err();
    assert_eq!(huge.kind, ErrorKind::Refused);
    is_named(&huge, "there is no size 'huge'");
    let nowhere = provider.create(&Order { region: "other".to_owned(), ..order }).await.unwrap_err();
    assert!(nowhere.to_string().contains("no plugin \"other\""), "{nowhere}");
}

#[tokio::test]
async fn ten_creations_at_once_are_ten_machines_and_one_that_is_asked_for_twice_is_one() {
    let stage = Stage::set();
    let provider = Arc::new(stage.provider("example"));
    let mut making = tokio::task::JoinSet::new();
    for number in 0..10 {
        let provider = provider.clone();
        making.spawn(async move { provider.create(&order(number / 2)).await.unwrap().id });
    }
    let mut ids = std::collections::BTreeSet::new();
    while let Some(made) = making.join_next().await {
        ids.insert(made.unwrap());
    }
    assert_eq!((ids.len(), stage.count()), (5, 5));
}

#[tokio::test]
async fn a_plugin_that_lies_hangs_babbles_or_dies_is_one_error_that_names_it() {
    let answer = |ok: &str| {
        format!(
            "id=$(echo \"$asked\" | sed 's/.*\"id\":\\([0-9]*\\).*/\\1/'); echo '{{\"calve\":1,\"id\":'$id',{ok}}}'"
        )
    };
    let cases: [(String, &str); 11] = [
        ("echo hello".to_owned(), "gave a wrong answer: expected value"),
        ("printf '\\377\\376\\n'".to_owned(), "gave a wrong answer"),
        ("printf '{\"calve\":1'".to_owned(), "gave a wrong answer: EOF"),
        ("exit 3".to_owned(), "ended without an answer to \"list\" (exit status: 3)"),
        ("echo out of disks >&2; kill -9 $$".to_owned(), "(signal: 9 (SIGKILL)): out of disks"),
        ("echo '{\"calve\":2,\"id\":1,\"ok\":{}}'".to_owned(), "speaks version 2"),
        ("echo '{\"calve\":1,\"id\":99999,\"ok\":{}}'".to_owned(), "it answers the request 99999"),
        (answer("\"ok\":{},\"error\":{\"message\":\"x\"}"), "neither or both"),
        (answer("\"ok\":{\"machines\":7}"), "gave a wrong answer: invalid type"),
        (
            answer("\"ok\":{\"machines\":[{\"id\":\"1\",\"name\":\"x\",\"tags\":[]}]}"),
            "does not carry the tag calve",
        ),
        (
            answer("\"error\":{\"kind\":\"quota\",\"message\":\"full\",\"request\":\"r-1\"}"),
            "says: full (request r-1)",
        ),
    ];
    for (script, words) in cases {
        let stage = Stage::set();
        is_named(&stage.provider(&script).list("calve").await.unwrap_err(), words);
    }
    let twice = "\"ok\":{\"machines\":[{\"id\":\"1\",\"name\":\"x\",\"tags\":[\"calve\"]},{\"id\":\"1\",\"name\":\"x\",\"tags\":[\"calve\"]}]}";
    is_named(
        &Stage::set().provider(&answer(twice)).list("calve").await.unwrap_err(),
        "lists the machine \"1\" twice",
    );
}

#[tokio::test]
async fn a_plugin_that_hangs_is_killed_in_time() {
    let stage = Stage::set();
    let begun = Instant::now();
    let script = "echo $$ >pid; exec sleep 1000";
    let error = stage.with(script, Duration::from_millis(500)).list("calve").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NoAnswer);
    is_named(&error, "did not answer \"list\" within 0.5 s");
    assert!(begun.elapsed() < Duration::from_secs(100), "it was waited for");
    let pid = std::fs::read_to_string(stage.dir.path().join("pid")).unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    let lives = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
        stat.is_ok_and(|stat| !stat.contains(") Z "))
    };
    while lives() && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(!lives(), "it lives on");
}

#[tokio::test]
async fn a_creation_whose_answer_is_lost_or_wrong_makes_no_second_machine() {
    for after in ["true", "echo garbage", "kill -9 $$", "echo '{\"calve\":1,\"id\":99999,\"ok\":{}}'"] {
        let stage = Stage::set();
        // The machine is made, and nobody hears of it.
        let script =
            format!("case $asked in *'\"do\":\"create\"'*) example >/dev/null; {after};; *) example;; esac");
        let provider = stage.provider(&script);
        let made = provider.create(&order(1)).await.unwrap();
        assert_eq!((made.id.as_str(), stage.count()), ("lab/1", 1), "{after}");
    }
    // One that makes nothing and says otherwise.
    let stage = Stage::set();
    let lie = "id=$(echo \"$asked\" | sed 's/.*\"id\":\\([0-9]*\\).*/\\1/')
        case $asked in *'\"do\":\"create\"'*) echo '{\"calve\":1,\"id\":'$id',\"ok\":{\"machine\":{\"id\":\"9\",\"name\":\"x\",\"tags\":[]}}}';;
        *) example;; esac";
    let error = stage.provider(lie).create(&order(1)).await.unwrap_err();
    is_named(&error, "its machine \"9\" does not carry the tag");
    assert_eq!(stage.count(), 0);
}

#[tokio::test]
async fn a_plugin_gets_no_credentials_of_others() {
    let stage = Stage::set();
    // Whatever the environment of this test holds besides the usual: cargo's variables at least.
    stage.provider("env >seen; example").check().await.unwrap();
    let seen = std::fs::read_to_string(stage.dir.path().join("seen")).unwrap();
    assert!(seen.contains("PATH=") && !seen.contains("CARGO"), "{seen}");
}
