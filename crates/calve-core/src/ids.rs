//! One id type per noun.

use std::fmt;
use std::str::FromStr;

use crate::Timestamp;

/// A text that is no id of the noun it was meant for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no {noun}: {rule}")]
pub struct IdError {
    /// What was expected, e.g. `machine name`.
    pub noun: &'static str,
    /// What was given.
    pub text: String,
    /// What it must look like.
    pub rule: &'static str,
}

/// One machine for all time; never reused. Sorts by creation time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MachineId(u128);

impl MachineId {
    /// An id from a moment (48 bits of milliseconds) and 80 random bits, in the layout of a UUID version 7 without its
    /// version bits.
    pub fn new(now: Timestamp, random: u128) -> Self {
        Self((u128::from(now.0) << 80) | (random & ((1 << 80) - 1)))
    }
}

impl fmt::Display for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for MachineId {
    type Err = IdError;
    fn from_str(s: &str) -> Result<Self, IdError> {
        let ok = s.len() == 32 && s.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
        let value = if ok { u128::from_str_radix(s, 16).ok() } else { None };
        value.map(Self).ok_or_else(|| IdError {
            noun: "machine id",
            text: s.to_owned(),
            rule: "32 lower-case hexadecimal digits",
        })
    }
}

/// Longest name, as a DNS label (RFC 1035): names become host names.
pub const NAME_MAX_CHARS: usize = 63;
const NAME_RULE: &str = "1 to 63 of a-z, 0-9 and dashes, beginning and ending with a letter or digit";

fn is_dns_label(s: &str) -> bool {
    let ends = |c: Option<u8>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    s.len() <= NAME_MAX_CHARS
        && ends(s.bytes().next())
        && ends(s.bytes().last())
        && s.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $noun:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(s: &str) -> Result<Self, IdError> {
                if is_dns_label(s) {
                    return Ok(Self(s.to_owned()));
                }
                Err(IdError { noun: $noun, text: s.to_owned(), rule: NAME_RULE })
            }
        }
    };
}

name_type!(
    /// What people call a machine; free again once its record is removed.
    MachineName,
    "machine name"
);
name_type!(
    /// A host that offers capacity for local machines.
    NodeName,
    "node name"
);

impl MachineName {
    /// The name that a machine without one gets: `run-<n>`.
    pub fn numbered(n: u32) -> Self {
        Self(format!("run-{n}"))
    }

    /// The `n` of `run-<n>`.
    pub fn number(&self) -> Option<u32> {
        let n = self.0.strip_prefix("run-")?;
        n.parse().ok().filter(|value: &u32| value.to_string() == n)
    }
}

/// How a node makes a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DriverName {
    /// Namespaces, cgroups and seccomp on the node's own kernel.
    Sandbox,
    /// A QEMU guest with its own kernel.
    Qemu,
    /// A droplet at DigitalOcean, whose agent dials the server.
    DigitalOcean,
    /// A virtual machine at Proxmox VE, whose agent dials the server.
    Proxmox,
    /// A sandbox on a host that is borrowed over SSH.
    Ssh,
    /// A machine that a plugin makes.
    Exec,
}

impl DriverName {
    /// Every driver, in the order in which placement prefers them for programs.
    pub const ALL: [Self; 6] =
        [Self::Sandbox, Self::Qemu, Self::DigitalOcean, Self::Proxmox, Self::Ssh, Self::Exec];

    /// The driver's name as users type it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sandbox => "sandbox",
            Self::Qemu => "qemu",
            Self::DigitalOcean => "digitalocean",
            Self::Proxmox => "proxmox",
            Self::Ssh => "ssh",
            Self::Exec => "exec",
        }
    }

    /// Whether its machines are at a provider, whose lists may lag behind what was done.
    pub fn is_provider(self) -> bool {
        match self {
            // What a server has on borrowed hosts stands in a book of its own, which lags behind nothing.
            Self::Sandbox | Self::Qemu | Self::Ssh => false,
            Self::DigitalOcean | Self::Proxmox | Self::Exec => true,
        }
    }
}

impl fmt::Display for DriverName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for DriverName {
    type Err = IdError;
    fn from_str(s: &str) -> Result<Self, IdError> {
        Self::ALL.into_iter().find(|d| d.as_str() == s).ok_or_else(|| IdError {
            noun: "driver",
            text: s.to_owned(),
            rule: "one of sandbox, qemu, digitalocean, proxmox, ssh, exec",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip_and_sort_by_time() {
        let early = MachineId::new(Timestamp(1), u128::MAX);
        let late = MachineId::new(Timestamp(2), 0);
        assert!(early < late);
        assert_eq!(early.to_string().parse::<MachineId>(), Ok(early));
    }

    #[test]
    fn names_are_dns_labels() {
        for good in ["a", "run-1", "0", &"x".repeat(63)] {
            assert!(good.parse::<MachineName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a.b", &"x".repeat(64)] {
            assert!(bad.parse::<MachineName>().is_err(), "{bad}");
        }
        assert_eq!(MachineName::numbered(7).number(), Some(7));
        assert_eq!("run-07".parse::<MachineName>().unwrap().number(), None);
    }
}
