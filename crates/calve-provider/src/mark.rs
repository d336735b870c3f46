//! What a machine's tags say: whose it is, which machine it is, until when it may live; signed.
//!
//! ```text
//!  calve                                     every machine of any calve server
//!  calve:owner:<public key>                  every machine of one server; 64 hexadecimal digits
//!  calve:machine:<id>:<attempt>              the key: no other machine carries it
//!  calve:until:<unix s | never>:<signature>  its lease; 128 hexadecimal digits over owner, id, attempt, name and end
//!  calve:adopted                             a machine that somebody else made
//! ```
//! The signature (ed25519) binds a lease to one machine of one owner: tags that a person typed, that came along with a
//! copied machine of another name, or that a stranger made are no reason to destroy anything. The public key stands beside
//! it, so that a machine can be judged with nothing but its tags. Tags are case-insensitive at some providers, hence
//! hexadecimal digits; the longest has 151 characters, of 255 that DigitalOcean allows.

use std::fmt;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::str::FromStr;

use calve_core::MachineId;
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

/// On every machine that calve made.
pub const TAG: &str = "calve";
/// On machines that were adopted: they are looked at once more before they are destroyed.
pub const ADOPTED: &str = "calve:adopted";
/// Begins the tag that says whose it is.
pub(crate) const OWNERS: &str = "calve:owner:";
/// Begins the key.
pub(crate) const KEYS: &str = "calve:machine:";
/// Begins the tag that says its lease.
pub const UNTILS: &str = "calve:until:";
/// Begins what is signed, so that the key's signatures mean nothing elsewhere.
const SIGNED_PREFIX: &str = "calve machine 1";

/// Whose a machine is: a server's public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner([u8; 32]);

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_hex(&self.0))
    }
}

/// A text that is no owner.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an owner is 64 lower-case hexadecimal digits, as `calve provider ls` shows them")]
pub struct OwnerError;

impl FromStr for Owner {
    type Err = OwnerError;
    fn from_str(text: &str) -> Result<Self, OwnerError> {
        from_hex(text).map(Self).ok_or(OwnerError)
    }
}

impl Owner {
    /// The tag of all of its machines.
    pub fn tag(&self) -> String {
        format!("{OWNERS}{self}")
    }
}

/// What signs a server's machines.
pub struct OwnerKey(Ed25519KeyPair);

impl OwnerKey {
    /// The key in this file, 64 hexadecimal digits that only this user can read; made where there is none.
    pub fn load_or_make(path: &Path) -> io::Result<Self> {
        match std::fs::read_to_string(path) {
            Ok(text) => {
                let wrong = || io::Error::new(io::ErrorKind::InvalidData, "it holds no key");
                Ok(Self::from_seed(&from_hex::<32>(text.trim()).ok_or_else(wrong)?))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::make(path),
            Err(error) => Err(error),
        }
    }

    fn make(path: &Path) -> io::Result<Self> {
        let mut seed = [0; 32];
        SystemRandom::new().fill(&mut seed).map_err(|_| io::Error::other("no randomness"))?;
        let dir = path.parent().unwrap_or(Path::new("."));
        let key = Self::from_seed(&seed);
        // Nobody else makes the same key.
        let aside = path.with_extension(format!("new-{}", key.owner()));
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
        writeln!(file, "{}", to_hex(&seed))?;
        file.sync_all()?;
        // Whoever was first wins: machines may carry its signature already.
        let linked = std::fs::hard_link(&aside, path);
        std::fs::remove_file(&aside)?;
        match linked {
            Ok(()) => std::fs::File::open(dir)?.sync_all().map(|()| key),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Self::load_or_make(path),
            Err(error) => Err(error),
        }
    }

    /// The key of these 32 bytes.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(Ed25519KeyPair::from_seed_unchecked(seed).expect("32 bytes are a seed"))
    }

    /// Who signs with it.
    pub fn owner(&self) -> Owner {
        Owner(self.0.public_key().as_ref().try_into().expect("a public key has 32 bytes"))
    }

    /// The tags of a machine.
    pub fn tags(&self, subject: &Subject, until: Until) -> Vec<String> {
        vec![TAG.to_owned(), self.owner().tag(), subject.key(), self.until_tag(subject, until)]
    }

    /// The tag that says how long a machine may live.
    pub fn until_tag(&self, subject: &Subject, until: Until) -> String {
        let signature = self.0.sign(signed(self.owner(), subject, until).as_bytes());
        format!("{UNTILS}{until}:{}", to_hex(signature.as_ref()))
    }
}

/// Which machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Its id.
    pub id: MachineId,
    /// Which creation of it.
    pub attempt: u32,
    /// Its name at the provider.
    pub name: String,
}

impl Subject {
    /// The tag that no other machine carries.
    pub fn key(&self) -> String {
        format!("{KEYS}{}:{}", self.id, self.attempt)
    }
}

/// Until when a machine may live, its grace included; later it is to be destroyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Until {
    /// Seconds since the epoch.
    Unix(u64),
    /// Its lease has no end.
    Never,
}

impl fmt::Display for Until {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(seconds) => write!(f, "{seconds}"),
            Self::Never => f.write_str("never"),
        }
    }
}

impl FromStr for Until {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "never" => Ok(Self::Never),
            _ => text.parse().map(Self::Unix).map_err(|_| ()),
        }
    }
}

/// What the tags of a machine say, with the signature checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// Whose it is.
    pub owner: Owner,
    /// Which machine it is.
    pub subject: Subject,
    /// Until when it may live.
    pub until: Until,
}

/// Why a machine's tags say nothing that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unmarked {
    /// It is not ours.
    #[error("it does not carry the tags of calve")]
    NotOurs,
    /// More than one owner or key: somebody edited them.
    #[error("its tags name more than one owner or machine")]
    Ambiguous,
    /// No lease whose signature holds.
    #[error("no lease among its tags has a signature that holds")]
    Unsigned,
}

impl Mark {
    /// Reads the tags of the machine with this name. Of several leases with a good signature the longest counts: while a
    /// lease is renewed, a machine carries two.
    pub fn read(name: &str, tags: &[String]) -> Result<Self, Unmarked> {
        let all = |prefix: &'static str| tags.iter().filter_map(move |tag| tag.strip_prefix(prefix));
        if !tags.iter().any(|tag| tag == TAG) {
            return Err(Unmarked::NotOurs);
        }
        let owner: Owner = one(all(OWNERS))?.parse().map_err(|_| Unmarked::NotOurs)?;
        let (id, attempt) = one(all(KEYS))?.split_once(':').ok_or(Unmarked::NotOurs)?;
        let id = id.parse().map_err(|_| Unmarked::NotOurs)?;
        let attempt = attempt.parse().map_err(|_| Unmarked::NotOurs)?;
        let subject = Subject { id, attempt, name: name.to_owned() };
        let until = all(UNTILS).filter_map(|text| verified(owner, &subject, text)).max();
        Ok(Self { owner, until: until.ok_or(Unmarked::Unsigned)?, subject })
    }
}

fn one<'a>(mut found: impl Iterator<Item = &'a str>) -> Result<&'a str, Unmarked> {
    let first = found.next().ok_or(Unmarked::NotOurs)?;
    if found.next().is_some() { Err(Unmarked::Ambiguous) } else { Ok(first) }
}

fn verified(owner: Owner, subject: &Subject, text: &str) -> Option<Until> {
    let (until, signature) = text.split_once(':')?;
    let until = until.parse().ok()?;
    let signature: [u8; 64] = from_hex(signature)?;
    let key = UnparsedPublicKey::new(&ED25519, owner.0);
    key.verify(signed(owner, subject, until).as_bytes(), &signature).ok()?;
    Some(until)
}

fn signed(owner: Owner, subject: &Subject, until: Until) -> String {
    let Subject { id, attempt, name } = subject;
    format!("{SIGNED_PREFIX}\n{owner}\n{id}\n{attempt}\n{name}\n{until}\n")
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.len() == 2 * N && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)).take(if digits { N } else { 0 }) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    digits.then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use calve_core::Timestamp;

    fn subject() -> Subject {
        Subject { id: MachineId::new(Timestamp(5), 7), attempt: 2, name: "run-1".to_owned() }
    }

    #[test]
    fn what_was_signed_is_read_and_fits_into_tags() {
        let key = OwnerKey::from_seed(&[7; 32]);
        for until in [Until::Unix(u64::MAX), Until::Never] {
            let tags = key.tags(&subject(), until);
            for tag in &tags {
                let allowed = |c: u8| c.is_ascii_alphanumeric() || b":-_".contains(&c);
                assert!(tag.len() <= 255 && tag.bytes().all(allowed), "{tag}");
            }
            let mark = Mark { owner: key.owner(), subject: subject(), until };
            assert_eq!(Mark::read("run-1", &tags), Ok(mark));
        }
    }

    #[test]
    fn tags_of_others_edited_ones_and_copies_do_not_count() {
        let (key, other) = (OwnerKey::from_seed(&[7; 32]), OwnerKey::from_seed(&[8; 32]));
        let tags = key.tags(&subject(), Until::Unix(1000));
        let with = |change: &dyn Fn(&mut Vec<String>)| {
            let mut changed = tags.clone();
            change(&mut changed);
            Mark::read("run-1", &changed).map(|mark| mark.until)
        };
        assert_eq!(Mark::read("a-copy", &tags), Err(Unmarked::Unsigned));
        assert_eq!(Mark::read("run-1", &["web".to_owned()]), Err(Unmarked::NotOurs));
        assert_eq!(with(&|tags| tags.retain(|tag| tag != TAG)), Err(Unmarked::NotOurs));
        assert_eq!(with(&|tags| tags[3] = tags[3].replace("1000", "1001")), Err(Unmarked::Unsigned));
        assert_eq!(with(&|tags| tags[1] = other.owner().tag()), Err(Unmarked::Unsigned));
        assert_eq!(with(&|tags| tags.push(other.owner().tag())), Err(Unmarked::Ambiguous));
        let another = Subject { attempt: 3, ..subject() };
        assert_eq!(with(&|tags| tags[2] = another.key()), Err(Unmarked::Unsigned));
        assert_eq!(with(&|tags| tags.push(other.until_tag(&subject(), Until::Never))), Ok(Until::Unix(1000)));
    }

    #[test]
    fn of_two_leases_the_longer_counts() {
        let key = OwnerKey::from_seed(&[7; 32]);
        let mut tags = key.tags(&subject(), Until::Unix(1000));
        tags.insert(0, key.until_tag(&subject(), Until::Unix(2000)));
        assert_eq!(Mark::read("run-1", &tags).unwrap().until, Until::Unix(2000));
    }

    #[test]
    fn a_key_is_made_once_and_only_its_user_reads_it() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("owner.key");
        let owners: Vec<Owner> = std::thread::scope(|scope| {
            let made: Vec<_> =
                (0..4).map(|_| scope.spawn(|| OwnerKey::load_or_make(&file).unwrap().owner())).collect();
            made.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        assert!(owners.iter().all(|owner| *owner == owners[0]), "{owners:?}");
        assert_eq!(owners[0].to_string().parse(), Ok(owners[0]));
        std::fs::write(&file, "x").unwrap();
        assert!(OwnerKey::load_or_make(&file).is_err());
    }
}
