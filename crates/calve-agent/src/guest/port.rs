//! The virtio-serial port to the host.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Name of the port on the host's command line.
const NAME: &str = "calve.agent";
/// What the port is called where its device is the only one of its kind and the port the only one of the device, as the
/// host has it: listing all of them costs a start in emulation more than looking at this one.
const USUAL: &str = "vport0p1";
/// The device of that name.
pub(super) const USUAL_DEVICE: &str = "/dev/vport0p1";
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
    let ports = Path::new("/sys/class/virtio-ports");
    let ours = |port: &OsStr| {
        fs::read(ports.join(port).join("name")).is_ok_and(|name| name.trim_ascii() == NAME.as_bytes())
    };
    let device = |port: &OsStr| Path::new("/dev").join(port);
    if ours(OsStr::new(USUAL)) {
        return Some(device(OsStr::new(USUAL)));
    }
    let names = fs::read_dir(ports).ok()?.flatten().map(|entry| entry.file_name());
    names.into_iter().find(|name| ours(name)).map(|name| device(&name))
}
