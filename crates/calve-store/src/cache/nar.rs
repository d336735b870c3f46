//! Archives put together from chunks, as a stream, without a copy on disk.

use std::ops::Range;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream::{BoxStream, StreamExt, TryStreamExt};

use super::{Cache, CacheError, blocking};
use crate::chunk::StoredChunk;
use crate::decode;
use crate::normal::Restorer;
use crate::recipe::Recipe;
use crate::remote::Manifest;

/// Groups of chunks that are decompressed at once for one archive.
const DECODED_AHEAD: usize = 2;
/// Level of zstd for chunks that are compressed again because they hold references: fast, they pass by once.
const AGAIN_LEVEL: i32 = 1;

/// How an archive is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NarEncoding {
    /// As it is.
    Plain,
    /// As zstd frames, one after the other: those of chunks that hold no reference as they are stored.
    Zstd,
}

/// Makes what is sent of a group of chunks that begins at a byte of the archive, within a range of it.
type Join = fn(&[StoredChunk], u64, &Restorer, &Range<u64>) -> Result<Bytes, CacheError>;

/// A recipe with what is needed to put its archive together.
#[derive(Clone)]
pub(super) struct Assembly {
    pub recipe: Arc<Recipe>,
    pub restorer: Arc<Restorer>,
}

impl Assembly {
    pub fn new(manifest: &Manifest, recipe: Arc<Recipe>) -> Result<Self, CacheError> {
        let damaged = |message: String| CacheError::damaged(&manifest.info.path, message);
        if recipe.nar_size() != manifest.info.nar_size {
            let (is, should) = (recipe.nar_size(), manifest.info.nar_size);
            return Err(damaged(format!("its recipe gives {is} bytes instead of {should}")));
        }
        let restorer = Restorer::new(&recipe.positions, &manifest.info.counted_references())
            .map_err(|error| damaged(error.to_string()))?;
        Ok(Self { recipe, restorer: Arc::new(restorer) })
    }
}

impl Cache {
    /// A path's archive. Its bytes are those that were committed, or the stream ends with an error.
    pub async fn nar_stream(
        &self,
        manifest: &Manifest,
        encoding: NarEncoding,
    ) -> Result<BoxStream<'static, Result<Bytes, CacheError>>, CacheError> {
        let assembly = self.assembly(manifest).await?;
        Ok(self.assemble(&assembly, 0..manifest.info.nar_size, encoding))
    }

    /// Some bytes of a path's archive as it is; only the chunks that hold them are read.
    pub async fn nar_range(
        &self,
        manifest: &Manifest,
        range: Range<u64>,
    ) -> Result<BoxStream<'static, Result<Bytes, CacheError>>, CacheError> {
        let assembly = self.assembly(manifest).await?;
        Ok(self.assemble(&assembly, range, NarEncoding::Plain))
    }

    async fn assembly(&self, manifest: &Manifest) -> Result<Assembly, CacheError> {
        let mut recipes = self.read_recipes(vec![manifest.recipe]).await?;
        Assembly::new(manifest, Arc::new(recipes.remove(0)))
    }

    pub(super) fn assemble(
        &self,
        assembly: &Assembly,
        range: Range<u64>,
        encoding: NarEncoding,
    ) -> BoxStream<'static, Result<Bytes, CacheError>> {
        let join: Join = match encoding {
            NarEncoding::Plain => plain,
            NarEncoding::Zstd => |group, at, restorer, _| compressed(group, at, restorer),
        };
        let (mut at, mut first_at, mut ids) = (0, 0, Vec::new());
        for piece in &assembly.recipe.pieces {
            let end = at + u64::from(piece.len);
            if end > range.start && at < range.end {
                if ids.is_empty() {
                    first_at = at;
                }
                ids.push(piece.id);
            }
            at = end;
        }
        let restorer = assembly.restorer.clone();
        let mut next_at = first_at;
        self.read_chunks(ids)
            .map_ok(move |group| {
                let at = next_at;
                next_at += group.iter().map(|chunk| u64::from(chunk.len)).sum::<u64>();
                let (restorer, range) = (restorer.clone(), range.clone());
                blocking(move || join(&group, at, &restorer, &range))
            })
            .try_buffered(DECODED_AHEAD)
            .boxed()
    }
}

fn plain(
    group: &[StoredChunk],
    mut at: u64,
    restorer: &Restorer,
    range: &Range<u64>,
) -> Result<Bytes, CacheError> {
    let begin = at;
    let mut bytes = Vec::with_capacity(group.iter().map(|chunk| chunk.len as usize).sum());
    for chunk in group {
        let from = bytes.len();
        decode::append(chunk, &mut bytes)
            .map_err(|error| CacheError::damaged(format!("chunk {}", chunk.id), error.message))?;
        restorer.restore(&mut bytes[from..], at);
        at += u64::from(chunk.len);
    }
    let from = range.start.saturating_sub(begin).min(bytes.len() as u64) as usize;
    let to = range.end.saturating_sub(begin).min(bytes.len() as u64) as usize;
    Ok(Bytes::from(bytes).slice(from..to.max(from)))
}

fn compressed(group: &[StoredChunk], mut at: u64, restorer: &Restorer) -> Result<Bytes, CacheError> {
    let mut bytes = BytesMut::new();
    for chunk in group {
        let mut plain = chunk.check()?;
        if restorer.touches(at, u64::from(chunk.len)) {
            restorer.restore(&mut plain, at);
            let again = StoredChunk::compress(chunk.id, &plain, AGAIN_LEVEL);
            let again = again.map_err(|error| CacheError::damaged(format!("chunk {}", chunk.id), error))?;
            bytes.put_slice(&again.zstd);
        } else {
            bytes.put_slice(&chunk.zstd);
        }
        at += u64::from(chunk.len);
    }
    Ok(bytes.freeze())
}
