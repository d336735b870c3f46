//! What a binary cache says about one store path (`src/libstore/nar-info.cc` of Nix).
//!
//! Lines of `Field: value`, each ended by a newline. Nix prints references and signatures sorted, and so does calve.

mod error;

pub use error::{FieldProblem, NarInfoError};

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use crate::sign::{PublicKey, SecretKey, Signature, TrustedKeys, VerifyError, fingerprint};
use crate::{Compression, ContentAddress, Sha256Hash, StorePath};

/// Largest narinfo in bytes: some 50,000 references, more than any closure that was ever met has paths.
pub const NARINFO_MAX_BYTES: usize = 4 << 20;
/// The deriver of a path whose deriver nobody knows, as old caches write it.
const UNKNOWN_DERIVER: &str = "unknown-deriver";

/// A narinfo. Displayed exactly as Nix prints it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NarInfo {
    /// The path that it is about.
    pub store_path: StorePath,
    /// Where the archive lies, relative to the cache.
    pub url: String,
    /// How the archive there is compressed.
    pub compression: Compression,
    /// Hash of the compressed archive.
    pub file_hash: Option<Sha256Hash>,
    /// Size of the compressed archive in bytes.
    pub file_size: Option<u64>,
    /// Hash of the archive.
    pub nar_hash: Sha256Hash,
    /// Size of the archive in bytes; never zero.
    pub nar_size: u64,
    /// The paths that it refers to, itself among them if it does.
    pub references: BTreeSet<StorePath>,
    /// The derivation that it was built by.
    pub deriver: Option<StorePath>,
    /// The platform that it was built for; old caches only.
    pub system: Option<String>,
    /// Signatures by any keys.
    pub signatures: BTreeSet<Signature>,
    /// How the path follows from its contents, if it does.
    pub content_address: Option<ContentAddress>,
}

impl NarInfo {
    /// Reads a narinfo as a cache gives it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, NarInfoError> {
        if bytes.len() > NARINFO_MAX_BYTES {
            return Err(NarInfoError::TooLarge(bytes.len()));
        }
        std::str::from_utf8(bytes)
            .map_err(|error| NarInfoError::NotText {
                line: bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count() + 1,
            })?
            .parse()
    }

    /// What is signed of it.
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.store_path, &self.nar_hash, self.nar_size, &self.references)
    }

    /// Adds a signature by `key`.
    pub fn sign(&mut self, key: &SecretKey) {
        self.signatures.insert(key.sign(&self.fingerprint()));
    }

    /// The trusted key that signed it.
    pub fn verify<'a>(&self, trusted: &'a TrustedKeys) -> Result<&'a PublicKey, VerifyError> {
        trusted.verify(&self.fingerprint(), &self.signatures)
    }

    /// The file in a cache that the path's narinfo lies in.
    pub fn file_name(&self) -> String {
        format!("{}.narinfo", self.store_path.hash_part())
    }
}

impl fmt::Display for NarInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "StorePath: {}", self.store_path)?;
        writeln!(f, "URL: {}", self.url)?;
        writeln!(f, "Compression: {}", self.compression)?;
        if let Some(hash) = &self.file_hash {
            writeln!(f, "FileHash: {}", hash.to_nix())?;
        }
        if let Some(size) = self.file_size {
            writeln!(f, "FileSize: {size}")?;
        }
        writeln!(f, "NarHash: {}", self.nar_hash.to_nix())?;
        writeln!(f, "NarSize: {}", self.nar_size)?;
        let references: Vec<_> = self.references.iter().map(StorePath::base_name).collect();
        writeln!(f, "References: {}", references.join(" "))?;
        if let Some(deriver) = &self.deriver {
            writeln!(f, "Deriver: {}", deriver.base_name())?;
        }
        if let Some(system) = &self.system {
            writeln!(f, "System: {system}")?;
        }
        for signature in &self.signatures {
            writeln!(f, "Sig: {signature}")?;
        }
        if let Some(address) = &self.content_address {
            writeln!(f, "CA: {address}")?;
        }
        Ok(())
    }
}

impl FromStr for NarInfo {
    type Err = NarInfoError;

    /// Fields in any order; unknown ones are ignored, as Nix does. Every known one but `Sig` may stand once.
    fn from_str(text: &str) -> Result<Self, NarInfoError> {
        let mut fields = Fields::default();
        let mut lines = text.split('\n');
        // A text whose last line has no end was cut short: its last value cannot be trusted.
        let unended = lines.next_back().unwrap_or_default();
        let mut count = 0;
        for line in lines {
            count += 1;
            let (field, value) = line.split_once(": ").ok_or(NarInfoError::NoField { line: count })?;
            fields.read(field, value).map_err(|problem| NarInfoError::Field {
                line: count,
                field: field.to_owned(),
                problem,
            })?;
        }
        if !unended.is_empty() {
            return Err(NarInfoError::Unended { line: count + 1 });
        }
        fields.finish()
    }
}

#[derive(Default)]
struct Fields {
    store_path: Option<StorePath>,
    url: Option<String>,
    compression: Option<Compression>,
    file_hash: Option<Sha256Hash>,
    file_size: Option<u64>,
    nar_hash: Option<Sha256Hash>,
    nar_size: Option<u64>,
    references: Option<BTreeSet<StorePath>>,
    deriver: Option<Option<StorePath>>,
    system: Option<String>,
    signatures: BTreeSet<Signature>,
    content_address: Option<ContentAddress>,
}

impl Fields {
    fn read(&mut self, field: &str, value: &str) -> Result<(), FieldProblem> {
        match field {
            "StorePath" => once(&mut self.store_path, value.parse()?),
            "URL" => once(&mut self.url, plain(value)?),
            "Compression" => once(&mut self.compression, value.parse()?),
            "FileHash" => once(&mut self.file_hash, value.parse()?),
            "FileSize" => once(&mut self.file_size, size(value)?),
            "NarHash" => once(&mut self.nar_hash, value.parse()?),
            "NarSize" => match size(value)? {
                // The smallest archive has 96 bytes; Nix takes a zero for a size that is missing.
                0 => Err(FieldProblem::Zero),
                size => once(&mut self.nar_size, size),
            },
            "References" => {
                let references: Result<_, _> =
                    value.split(' ').filter(|name| !name.is_empty()).map(StorePath::from_base_name).collect();
                once(&mut self.references, references?)
            }
            "Deriver" => match value {
                UNKNOWN_DERIVER => once(&mut self.deriver, None),
                _ => once(&mut self.deriver, Some(StorePath::from_base_name(value)?)),
            },
            "System" => once(&mut self.system, plain(value)?),
            "Sig" => {
                self.signatures.insert(value.parse()?);
                Ok(())
            }
            "CA" => once(&mut self.content_address, value.parse()?),
            _ => Ok(()),
        }
    }

    fn finish(self) -> Result<NarInfo, NarInfoError> {
        let missing = |field| NarInfoError::Missing { field };
        Ok(NarInfo {
            store_path: self.store_path.ok_or(missing("StorePath"))?,
            url: self.url.ok_or(missing("URL"))?,
            compression: self.compression.unwrap_or(Compression::Bzip2),
            file_hash: self.file_hash,
            file_size: self.file_size,
            nar_hash: self.nar_hash.ok_or(missing("NarHash"))?,
            nar_size: self.nar_size.ok_or(missing("NarSize"))?,
            references: self.references.unwrap_or_default(),
            deriver: self.deriver.flatten(),
            system: self.system,
            signatures: self.signatures,
            content_address: self.content_address,
        })
    }
}

fn once<T>(field: &mut Option<T>, value: T) -> Result<(), FieldProblem> {
    match field.replace(value) {
        Some(_) => Err(FieldProblem::Repeated),
        None => Ok(()),
    }
}

fn size(value: &str) -> Result<u64, FieldProblem> {
    // `parse` would also take a sign.
    let digits = !value.is_empty() && value.bytes().all(|digit| digit.is_ascii_digit());
    value.parse().ok().filter(|_| digits).ok_or_else(|| FieldProblem::NoSize(value.to_owned()))
}

fn plain(value: &str) -> Result<String, FieldProblem> {
    match value.is_empty() || value.contains(|c: char| c.is_control() || c.is_whitespace()) {
        true => Err(FieldProblem::NotPlain(value.to_owned())),
        false => Ok(value.to_owned()),
    }
}
