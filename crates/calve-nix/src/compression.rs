//! How files in a binary cache are compressed: names and file extensions (`src/libstore/binary-cache-store.cc` of Nix).

use std::fmt;
use std::str::FromStr;

/// A compression that a narinfo can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Compression {
    /// The archive as it is.
    None,
    /// Zstandard.
    Zstd,
    /// xz, what Nix writes by default.
    Xz,
    /// bzip2; also meant by a narinfo that names no compression.
    Bzip2,
    /// Brotli.
    Br,
}

/// A name of no compression that calve reads.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is none of the compressions none, zstd, xz, bzip2, br")]
pub struct CompressionError(String);

impl Compression {
    /// Every compression.
    pub const ALL: [Self; 5] = [Self::None, Self::Zstd, Self::Xz, Self::Bzip2, Self::Br];

    /// Its name in a narinfo, and as an HTTP content coding where HTTP has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Zstd => "zstd",
            Self::Xz => "xz",
            Self::Bzip2 => "bzip2",
            Self::Br => "br",
        }
    }

    /// What follows `.nar` in a file's name, with its dot; nothing for no compression.
    pub fn extension(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Zstd => ".zst",
            Self::Xz => ".xz",
            Self::Bzip2 => ".bz2",
            Self::Br => ".br",
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Compression {
    type Err = CompressionError;

    /// An empty name means bzip2, as in the narinfos of the first binary caches.
    fn from_str(name: &str) -> Result<Self, CompressionError> {
        match name {
            "" => Ok(Self::Bzip2),
            _ => Self::ALL
                .into_iter()
                .find(|known| known.name() == name)
                .ok_or_else(|| CompressionError(name.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_others_are_refused() {
        for compression in Compression::ALL {
            assert_eq!(compression.to_string().parse(), Ok(compression));
        }
        assert_eq!("".parse(), Ok(Compression::Bzip2));
        assert!("rot13".parse::<Compression>().is_err());
    }
}
