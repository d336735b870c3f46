//! `nix-cache-info`: what a binary cache says about itself (`src/libstore/binary-cache-store.cc` of Nix).

use std::fmt;
use std::str::FromStr;

use crate::store_path::STORE_DIR;

/// The priority that Nix assumes where none is given; `cache.nixos.org` has 40. The smallest is asked first.
pub const DEFAULT_PRIORITY: u32 = 50;
/// Largest `nix-cache-info` in bytes: it has three short lines.
pub const CACHE_INFO_MAX_BYTES: usize = 64 << 10;

/// A `nix-cache-info`. Displayed with every field, as `cache.nixos.org` has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheInfo {
    /// Whether Nix may ask for many paths at once, as when it looks what is missing.
    pub want_mass_query: bool,
    /// Where the cache stands among others: the smallest number is asked first.
    pub priority: u32,
}

/// A text that is no `nix-cache-info` of a cache that calve can use; lines are counted from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CacheInfoError {
    /// It is too large.
    #[error("a nix-cache-info of {0} bytes is refused: the limit is {CACHE_INFO_MAX_BYTES}")]
    TooLarge(usize),
    /// The cache is for another store directory: none of its paths can be used here.
    #[error("the cache is for the store directory {0:?}, not for {STORE_DIR}")]
    OtherStore(String),
    /// A line is no field.
    #[error("line {line} of nix-cache-info is no field's name, a colon and a value")]
    NoField {
        /// Where.
        line: usize,
    },
    /// A field's value cannot be read.
    #[error("line {line} of nix-cache-info: {value:?} is no {field}")]
    BadValue {
        /// Where.
        line: usize,
        /// The field's name.
        field: &'static str,
        /// What it has.
        value: String,
    },
}

impl Default for CacheInfo {
    fn default() -> Self {
        Self { want_mass_query: false, priority: DEFAULT_PRIORITY }
    }
}

impl fmt::Display for CacheInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "StoreDir: {STORE_DIR}")?;
        writeln!(f, "WantMassQuery: {}", u8::from(self.want_mass_query))?;
        writeln!(f, "Priority: {}", self.priority)
    }
}

impl FromStr for CacheInfo {
    type Err = CacheInfoError;

    /// Unknown fields and empty lines are ignored, missing fields have their defaults, as in Nix.
    fn from_str(text: &str) -> Result<Self, CacheInfoError> {
        if text.len() > CACHE_INFO_MAX_BYTES {
            return Err(CacheInfoError::TooLarge(text.len()));
        }
        let mut info = Self::default();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let line_number = number + 1;
            let (field, value) = line.split_once(':').ok_or(CacheInfoError::NoField { line: line_number })?;
            let value = value.trim();
            let bad = |field| CacheInfoError::BadValue { line: line_number, field, value: value.to_owned() };
            match field {
                "StoreDir" if value != STORE_DIR => return Err(CacheInfoError::OtherStore(value.to_owned())),
                // Whatever is not 1 means no, as in Nix.
                "WantMassQuery" => info.want_mass_query = value == "1",
                "Priority" => info.priority = value.parse().map_err(|_| bad("Priority"))?,
                _ => {}
            }
        }
        Ok(info)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_nix_writes_is_read() {
        let info = "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 40\nLater: 1\n".parse();
        assert_eq!(info, Ok(CacheInfo { want_mass_query: true, priority: 40 }));
        // A cache made by `nix copy --to file://…`.
        assert_eq!("StoreDir: /nix/store\n".parse(), Ok(CacheInfo::default()));
    }

    #[test]
    fn what_cannot_be_used_is_refused() {
        let refused = |text: &str| text.parse::<CacheInfo>().unwrap_err().to_string();
        assert!(refused("StoreDir: /gnu/store\n").contains("/gnu/store"));
        assert!(refused("StoreDir: /nix/store\nhello\n").starts_with("line 2"));
        assert!(refused("Priority: -1\n").contains("no Priority"));
        assert!(refused(&"\n".repeat(CACHE_INFO_MAX_BYTES + 1)).contains("limit"));
    }

    proptest! {
        #[test]
        fn it_round_trips(want_mass_query: bool, priority: u32) {
            let info = CacheInfo { want_mass_query, priority };
            prop_assert_eq!(info.to_string().parse(), Ok(info));
        }
    }
}
