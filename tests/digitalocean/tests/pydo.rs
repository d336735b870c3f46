//! The emulator is held to the vendor's own client: `pydo` from PyPI, which `scripts/setup.sh` installs.

use std::path::{Path, PathBuf};
use std::process::Command;

use digitalocean_emulator::{Emulator, Options, TOKEN};

#[tokio::test(flavor = "multi_thread")]
async fn the_vendors_own_client_finds_what_it_expects() {
    let python = std::env::var_os("CALVE_PYDO_PYTHON")
        .map(PathBuf::from)
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/pydo/bin/python"));
    let has_pydo = |python: &Path| {
        Command::new(python).args(["-c", "import pydo"]).output().is_ok_and(|output| output.status.success())
    };
    if !has_pydo(&python) {
        println!("left out: {} has no pydo, which scripts/setup.sh fetches", python.display());
        return;
    }
    let emulator = Emulator::start(Options::default()).await.unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vendor_client.py");
    let mut command = Command::new(python);
    command.args([script, &emulator.url, TOKEN]);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.trim() == "held", "{out}{err}");
}
