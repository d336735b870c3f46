//! The client of borrowed hosts against a real sshd: keys, sessions, and connections that break.

use std::time::Duration;

use calve_provider::ErrorKind;
use calve_provider::ssh::{Client, HostKey, Settings, Target};
use e2e::wait_until;
use hosts::SshHost;

const MINUTE: Duration = Duration::from_secs(60);

struct Stage {
    host: SshHost,
    dir: tempfile::TempDir,
}

impl Stage {
    fn set() -> Self {
        Self { host: SshHost::boot(64), dir: tempfile::tempdir().unwrap() }
    }

    fn client(&self) -> Client {
        Client::new(Settings {
            program: self.host.client(),
            run_dir: self.dir.path().join("run"),
            pins_dir: self.dir.path().join("pins"),
        })
    }

    fn target(&self, user: &str) -> Target {
        self.host.on(user).parse().unwrap()
    }

    async fn refused(&self, key: Option<&HostKey>) -> calve_provider::ProviderError {
        self.client().open(&self.target("root"), key).await.err().expect("it is refused")
    }

    /// Processes of the client.
    fn processes(&self) -> usize {
        let place = self.dir.path().to_str().unwrap().to_owned();
        let lines = std::fs::read_dir("/proc").unwrap().flatten();
        lines
            .filter(|it| {
                std::fs::read(it.path().join("cmdline"))
                    .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&place))
            })
            .count()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_key_that_was_named_or_is_known_is_trusted_and_then_no_other() {
    let mut stage = Stage::set();
    let shows = stage.host.fingerprint();
    let unknown = stage.refused(None).await;
    assert!(unknown.kind == ErrorKind::Credentials && unknown.message.contains(&shows), "{unknown}");
    assert!(!unknown.may_pass());
    let wrong: HostKey = format!("SHA256:{}", "A".repeat(43)).parse().unwrap();
    assert!(stage.refused(Some(&wrong)).await.message.contains("was asked for"));
    // Neither left a trace by which the next would be trusted.
    assert!(stage.refused(None).await.message.contains("is not known"));
    let right: HostKey = shows.parse().unwrap();
    stage.client().open(&stage.target("root"), Some(&right)).await.unwrap();
    stage.client().open(&stage.target("pi"), None).await.unwrap();
    stage.host.power_off();
    let away = stage.refused(None).await;
    assert!(away.kind == ErrorKind::Unreachable && away.may_pass(), "{away}");
    stage.host.change_key();
    stage.host.start();
    // What the user's known_hosts says does not count any more.
    stage.host.introduce();
    let changed = stage.refused(None).await;
    assert!(changed.kind == ErrorKind::Credentials && changed.message.contains("has changed"), "{changed}");
    assert!(changed.message.contains(&stage.host.fingerprint()), "{changed}");
    let new: HostKey = stage.host.key().parse().unwrap();
    stage.client().open(&stage.target("root"), Some(&new)).await.unwrap();
    stage.client().open(&stage.target("root"), None).await.unwrap();
    let nobody = stage.client().open(&stage.target("nobody"), None).await.err().unwrap();
    assert!(nobody.kind == ErrorKind::Denied && nobody.message.contains("Permission denied"), "{nobody}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_share_a_connection_that_is_made_anew_once_it_broke_and_ends_with_the_client() {
    let stage = Stage::set();
    stage.host.introduce();
    let (client, target) = (stage.client(), stage.target("root"));
    let host = client.open(&target, None).await.unwrap();
    assert!(client.version().await.unwrap().contains("OpenSSH"));
    let said = host
        .run(&["sh", "-c", "cat; echo \"$1\"; echo $SSH_CONNECTION", "x", "it's  $HOME"], b"in\n", MINUTE)
        .await
        .unwrap();
    let again = host.run(&["sh", "-c", "echo $SSH_CONNECTION"], b"", MINUTE).await.unwrap();
    assert!(said.starts_with("in\nit's  $HOME\n") && said.ends_with(&again), "{said} {again}");
    let failed = host.run(&["sh", "-c", "echo why >&2; exit 3"], b"", MINUTE).await.unwrap_err();
    assert!(failed.message.contains("code 3: why"), "{failed}");
    let late = host.run(&["sleep", "1000"], b"", Duration::from_millis(300)).await.unwrap_err();
    assert_eq!(late.kind, ErrorKind::NoAnswer);
    let mut session = host.session(&["sh", "-c", "echo there; exec cat"]).unwrap();
    assert_eq!(session.line().await.unwrap().as_deref(), Some("there\n"));
    stage.host.cut_connections();
    assert_eq!(session.line().await.unwrap(), None);
    assert_eq!(session.end().await.code, None);
    wait_until("the connection to be known as broken", || !host.is_open());
    let next = client.open(&target, None).await.unwrap();
    next.run(&["true"], b"", MINUTE).await.unwrap();
    assert!(stage.processes() > 0);
    drop((host, next, client));
    wait_until("nothing of the client to be left", || stage.processes() == 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn jump_hosts_are_those_of_the_users_configuration() {
    let stage = Stage::set();
    stage.host.introduce();
    let host = stage.client().open(&"ssh://pi@inner".parse().unwrap(), None).await.unwrap();
    assert_eq!(host.run(&["id", "-un"], b"", MINUTE).await.unwrap(), "pi\n");
}
