//! Sizes: Proxmox VE has none of its own, so they say what they are, such as `2vcpu-4gb` or `2vcpu-4gb-20gb` with a disk.

use std::fmt;
use std::str::FromStr;

use crate::Size;

/// The size of the template, unchanged.
pub const AS_TEMPLATE: &str = "template";
/// What is offered: processors and memory in MiB.
const OFFERED: [(u32, u64); 9] = [
    (1, 512),
    (1, 1024),
    (1, 2048),
    (2, 2048),
    (2, 4096),
    (4, 8192),
    (8, 16 << 10),
    (16, 32 << 10),
    (16, 64 << 10),
];
/// Most processors: what one machine of Proxmox VE takes.
const CPUS_MAX: u32 = 512;
/// Most memory in MiB (4 TiB), and most disk in GiB: nobody means more.
const MEMORY_MAX_MIB: u64 = 4 << 20;
const DISK_MAX_GIB: u64 = 128 << 10;

/// How large a machine shall be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wish {
    pub cpus: u32,
    pub memory_mib: u64,
    pub disk_gib: Option<u64>,
}

impl fmt::Display for Wish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}vcpu-", self.cpus)?;
        match self.memory_mib % 1024 {
            0 => write!(f, "{}gb", self.memory_mib / 1024)?,
            _ => write!(f, "{}mb", self.memory_mib)?,
        }
        self.disk_gib.map_or(Ok(()), |disk| write!(f, "-{disk}gb"))
    }
}

impl FromStr for Wish {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let number = |text: &str, unit: &str| text.strip_suffix(unit)?.parse::<u64>().ok();
        let mut words = text.split('-');
        let mut word = || words.next().unwrap_or_default();
        let cpus = number(word(), "vcpu").and_then(|cpus| u32::try_from(cpus).ok()).ok_or(())?;
        let memory = word();
        let gigabytes = || number(memory, "gb").and_then(|gb| gb.checked_mul(1024));
        let memory_mib = gigabytes().or_else(|| number(memory, "mb")).ok_or(())?;
        let disk_gib = match word() {
            "" => None,
            disk => Some(number(disk, "gb").ok_or(())?),
        };
        let sensible = (1..=CPUS_MAX).contains(&cpus)
            && (16..=MEMORY_MAX_MIB).contains(&memory_mib)
            && disk_gib.is_none_or(|disk| (1..=DISK_MAX_GIB).contains(&disk));
        match words.next() {
            None if sensible => Ok(Self { cpus, memory_mib, disk_gib }),
            _ => Err(()),
        }
    }
}

/// What can be asked for at these nodes, the template's own size first.
pub(super) fn offered(nodes: &[String]) -> Vec<Size> {
    let size = |slug: String, cpus, memory_mib| Size {
        slug,
        cpus,
        memory_mib,
        disk_gib: 0,
        dollars_per_hour: 0.0,
        regions: nodes.to_vec(),
        available: true,
    };
    let mut sizes = vec![size(AS_TEMPLATE.to_owned(), 0, 0)];
    sizes.extend(OFFERED.iter().map(|(cpus, memory_mib)| {
        let wish = Wish { cpus: *cpus, memory_mib: *memory_mib, disk_gib: None };
        size(wish.to_string(), *cpus, *memory_mib)
    }));
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_say_what_they_are() {
        for text in ["1vcpu-512mb", "2vcpu-4gb", "16vcpu-64gb-200gb"] {
            assert_eq!(text.parse::<Wish>().unwrap().to_string(), text);
        }
        for bad in [
            "",
            "template",
            "2vcpu",
            "2vcpu-4",
            "0vcpu-4gb",
            "2vcpu-4gb-0gb",
            "2vcpu-4gb-1gb-1gb",
            "2vcpu-1mb",
        ] {
            assert!(bad.parse::<Wish>().is_err(), "{bad}");
        }
        assert!(offered(&[]).iter().skip(1).all(|size| size.slug.parse::<Wish>().is_ok()));
    }
}
