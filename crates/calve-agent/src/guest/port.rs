//! The virtio-serial port to the host.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Name of the port on the host's command line.
const NAME: &str = "calve.agent";
/// The host tells the name a moment after the device is there; this is for a guest that hardly gets to run.
const APPEAR_MAX: Duration = Duration::from_secs(20);
/// sysfs tells of no change, so it is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// The port's device, waited for.
pub(super) fn find() -> io::Result<PathBuf> {
    let give_up = Instant::now() + APPEAR_MAX;
    loop {
        if let Some(device) = look() {
            return Ok(device);
        }
        if Instant::now() > give_up {
            let text =
                format!("the host's port {NAME} did not appear: does this kernel have virtio_console?");
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}

fn look() -> Option<PathBuf> {
    for entry in fs::read_dir("/sys/class/virtio-ports").ok()?.flatten() {
        if fs::read_to_string(entry.path().join("name")).is_ok_and(|name| name.trim() == NAME) {
            return Some(PathBuf::from("/dev").join(entry.file_name()));
        }
    }
    None
}
