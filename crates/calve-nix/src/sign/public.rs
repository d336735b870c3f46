//! Keys that verify, and what they verify.

use std::fmt;
use std::str::FromStr;

use ring::signature::{ED25519, UnparsedPublicKey};

use super::{KeyError, PUBLIC_BYTES, SIGNATURE_BYTES, VerifyError, join, split};

/// A named public key, `<name>:<base64>` as in `trusted-public-keys` of `nix.conf`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey {
    name: String,
    bytes: [u8; PUBLIC_BYTES],
}

impl PublicKey {
    pub(super) fn new(name: &str, bytes: [u8; PUBLIC_BYTES]) -> Self {
        Self { name: name.to_owned(), bytes }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether this key made the signature over the fingerprint. The name on the signature is not looked at.
    pub fn verify(&self, fingerprint: &str, signature: &Signature) -> bool {
        UnparsedPublicKey::new(&ED25519, self.bytes).verify(fingerprint.as_bytes(), signature.bytes()).is_ok()
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    /// Reads what a public key's file holds; a line's end after it is ignored.
    fn from_str(text: &str) -> Result<Self, KeyError> {
        split(text.trim_end()).map(|(name, bytes)| Self::new(name, bytes))
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&join(&self.name, &self.bytes))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A signature, `<name>:<base64>` as in the `Sig` of a narinfo; ordered as these texts are.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signature {
    text: String,
    bytes: [u8; SIGNATURE_BYTES],
}

impl Signature {
    pub(super) fn new(name: &str, bytes: [u8; SIGNATURE_BYTES]) -> Self {
        Self { text: join(name, &bytes), bytes }
    }

    /// The name of the key that is said to have made it.
    pub fn name(&self) -> &str {
        self.text.split_once(':').map_or("", |(name, _)| name)
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8; SIGNATURE_BYTES] {
        &self.bytes
    }
}

impl FromStr for Signature {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        split(text).map(|(name, bytes)| Self::new(name, bytes))
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The keys whose signatures count. Two may share a name, as while a key is replaced.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedKeys(Vec<PublicKey>);

impl TrustedKeys {
    /// The keys.
    pub fn keys(&self) -> &[PublicKey] {
        &self.0
    }

    /// The trusted key that made one of the signatures over the fingerprint: one is enough, as in Nix.
    pub fn verify<'a>(
        &self,
        fingerprint: &str,
        signatures: impl IntoIterator<Item = &'a Signature>,
    ) -> Result<&PublicKey, VerifyError> {
        let (mut strangers, mut wrong) = (Vec::new(), None);
        for signature in signatures {
            let mut named = self.0.iter().filter(|key| key.name() == signature.name()).peekable();
            if named.peek().is_none() {
                strangers.push(signature.name().to_owned());
            } else if let Some(key) = named.find(|key| key.verify(fingerprint, signature)) {
                return Ok(key);
            } else {
                wrong.get_or_insert_with(|| signature.name().to_owned());
            }
        }
        match wrong {
            Some(name) => Err(VerifyError::Wrong { name }),
            None if strangers.is_empty() => Err(VerifyError::Unsigned),
            None => Err(VerifyError::NoTrustedKey { by: strangers }),
        }
    }
}

impl FromStr for TrustedKeys {
    type Err = KeyError;

    /// Keys with white space between them, as `nix.conf` has them.
    fn from_str(text: &str) -> Result<Self, KeyError> {
        text.split_whitespace().map(str::parse).collect()
    }
}

impl FromIterator<PublicKey> for TrustedKeys {
    fn from_iter<I: IntoIterator<Item = PublicKey>>(keys: I) -> Self {
        Self(keys.into_iter().collect())
    }
}
