//! Who may do what with a cache: tokens, of which only a hash is kept.
//!
//! ```text
//! <dir>/tokens/<name>.json   {"version":1,"sha256":"…","right":"push"}
//! ```
//! A running cache looks again when the directory has changed, so that a token works from the moment it is made and
//! no longer once it is revoked.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use calve_nix::{Sha256Hash, StorePath};
use serde::{Deserialize, Serialize};

/// Random bytes of a token: nobody guesses 256 bits.
const TOKEN_RANDOM_BYTES: usize = 32;
/// What tokens begin with, so that people and scanners of leaked secrets know them.
const TOKEN_PREFIX: &str = "calve_";
/// Longest name of a token in characters: it is a file's name.
pub const TOKEN_NAME_MAX_CHARS: usize = 64;
/// Most bytes of a token's file: one with a hundred roots has 10 KB.
const FILE_MAX_BYTES: u64 = 1 << 20;
/// The version of the files that this program writes and reads.
const VERSION: u32 = 1;

/// What a token allows.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Right {
    /// Adding paths, and everything that [`Right::Pull`] allows.
    Push,
    /// Reading every path.
    Pull,
    /// Reading these paths and what they refer to; nothing else seems to exist.
    Closure(Vec<StorePath>),
}

/// A token as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Its name, for whoever revokes it.
    pub name: String,
    /// What it allows.
    pub right: Right,
    hash: Sha256Hash,
}

/// Why tokens cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The name is none for a token.
    #[error(
        "{0:?} is no name for a token: it has 1 to {TOKEN_NAME_MAX_CHARS} letters, digits, dashes, dots and underscores"
    )]
    Name(String),
    /// There is one with that name.
    #[error("there is already a token called {0}")]
    Exists(String),
    /// There is none with that name.
    #[error("there is no token called {0}")]
    Unknown(String),
    /// A file cannot be used.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file holds no token.
    #[error("{} holds no token of this version of calve: {why}", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    sha256: String,
    right: StoredRight,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum StoredRight {
    Push,
    Pull,
    Closure(Vec<String>),
}

/// The tokens of a cache.
#[derive(Debug)]
pub struct Tokens {
    dir: PathBuf,
    known: Mutex<Option<(Stamp, Arc<[Token]>)>>,
}

/// What changes with the directory.
type Stamp = (i64, i64, u64);

impl Tokens {
    /// The tokens that are kept in the cache's directory; nothing is read or made yet.
    pub fn new(cache_dir: &Path) -> Self {
        Self { dir: cache_dir.join("tokens"), known: Mutex::new(None) }
    }

    /// Makes a token; its text is given this once and kept nowhere.
    pub fn add(&self, name: &str, right: &Right) -> Result<String, TokenError> {
        let path = self.path(name)?;
        let builder = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir);
        builder.map_err(|source| TokenError::Io { action: "make", path: self.dir.clone(), source })?;
        let random = crate::random::bytes::<TOKEN_RANDOM_BYTES>();
        let text = format!("{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(random));
        let stored = Stored {
            version: VERSION,
            sha256: Sha256Hash::of(text.as_bytes()).to_hex(),
            right: StoredRight::of(right),
        };
        let json = serde_json::to_vec(&stored).expect("a token is plain text");
        // Written under another name first: a running cache never reads half of it.
        let draft = self.dir.join(format!(".{name}.new"));
        let written = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft);
        let written = written.and_then(|mut file| file.write_all(&json).and_then(|()| file.sync_all()));
        let linked = written.and_then(|()| fs::hard_link(&draft, &path));
        let _ = fs::remove_file(&draft);
        match linked {
            Ok(()) => Ok(text),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(TokenError::Exists(name.to_owned()))
            }
            Err(source) => Err(TokenError::Io { action: "write", path, source }),
        }
    }

    /// Revokes a token.
    pub fn remove(&self, name: &str) -> Result<(), TokenError> {
        let path = self.path(name)?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(TokenError::Unknown(name.to_owned()))
            }
            removed => removed.map_err(|source| TokenError::Io { action: "remove", path, source }),
        }
    }

    /// All tokens, by name.
    pub fn list(&self) -> Result<Arc<[Token]>, TokenError> {
        let Some(stamp) = self.stamp()? else { return Ok(Arc::default()) };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((read_at, tokens)) = &*known
            && *read_at == stamp
        {
            return Ok(tokens.clone());
        }
        let tokens: Arc<[Token]> = self.read()?.into();
        *known = Some((stamp, tokens.clone()));
        Ok(tokens)
    }

    /// The token with this text. Takes as long for every wrong one: hashes are compared, all of them, to their ends.
    pub fn find(&self, text: &str) -> Result<Option<Token>, TokenError> {
        let said = Sha256Hash::of(text.as_bytes());
        let mut found = None;
        for token in self.list()?.iter() {
            let pairs = token.hash.as_bytes().iter().zip(said.as_bytes());
            if pairs.fold(0, |differs, (a, b)| differs | (a ^ b)) == 0 {
                found = Some(token.clone());
            }
        }
        Ok(found)
    }

    fn path(&self, name: &str) -> Result<PathBuf, TokenError> {
        let fits = |c: u8| c.is_ascii_alphanumeric() || b"-._".contains(&c);
        if name.is_empty()
            || name.len() > TOKEN_NAME_MAX_CHARS
            || name.starts_with('.')
            || !name.bytes().all(fits)
        {
            return Err(TokenError::Name(name.to_owned()));
        }
        Ok(self.dir.join(format!("{name}.json")))
    }

    /// None where no token was ever made.
    fn stamp(&self) -> Result<Option<Stamp>, TokenError> {
        match fs::metadata(&self.dir) {
            Ok(metadata) => Ok(Some((metadata.mtime(), metadata.mtime_nsec(), metadata.ino()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(TokenError::Io { action: "read", path: self.dir.clone(), source }),
        }
    }

    fn read(&self) -> Result<Vec<Token>, TokenError> {
        let failed = |source| TokenError::Io { action: "read", path: self.dir.clone(), source };
        let mut tokens = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(failed)? {
            let file_name = entry.map_err(failed)?.file_name();
            let name = file_name.to_str().and_then(|name| name.strip_suffix(".json"));
            let Some(name) = name.filter(|name| !name.starts_with('.')) else { continue };
            tokens.extend(read_token(&self.dir.join(&file_name), name)?);
        }
        tokens.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(tokens)
    }
}

/// None where the file has just been removed.
fn read_token(path: &Path, name: &str) -> Result<Option<Token>, TokenError> {
    let damaged = |why: String| TokenError::Damaged { path: path.to_owned(), why };
    let failed = |source| TokenError::Io { action: "read", path: path.to_owned(), source };
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() > FILE_MAX_BYTES => return Err(damaged("it is too long".to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        metadata => metadata.map_err(failed)?,
    };
    let json = fs::read(path).map_err(failed)?;
    let stored: Stored = serde_json::from_slice(&json).map_err(|error| damaged(error.to_string()))?;
    if stored.version != VERSION {
        return Err(damaged(format!("it has version {}", stored.version)));
    }
    let hash = format!("sha256:{}", stored.sha256).parse();
    let hash = hash.map_err(|error: calve_nix::HashError| damaged(error.to_string()))?;
    let right = stored.right.parse().map_err(damaged)?;
    Ok(Some(Token { name: name.to_owned(), right, hash }))
}

impl StoredRight {
    fn of(right: &Right) -> Self {
        match right {
            Right::Push => Self::Push,
            Right::Pull => Self::Pull,
            Right::Closure(roots) => Self::Closure(roots.iter().map(StorePath::to_string).collect()),
        }
    }

    fn parse(self) -> Result<Right, String> {
        match self {
            Self::Push => Ok(Right::Push),
            Self::Pull => Ok(Right::Pull),
            Self::Closure(roots) => {
                let roots: Result<_, _> = roots.iter().map(|root| StorePath::parse(root)).collect();
                roots.map(Right::Closure).map_err(|error| error.to_string())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_found_by_its_text_until_it_is_revoked() {
        let dir = tempfile::tempdir().unwrap();
        let (maker, server) = (Tokens::new(dir.path()), Tokens::new(dir.path()));
        assert!(server.find("x").unwrap().is_none());
        let path = StorePath::from_base_name("0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-a").unwrap();
        let rights = [Right::Push, Right::Pull, Right::Closure(vec![path])];
        for (name, right) in ["a", "b", "c"].into_iter().zip(&rights) {
            let text = maker.add(name, right).unwrap();
            assert_eq!(&server.find(&text).unwrap().unwrap().right, right);
            assert!(server.find(&text[1..]).unwrap().is_none());
            let file = dir.path().join(format!("tokens/{name}.json"));
            assert!(!fs::read_to_string(&file).unwrap().contains(&text[TOKEN_PREFIX.len()..]));
            assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        }
        assert!(matches!(maker.add("a", &Right::Pull), Err(TokenError::Exists(_))));
        let text = maker.add("d", &Right::Pull).unwrap();
        maker.remove("d").unwrap();
        assert!(server.find(&text).unwrap().is_none());
        assert!(matches!(maker.remove("d"), Err(TokenError::Unknown(_))));
        assert_eq!(server.list().unwrap().len(), 3);
    }

    #[test]
    fn names_are_no_paths_and_damaged_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::new(dir.path());
        for name in ["", "../x", "a/b", ".a", "a b", &"a".repeat(65)] {
            assert!(matches!(tokens.add(name, &Right::Pull), Err(TokenError::Name(_))), "{name:?}");
        }
        tokens.add("a", &Right::Pull).unwrap();
        fs::write(dir.path().join("tokens/b.json"), r#"{"version":2,"sha256":"","right":"pull"}"#).unwrap();
        assert!(tokens.list().unwrap_err().to_string().contains("b.json"));
    }
}
