use std::path::PathBuf;

use calve_node::cloud_image::cloud_image;
use calve_node::disk_image::{self, Format, Grub};
use calve_node::initrd::static_busybox;
use clap::ValueEnum;

use crate::commands::server::agent_binary;
use crate::dirs;
use crate::failure::{ExitStatus, Failure, Outcome};
use crate::ui;

/// Makes the disk image, from this host's kernel and GRUB; without Nix, without root.
///
/// It boots by BIOS and by UEFI, has 65 MiB, and finds its user data at DigitalOcean's metadata service or on an attached volume
/// labelled cidata (NoCloud) or config-2 (ConfigDrive). A static busybox of this host is put in, where there is one: exec has
/// a shell then. GRUB comes from the packages grub-common, grub-pc-bin and grub-efi-amd64-bin, which need not be installed:
/// see --grub.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How the disk is written down.
    #[arg(long, value_enum, default_value_t = Kind::Qcow2)]
    format: Kind,
    /// The file to write. [default: calve-base.qcow2 or calve-base.raw]
    #[arg(long, short = 'o', value_name = "FILE")]
    output: Option<PathBuf>,
    /// The kernel, with its modules in lib/modules beside its directory. [default: the newest of this host]
    #[arg(long, value_name = "FILE", env = "CALVE_KERNEL")]
    kernel: Option<PathBuf>,
    /// Where GRUB's packages are unpacked, in place of this host's.
    #[arg(long, value_name = "DIR", env = "CALVE_GRUB")]
    grub: Option<PathBuf>,
    /// Leave busybox out.
    #[arg(long)]
    no_shell: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// The disk itself, with holes.
    Raw,
    /// QEMU's format.
    Qcow2,
}

pub fn run(args: &Args) -> Outcome {
    let (format, ending) = match args.format {
        Kind::Raw => (Format::Raw, "raw"),
        Kind::Qcow2 => (Format::Qcow2, "qcow2"),
    };
    let output = args.output.clone().unwrap_or_else(|| PathBuf::from(format!("calve-base.{ending}")));
    let images = dirs::find()?.images();
    std::fs::create_dir_all(&images)
        .map_err(|error| Failure::failed(format!("{} cannot be made", images.display())).caused_by(error))?;
    let grub =
        Grub::find(args.grub.as_deref(), &images).map_err(|error| Failure::failed(error.to_string()))?;
    let busybox = if args.no_shell { None } else { static_busybox() };
    let kernel = args.kernel.as_deref().filter(|kernel| !kernel.as_os_str().is_empty());
    let image = cloud_image(kernel, &agent_binary(), busybox.as_deref(), &images).map_err(|error| {
        let failure = Failure::failed("the kernel and the agent make no image").caused_by(error);
        failure.hint("`calve doctor` says what this host lacks; --kernel names another kernel")
    })?;
    disk_image::write(&image, &grub, format, &output)
        .map_err(|error| Failure::failed("the image cannot be made").caused_by(error))?;
    ui::note(&format!("{} boots calve's agent", output.display()));
    Ok(ExitStatus::Success)
}
