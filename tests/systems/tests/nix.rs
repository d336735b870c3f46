//! Hosts with a Nix of their own: what is brought to them becomes paths that this Nix knows and keeps, also where the store is
//! mounted read-only.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use calve_wire::system::{
    HostAnswer, HostOrder, HostRoom, REGISTRATION, SwitchAction, SwitchOutcome, SwitchStage,
};
use systems::{FORMER, FakeHost, NEW, exists};

/// What the new system refers to.
const LIBRARY: &str = "/nix/store/22222222222222222222222222222222-library";
/// Nobody refers to it.
const GARBAGE: &str = "/nix/store/33333333333333333333333333333333-garbage";

/// A host whose Nix knows the former system; the new one lies elsewhere.
struct Host {
    host: FakeHost,
    elsewhere: tempfile::TempDir,
}

/// None, with a sentence, where there is no Nix.
fn nix_store() -> Option<PathBuf> {
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&dirs).map(|dir| dir.join("nix-store")).find(|program| program.is_file());
    if found.is_none() {
        println!("not shown: there is no nix-store");
    }
    found
}

impl Host {
    fn new(nix_store: &Path) -> Self {
        let host = FakeHost::new();
        let root = host.path("");
        let (root, program) = (root.display(), nix_store.display());
        let script =
            format!("#!/bin/sh\nNIX_CONFIG='build-users-group =' exec {program} --store '{root}' \"$@\"\n");
        host.script("usr/bin/nix-store", &script);
        let elsewhere = tempfile::tempdir().expect("a directory");
        let this = Self { host, elsewhere };
        this.nix(&["--init"], "");
        this.nix(&["--load-db"], &registration(&[(FORMER, &[])]));
        // What was here before, nobody has told Nix of.
        fs::create_dir(this.host.path(GARBAGE)).expect("made");
        fs::rename(this.host.path(NEW), this.elsewhere.path().join(name(NEW))).expect("moved");
        fs::create_dir(this.elsewhere.path().join(name(LIBRARY))).expect("made");
        fs::write(this.elsewhere.path().join(name(LIBRARY)).join("lib"), "whole").expect("written");
        this
    }

    fn nix(&self, words: &[&str], input: &str) -> String {
        let output = self.try_nix(words, input);
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    fn try_nix(&self, words: &[&str], input: &str) -> Output {
        let file = self.elsewhere.path().join("input");
        fs::write(&file, input).expect("written");
        let mut command = Command::new(self.host.path("usr/bin/nix-store"));
        let input = fs::File::open(file).expect("there");
        command.args(words).stdin(input).output().expect("it starts")
    }

    /// Does what the server does: brings what is missing, and what Nix is to know of it.
    fn bring(&self, room: &HostRoom) {
        let dir = self.host.path(&room.dir);
        fs::create_dir_all(&dir).expect("beside the store anybody may write");
        for name in &room.missing {
            fs::rename(self.elsewhere.path().join(name), dir.join(name)).expect("moved");
        }
        let known = registration(&[(LIBRARY, &[]), (NEW, &[LIBRARY])]);
        fs::write(dir.join(REGISTRATION), known).expect("written");
    }

    fn order(&self, room: &HostRoom) -> HostOrder {
        let order = self.host.order(SwitchAction::Switch, None, 30_000);
        HostOrder { incoming: Some(room.dir.clone()), ..order }
    }

    /// Switches to the new system, and has Nix collect what nobody needs.
    fn switch(&self) {
        let room = self.host.room(&[name(NEW), name(LIBRARY), name(FORMER)]);
        assert!(room.registers);
        assert_eq!(room.missing.len(), 2, "{room:?}");
        self.bring(&room);
        let begun = self.host.begin(&self.order(&room));
        assert!(matches!(begun, HostAnswer::Done { .. }), "{begun:?}");
        self.host.wait_for(SwitchStage::Confirming);
        // Not confirmed yet, and not what the host boots: it stays all the same.
        self.nix(&["--gc"], "");
        self.host.confirm("one");
        let ended = self.host.wait_for(SwitchStage::Ended);
        assert_eq!(ended.outcome, Some(SwitchOutcome::Applied), "{ended:?}");
        self.nix(&["--gc"], "");
        for path in [NEW, LIBRARY, FORMER] {
            self.nix(&["--check-validity", path], "");
        }
        assert_eq!(self.nix(&["--query", "--references", NEW], "").trim(), LIBRARY);
        assert_eq!(fs::read_to_string(self.host.path(LIBRARY).join("lib")).expect("there"), "whole");
        assert!(!exists(&self.host.path(GARBAGE)) && !exists(&self.host.path(&room.dir)));
        assert!(!exists(&self.host.path("nix/var/nix/gcroots/calve-switch")));
    }
}

fn name(path: &str) -> &str {
    path.trim_start_matches("/nix/store/")
}

/// In the words of `nix-store --load-db`; it does not look at hashes.
fn registration(paths: &[(&str, &[&str])]) -> String {
    let hash = "0".repeat(64);
    let of = |(path, references): &(&str, &[&str])| {
        let lines: String = references.iter().map(|reference| format!("{reference}\n")).collect();
        format!("{path}\n{hash}\n120\n\n{}\n{lines}", references.len())
    };
    paths.iter().map(of).collect()
}

#[test]
fn a_switched_system_is_known_to_nix_and_no_garbage() {
    let Some(nix_store) = nix_store() else { return };
    let host = Host::new(&nix_store);
    host.switch();
    // Nothing is missing any more.
    assert_eq!(host.host.room(&[name(NEW), name(LIBRARY)]).missing, Vec::<String>::new());
}

#[test]
fn what_lies_in_the_store_and_nix_does_not_know_is_brought_again() {
    let Some(nix_store) = nix_store() else { return };
    let host = Host::new(&nix_store);
    fs::create_dir(host.host.path(LIBRARY)).expect("made");
    fs::write(host.host.path(LIBRARY).join("lib"), "half").expect("written");
    host.switch();
}

#[test]
fn a_store_that_is_mounted_read_only_takes_a_system() {
    let Some(nix_store) = nix_store() else { return };
    if !e2e::may_mount("a_store_that_is_mounted_read_only_takes_a_system") {
        return;
    }
    let host = Host::new(&nix_store);
    let store = host.host.path("nix/store");
    let mount = |words: &[&str]| {
        let mut command = Command::new("mount");
        assert!(command.args(words).arg(&store).status().expect("it starts").success());
    };
    mount(&["--bind", &store.display().to_string()]);
    mount(&["-o", "remount,bind,ro"]);
    assert!(fs::write(store.join("file"), "").is_err());
    host.switch();
    assert!(fs::write(store.join("file"), "").is_err());
}

#[test]
fn a_collection_under_way_holds_up_the_switch_and_a_missing_nix_refuses_it() {
    let Some(nix_store) = nix_store() else { return };
    let host = Host::new(&nix_store);
    let room = host.host.room(&[name(NEW), name(LIBRARY)]);
    host.bring(&room);
    let lock = fs::File::create(host.host.path("nix/var/nix/gc.lock")).expect("made");
    lock.lock().expect("nobody has it");
    match host.host.begin(&host.order(&room)) {
        HostAnswer::Refused { message } => assert!(message.contains("garbage collection"), "{message}"),
        answer => panic!("{answer:?}"),
    }
    assert!(!exists(&host.host.path(NEW)) && exists(&host.host.path(&room.dir).join(name(NEW))));
    drop(lock);
    fs::remove_file(host.host.path("usr/bin/nix-store")).expect("there");
    match host.host.begin(&host.order(&room)) {
        HostAnswer::Refused { message } => assert!(message.contains("no nix-store"), "{message}"),
        answer => panic!("{answer:?}"),
    }
    assert!(!exists(&host.host.path(NEW)));
    assert!(!exists(&host.host.path("nix/var/nix/gcroots/calve-switch")));
    let output = host.host.run(&["room", "one"], Some(name(FORMER)));
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("no nix-store"));
}
