//! Which files lie in a binary cache, and what they are called (`src/libstore/binary-cache-store.cc` of Nix).

use std::fmt;
use std::str::FromStr;

use crate::realisation::RealisationId;
use crate::store_path::is_hash_part;
use crate::{Compression, Sha256Hash, StorePath, base32};

/// A file of a binary cache, by its path below the cache's root, without a slash before it. Parsed, no path is left that
/// could lead elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum CacheFile {
    /// `nix-cache-info`.
    Info,
    /// `<hash part>.narinfo`.
    NarInfo(String),
    /// `<hash part>.ls`: the listing of a path's archive.
    Listing(String),
    /// `nar/<hash of the file>.nar<extension>`.
    Nar {
        /// Hash of the compressed archive.
        file_hash: Sha256Hash,
        /// How it is compressed, as its extension says.
        compression: Compression,
    },
    /// `log/<derivation>`: what its build printed. Some caches hold it as `<derivation>.drv`, others leave `.drv` out.
    Log(StorePath),
    /// `realisations/<id>.doi`.
    Realisation(RealisationId),
}

/// A path that no file of a binary cache has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no file of a binary cache")]
pub struct NoCacheFile(String);

impl fmt::Display for CacheFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Info => f.write_str("nix-cache-info"),
            Self::NarInfo(hash) => write!(f, "{hash}.narinfo"),
            Self::Listing(hash) => write!(f, "{hash}.ls"),
            Self::Nar { file_hash, compression } => {
                write!(f, "nar/{}.nar{}", file_hash.to_base32(), compression.extension())
            }
            Self::Log(derivation) => write!(f, "log/{}", derivation.base_name()),
            Self::Realisation(id) => write!(f, "realisations/{id}.doi"),
        }
    }
}

impl FromStr for CacheFile {
    type Err = NoCacheFile;

    fn from_str(path: &str) -> Result<Self, NoCacheFile> {
        parse(path).ok_or_else(|| NoCacheFile(path.to_owned()))
    }
}

fn parse(path: &str) -> Option<CacheFile> {
    if path == "nix-cache-info" {
        Some(CacheFile::Info)
    } else if let Some(hash) = path.strip_suffix(".narinfo") {
        hash_part(hash).map(CacheFile::NarInfo)
    } else if let Some(hash) = path.strip_suffix(".ls") {
        hash_part(hash).map(CacheFile::Listing)
    } else if let Some(file) = path.strip_prefix("nar/") {
        let (hash, extension) = file.split_once(".nar")?;
        let digest: [u8; 32] = base32::decode(hash).ok()?.try_into().ok()?;
        let compression = Compression::ALL.into_iter().find(|known| known.extension() == extension)?;
        Some(CacheFile::Nar { file_hash: digest.into(), compression })
    } else if let Some(derivation) = path.strip_prefix("log/") {
        StorePath::from_base_name(derivation).ok().map(CacheFile::Log)
    } else {
        let id = path.strip_prefix("realisations/")?.strip_suffix(".doi")?;
        id.parse().ok().map(CacheFile::Realisation)
    }
}

fn hash_part(text: &str) -> Option<String> {
    is_hash_part(text).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_round_trip() {
        let hash = "094qif9n4cq4fdg459qzbhg1c6wywawwaaivx0k0x8xhbyx4vwic";
        for path in [
            "nix-cache-info".to_owned(),
            "0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq.narinfo".to_owned(),
            "0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq.ls".to_owned(),
            format!("nar/{hash}.nar"),
            format!("nar/{hash}.nar.xz"),
            format!("nar/{hash}.nar.zst"),
            format!("nar/{hash}.nar.bz2"),
            "log/0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-hello.drv".to_owned(),
            format!("realisations/{}!out.doi", Sha256Hash::of(b"")),
        ] {
            assert_eq!(path.parse::<CacheFile>().unwrap().to_string(), path);
        }
    }

    #[test]
    fn other_paths_are_refused() {
        let hash = "094qif9n4cq4fdg459qzbhg1c6wywawwaaivx0k0x8xhbyx4vwic";
        for path in [
            "",
            "/nix-cache-info",
            "../0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq.narinfo",
            "0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8ke.narinfo",
            "0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8k.ls",
            &format!("nar/{hash}"),
            &format!("nar/{hash}.nar.gz"),
            &format!("nar/../{hash}.nar"),
            "log/..",
            "log/0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-a/b",
            "realisations/../out.doi",
        ] {
            assert!(path.parse::<CacheFile>().is_err(), "{path:?}");
        }
    }
}
