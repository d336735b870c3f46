//! Ways to break a host while its system is switched: a named case each. What has to be true at the end is the same for
//! all of them: the former system runs, is the one of the profile, and is the one that boots; within 90 seconds.

mod full_disks;
mod restarts;

use std::time::{Duration, Instant};

use calve_wire::system::{HostAnswer, SwitchAction, SwitchOutcome, SwitchStage};
use systems::{BACK_WITHIN, FORMER, FakeHost, NEW, exists, kill};

/// What the server does while the new system waits to be confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Server {
    /// It says so as soon as the host is healthy.
    Hears,
    /// It never hears the host again.
    CutOff,
}

/// How a case must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// With the former system.
    Back,
    /// With the new one: what broke was not the system.
    Applied,
    /// Nothing is begun; the answer holds this.
    Refused(&'static str),
    /// The former system could not be brought back on this host, which must be said.
    Failed,
}

struct Case {
    name: &'static str,
    action: SwitchAction,
    health: Option<&'static str>,
    confirm_ms: u64,
    server: Server,
    /// Room in MiB and in files, where the host's disk is small.
    disk: Option<(u32, u32)>,
    /// Breaks the host beforehand.
    before: fn(&FakeHost),
    /// Breaks it while the switch goes on.
    during: fn(&FakeHost),
    end: End,
}

const fn nothing(_: &FakeHost) {}

/// A switch that would succeed on a host that nobody breaks.
const SOUND: Case = Case {
    name: "",
    action: SwitchAction::Switch,
    health: None,
    confirm_ms: 20_000,
    server: Server::Hears,
    disk: None,
    before: nothing,
    during: nothing,
    end: End::Back,
};

/// The same with a time to confirm that runs out.
const SHORT: Case = Case { confirm_ms: 1500, ..SOUND };
/// The same for a boot.
const BOOT: Case = Case { action: SwitchAction::Boot, ..SOUND };

fn cases() -> Vec<Case> {
    let mut cases = programs();
    cases.extend(health_and_server());
    cases.extend(ends_of_our_own());
    cases.extend(files());
    cases.extend(full_disks::cases());
    cases.extend(restarts::cases());
    cases
}

fn programs() -> Vec<Case> {
    vec![
        Case { name: "nothing is broken", end: End::Applied, ..SOUND },
        Case { name: "nothing is broken, test", action: SwitchAction::Test, end: End::Applied, ..SOUND },
        Case { name: "the activation fails", before: |host| host.breaks("new-test", "exit 1"), ..SOUND },
        Case {
            name: "the activation fails behind its work",
            before: |host| host.breaks("new-test", r#"ln -sfn "$self" "$root/run/current-system"; exit 4"#),
            ..SOUND
        },
        Case {
            name: "the activation fails, test",
            action: SwitchAction::Test,
            before: |host| host.breaks("new-test", r#"ln -sfn "$self" "$root/run/current-system"; exit 4"#),
            ..SOUND
        },
        Case { name: "the activation hangs", before: |host| host.breaks("new-test", "sleep 1000"), ..SHORT },
        Case {
            name: "the activation hangs and ignores SIGTERM",
            before: |host| host.breaks("new-test", "trap '' TERM; while :; do sleep 1000; done"),
            ..SHORT
        },
        Case {
            name: "the activation hangs in a session of its own",
            before: |host| host.breaks("new-test", "setsid sleep 1000 & wait"),
            ..SHORT
        },
        Case {
            name: "the activation leaves something that holds its output, and fails",
            before: |host| host.breaks("new-test", "sleep 1000 & exit 1"),
            ..SOUND
        },
        Case {
            name: "the activation leaves something that holds its output",
            before: |host| host.breaks("new-test", "sleep 1000 &"),
            end: End::Applied,
            ..SOUND
        },
        Case {
            name: "the activation talks without end",
            before: |host| host.breaks("new-test", "yes"),
            ..SHORT
        },
        Case {
            name: "the activation kills itself",
            before: |host| host.breaks("new-test", "kill -9 $$"),
            ..SOUND
        },
        Case {
            name: "the activation kills its group",
            before: |host| host.breaks("new-test", "kill -9 0"),
            ..SOUND
        },
        Case {
            name: "the boot entry is not written",
            before: |host| host.breaks("new-boot", "exit 1"),
            ..SOUND
        },
        Case {
            name: "writing the boot entry hangs",
            before: |host| host.breaks("new-boot", "sleep 1000"),
            ..SHORT
        },
        Case {
            name: "the boot partition is emptied",
            before: |host| host.breaks("new-boot", r#"rm -rf "$root/boot/loader"/entries/*; exit 1"#),
            ..SOUND
        },
        Case {
            name: "the former system is activated at the second try only",
            before: |host| {
                host.breaks("new-test", r#"ln -sfn "$self" "$root/run/current-system"; exit 1"#);
                host.breaks("former-test", r#"[ -e "$root/tried" ] || { : >"$root/tried"; exit 1; }"#);
            },
            ..SOUND
        },
        Case {
            name: "the former system has failed units of its own",
            before: |host| {
                host.breaks("new-test", r#"ln -sfn "$self" "$root/run/current-system"; exit 1"#);
                host.breaks("former-test", r#"ln -sfn "$self" "$root/run/current-system"; exit 4"#);
            },
            ..SOUND
        },
        Case {
            name: "the former system does not write its boot entry",
            before: |host| {
                host.breaks("new-test", "exit 1");
                host.breaks("former-boot", "exit 1");
            },
            ..SOUND
        },
        Case {
            name: "the new system removes the program of the former one",
            before: |host| {
                host.breaks("new-test", &format!(r#"rm "$root{FORMER}/bin/switch-to-configuration"; exit 1"#))
            },
            during: |host| {
                // Only a restart brings it back, which the supervisor asks for.
                wait_for_restart(host);
                assert_eq!(host.boot(true), FORMER);
            },
            ..SOUND
        },
    ]
}

fn health_and_server() -> Vec<Case> {
    vec![
        Case { name: "the health check fails", health: Some("exit 1"), ..SHORT },
        Case { name: "the health check hangs", health: Some("sleep 1000"), ..SHORT },
        Case { name: "the health check is no command", health: Some("no-such-command"), ..SHORT },
        Case { name: "the health check is no shell", health: Some("if then ("), ..SHORT },
        Case { name: "the health check kills itself", health: Some("kill -9 $$"), ..SHORT },
        Case { name: "the health check leaves processes", health: Some("sleep 1000 & exit 1"), ..SHORT },
        Case { name: "the health check talks without end", health: Some("yes"), ..SHORT },
        Case {
            name: "the health check lies, the host is cut off",
            health: Some("true"),
            server: Server::CutOff,
            ..SHORT
        },
        Case {
            name: "the health check passes once only",
            health: Some(r#"[ ! -e "$CALVE_SWITCH_ROOT/once" ] && : >"$CALVE_SWITCH_ROOT/once""#),
            server: Server::CutOff,
            ..SHORT
        },
        Case {
            name: "the health check passes late",
            health: Some(r#"[ -e "$CALVE_SWITCH_ROOT/late" ] || { : >"$CALVE_SWITCH_ROOT/late"; exit 1; }"#),
            end: End::Applied,
            ..SOUND
        },
        Case { name: "the server is gone", server: Server::CutOff, ..SHORT },
        Case {
            name: "the server is gone, test",
            action: SwitchAction::Test,
            server: Server::CutOff,
            ..SHORT
        },
        Case {
            name: "the server confirms another switch",
            server: Server::CutOff,
            during: |host| {
                host.wait_for(SwitchStage::Confirming);
                assert!(matches!(host.confirm("two"), HostAnswer::Refused { .. }));
            },
            ..SHORT
        },
        Case {
            name: "the server confirms what is not healthy",
            health: Some("exit 1"),
            during: |host| {
                host.wait_for(SwitchStage::Confirming);
                host.confirm("one");
            },
            ..SHORT
        },
        Case {
            name: "the server confirms too late",
            server: Server::CutOff,
            during: |host| {
                host.wait_for(SwitchStage::Ended);
                host.confirm("one");
            },
            ..SHORT
        },
        Case {
            name: "somebody wants the former system back",
            server: Server::CutOff,
            during: |host| {
                host.wait_for(SwitchStage::Confirming);
                assert!(host.run(&["back", "one", "uid:1000 wants it back"], None).status.success());
            },
            ..SOUND
        },
        Case {
            name: "a second switch is begun",
            during: |host| {
                let mut second = host.order(SwitchAction::Switch, None, 5000);
                second.id = "two".to_owned();
                let HostAnswer::Busy { switch } = host.begin(&second) else { panic!("it was begun") };
                assert_eq!((switch.id.as_str(), switch.by.as_str()), ("one", "uid:1000"));
            },
            end: End::Applied,
            ..SOUND
        },
        Case {
            name: "the same switch is begun again, under way and behind its end",
            during: |host| {
                let order = host.order(SwitchAction::Switch, None, 5000);
                let again = || match host.begin(&order) {
                    HostAnswer::Done { switch } => switch,
                    answer => panic!("{answer:?}"),
                };
                assert_eq!(again().id, "one");
                host.wait_for(SwitchStage::Confirming);
                host.confirm("one");
                assert_eq!(again().outcome, Some(SwitchOutcome::Applied));
                assert_eq!(host.log().matches("new test").count(), 1, "{}", host.log());
            },
            end: End::Applied,
            ..SOUND
        },
    ]
}

/// Kills who carries the switch out: the last is the supervisor, the first its guard.
fn kill_supervisor(host: &FakeHost) {
    kill(*host.supervisors().last().expect("somebody carries it out"), "KILL");
}

fn in_activation(host: &FakeHost) {
    let start = Instant::now();
    while !host.log().contains("new test") && start.elapsed() < BACK_WITHIN {
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn wait_for_restart(host: &FakeHost) {
    let start = Instant::now();
    while !exists(&host.path("run/restart-asked")) {
        assert!(
            start.elapsed() < BACK_WITHIN,
            "no restart was asked for: {:?}\n{}",
            host.status(),
            host.log()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn ends_of_our_own() -> Vec<Case> {
    vec![
        Case {
            name: "the supervisor is killed during the activation",
            before: |host| host.breaks("new-test", "sleep 1000"),
            during: |host| {
                in_activation(host);
                kill_supervisor(host);
            },
            ..SOUND
        },
        Case {
            name: "the supervisor is told to end during the activation",
            before: |host| host.breaks("new-test", "sleep 1000"),
            during: |host| {
                in_activation(host);
                kill(*host.supervisors().last().expect("it runs"), "TERM");
            },
            ..SOUND
        },
        Case {
            name: "the supervisor is killed while it waits",
            during: |host| {
                host.wait_for(SwitchStage::Confirming);
                kill_supervisor(host);
            },
            end: End::Applied,
            ..SOUND
        },
        Case {
            name: "the supervisor is killed while it waits, and the host is cut off",
            server: Server::CutOff,
            during: |host| {
                host.wait_for(SwitchStage::Confirming);
                kill_supervisor(host);
            },
            ..SHORT
        },
        Case {
            name: "the guard is killed",
            server: Server::CutOff,
            during: |host| {
                host.wait_for(SwitchStage::Confirming);
                kill(host.supervisors()[0], "KILL");
            },
            ..SHORT
        },
        Case {
            name: "supervisor and guard are killed, and the agent starts",
            server: Server::CutOff,
            before: |host| host.breaks("new-test", "sleep 1000"),
            during: |host| {
                in_activation(host);
                host.lose_power();
                assert!(host.run(&["resume"], None).status.success());
            },
            ..SOUND
        },
        Case {
            name: "the supervisor is killed on the way back",
            server: Server::CutOff,
            before: |host| {
                host.breaks("former-test", r#"[ -e "$root/slow" ] || { : >"$root/slow"; sleep 5; }"#)
            },
            during: |host| {
                host.wait_for(SwitchStage::GoingBack);
                kill_supervisor(host);
            },
            ..SHORT
        },
        Case {
            name: "the supervisor is killed again and again",
            server: Server::CutOff,
            during: |host| {
                for _ in 0..5 {
                    if let Some(supervisor) = host.supervisors().last() {
                        kill(*supervisor, "KILL");
                    }
                    std::thread::sleep(Duration::from_millis(300));
                }
            },
            ..SHORT
        },
    ]
}

fn files() -> Vec<Case> {
    vec![
        Case {
            name: "switch-to-configuration is missing",
            before: |host| {
                std::fs::remove_file(host.path(&format!("{NEW}/bin/switch-to-configuration"))).unwrap()
            },
            end: End::Refused("has no bin/switch-to-configuration"),
            ..SOUND
        },
        Case {
            name: "switch-to-configuration is not executable",
            before: |host| {
                use std::os::unix::fs::PermissionsExt;
                let program = host.path(&format!("{NEW}/bin/switch-to-configuration"));
                std::fs::set_permissions(program, std::fs::Permissions::from_mode(0o644)).unwrap();
            },
            end: End::Refused("is not executable"),
            ..SOUND
        },
        Case {
            name: "switch-to-configuration is no program",
            before: |host| host.script(&format!("{NEW}/bin/switch-to-configuration"), "\u{1}\u{2}\u{3}"),
            ..SOUND
        },
        Case {
            name: "switch-to-configuration names an interpreter that is not there",
            before: |host| {
                host.script(&format!("{NEW}/bin/switch-to-configuration"), "#!/nix/store/no/perl\n")
            },
            ..SOUND
        },
        Case {
            name: "the new system is not there",
            before: |host| std::fs::remove_dir_all(host.path(NEW)).unwrap(),
            end: End::Refused("is not on the host"),
            ..SOUND
        },
        Case {
            name: "the former system could not be brought back",
            before: |host| {
                std::fs::remove_file(host.path(&format!("{FORMER}/bin/switch-to-configuration"))).unwrap()
            },
            end: End::Refused("could not go back"),
            ..SOUND
        },
        Case {
            name: "the profile's link cannot be replaced",
            before: |host| {
                std::fs::create_dir_all(host.path("nix/var/nix/profiles/system-2-link/taken")).unwrap();
            },
            ..SOUND
        },
        Case {
            name: "the profiles are no directory",
            before: |host| {
                std::fs::remove_dir_all(host.path("nix/var/nix/profiles")).unwrap();
                std::fs::write(host.path("nix/var/nix/profiles"), "").unwrap();
            },
            end: End::Refused("profile cannot be changed"),
            ..SOUND
        },
        Case {
            name: "the activation removes the profile's links",
            before: |host| {
                host.breaks(
                    "new-test",
                    r#"rm "$root"/nix/var/nix/profiles/system "$root"/nix/var/nix/profiles/*former; exit 1"#,
                );
            },
            ..SOUND
        },
        Case {
            name: "the boot loader's file cannot be replaced",
            before: |host| {
                std::fs::create_dir_all(host.path("boot/loader/loader.conf.calve-new")).unwrap();
            },
            ..SOUND
        },
        Case {
            name: "the record's directory is no directory",
            before: |host| {
                std::fs::create_dir_all(host.path("var/lib/calve")).unwrap();
                std::fs::write(host.kept(""), "").unwrap_or_default();
                std::fs::write(host.path("var/lib/calve/switch"), "").unwrap();
            },
            end: End::Refused("cannot be made"),
            ..SOUND
        },
        Case {
            name: "the activation removes everything of calve",
            before: |host| host.breaks("new-test", r#"rm -rf "$root/var/lib/calve"; exit 1"#),
            ..SOUND
        },
        Case {
            name: "the socket is removed",
            server: Server::CutOff,
            during: |host| {
                host.wait_for(SwitchStage::Confirming);
                let _ = std::fs::remove_file(host.kept("socket"));
                host.confirm("one");
            },
            ..SHORT
        },
        Case {
            name: "the history cannot be written",
            before: |host| {
                host.breaks("new-test", "exit 1");
                std::fs::create_dir_all(host.kept("history")).unwrap();
            },
            ..SOUND
        },
        Case {
            name: "the record is torn by a loss of power",
            server: Server::CutOff,
            during: |host| {
                host.wait_for(SwitchStage::Confirming);
                host.lose_power();
                tear_newest(host);
                host.boot(true);
            },
            ..SOUND
        },
    ]
}

/// Damages the half of the record that was written last.
fn tear_newest(host: &FakeHost) {
    let mut record = std::fs::read(host.kept("record")).expect("a record");
    let half = record.len() / 2;
    let sequence = |half: &[u8]| -> u64 {
        let head = String::from_utf8_lossy(&half[..64]).into_owned();
        head.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0)
    };
    let newest = if sequence(&record[..half]) > sequence(&record[half..]) { 0 } else { half };
    record[newest + 100..newest + 200].fill(0);
    std::fs::write(host.kept("record"), record).expect("written");
}

fn run(case: &Case) {
    let host = match case.disk {
        None => FakeHost::new(),
        Some((mib, files)) => match FakeHost::on_small_disk(mib, files) {
            Some(host) => host,
            None => return,
        },
    };
    (case.before)(&host);
    let answer = host.begin(&host.order(case.action, case.health, case.confirm_ms));
    if let End::Refused(why) = case.end {
        let HostAnswer::Refused { message } = answer else { panic!("{}: {answer:?}", case.name) };
        assert!(message.contains(why), "{}: {message}", case.name);
        return assert_former(&host, case);
    }
    assert!(matches!(answer, HostAnswer::Done { .. }), "{}: {answer:?}", case.name);
    let begun = Instant::now();
    (case.during)(&host);
    let outcome = end(&host, case, begun);
    let expected = match case.end {
        End::Back | End::Refused(_) => SwitchOutcome::RolledBack,
        End::Applied => SwitchOutcome::Applied,
        End::Failed => SwitchOutcome::Failed,
    };
    // Where everything was removed, nothing can be told; what is true of the host must be true all the same.
    assert!(
        outcome.is_none_or(|outcome| outcome == expected),
        "{}: {outcome:?}\n{:?}\n{}",
        case.name,
        host.status(),
        host.log()
    );
    match case.end {
        End::Back | End::Refused(_) => assert_former(&host, case),
        End::Applied => {
            assert_eq!(
                (host.current().as_str(), host.boots().as_str()),
                (NEW, if case.action == SwitchAction::Test { FORMER } else { NEW }),
                "{}",
                case.name
            );
        }
        End::Failed => {}
    }
    // Whoever carried it out tidies up behind the end; where somebody killed them, the next look has it done.
    loop {
        let is_tidy = host.status().is_none_or(|switch| switch.ended_unix_ms.is_some());
        if is_tidy && host.supervisors().is_empty() {
            break;
        }
        assert!(begun.elapsed() < BACK_WITHIN, "{}: {:?} are left", case.name, host.supervisors());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(
        !exists(&host.kept("ballast")) && !exists(&host.path("nix/var/nix/profiles/system-calve-former")),
        "{}",
        case.name
    );
}

/// Plays the server until the switch has ended.
fn end(host: &FakeHost, case: &Case, begun: Instant) -> Option<SwitchOutcome> {
    loop {
        let switch = host.status();
        match &switch {
            Some(switch) if switch.outcome.is_some() => return switch.outcome,
            Some(switch)
                if switch.stage == SwitchStage::Confirming
                    && switch.healthy
                    && case.server == Server::Hears =>
            {
                host.confirm(&switch.id);
            }
            None if host.supervisors().is_empty() => return None,
            _ => {}
        }
        assert!(begun.elapsed() < BACK_WITHIN, "{}: {switch:?}\n{}", case.name, host.log());
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn assert_former(host: &FakeHost, case: &Case) {
    assert_eq!(host.current(), FORMER, "{}\n{}", case.name, host.log());
    if exists(&host.path("nix/var/nix/profiles/system")) {
        assert_eq!(host.profile(), FORMER, "{}\n{}", case.name, host.log());
    }
    if exists(&host.path("boot/loader")) {
        assert_eq!(host.boots(), FORMER, "{}\n{}", case.name, host.log());
    }
}

/// All of them, several at once: they wait most of the time. `CALVE_CASES=word` runs those whose name holds the word.
#[test]
fn a_broken_host_has_its_former_system_back() {
    let only = std::env::var("CALVE_CASES").unwrap_or_default();
    let cases: Vec<Case> = cases().into_iter().filter(|case| case.name.contains(&only)).collect();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let names: std::collections::BTreeSet<&str> = cases.iter().map(|case| case.name).collect();
    assert_eq!(names.len(), cases.len(), "each case has a name of its own");
    systems::program();
    let failed = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, std::sync::atomic::Ordering::SeqCst)) {
                    let begun = Instant::now();
                    let ran = std::panic::catch_unwind(|| run(case));
                    if ran.is_err() {
                        failed.lock().unwrap().push(case.name);
                    }
                    if !only.is_empty() {
                        println!("{:?} {}", begun.elapsed(), case.name);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "of {} cases: {failed:#?}", cases.len());
}
