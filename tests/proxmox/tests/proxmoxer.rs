//! The emulator is held to the client that people use from Python: `proxmoxer` from PyPI, which `scripts/setup.sh` installs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use proxmox_emulator::{Emulator, Options, PASSWORD, TOKEN, USER};

#[tokio::test(flavor = "multi_thread")]
async fn the_client_that_people_use_finds_what_it_expects() {
    let python = std::env::var_os("CALVE_PROXMOXER_PYTHON")
        .map(PathBuf::from)
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/proxmoxer/bin/python"));
    let has_proxmoxer = |python: &Path| {
        let imports = Command::new(python).args(["-c", "import proxmoxer, requests"]).output();
        imports.is_ok_and(|output| output.status.success())
    };
    if !has_proxmoxer(&python) {
        println!("left out: {} has no proxmoxer, which scripts/setup.sh fetches", python.display());
        return;
    }
    let task = Duration::from_millis(20);
    let emulator = Emulator::start(Options { task, clone: task, ..Options::default() }).await.unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python_client.py");
    let mut command = Command::new(python);
    command.args([script, &emulator.url, TOKEN, USER, PASSWORD]);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.trim() == "held", "{out}{err}");
    assert!(emulator.machines().is_empty() && emulator.files().is_empty());
}
