//! Items that QEMU hands to a guest (QEMU `docs/specs/fw_cfg.rst`), read through the device's ports: the kernel's driver is a
//! module that lists every item in sysfs first, which a start in emulation has no time for.

use std::arch::asm;
use std::io;

/// Takes the number of an item.
const SELECTOR: u16 = 0x510;
/// Gives its bytes.
const DATA: u16 = 0x511;
/// The number of the list of items.
const LIST: u16 = 0x19;
/// Bytes of an item in the list: length, number, two spare ones, name.
const LISTED_BYTES: usize = 64;
/// Most items; QEMU has some twenty.
const LISTED_MAX: u32 = 1024;

/// The item of this name, of at most `most` bytes. Only for the first process of a QEMU guest, before it has others.
pub(super) fn read(name: &str, most: usize) -> io::Result<Vec<u8>> {
    let ports = Ports::open()?;
    ports.select(LIST);
    let count = u32::from_be_bytes(ports.take());
    for _ in 0..count.min(LISTED_MAX) {
        let listed: [u8; LISTED_BYTES] = ports.take();
        let [l0, l1, l2, l3, n0, n1, _, _, name_bytes @ ..] = listed;
        let ours = name_bytes.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&0));
        if ours {
            let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
            if length > most {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            ports.select(u16::from_be_bytes([n0, n1]));
            let mut bytes = vec![0; length];
            ports.fill(&mut bytes);
            return Ok(bytes);
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// The right to use the ports, until this is dropped.
struct Ports(());

impl Ports {
    fn open() -> io::Result<Self> {
        permit(true)?;
        Ok(Self(()))
    }

    fn select(&self, item: u16) {
        // SAFETY: the caller may use the port, which changes nothing but what the other one gives.
        unsafe {
            asm!("out dx, ax", in("dx") SELECTOR, in("ax") item, options(nomem, nostack, preserves_flags))
        };
    }

    fn take<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.fill(&mut bytes);
        bytes
    }

    fn fill(&self, bytes: &mut [u8]) {
        // SAFETY: the caller may use the port; as many bytes are written as the slice has.
        unsafe {
            asm!(
                "rep insb",
                in("dx") DATA,
                inout("rcx") bytes.len() => _,
                inout("rdi") bytes.as_mut_ptr() => _,
                options(nostack, preserves_flags)
            );
        };
    }
}

impl Drop for Ports {
    fn drop(&mut self) {
        // It cannot fail where it could be granted; and who is here is root in its own machine.
        let _ = permit(false);
    }
}

/// `ioperm(2)` of both ports.
fn permit(on: bool) -> io::Result<()> {
    // SAFETY: a system call that changes only what the caller may do.
    match unsafe {
        libc::syscall(libc::SYS_ioperm, libc::c_ulong::from(SELECTOR), 2 as libc::c_ulong, i32::from(on))
    } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
