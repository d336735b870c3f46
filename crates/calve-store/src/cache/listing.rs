//! Listings of archives that pass by, and the proofs that let their paths be mounted before they are pulled.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc::Receiver;

use super::{Cache, CacheError};
use crate::PathInfo;
use crate::chunk::StoredChunk;
use crate::error::chain;
use crate::lazy::{Proof, Tree};
use crate::recipe::{Recipe, RecipeId};
use crate::remote::Manifest;

/// Bytes of an archive that are read at a time.
const BUFFER_BYTES: usize = 64 << 10;

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

/// Reads an archive to its end, hands all of its bytes to `each`, and gives its tree; none where that is too large to be
/// mounted. Refuses every archive that Nix would not write: clients unpack what a cache has signed.
pub(super) fn read_listing(
    source: impl Read,
    each: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<Option<Tree>> {
    let mut reader = BufReader::with_capacity(BUFFER_BYTES, Tee { source, each, failed: None });
    let tree = Tree::of_nar(&mut reader);
    if reader.get_ref().failed.is_none() {
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
    Err(reader.into_inner().failed.unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into()))
}

/// Passes on what is read, and keeps the error that ended it.
struct Tee<R, F> {
    source: R,
    each: F,
    failed: Option<io::Error>,
}

impl<R: Read, F: FnMut(&[u8]) -> io::Result<()>> Read for Tee<R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = match self.source.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            read => read.and_then(|len| (self.each)(&buffer[..len]).map(|()| len)),
        };
        read.map_err(|error| {
            let kind = error.kind();
            self.failed = Some(error);
            kind.into()
        })
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

impl Read for FromChannel {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.group.next() {
                Some(bytes) => self.current = bytes,
                None => match self.take.blocking_recv() {
                    Some(group) => self.group = group.into_iter(),
                    None => return Ok(0),
                },
            }
        }
        let len = buffer.len().min(self.current.len());
        buffer[..len].copy_from_slice(&self.current.split_to(len));
        Ok(len)
    }
}
