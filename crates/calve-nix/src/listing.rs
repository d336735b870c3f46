//! Listings: the tree in an archive, with the place of every file's contents, as `.ls` files in a binary cache hold it
//! (`src/libstore/nar-accessor.cc` of Nix, version 1).
//!
//! ```text
//! {"version":1,"root":node}
//! node = {"type":"directory","entries":{name:node, …}}
//!      | {"type":"regular","size":n,"executable":true,"narOffset":n}     (executable only if it is)
//!      | {"type":"symlink","target":text}
//! ```
//!
//! A listing is kept flat, each entry with its depth: no depth of a tree costs stack, neither here nor for the reader.

mod json;
mod read;

pub use read::ListingError;

use std::fmt;
use std::io::Read;

use crate::nar::{NarEvent, NarReadError, NarReader};

/// Most entries of a listing: no store path that anybody runs has as many files, and reading one takes some 100 MB of memory.
pub const LISTING_MAX_ENTRIES: usize = 1 << 18;
/// Largest listing in bytes of JSON: 256 for each entry.
pub const LISTING_MAX_BYTES: usize = 64 << 20;

/// The tree in an archive, in the archive's order: a directory, its entries in the order of their names' bytes, with
/// everything below each. Displayed as JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The root first; never empty.
    entries: Vec<ListingEntry>,
}

/// One node of the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListingEntry {
    /// Directories around it; only the root has 0.
    pub depth: usize,
    /// Its name in the directory around it, empty for the root. Listings are JSON: only names in UTF-8 can be listed.
    pub name: String,
    /// What it is.
    pub node: ListingNode,
}

/// What an entry of a listing is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListingNode {
    /// A directory; the entries behind it that are deeper lie in it.
    Directory,
    /// A regular file.
    File {
        /// Its size in bytes.
        size: u64,
        /// Whether it may be executed.
        executable: bool,
        /// Where its contents begin in the archive; some tools leave it out.
        nar_offset: Option<u64>,
    },
    /// A symbolic link.
    Symlink {
        /// Where it points.
        target: String,
    },
}

impl Listing {
    /// Lists the archive that `input` begins with, reading it to its end.
    pub fn of_nar(input: impl Read) -> Result<Self, ListNarError> {
        let mut reader = NarReader::new(input);
        let mut builder = ListingBuilder::default();
        while let Some(event) = reader.next_event()? {
            builder.add(&event)?;
        }
        Ok(builder.finish()?)
    }

    /// Every entry, in the archive's order.
    pub fn entries(&self) -> &[ListingEntry] {
        &self.entries
    }

    /// The entry at a path below the root, names with slashes between them; the root for an empty path.
    pub fn find(&self, path: &str) -> Option<&ListingEntry> {
        let mut at = 0;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let depth = self.entries[at].depth;
            let below = self.entries[at + 1..].iter().take_while(|entry| entry.depth > depth);
            let found =
                below.enumerate().find(|(_, entry)| entry.depth == depth + 1 && entry.name == name)?;
            at += 1 + found.0;
        }
        Some(&self.entries[at])
    }
}

/// Builds a listing from the events of an archive that is read anyway.
#[derive(Debug, Default)]
pub struct ListingBuilder {
    entries: Vec<ListingEntry>,
    depth: usize,
}

impl ListingBuilder {
    /// Adds the next event. After an error the tree cannot be listed; reading the archive may go on.
    pub fn add(&mut self, event: &NarEvent) -> Result<(), ListingError> {
        let (name, node) = match event {
            NarEvent::Leave => {
                self.depth -= 1;
                return Ok(());
            }
            NarEvent::Enter { name } => (name, ListingNode::Directory),
            NarEvent::File { name, executable, size, offset } => {
                let (size, executable) = (*size, *executable);
                (name, ListingNode::File { size, executable, nar_offset: Some(*offset) })
            }
            NarEvent::Symlink { name, target } => (name, ListingNode::Symlink { target: text(target)? }),
        };
        if self.entries.len() == LISTING_MAX_ENTRIES {
            return Err(ListingError::TooManyEntries);
        }
        self.entries.push(ListingEntry { depth: self.depth, name: text(name)?, node });
        if matches!(event, NarEvent::Enter { .. }) {
            self.depth += 1;
        }
        Ok(())
    }

    /// The listing, once the archive's last event was added.
    pub fn finish(self) -> Result<Listing, ListingError> {
        match self.entries.is_empty() || self.depth > 0 {
            true => Err(ListingError::NotComplete),
            false => Ok(Listing { entries: self.entries }),
        }
    }
}

fn text(bytes: &[u8]) -> Result<String, ListingError> {
    let text = str::from_utf8(bytes);
    text.map(str::to_owned).map_err(|_| ListingError::NotText(String::from_utf8_lossy(bytes).into_owned()))
}

/// Why an archive could not be listed.
#[derive(Debug, thiserror::Error)]
pub enum ListNarError {
    /// The archive is damaged or cannot be read.
    #[error(transparent)]
    Nar(#[from] NarReadError),
    /// The tree cannot be listed.
    #[error(transparent)]
    Listing(#[from] ListingError),
}

impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{\"version\":1,\"root\":")?;
        let mut depth = 0;
        let mut first = true;
        for entry in &self.entries {
            for _ in entry.depth..depth {
                f.write_str("}}")?;
                first = false;
            }
            depth = entry.depth;
            if depth > 0 {
                let comma = if first { "" } else { "," };
                write!(f, "{comma}{}:", json::quoted(&entry.name))?;
            }
            first = false;
            match &entry.node {
                ListingNode::Directory => {
                    f.write_str("{\"type\":\"directory\",\"entries\":{")?;
                    (depth, first) = (depth + 1, true);
                }
                ListingNode::File { size, executable, nar_offset } => {
                    write!(f, "{{\"type\":\"regular\",\"size\":{size}")?;
                    if *executable {
                        f.write_str(",\"executable\":true")?;
                    }
                    if let Some(offset) = nar_offset {
                        write!(f, ",\"narOffset\":{offset}")?;
                    }
                    f.write_str("}")?;
                }
                ListingNode::Symlink { target } => {
                    write!(f, "{{\"type\":\"symlink\",\"target\":{}}}", json::quoted(target))?;
                }
            }
        }
        (0..depth).try_for_each(|_| f.write_str("}}"))?;
        f.write_str("}")
    }
}
