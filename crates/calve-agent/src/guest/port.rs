//! The virtio-serial port to the host.

use std::fs;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

/// Name of the port on the host's command line.
const NAME: &str = "calve.agent";
/// The host tells the name a moment after the device is there; this is for a guest that hardly gets to run.
const APPEAR_MAX: Duration = Duration::from_secs(20);
/// sysfs tells of no change, so it is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// Opens the port, for reading and writing, not blocking.
pub(super) fn open() -> anyhow::Result<OwnedFd> {
    let give_up = Instant::now() + APPEAR_MAX;
    loop {
        if let Some(device) = find() {
            let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::CLOEXEC;
            let path = format!("/dev/{device}");
            return rustix::fs::open(&path, flags, rustix::fs::Mode::empty())
                .with_context(|| format!("the port {path} cannot be opened"));
        }
        if Instant::now() > give_up {
            bail!("the host's port {NAME} did not appear: does this kernel have virtio_console?");
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}

fn find() -> Option<String> {
    for entry in fs::read_dir("/sys/class/virtio-ports").ok()?.flatten() {
        if fs::read_to_string(entry.path().join("name")).is_ok_and(|name| name.trim() == NAME) {
            return entry.file_name().into_string().ok();
        }
    }
    None
}
