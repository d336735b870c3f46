//! Listings of archives that pass by, and the proofs that let their paths be mounted before they are pulled.

use std::io::{self, BufRead, Read};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use tokio::sync::mpsc::Receiver;

use super::{Cache, CacheError};
use crate::PathInfo;
use crate::chunk::StoredChunk;
use crate::error::chain;
use crate::lazy::{Proof, Tree};
use crate::recipe::{Recipe, RecipeId};
use crate::remote::Manifest;

/// A listing as it is stored.
pub(super) struct Listing {
    pub recipe: Arc<Recipe>,
    pub chunks: Vec<StoredChunk>,
}

impl Listing {
    /// The listing of a path's archive; none where it has no tree.
    pub fn of(tree: Option<&Tree>, info: &PathInfo) -> Result<Option<Self>, CacheError> {
        let Some(tree) = tree else { return Ok(None) };
        let (recipe, chunks) = tree
            .cut(&info.counted_references())
            .map_err(|error| CacheError::damaged(format!("the listing of {}", info.path), error))?;
        Ok(Some(Self { recipe: Arc::new(recipe), chunks }))
    }
}

impl Cache {
    /// The proof that this listing and the manifest's recipe belong to its path.
    pub(super) fn prove(&self, manifest: &Manifest, listing: RecipeId) -> Proof {
        let text = Proof::text(&manifest.info, &manifest.recipe, &listing);
        Proof { listing, signatures: vec![self.0.key.sign(&text).to_string()] }
    }
}

/// Reads an archive to its end, hands what it reads to `each`, and gives its tree; none where that is too large to be
/// mounted. Refuses every archive that Nix would not write: clients unpack what a cache has signed. Where the archive begins as
/// another one, up to a place inside of a file's contents, `source` gives what follows.
pub(super) fn read_listing(
    source: impl BufRead,
    known: Option<(&Tree, u64)>,
    each: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<Option<Tree>> {
    let mut reader = Tee { source, each, passed: 0, failed: None };
    let tree = match known {
        None => Tree::of_nar(&mut reader),
        Some((tree, at)) => tree.of_nar_from(at, &mut reader),
    };
    if reader.failed.is_none() {
        let no_archive = |message: String| io::Error::new(io::ErrorKind::InvalidData, message);
        let tree = tree.map_err(|error| no_archive(format!("its archive is none: {}", chain(&error))))?;
        loop {
            match reader.fill_buf().map(<[u8]>::len) {
                Ok(0) => return Ok(tree),
                Ok(_) => return Err(no_archive("bytes follow its archive".to_owned())),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
    }
    Err(reader.failed.unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into()))
}

/// Passes on what is read, as much at once as the source has, and keeps the error that ended it.
struct Tee<R, F> {
    source: R,
    each: F,
    /// Bytes that the source has at hand and that were passed on.
    passed: usize,
    failed: Option<io::Error>,
}

impl<R: BufRead, F: FnMut(&[u8]) -> io::Result<()>> BufRead for Tee<R, F> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.passed == 0 {
            let passed = match self.source.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
                bytes => bytes.and_then(|bytes| (self.each)(bytes).map(|()| bytes.len())),
            };
            self.passed = passed.map_err(|error| {
                let kind = error.kind();
                self.failed = Some(error);
                io::Error::from(kind)
            })?;
        }
        self.source.fill_buf()
    }

    fn consume(&mut self, len: usize) {
        self.passed -= len;
        self.source.consume(len);
    }
}

impl<R: BufRead, F: FnMut(&[u8]) -> io::Result<()>> Read for Tee<R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.fill_buf()?.read(buffer)?;
        self.consume(len);
        Ok(len)
    }
}

/// The bytes that come through a channel, on a thread that may block: many at once, as it sleeps and wakes for each.
pub(super) struct FromChannel {
    take: Receiver<Vec<Bytes>>,
    group: std::vec::IntoIter<Bytes>,
    current: Bytes,
}

impl FromChannel {
    pub fn new(take: Receiver<Vec<Bytes>>) -> Self {
        Self { take, group: Vec::new().into_iter(), current: Bytes::new() }
    }
}

impl BufRead for FromChannel {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() {
            match self.group.next() {
                Some(bytes) => self.current = bytes,
                None => match self.take.blocking_recv() {
                    Some(group) => self.group = group.into_iter(),
                    None => break,
                },
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, len: usize) {
        self.current.advance(len);
    }
}

impl Read for FromChannel {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.fill_buf()?.read(buffer)?;
        self.consume(len);
        Ok(len)
    }
}
