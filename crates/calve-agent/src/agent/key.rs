//! The agent's own key: made in the machine, and never anywhere else.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use anyhow::{Context as _, ensure};
use ring::signature::{Ed25519KeyPair, KeyPair as _};

/// Bytes of the secret half (RFC 8032, 5.1.5).
const SEED_BYTES: usize = 32;

/// An ed25519 key.
pub struct AgentKey(Ed25519KeyPair);

impl AgentKey {
    /// The key in the file, made where there is none: for its owner alone, at once or not at all. An agent that is killed
    /// finds its key again.
    pub fn load_or_make(path: &Path) -> anyhow::Result<Self> {
        let seed = match OpenOptions::new().read(true).open(path) {
            Ok(mut file) => {
                let mode = file.metadata()?.permissions().mode();
                let shown = path.display();
                ensure!(
                    mode & 0o077 == 0,
                    "{shown} can be read by others: remove it, and the agent makes a new key"
                );
                let mut seed = Vec::new();
                file.read_to_end(&mut seed)?;
                seed.try_into().ok().with_context(|| format!("{shown} holds no key of an agent"))?
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                make(path).with_context(|| format!("a key cannot be kept in {}", path.display()))?
            }
            Err(error) => return Err(error).with_context(|| format!("{} cannot be read", path.display())),
        };
        let seed: [u8; SEED_BYTES] = seed;
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).ok().context("the key cannot be used")?;
        Ok(Self(pair))
    }

    /// The public half, in hexadecimal digits.
    pub fn public(&self) -> String {
        hex(self.0.public_key().as_ref())
    }

    /// A signature, in hexadecimal digits.
    pub fn sign(&self, statement: &[u8]) -> String {
        hex(self.0.sign(statement).as_ref())
    }
}

fn make(path: &Path) -> io::Result<[u8; SEED_BYTES]> {
    let seed = random()?;
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(&seed)?;
    file.sync_all()?;
    fs::rename(new, path)?;
    Ok(seed)
}

/// Bytes that nobody knows.
pub fn random() -> io::Result<[u8; SEED_BYTES]> {
    let mut bytes = [0; SEED_BYTES];
    // Up to 256 bytes come whole, once the kernel has seeded itself, which this waits for (getrandom(2)).
    while rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())? != SEED_BYTES {}
    Ok(bytes)
}

/// Hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from(DIGITS[usize::from(digit)]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_for_its_owner_alone_and_found_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("key");
        // Killed in the middle of making one before.
        fs::write(path.with_extension("new"), "half").expect("written");
        let made = AgentKey::load_or_make(&path).expect("made");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert_eq!(AgentKey::load_or_make(&path).expect("found").public(), made.public());
        assert_eq!((made.public().len(), made.sign(b"x").len()), (64, 128));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("set");
        assert!(AgentKey::load_or_make(&path).err().expect("refused").to_string().contains("others"));
    }
}
