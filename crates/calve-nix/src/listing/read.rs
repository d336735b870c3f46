//! Listings read: any order of keys, any white space, unknown keys ignored, as in Nix.

use std::str::FromStr;

use super::json::{Token, Tokens};
use super::{LISTING_MAX_BYTES, LISTING_MAX_ENTRIES, Listing, ListingEntry, ListingNode};
use crate::nar::{DEPTH_MAX, is_entry_name};

/// Why a text is no listing, or a tree cannot be listed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListingError {
    /// It is too large.
    #[error("a listing of {0} bytes is refused: the limit is {LISTING_MAX_BYTES}")]
    TooLarge(usize),
    /// There are too many files and directories.
    #[error("a listing of more than {LISTING_MAX_ENTRIES} files and directories is refused")]
    TooManyEntries,
    /// Directories are nested too deeply.
    #[error("byte {0} of the listing: directories are nested more than {DEPTH_MAX} deep")]
    TooDeep(usize),
    /// Something else stands there than may.
    #[error("byte {offset} of the listing: {wanted} belongs here")]
    Unexpected {
        /// Bytes before it, or shortly behind it.
        offset: usize,
        /// What may stand here.
        wanted: &'static str,
    },
    /// A node lacks what its type needs, or has an unknown type.
    #[error("byte {offset} of the listing: the node that ends here is no {wanted}")]
    BadNode {
        /// Bytes up to its end.
        offset: usize,
        /// What it lacks to be.
        wanted: &'static str,
    },
    /// An entry's name cannot stand in a directory.
    #[error("{0:?} cannot be the name of a directory entry")]
    BadName(String),
    /// A directory has two entries of one name.
    #[error("a directory of the listing has {0:?} twice")]
    Twice(String),
    /// The listing is of another version.
    #[error("the listing is not of version 1")]
    OtherVersion,
    /// A name or target is no UTF-8: JSON cannot hold it.
    #[error("{0:?} is no UTF-8 and cannot stand in a listing")]
    NotText(String),
    /// The archive has not been read to its end.
    #[error("the listing is not complete")]
    NotComplete,
}

impl FromStr for Listing {
    type Err = ListingError;

    fn from_str(text: &str) -> Result<Self, ListingError> {
        if text.len() > LISTING_MAX_BYTES {
            return Err(ListingError::TooLarge(text.len()));
        }
        Parser { tokens: Tokens::new(text), entries: Vec::new(), open: Vec::new() }.listing()
    }
}

/// A node whose end has not been read.
struct Open {
    entry: usize,
    kind: Option<String>,
    size: Option<u64>,
    executable: bool,
    nar_offset: Option<u64>,
    target: Option<String>,
    has_entries: bool,
    /// Inside of `entries`, between names.
    in_entries: bool,
}

struct Parser<'a> {
    tokens: Tokens<'a>,
    entries: Vec<ListingEntry>,
    open: Vec<Open>,
}

impl Parser<'_> {
    fn listing(mut self) -> Result<Listing, ListingError> {
        self.expect(Token::Open, "\"{\"")?;
        let mut version = None;
        while let Some(key) = self.key()? {
            match key.as_str() {
                "version" => version = Some(self.number()?),
                "root" if self.entries.is_empty() => {
                    self.begin(String::new())?;
                    while !self.open.is_empty() {
                        self.step()?;
                    }
                }
                _ => self.skip_value()?,
            }
        }
        if self.token()?.is_some() {
            return Err(self.unexpected("the end"));
        }
        if version != Some(1) {
            return Err(ListingError::OtherVersion);
        }
        if self.entries.is_empty() {
            return Err(ListingError::NotComplete);
        }
        Ok(Listing { entries: sorted(self.entries)? })
    }

    /// Reads `{` of a node.
    fn begin(&mut self, name: String) -> Result<(), ListingError> {
        self.expect(Token::Open, "\"{\"")?;
        if self.entries.len() == LISTING_MAX_ENTRIES {
            return Err(ListingError::TooManyEntries);
        }
        if self.open.len() > DEPTH_MAX {
            return Err(ListingError::TooDeep(self.tokens.offset()));
        }
        let entry = self.entries.len();
        // What it is stands behind its entries, in what some tools write.
        self.entries.push(ListingEntry { depth: self.open.len(), name, node: ListingNode::Directory });
        self.open.push(Open {
            entry,
            kind: None,
            size: None,
            executable: false,
            nar_offset: None,
            target: None,
            has_entries: false,
            in_entries: false,
        });
        Ok(())
    }

    /// Reads one key with its value, or the end, of the innermost node or of its entries.
    fn step(&mut self) -> Result<(), ListingError> {
        let last = self.open.len() - 1;
        let Some(key) = self.key()? else {
            if self.open[last].in_entries {
                self.open[last].in_entries = false;
                return Ok(());
            }
            return self.end();
        };
        if self.open[last].in_entries {
            if !is_entry_name(key.as_bytes()) {
                return Err(ListingError::BadName(key));
            }
            return self.begin(key);
        }
        match key.as_str() {
            "type" => self.open[last].kind = Some(self.text()?),
            "size" => self.open[last].size = Some(self.number()?),
            "executable" => self.open[last].executable = self.boolean()?,
            "narOffset" => self.open[last].nar_offset = Some(self.number()?),
            "target" => self.open[last].target = Some(self.text()?),
            "entries" if !self.open[last].has_entries => {
                self.expect(Token::Open, "\"{\"")?;
                (self.open[last].has_entries, self.open[last].in_entries) = (true, true);
            }
            _ => self.skip_value()?,
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), ListingError> {
        let open = self.open.pop().expect("a node is open");
        let bad = |wanted| ListingError::BadNode { offset: self.tokens.offset(), wanted };
        let node = match open.kind.as_deref() {
            Some("directory") if open.has_entries => ListingNode::Directory,
            Some("directory") => return Err(bad("directory with entries")),
            _ if open.has_entries => return Err(bad("directory, but has entries")),
            Some("regular") => ListingNode::File {
                size: open.size.ok_or(bad("file with a size"))?,
                executable: open.executable,
                nar_offset: open.nar_offset,
            },
            Some("symlink") => {
                ListingNode::Symlink { target: open.target.ok_or(bad("symbolic link with a target"))? }
            }
            _ => return Err(bad("directory, regular file or symbolic link")),
        };
        self.entries[open.entry].node = node;
        Ok(())
    }

    /// The next key of the object around, behind the comma where one is due; none at the object's end.
    fn key(&mut self) -> Result<Option<String>, ListingError> {
        let first = self.tokens.just_opened();
        let token = match (self.token()?, first) {
            (Some(Token::Close), _) => return Ok(None),
            (token, true) => token,
            (Some(Token::Comma), false) => self.token()?,
            (_, false) => return Err(self.unexpected("\",\" or \"}\"")),
        };
        let Some(Token::Text(key)) = token else { return Err(self.unexpected("a key")) };
        self.expect(Token::Colon, "\":\"")?;
        Ok(Some(key))
    }

    fn text(&mut self) -> Result<String, ListingError> {
        match self.token()? {
            Some(Token::Text(text)) => Ok(text),
            _ => Err(self.unexpected("text")),
        }
    }

    fn number(&mut self) -> Result<u64, ListingError> {
        let number = match self.token()? {
            Some(Token::Number(digits)) => digits.parse().ok(),
            _ => None,
        };
        number.ok_or_else(|| self.unexpected("a whole number below 2^64"))
    }

    fn boolean(&mut self) -> Result<bool, ListingError> {
        match self.token()? {
            Some(Token::Word("true")) => Ok(true),
            Some(Token::Word("false")) => Ok(false),
            _ => Err(self.unexpected("true or false")),
        }
    }

    /// Skips a value of an unknown key, however deep it is; its insides are not checked beyond their brackets.
    fn skip_value(&mut self) -> Result<(), ListingError> {
        let mut open = Vec::new();
        loop {
            match self.token()? {
                Some(Token::Open) => open.push(Token::Close),
                Some(Token::OpenList) => open.push(Token::CloseList),
                Some(end @ (Token::Close | Token::CloseList)) => {
                    if open.pop() != Some(end) {
                        return Err(self.unexpected("a value"));
                    }
                }
                Some(Token::Colon | Token::Comma) if open.is_empty() => {
                    return Err(self.unexpected("a value"));
                }
                Some(Token::Colon | Token::Comma | Token::Text(_) | Token::Number(_) | Token::Word(_)) => {}
                None => return Err(self.unexpected("a value")),
            }
            if open.is_empty() {
                return Ok(());
            }
        }
    }

    fn expect(&mut self, token: Token, wanted: &'static str) -> Result<(), ListingError> {
        if self.token()? == Some(token) { Ok(()) } else { Err(self.unexpected(wanted)) }
    }

    fn token(&mut self) -> Result<Option<Token>, ListingError> {
        self.tokens.next_token().map_err(|offset| ListingError::Unexpected { offset, wanted: "JSON" })
    }

    fn unexpected(&self, wanted: &'static str) -> ListingError {
        ListingError::Unexpected { offset: self.tokens.offset(), wanted }
    }
}

/// The entries in the archive's order: every directory's by the bytes of their names, each once.
fn sorted(entries: Vec<ListingEntry>) -> Result<Vec<ListingEntry>, ListingError> {
    let mut children: Vec<Vec<usize>> = vec![Vec::new(); entries.len()];
    let mut around: Vec<usize> = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        around.truncate(entry.depth);
        if let Some(parent) = around.last() {
            children[*parent].push(index);
        }
        around.push(index);
    }
    for list in &mut children {
        list.sort_by(|a, b| entries[*a].name.cmp(&entries[*b].name));
        if let Some(twice) = list.windows(2).find(|pair| entries[pair[0]].name == entries[pair[1]].name) {
            return Err(ListingError::Twice(entries[twice[0]].name.clone()));
        }
    }
    let mut entries: Vec<_> = entries.into_iter().map(Some).collect();
    let (mut ordered, mut next) = (Vec::with_capacity(entries.len()), vec![0]);
    while let Some(index) = next.pop() {
        ordered.extend(entries[index].take());
        next.extend(children[index].iter().rev());
    }
    Ok(ordered)
}
