//! User data on a volume, an ISO 9660 image labelled `cidata` (cloud-init's NoCloud).

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::mount::{MountFlags, UnmountFlags, unmount};

use super::{metadata::Metadata, mounts};

/// Where the label is (ECMA-119, 8.4.7).
const LABEL_AT: u64 = 16 * 2048 + 40;
/// Where the volume is mounted while it is read.
const MOUNT_POINT: &str = "/run/calve-cidata";
/// How long a machine with a SCSI adapter waits for its volume: disks are found in the background.
const PATIENCE: Duration = Duration::from_secs(20);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// What the machine's volume says; none where it has no adapter that one could be attached to.
pub(super) fn metadata() -> anyhow::Result<Option<Metadata>> {
    let has_adapter = fs::read_dir("/sys/class/scsi_host").is_ok_and(|mut hosts| hosts.next().is_some());
    let until = Instant::now() + PATIENCE;
    while has_adapter && Instant::now() < until {
        for entry in fs::read_dir("/sys/class/block").into_iter().flatten().flatten() {
            let device = Path::new("/dev").join(entry.file_name());
            if is_labelled(&device) {
                let user_data = read(&device.to_string_lossy())?;
                return Ok(serde_json::from_value(serde_json::json!({ "user_data": user_data })).ok());
            }
        }
        std::thread::sleep(PAUSE);
    }
    Ok(None)
}

fn is_labelled(device: &Path) -> bool {
    let mut label = [0; 7];
    File::open(device).is_ok_and(|file| file.read_exact_at(&mut label, LABEL_AT).is_ok())
        && label == *b"cidata "
}

fn read(device: &str) -> anyhow::Result<String> {
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mounts::attach(device, MOUNT_POINT, "iso9660", flags, "")?;
    let user_data = fs::read_to_string(Path::new(MOUNT_POINT).join("user-data"));
    let _ = unmount(MOUNT_POINT, UnmountFlags::DETACH);
    user_data.context("the volume's user-data cannot be read")
}
