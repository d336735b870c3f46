//! Disks without room, which only root can show.

use calve_wire::system::SwitchStage;
use systems::FORMER;

use crate::{Case, End, SHORT, SOUND, Server, kill_supervisor};

/// A disk that takes all that a switch writes, and nothing large.
const SMALL: Option<(u32, u32)> = Some((8, 1000));
/// Fills it, to the last file.
const FILL: &str = r#"cat /dev/zero >"$root/fill" 2>/dev/null"#;
// Not `:`, of which a failed redirection ends the shell.
const FILL_FILES: &str = r#"n=0; while true >"$root/fill-$n"; do n=$((n+1)); done 2>/dev/null"#;

pub fn cases() -> Vec<Case> {
    vec![
        Case { name: "the disk is small", disk: SMALL, end: End::Applied, ..SOUND },
        Case {
            name: "the disk is full beforehand",
            disk: SMALL,
            before: |host| {
                let filled = std::fs::write(host.path("fill"), vec![1; 16 << 20]);
                assert!(filled.is_err());
            },
            end: End::Refused("no room for the way back"),
            ..SOUND
        },
        Case {
            name: "the activation fills the disk and fails",
            disk: SMALL,
            before: |host| host.breaks("new-test", &format!("{FILL}; exit 1")),
            ..SOUND
        },
        Case {
            name: "the activation fills the disk and cuts the host off",
            server: Server::CutOff,
            disk: SMALL,
            before: |host| host.breaks("new-test", FILL),
            ..SHORT
        },
        Case {
            name: "writing the boot entry fills the disk",
            disk: SMALL,
            before: |host| host.breaks("new-boot", FILL),
            ..SOUND
        },
        Case {
            name: "the disk is filled while the new system waits",
            server: Server::CutOff,
            disk: SMALL,
            during: |host| {
                host.wait_for(SwitchStage::Confirming);
                let _ = std::fs::write(host.path("fill"), vec![1; 16 << 20]);
            },
            ..SHORT
        },
        Case {
            name: "the disk is filled while the new system waits, and the host restarts",
            server: Server::CutOff,
            disk: SMALL,
            during: |host| {
                host.wait_for(SwitchStage::Confirming);
                let _ = std::fs::write(host.path("fill"), vec![1; 16 << 20]);
                assert_eq!(host.boot(true), FORMER);
            },
            ..SOUND
        },
        Case {
            name: "the health check fills the disk and the supervisor is killed",
            health: Some(r#"cat /dev/zero >"$CALVE_SWITCH_ROOT/fill""#),
            disk: SMALL,
            during: |host| {
                host.wait_for(SwitchStage::Confirming);
                kill_supervisor(host);
            },
            ..SHORT
        },
        Case {
            name: "the activation leaves no room for another file",
            disk: SMALL,
            before: |host| host.breaks("new-test", &format!("{FILL_FILES}; exit 1")),
            ..SOUND
        },
        Case {
            name: "the activation leaves no room for another file and cuts the host off",
            server: Server::CutOff,
            disk: SMALL,
            before: |host| {
                let breaks = format!(r#"ln -sfn "$self" "$root/run/current-system"; {FILL_FILES}; exit 0"#);
                host.breaks("new-test", &breaks);
            },
            ..SHORT
        },
    ]
}
