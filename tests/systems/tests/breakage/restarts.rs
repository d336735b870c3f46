//! Restarts that nobody asked for, and systems whose boot is tried once.

use calve_wire::system::{SwitchAction, SwitchStage};
use systems::{FORMER, FakeHost, NEW};

use crate::{BOOT, Case, End, SHORT, SOUND, Server, in_activation, wait_for_restart};

fn await_boot(host: &FakeHost) {
    host.wait_for(SwitchStage::AwaitingBoot);
    assert_eq!(host.boots(), FORMER, "the default entry stays until the new system is confirmed");
}

pub fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "the host restarts during the activation",
            before: |host| host.breaks("new-test", "sleep 1000"),
            during: |host| {
                in_activation(host);
                assert_eq!(host.boot(true), FORMER);
            },
            ..SOUND
        },
        Case {
            name: "the host restarts while the boot entry is written, into the new system",
            before: |host| {
                host.breaks("new-boot", "");
                host.script("hang", "");
                host.breaks("bootctl", "");
            },
            during: |host| {
                // As if the power had gone between the new system's entry and the guard.
                host.wait_for(SwitchStage::Confirming);
                host.lose_power();
                let conf = "timeout 3\ndefault nixos-generation-2.conf\n";
                std::fs::write(host.path("boot/loader/loader.conf"), conf).unwrap();
                assert_eq!(host.boot(true), NEW);
                wait_for_restart(host);
                assert_eq!(host.boot(true), FORMER);
            },
            ..SOUND
        },
        Case {
            name: "the host restarts while it waits to be confirmed",
            server: Server::CutOff,
            during: |host| {
                host.wait_for(SwitchStage::Confirming);
                assert_eq!(host.boot(true), FORMER);
            },
            ..SOUND
        },
        Case {
            name: "the host restarts while it waits to be confirmed, test",
            action: SwitchAction::Test,
            server: Server::CutOff,
            during: |host| {
                host.wait_for(SwitchStage::Confirming);
                assert_eq!(host.boot(true), FORMER);
            },
            ..SOUND
        },
        Case {
            name: "the host restarts on the way back",
            server: Server::CutOff,
            before: |host| host.breaks("former-test", "sleep 1000"),
            during: |host| {
                host.wait_for(SwitchStage::GoingBack);
                assert_eq!(host.boot(true), FORMER);
            },
            ..SHORT
        },
        Case {
            name: "the former system cannot be activated, and the host restarts into it",
            server: Server::CutOff,
            before: |host| host.breaks("former-test", "exit 1"),
            during: |host| {
                wait_for_restart(host);
                assert_eq!(host.boot(true), FORMER);
            },
            ..SHORT
        },
        Case {
            name: "without a boot loader the former system cannot be activated",
            server: Server::CutOff,
            before: |host| {
                std::fs::remove_dir_all(host.path("boot")).unwrap();
                host.breaks("former-test", "exit 1");
            },
            end: End::Failed,
            ..SHORT
        },
        Case {
            name: "boot: nothing is broken",
            during: |host| {
                await_boot(host);
                assert_eq!(host.boot(true), NEW);
            },
            end: End::Applied,
            ..BOOT
        },
        Case {
            name: "boot: the new system never comes up",
            during: |host| {
                await_boot(host);
                assert_eq!(host.boot(false), NEW);
                assert_eq!(host.boot(true), FORMER);
            },
            ..BOOT
        },
        Case {
            name: "boot: the new system is not healthy",
            health: Some("exit 1"),
            confirm_ms: 1500,
            during: |host| {
                await_boot(host);
                assert_eq!(host.boot(true), NEW);
                wait_for_restart(host);
                assert_eq!(host.boot(true), FORMER);
            },
            ..BOOT
        },
        Case {
            name: "boot: the new system is cut off",
            server: Server::CutOff,
            confirm_ms: 1500,
            during: |host| {
                await_boot(host);
                assert_eq!(host.boot(true), NEW);
                wait_for_restart(host);
                assert_eq!(host.boot(true), FORMER);
            },
            ..BOOT
        },
        Case {
            name: "boot: the new system panics while it is tried",
            server: Server::CutOff,
            during: |host| {
                await_boot(host);
                assert_eq!(host.boot(true), NEW);
                host.wait_for(SwitchStage::Confirming);
                assert_eq!(host.boot(true), FORMER);
            },
            ..BOOT
        },
        Case {
            name: "boot: the host restarts twice before anybody looks",
            during: |host| {
                await_boot(host);
                assert_eq!(host.boot(false), NEW);
                assert_eq!(host.boot(false), FORMER);
                assert_eq!(host.boot(true), FORMER);
            },
            ..BOOT
        },
        Case {
            name: "boot: somebody wants the former system back before the boot",
            during: |host| {
                await_boot(host);
                assert!(host.run(&["back", "one", "not any more"], None).status.success());
                host.wait_for(SwitchStage::Ended);
                assert_eq!(host.boot(true), FORMER);
            },
            ..BOOT
        },
        Case {
            name: "boot: no entry can be tried once",
            before: |host| host.breaks("bootctl", "exit 1"),
            ..BOOT
        },
        Case {
            name: "boot: no boot loader",
            before: |host| std::fs::remove_dir_all(host.path("boot")).unwrap(),
            end: End::Refused("no boot loader"),
            ..BOOT
        },
    ]
}
