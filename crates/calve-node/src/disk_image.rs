//! The cloud image as a disk: what a provider that takes disk images boots, by BIOS and by UEFI.
//!
//! ```text
//!  sector 0        boot.img of GRUB, with a partition table: one active partition, of the kind that UEFI looks at
//!  sector 1 …      core.img of GRUB for BIOS: its first words, and what they load
//!  1 MiB …         FAT16 "CALVE": EFI/BOOT/BOOTX64.EFI (GRUB for UEFI), vmlinuz, initrd
//! ```
//! There is no root file system, no user, no password and no SSH server: the kernel starts the agent out of the initrd, and
//! everything else comes with the machine's user data and over its agent's link. No mount, no loop device and no root are
//! needed to make it; of the distribution it takes the kernel and GRUB's files.

mod fat;
mod grub;
mod qcow2;

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

pub use fat::Volume;
pub use grub::{Grub, GrubError};

use crate::cloud_image::CloudImage;

/// Bytes of a sector.
const SECTOR_BYTES: usize = 512;
/// Where the partition begins: a mebibyte, as disks are aligned everywhere, leaves room for GRUB's first part.
const PARTITION_SECTOR: u32 = 2048;
/// Label of the partition, by which GRUB finds it among several disks.
const LABEL: &str = "CALVE";
/// Where the partition table lies in the first sector, and what ends that sector.
const TABLE_AT: usize = 446;
const SIGNATURE: [u8; 2] = [0x55, 0xaa];
/// The partition's kind: that of UEFI (UEFI Specification, 5.2.2).
const UEFI_PARTITION: u8 = 0xef;
/// An active partition; some BIOSes boot no disk without one.
const ACTIVE: u8 = 0x80;

/// How the disk is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// As it is, with holes where it is empty.
    Raw,
    /// QEMU's format, version 2, which providers take as well.
    Qcow2,
}

/// Why there is no disk image.
#[derive(Debug, thiserror::Error)]
pub enum DiskImageError {
    /// GRUB is not there or does not work.
    #[error(transparent)]
    Grub(#[from] GrubError),
    /// A file cannot be read.
    #[error("{path} cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The image cannot be written.
    #[error("{path} cannot be written")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Kernel and initrd do not fit.
    #[error("kernel, initrd and GRUB need more than the {} MiB of the image", fat::VOLUME_BYTES >> 20)]
    TooLarge,
}

/// Writes the image to `to`, at once or not at all.
pub fn write(image: &CloudImage, grub: &Grub, format: Format, to: &Path) -> Result<(), DiskImageError> {
    let disk = disk(image, grub)?;
    let failed = |source| DiskImageError::Write { path: to.to_owned(), source };
    let new = to.with_extension("part");
    let mut file = File::create(&new).map_err(failed)?;
    let written = match format {
        Format::Raw => raw(&mut file, &disk),
        Format::Qcow2 => qcow2::write(&mut file, &disk),
    };
    written.and_then(|()| file.sync_all()).and_then(|()| fs::rename(&new, to)).map_err(failed)
}

/// Only what is not empty.
fn raw(file: &mut File, disk: &[u8]) -> io::Result<()> {
    const PIECE_BYTES: usize = 64 * 1024;
    file.set_len(disk.len() as u64)?;
    for (n, piece) in
        disk.chunks(PIECE_BYTES).enumerate().filter(|(_, piece)| piece.iter().any(|byte| *byte != 0))
    {
        file.write_all_at(piece, (n * PIECE_BYTES) as u64)?;
    }
    file.flush()
}

fn disk(image: &CloudImage, grub: &Grub) -> Result<Vec<u8>, DiskImageError> {
    let read =
        |path: &Path| fs::read(path).map_err(|source| DiskImageError::Read { path: path.to_owned(), source });
    let commands = grub::commands(LABEL, &image.parameters);
    let mut volume = Volume::new(LABEL);
    let files = [
        ("EFI/BOOT/BOOTX64.EFI", grub.for_uefi(&commands)?),
        ("vmlinuz", read(&image.kernel.file)?),
        ("initrd", read(&image.initrd)?),
    ];
    for (name, bytes) in files {
        volume.file(name, bytes);
    }
    let (boot, core) = grub.for_bios(&commands)?;
    let partition = volume.to_bytes().ok_or(DiskImageError::TooLarge)?;
    let begin = PARTITION_SECTOR as usize * SECTOR_BYTES;
    if boot.len() != SECTOR_BYTES || SECTOR_BYTES + core.len() > begin {
        return Err(GrubError::Unexpected.into());
    }
    let mut disk = vec![0; begin + partition.len()];
    disk[..TABLE_AT].copy_from_slice(&boot[..TABLE_AT]);
    disk[TABLE_AT..TABLE_AT + 16].copy_from_slice(&entry(partition.len() / SECTOR_BYTES));
    disk[SECTOR_BYTES - 2..SECTOR_BYTES].copy_from_slice(&SIGNATURE);
    disk[SECTOR_BYTES..SECTOR_BYTES + core.len()].copy_from_slice(&core);
    disk[begin..].copy_from_slice(&partition);
    Ok(disk)
}

/// The partition's entry. Cylinders, heads and sectors are beyond what can be said so, which their largest values say.
fn entry(sectors: usize) -> [u8; 16] {
    let mut entry = [0; 16];
    entry[0] = ACTIVE;
    entry[1..4].copy_from_slice(&[0xfe, 0xff, 0xff]);
    entry[4] = UEFI_PARTITION;
    entry[5..8].copy_from_slice(&[0xfe, 0xff, 0xff]);
    entry[8..12].copy_from_slice(&PARTITION_SECTOR.to_le_bytes());
    entry[12..].copy_from_slice(&u32::try_from(sectors).expect("a small volume").to_le_bytes());
    entry
}
