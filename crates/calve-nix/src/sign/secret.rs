//! Keys that sign.

use std::fmt;
use std::str::FromStr;

use ring::signature::{Ed25519KeyPair, KeyPair};

use super::{KeyError, PUBLIC_BYTES, PublicKey, SEED_BYTES, Signature, check_name, join, split};

/// A named secret key. Its file holds `<name>:<base64 of seed and public key>`, as `nix-store
/// --generate-binary-cache-key` writes it.
pub struct SecretKey {
    name: String,
    seed: [u8; SEED_BYTES],
    pair: Ed25519KeyPair,
}

impl SecretKey {
    /// The key that follows from 32 random bytes.
    pub fn from_seed(name: &str, seed: [u8; SEED_BYTES]) -> Result<Self, KeyError> {
        check_name(name)?;
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).expect("every 32 bytes are a seed");
        Ok(Self { name: name.to_owned(), seed, pair })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The key that verifies what this one signs.
    pub fn public(&self) -> PublicKey {
        PublicKey::new(&self.name, self.public_bytes())
    }

    /// Signs a fingerprint.
    pub fn sign(&self, fingerprint: &str) -> Signature {
        let signature = self.pair.sign(fingerprint.as_bytes());
        Signature::new(&self.name, signature.as_ref().try_into().expect("ed25519 signatures have 64 bytes"))
    }

    /// What its file holds. Secret: for that file only.
    pub fn to_text(&self) -> String {
        join(&self.name, &[self.seed, self.public_bytes()].concat())
    }

    fn public_bytes(&self) -> [u8; PUBLIC_BYTES] {
        self.pair.public_key().as_ref().try_into().expect("ed25519 public keys have 32 bytes")
    }
}

impl FromStr for SecretKey {
    type Err = KeyError;

    /// Reads what a key's file holds; a line's end after it is ignored.
    fn from_str(text: &str) -> Result<Self, KeyError> {
        let (name, bytes) = split::<{ SEED_BYTES + PUBLIC_BYTES }>(text.trim_end())?;
        let (seed, public) = bytes.split_at(SEED_BYTES);
        let key = Self::from_seed(name, seed.try_into().expect("split at 32 bytes"))?;
        if key.public_bytes() == public {
            Ok(key)
        } else {
            Err(KeyError::HalvesDiffer { name: name.to_owned() })
        }
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretKey").field("name", &self.name).finish_non_exhaustive()
    }
}
