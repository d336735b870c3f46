//! Who the sandbox's users are on the host (`user_namespaces(7)`).

use std::fs;
use std::io;

use rustix::process::{getegid, geteuid};
use rustix::thread::{CapabilitySet, capabilities};

/// Users in a subrange: all that 16 bits name, as programs expect.
const SUBRANGE_USERS: u32 = 65_536;
/// First and last subrange: from 0x70000000 to 0x7ffdffff, which no distribution gives to users, `/etc/subuid` or
/// containers (systemd's "Users, Groups, UIDs and GIDs on systemd Systems"), and which are no negative numbers.
const SUBRANGES: std::ops::Range<u32> = 0x7000..0x7ffe;

/// How users inside become users outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Map {
    /// All 65,536 to a subrange of users whom the host does not know. Two machines may have the same one: they share no
    /// file and see none of each other's processes, so it gives neither anything.
    Subrange {
        /// The host's number of the sandbox's root.
        first: u32,
    },
    /// Only the sandbox's root, who is the agent's own user.
    Own,
    /// No user namespace: the sandbox's root is the host's, without capabilities.
    Host,
}

impl Map {
    /// The best that this process may write.
    pub fn choose(machine_id: &str) -> Self {
        let may = |c| capabilities(None).is_ok_and(|sets| sets.effective.contains(c));
        let ranges = may(CapabilitySet::SETUID) && may(CapabilitySet::SETGID);
        let first = subrange(machine_id) * SUBRANGE_USERS;
        let mapped = |file| fs::read_to_string(file).is_ok_and(|map| holds(&map, first, SUBRANGE_USERS));
        if geteuid().is_root() && ranges && mapped("/proc/self/uid_map") && mapped("/proc/self/gid_map") {
            return Self::Subrange { first };
        }
        Self::Own
    }

    /// Whether a sandbox can be made without the user namespace.
    pub fn is_optional(self) -> bool {
        capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
            && self != Self::Host
    }

    /// Writes the map of a process in a new user namespace. The agent does it: it may, and init may not yet.
    pub fn write(self, pid: i32) -> io::Result<()> {
        let (users, groups) = match self {
            Self::Subrange { first } => {
                let line = format!("0 {first} {SUBRANGE_USERS}");
                (line.clone(), line)
            }
            Self::Own => {
                // Whoever may not map groups may not leave them either (user_namespaces(7), "setgroups").
                fs::write(format!("/proc/{pid}/setgroups"), "deny")?;
                (format!("0 {} 1", geteuid().as_raw()), format!("0 {} 1", getegid().as_raw()))
            }
            Self::Host => return Ok(()),
        };
        fs::write(format!("/proc/{pid}/gid_map"), groups)?;
        fs::write(format!("/proc/{pid}/uid_map"), users)
    }

    /// Whether becoming the sandbox's root makes this process another user of the host, who may see less of its files.
    pub fn changes_user(self) -> bool {
        matches!(self, Self::Subrange { .. })
    }

    /// What is less than it should be, for people.
    pub fn note(self) -> Option<String> {
        (self == Self::Host).then(|| {
            "this host allows no user namespace: the machine's root is the host's root without its capabilities".to_owned()
        })
    }
}

/// Spreads machines over the subranges: the last bits of an id are random.
fn subrange(machine_id: &str) -> u32 {
    let bytes = machine_id.bytes().rev().take(8);
    let random = bytes.fold(0u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte)));
    SUBRANGES.start + random % (SUBRANGES.end - SUBRANGES.start)
}

/// Whether a map (three numbers a line: inside, outside, how many) holds all ids from `first` on.
fn holds(map: &str, first: u32, count: u32) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_ascii_whitespace().map(str::parse::<u64>);
        let (Some(Ok(inside)), Some(Ok(length))) = (numbers.next(), numbers.nth(1)) else { return false };
        inside <= u64::from(first) && u64::from(first) + u64::from(count) <= inside + length
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subrange_is_taken_only_where_it_is_mapped() {
        let first = subrange("00000000000000000000000000000000") * SUBRANGE_USERS;
        assert!(holds("         0          0 4294967295\n", first, SUBRANGE_USERS));
        assert!(!holds("0 100000 65536\n", first, SUBRANGE_USERS));
    }
}
