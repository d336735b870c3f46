//! `calve provider` and `calve reap`, as a user runs them, against emulators of their APIs.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use calve_core::{MachineId, Timestamp};
use calve_provider::mark::{OwnerKey, Subject, TAG, Until};
use calve_provider::{Order, Provider, digitalocean, proxmox};
use digitalocean_emulator::{Emulator, Options, TOKEN};
use serde_json::Value;

/// A data directory, an account, and the server's key.
struct Stage {
    home: tempfile::TempDir,
    emulator: Emulator,
    ours: OwnerKey,
}

impl Stage {
    async fn set() -> Self {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(home.path().join("data")).unwrap();
        let ours = OwnerKey::load_or_make(&home.path().join("data/owner.key")).unwrap();
        Self { home, emulator: Emulator::start(Options::default()).await.unwrap(), ours }
    }

    fn calve(&self, arguments: &[&str], token: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_calve"));
        command.args(arguments).env_clear().env("CALVE_HOME", self.home.path());
        command.env("DIGITALOCEAN_API_URL", &self.emulator.url).env("DIGITALOCEAN_TOKEN", token);
        command.output().unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.calve(&[arguments, &["--json"]].concat(), TOKEN);
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    async fn machine(&self, key: &OwnerKey, number: u128, until: Until) {
        let subject =
            Subject { id: MachineId::new(Timestamp(1), number), attempt: 1, name: format!("run-{number}") };
        self.make(subject.key(), subject.name.clone(), key.tags(&subject, until)).await;
    }

    /// A machine that calve has nothing to do with; gives its number.
    async fn stranger(&self, name: &str) -> String {
        self.make(format!("stranger:{name}"), name.to_owned(), vec!["web".to_owned()]).await
    }

    async fn make(&self, key: String, name: String, tags: Vec<String>) -> String {
        let variables = |name: &str| match name {
            "DIGITALOCEAN_API_URL" => Some(self.emulator.url.clone()),
            _ => Some(TOKEN.to_owned()),
        };
        let settings = digitalocean::Settings::from_environment(&variables).unwrap();
        let provider = digitalocean::DigitalOcean::new(settings, calve_provider::Pace::default()).unwrap();
        let order = Order {
            key,
            tags,
            name,
            region: "ams3".to_owned(),
            size: "s-1vcpu-1gb".to_owned(),
            image: "debian-13-x64".to_owned(),
            user_data: String::new(),
        };
        provider.create(&order).await.unwrap().id
    }

    fn names(&self) -> Vec<String> {
        self.emulator.droplets().into_iter().map(|droplet| droplet.name).collect()
    }
}

fn text(output: &Output) -> String {
    [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_provider_has_is_shown_as_a_table_and_as_json() {
    let stage = Stage::set().await;
    stage.machine(&stage.ours, 1, Until::Unix(2_000_000_000)).await;
    let sizes = stage.json(&["provider", "sizes", "digitalocean", "--region", "nyc3"]);
    assert_eq!(sizes[0]["slug"], "s-1vcpu-1gb");
    assert_eq!(sizes[0]["dollars_per_hour"], 0.00893);
    assert_eq!(stage.json(&["provider", "check"])["account"], "emulated");
    assert_eq!(stage.json(&["provider", "regions"])[0]["slug"], "ams3");
    assert_eq!(stage.json(&["provider", "images"])[0]["name"], "Unknown OS calve-base");
    let listed = stage.json(&["provider", "ls"]);
    let owner = stage.ours.owner().to_string();
    assert_eq!((&listed[0]["owner"], &listed[0]["until"]), (&owner.into(), &"2000000000".into()));
    for shown in ["ls", "check", "sizes", "regions", "images"] {
        let output = stage.calve(&["provider", shown], TOKEN);
        assert!(output.status.success() && !text(&output).contains(TOKEN), "{}", text(&output));
    }
    assert!(text(&stage.calve(&["provider", "ls"], TOKEN)).contains("2033-05-18T03:33:20Z"));
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_credentials_are_one_sentence_that_does_not_show_them() {
    let stage = Stage::set().await;
    let wrong = stage.calve(&["provider", "check"], "dop_v1_wrong");
    assert_eq!(wrong.status.code(), Some(125));
    let said = text(&wrong);
    assert!(said.contains("digitalocean: Unable to authenticate you (request emulated-"), "{said}");
    assert!(!said.contains("dop_v1_wrong"), "{said}");
    let none = text(&stage.calve(&["provider", "ls"], ""));
    assert!(none.contains("set DIGITALOCEAN_TOKEN, or DIGITALOCEAN_TOKEN_FILE"), "{none}");
    let file = stage.home.path().join("token");
    std::fs::write(&file, TOKEN).unwrap();
    let with_file = |mode| {
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_calve"));
        command.args(["provider", "check"]).env_clear().env("DIGITALOCEAN_TOKEN_FILE", &file);
        command.env("DIGITALOCEAN_API_URL", &stage.emulator.url).output().unwrap()
    };
    assert!(with_file(0o600).status.success());
    let open = with_file(0o644);
    assert!(!open.status.success() && text(&open).contains("chmod 600"), "{}", text(&open));
}

#[tokio::test(flavor = "multi_thread")]
async fn reap_destroys_what_has_expired_and_nothing_else() {
    let stage = Stage::set().await;
    let theirs = OwnerKey::from_seed(&[2; 32]);
    stage.machine(&stage.ours, 1, Until::Unix(1000)).await;
    stage.machine(&stage.ours, 2, Until::Unix(u64::MAX)).await;
    stage.machine(&theirs, 3, Until::Unix(1000)).await;
    let reap = ["reap", "--provider", "digitalocean"];
    let dry = stage.json(&[&reap[..], &["--dry-run"]].concat());
    let outcome = |name: &str, list: &Value| {
        let found = list.as_array().unwrap().iter().find(|judged| judged["name"] == name);
        found.map(|judged| judged["outcome"].as_str().unwrap().to_owned())
    };
    assert_eq!(outcome("run-1", &dry).as_deref(), Some("would-be-destroyed"));
    assert_eq!(stage.names().len(), 3);
    let done = stage.json(&reap);
    assert_eq!(outcome("run-1", &done).as_deref(), Some("destroyed"));
    assert_eq!(outcome("run-2", &done).as_deref(), Some("lives"));
    assert_eq!(stage.names(), ["run-2", "run-3"]);

    // With all state lost nobody is guessed at: the owner is named, or everybody.
    std::fs::remove_file(stage.home.path().join("data/owner.key")).unwrap();
    let lost = stage.calve(&reap, TOKEN);
    assert_eq!(lost.status.code(), Some(127));
    assert!(text(&lost).contains("--all-owners"));
    let owner = theirs.owner().to_string();
    stage.json(&[&reap[..], &["--owner", &owner]].concat());
    assert_eq!(stage.names(), ["run-2"]);
    assert!(!stage.emulator.tags().iter().any(|tag| tag.starts_with(&format!("{TAG}:until:1000:"))));
}

/// Ends the server that a command has started.
struct Served<'a>(&'a Stage);

impl Drop for Served<'_> {
    fn drop(&mut self) {
        self.0.calve(&["server", "stop"], TOKEN);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_there_is_adopted_by_number_and_goes_when_its_lease_ends() {
    let stage = Stage::set().await;
    let _served = Served(&stage);
    let (web, other) = (stage.stranger("web").await, stage.stranger("other").await);
    stage.machine(&OwnerKey::from_seed(&[2; 32]), 3, Until::Never).await;
    let theirs = stage.emulator.droplets().last().unwrap().id.to_string();
    let at = |number: &str| format!("digitalocean/{number}");
    let refused = |arguments: &[&str], status: i32, word: &str| {
        let output = stage.calve(arguments, TOKEN);
        assert_eq!(output.status.code(), Some(status), "{output:?}");
        assert!(text(&output).contains(word), "{arguments:?}: {}", text(&output));
    };
    // How long somebody else's machine shall live is said, not guessed.
    refused(&["adopt", &at(&web)], 2, "--ttl");
    refused(&["adopt", &web, "--ttl", "1h"], 2, "PROVIDER/ID");
    refused(&["adopt", "sandbox/1", "--ttl", "1h"], 2, "no provider");
    refused(&["adopt", "digitalocean/x/y", "--ttl", "1h"], 2, "no provider's id of a machine");
    refused(&["adopt", "digitalocean/x", "--ttl", "1h"], 125, "not a droplet's number");
    refused(&["adopt", "digitalocean/1", "--ttl", "1h"], 125, "there is no machine 1");
    refused(&["adopt", &at(&theirs), "--ttl", "1h"], 125, "of another calve server");

    let adopted = stage.json(&["adopt", &at(&web), "--ttl", "1h", "--name", "kept"]);
    assert_eq!(
        (&adopted["state"], &adopted["spec"]["workload"]["machine"]),
        (&"running".into(), &web.clone().into())
    );
    assert_eq!(adopted["spec"]["place"]["size"], "s-1vcpu-1gb");
    refused(&["adopt", &at(&web), "--ttl", "1h"], 125, "of this server already");
    refused(&["exec", "kept", "--", "true"], 125, "it was adopted");
    let extended = stage.calve(&["extend", "kept", "30m"], TOKEN);
    assert!(extended.status.success() && text(&extended).contains("kept until"), "{extended:?}");
    let dry = stage.json(&["reap", "--provider", "digitalocean", "--dry-run"]);
    assert_eq!((&dry[0]["name"], &dry[0]["outcome"]), (&"web".into(), &"lives".into()));

    // One whose lease ends, and one that is let go of; nobody else's.
    let shown = stage.calve(&["adopt", &at(&other), "--ttl", "3s", "--name", "short"], TOKEN);
    assert!(shown.status.success() && text(&shown).contains("short until"), "{shown:?}");
    let ended = stage.calve(&["wait", "short"], TOKEN);
    assert!(text(&ended).contains("short ended with its lease"), "{ended:?}");
    assert_eq!(stage.names(), ["web", "run-3"]);
    assert!(stage.calve(&["rm", "kept"], TOKEN).status.success());
    assert_eq!(stage.names(), ["run-3"]);
    assert!(stage.emulator.tags().contains(&"web".to_owned()), "a tag of others was taken away");
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_imported_into_each_region_listed_and_removed_and_others_are_not_touched() {
    let stage = Stage::set().await;
    let url = "https://images.example.org/calve-base.qcow2";
    let imported = stage.calve(&["image", "import", url, "--region", "nyc3", "--region", "ams3"], TOKEN);
    assert!(imported.status.success(), "{imported:?}");
    let ids: Vec<String> = String::from_utf8_lossy(&imported.stdout).lines().map(str::to_owned).collect();
    assert_eq!(ids.len(), 2);
    let listed = stage.json(&["image", "ls"]);
    let of = |id: &str| listed.as_array().unwrap().iter().find(|image| image["id"] == id).unwrap().clone();
    assert_eq!(
        (of(&ids[0])["regions"][0].as_str(), of(&ids[0])["status"].as_str()),
        (Some("nyc3"), Some("available"))
    );
    for (arguments, word) in [
        (["image", "import", "nonsense"], "Url is invalid"),
        (["image", "rm", "185000001"], "no image 185000001 of calve's agent"),
    ] {
        let refused = stage.calve(&[&arguments[..], &["--provider", "digitalocean"]].concat(), TOKEN);
        assert!(!refused.status.success() && text(&refused).contains(word), "{refused:?}");
    }
    let unknown = stage.calve(&["image", "import", url, "--region", "moon1"], TOKEN);
    assert!(text(&unknown).contains("no region moon1"), "{unknown:?}");
    let removed = stage.calve(&["image", "rm", &ids[0], &ids[1]], TOKEN);
    assert!(removed.status.success(), "{removed:?}");
    assert_eq!(stage.json(&["image", "ls"]).as_array().unwrap().len(), listed.as_array().unwrap().len() - 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_at_all_providers_and_what_it_costs_is_shown_without_a_server() {
    let stage = Stage::set().await;
    stage.machine(&stage.ours, 1, Until::Unix(2_000_000_000)).await;
    stage.machine(&OwnerKey::from_seed(&[7; 32]), 2, Until::Never).await;
    let listed = stage.json(&["ps", "--all-providers"]);
    assert_eq!((listed.as_array().unwrap().len(), listed[0]["provider"].as_str()), (2, Some("digitalocean")));
    let cost = stage.json(&["cost"]);
    assert_eq!(cost["machines"].as_array().unwrap().len(), 2);
    assert!((cost["dollars_per_hour"].as_f64().unwrap() - 2.0 * 0.00893).abs() < 1e-9, "{cost}");
    let table = stage.calve(&["cost"], TOKEN);
    assert!(table.status.success() && text(&table).contains("together"), "{table:?}");
    assert_eq!(stage.names().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn proxmox_is_shown_and_reaped_with_a_token_from_a_file_and_a_pinned_certificate() {
    let home = tempfile::tempdir().unwrap();
    let emulator = proxmox_emulator::Emulator::start(Default::default()).await.unwrap();
    let file = home.path().join("token");
    std::fs::write(&file, proxmox_emulator::TOKEN).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let variables = [
        ("PROXMOX_API_URL", emulator.url.clone()),
        ("PROXMOX_TOKEN_FILE", file.display().to_string()),
        ("PROXMOX_FINGERPRINT", emulator.fingerprint.clone()),
    ];
    let calve = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_calve"));
        command.args(arguments).env_clear().env("CALVE_HOME", home.path()).envs(variables.clone());
        command.output().unwrap()
    };
    let get = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone());
    let settings = proxmox::Settings::from_environment(&get).unwrap();
    let provider = proxmox::Proxmox::new(settings, calve_provider::Pace::default()).unwrap();
    let key = OwnerKey::from_seed(&[3; 32]);
    for (number, until) in [(1, Until::Unix(1000)), (2, Until::Never)] {
        let name = format!("run-{number}");
        let subject = Subject { id: MachineId::new(Timestamp(1), number), attempt: 1, name };
        let [region, size, image] = ["pve1", "template", "calve-base"].map(str::to_owned);
        let (tags, user_data) = (key.tags(&subject, until), String::new());
        let order = Order { key: subject.key(), tags, name: subject.name, region, size, image, user_data };
        provider.create(&order).await.unwrap();
    }
    for (shown, words) in [
        (&["ls"][..], "run-2"),
        (&["check"], "calve@pve!emulated"),
        (&["sizes"], "2vcpu-4gb"),
        (&["regions"], "pve2"),
        (&["images"], "calve-base"),
    ] {
        let output = calve(&[&["provider"][..], shown, &["proxmox"]].concat());
        assert!(output.status.success() && text(&output).contains(words), "{}", text(&output));
        assert!(!text(&output).contains(proxmox_emulator::TOKEN));
    }
    let reaped = calve(&["reap", "--provider", "proxmox", "--all-owners"]);
    assert!(reaped.status.success(), "{}", text(&reaped));
    let left: Vec<String> = emulator.machines().iter().map(|vm| vm.name().to_owned()).collect();
    assert_eq!(left, ["run-2"]);
    // Nobody says which server's where none made machines there.
    let whose = calve(&["reap", "--provider", "proxmox"]);
    assert!(
        whose.status.code() == Some(127) && text(&whose).contains("owner-proxmox.key"),
        "{}",
        text(&whose)
    );
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let exposed = calve(&["provider", "check", "proxmox"]);
    assert!(!exposed.status.success() && text(&exposed).contains("chmod 600"), "{}", text(&exposed));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_may_be_anywhere_is_where_it_is_cheapest_of_what_was_asked_for() {
    let stage = Stage::set().await;
    let run = |options: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_calve"));
        command.args(["run", "-d", "--on", "any"]).args(options).env_clear();
        command.env("CALVE_HOME", stage.home.path()).env("DIGITALOCEAN_API_URL", &stage.emulator.url);
        // A server that is not there: what would be made is chosen before it is asked.
        command.env("DIGITALOCEAN_TOKEN", TOKEN).env("CALVE_SERVER", "http://127.0.0.1:1");
        text(&command.output().unwrap())
    };
    for (options, chosen) in [
        (&[][..], "chose digitalocean/ams3, s-1vcpu-512mb-10gb, $0.00595 an hour"),
        (
            &["--region", "eu", "--max-price", "0.02/h"],
            "chose digitalocean/ams3, s-1vcpu-512mb-10gb, $0.00595",
        ),
        (&["--region", "Frankfurt", "--memory", "1G"], "chose digitalocean/fra1, s-1vcpu-1gb, $0.00893"),
        (&["--region", "fra1", "--cpus", "2"], "chose digitalocean/fra1, s-2vcpu-4gb, $0.03571"),
        (&["--max-price", "0.001"], "the cheapest is digitalocean/ams3, s-1vcpu-512mb-10gb, at $0.00595"),
        (&["--region", "moon"], "no provider has such a machine"),
        (&["--region", "us"], "there is no image to boot"),
        (&["--region", "us", "--image", "debian-13-x64"], "chose digitalocean/nyc3, s-1vcpu-1gb"),
    ] {
        let said = run(options);
        assert!(said.contains(chosen), "{options:?}: {said}");
    }
    let elsewhere = stage.calve(&["run", "--on", "digitalocean/ams3", "--region", "eu"], TOKEN);
    assert!(text(&elsewhere).contains("say --on any"), "{elsewhere:?}");
    assert!(stage.names().is_empty());
}
