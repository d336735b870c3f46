//! Cutting archives into chunks.
//!
//! ```text
//! archive ─▶ Normaliser ─▶ Foretold or FastCDC ─▶ chunks ─▶ hash, compress, …     on the threads of the caller of `cut`
//! └───────────────── one thread ────────────────┘
//! ```
//! Equal archives give equal chunks whatever the sizes of the writes; every calve must cut alike, or nothing is found again.

mod foretold;

use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use bytes::Bytes;
use calve_nix::StorePath;
use fastcdc::v2020::{self, Normalization};

use crate::chunk::{CHUNK_AVERAGE, CHUNK_MAX, CHUNK_MIN, ChunkId, StoredChunk};
use crate::normal::Normaliser;
use crate::recipe::{Piece, Position, Recipe};
use crate::{decode, encode};

pub use foretold::Foretold;

/// Bytes of an archive that a [`Cutter`] holds: many chunks, so that moving the rest to the front costs little.
const BUFFER_BYTES: usize = 8 * CHUNK_MAX as usize;
/// Chunks that are handed to another thread at once: it is woken for each handful, which takes longer than to name a chunk.
const HANDFUL_CHUNKS: usize = 8;
/// Chunks that wait between the thread that cuts and those that take them, beside the handful that each has in hand: at most 8
/// MiB, usually 2.
pub const CUT_AHEAD_CHUNKS: usize = 32;
/// Compression level of zstd for chunks: two thirds of the bytes of level 1 would take twice its time.
pub const CHUNK_LEVEL: i32 = 3;

/// Bytes on which it depends whether a chunk ends behind them: FastCDC's hash has as many bits, and loses one a byte.
const HASHED_BYTES: usize = 64;

/// What FastCDC compares its hash with, in chunks below the average size and above.
type Masks = (u64, u64);

/// A chunk that was cut off an archive.
#[derive(Debug)]
pub struct CutChunk {
    /// Its id.
    pub id: ChunkId,
    /// Its plain normalised bytes.
    pub bytes: Bytes,
    /// The positions that were found since the chunk before it: all that begin in it, and perhaps some behind it.
    pub positions: Vec<Position>,
}

/// Cuts the archive that is written to it, and hands each chunk's plain normalised bytes to a function, with the positions
/// that were found since the chunk before, and its id where that is known already.
pub struct Cutter<'a, F> {
    normaliser: Normaliser,
    /// Positions that were handed over.
    told: usize,
    /// Bytes not handed over yet, behind `begin`.
    buffer: Vec<u8>,
    begin: usize,
    /// End of the bytes in `buffer` that are normalised for good.
    normal: usize,
    masks: Masks,
    foretold: Option<Foretold<'a>>,
    chunk: F,
}

impl<'a, F: FnMut(&[u8], &[Position], Option<ChunkId>) -> io::Result<()>> Cutter<'a, F> {
    /// For the archive of a path with these references, in the order of
    /// [`PathInfo::counted_references`](crate::PathInfo::counted_references). An error of `chunk` ends the writing.
    pub fn new(references: &[&StorePath], foretold: Option<Foretold<'a>>, chunk: F) -> Self {
        Self {
            normaliser: Normaliser::new(references),
            told: 0,
            buffer: Vec::new(),
            begin: 0,
            normal: 0,
            masks: v2020::select_masks(CHUNK_AVERAGE as usize, Normalization::Level1),
            foretold,
            chunk,
        }
    }

    /// Hands over the last chunks and gives the positions, once the whole archive was written.
    pub fn finish(mut self) -> io::Result<Vec<Position>> {
        self.normalise(true);
        while self.begin < self.buffer.len() {
            self.cut()?;
        }
        Ok(self.normaliser.finish())
    }

    fn normalise(&mut self, last: bool) {
        self.normal += self.normaliser.normalise(&mut self.buffer[self.normal..], last);
    }

    /// Cuts off one chunk; at least [`CHUNK_MAX`] bytes are normalised, or all to the archive's end.
    fn cut(&mut self) -> io::Result<()> {
        let rest = &self.buffer[self.begin..self.normal];
        let foretold = self.foretold.as_mut();
        let (len, id) = match foretold.and_then(|foretold| foretold.next_chunk(rest, self.masks)) {
            Some((len, id)) => (len, Some(id)),
            None => {
                let len = searched(rest, self.masks);
                (len, self.foretold.as_mut().and_then(|foretold| foretold.look_up(&rest[..len])))
            }
        };
        let begin = self.begin;
        self.begin += len;
        let positions = &self.normaliser.positions()[self.told..];
        self.told += positions.len();
        (self.chunk)(&self.buffer[begin..begin + len], positions, id)
    }

    fn make_room(&mut self) {
        self.buffer.drain(..self.begin);
        self.normal -= self.begin;
        self.begin = 0;
    }
}

/// Length of the chunk that these bytes begin with.
fn searched(bytes: &[u8], masks: Masks) -> usize {
    let (min, average, max) = (CHUNK_MIN as usize, CHUNK_AVERAGE as usize, CHUNK_MAX as usize);
    search(bytes, min, average, max, masks)
}

/// Whether a chunk ends behind these `len` bytes, which are a chunk elsewhere: FastCDC looks at the byte behind as well. With
/// what lies before left out, it may find an end too early; then a search has to tell.
fn ends_behind(bytes: &[u8], len: usize, masks: Masks) -> bool {
    if len == CHUNK_MAX as usize || len == bytes.len() {
        return true;
    }
    // A recipe from elsewhere may say so, and nobody cuts so.
    if len < CHUNK_MIN as usize {
        return false;
    }
    // What lies farther back is shifted out; FastCDC takes bytes in pairs.
    let from = len.saturating_sub(HASHED_BYTES).next_multiple_of(2).max(CHUNK_MIN as usize);
    let average = (CHUNK_AVERAGE as usize).saturating_sub(from).min(2 * HASHED_BYTES);
    search(&bytes[from..], 0, average, 2 * HASHED_BYTES, masks) == len - from
}

fn search(bytes: &[u8], min: usize, average: usize, max: usize, (strict, loose): Masks) -> usize {
    v2020::cut(bytes, min, average, max, strict, loose, strict << 1, loose << 1).1
}

impl<F: FnMut(&[u8], &[Position], Option<ChunkId>) -> io::Result<()>> Write for Cutter<'_, F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() == BUFFER_BYTES {
            self.normalise(false);
            while self.normal - self.begin >= CHUNK_MAX as usize {
                self.cut()?;
            }
            self.make_room();
        }
        let taken = bytes.len().min(BUFFER_BYTES - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Cuts one archive and gives its recipe. `write` writes the archive; `each` gets the chunks with their plain bytes, may
/// compress and send them, and may wait to slow the cutting down. Without `threads` `each` is called on this thread, in
/// order; with them on as many threads, of which one alone keeps the order, with at most [`CUT_AHEAD_CHUNKS`] chunks waiting.
pub fn cut<W, E>(
    references: &[&StorePath],
    threads: Option<NonZeroUsize>,
    write: W,
    each: E,
) -> io::Result<Recipe>
where
    W: FnOnce(&mut dyn Write) -> io::Result<()>,
    E: Fn(CutChunk) -> io::Result<()> + Sync,
{
    cut_foretold(references, None, threads, write, each)
}

/// As [`cut`], and with the same recipe, but faster where cuts are foretold.
pub fn cut_foretold<W, E>(
    references: &[&StorePath],
    foretold: Option<Foretold<'_>>,
    threads: Option<NonZeroUsize>,
    write: W,
    each: E,
) -> io::Result<Recipe>
where
    W: FnOnce(&mut dyn Write) -> io::Result<()>,
    E: Fn(CutChunk) -> io::Result<()> + Sync,
{
    match threads {
        None => {
            let mut pieces = Vec::new();
            let mut cutter = Cutter::new(references, foretold, |bytes, positions, id| {
                let (id, len) = (id.unwrap_or_else(|| ChunkId::of(bytes)), bytes.len() as u32);
                pieces.push(Piece { id, len });
                each(CutChunk { id, bytes: Bytes::copy_from_slice(bytes), positions: positions.to_vec() })
            });
            write(&mut cutter)?;
            let positions = cutter.finish()?;
            Ok(Recipe { pieces, positions })
        }
        Some(threads) => cut_threaded(references, foretold, threads, write, &each),
    }
}

/// Cuts one small archive and gives its recipe and its chunks, compressed at a level of zstd.
pub fn cut_stored<W>(
    references: &[&StorePath],
    threads: Option<NonZeroUsize>,
    level: i32,
    write: W,
) -> io::Result<(Recipe, Vec<StoredChunk>)>
where
    W: FnOnce(&mut dyn Write) -> io::Result<()>,
{
    let stored = Mutex::new(Vec::new());
    let recipe = cut(references, threads, write, |chunk| {
        let chunk = StoredChunk::compress(chunk.id, &chunk.bytes, level)?;
        stored.lock().unwrap_or_else(PoisonError::into_inner).push(chunk);
        Ok(())
    })?;
    Ok((recipe, stored.into_inner().unwrap_or_else(PoisonError::into_inner)))
}

fn cut_threaded<W, E>(
    references: &[&StorePath],
    foretold: Option<Foretold<'_>>,
    threads: NonZeroUsize,
    write: W,
    each: &E,
) -> io::Result<Recipe>
where
    W: FnOnce(&mut dyn Write) -> io::Result<()>,
    E: Fn(CutChunk) -> io::Result<()> + Sync,
{
    let (give, take) = sync_channel(CUT_AHEAD_CHUNKS / HANDFUL_CHUNKS);
    let take = Mutex::new(take);
    thread::scope(|scope| {
        let take = &take;
        let workers: Vec<_> =
            (0..threads.get()).map(|_| scope.spawn(move || take_chunks(take, each))).collect();
        let written = give_chunks(references, foretold, &give, write);
        drop(give);
        let mut pieces = Vec::new();
        let mut failed = None;
        for worker in workers {
            match worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)) {
                Ok(taken) => pieces.extend(taken),
                Err(error) => failed = Some(error),
            }
        }
        // A worker's failure is the reason why nothing could be handed to it.
        let positions = failed.map_or(written, Err)?;
        pieces.sort_unstable_by_key(|(count, _)| *count);
        Ok(Recipe { pieces: pieces.into_iter().map(|(_, piece)| piece).collect(), positions })
    })
}

/// A chunk that is handed on: its place among all, its bytes, the positions found since the one before, its id where that is
/// known already.
type Counted = (usize, Bytes, Vec<Position>, Option<ChunkId>);

fn give_chunks<W>(
    references: &[&StorePath],
    foretold: Option<Foretold<'_>>,
    give: &SyncSender<Vec<Counted>>,
    write: W,
) -> io::Result<Vec<Position>>
where
    W: FnOnce(&mut dyn Write) -> io::Result<()>,
{
    let (mut count, mut handful) = (0, Vec::with_capacity(HANDFUL_CHUNKS));
    let hand_over =
        |handful| give.send(handful).map_err(|_| io::Error::other("nobody takes chunks any more"));
    let mut cutter = Cutter::new(references, foretold, |bytes, positions, id| {
        count += 1;
        handful.push((count, Bytes::copy_from_slice(bytes), positions.to_vec(), id));
        match handful.len() {
            HANDFUL_CHUNKS => hand_over(std::mem::replace(&mut handful, Vec::with_capacity(HANDFUL_CHUNKS))),
            _ => Ok(()),
        }
    });
    write(&mut cutter)?;
    let positions = cutter.finish()?;
    hand_over(handful)?;
    Ok(positions)
}

fn take_chunks<E>(take: &Mutex<Receiver<Vec<Counted>>>, each: &E) -> io::Result<Vec<(usize, Piece)>>
where
    E: Fn(CutChunk) -> io::Result<()>,
{
    let mut taken = Vec::new();
    let mut result = Ok(());
    loop {
        let handful = take.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(handful) = handful else { return result.map(|()| taken) };
        for (count, bytes, positions, id) in handful {
            if result.is_err() {
                // Taken and dropped, so that whoever cuts is not stuck; the failure is told at the end.
                break;
            }
            let piece = Piece { id: id.unwrap_or_else(|| ChunkId::of(&bytes)), len: bytes.len() as u32 };
            taken.push((count, piece));
            result = each(CutChunk { id: piece.id, bytes, positions });
        }
    }
}

impl StoredChunk {
    /// Compresses the plain bytes of a chunk (or recipe) with this id, at [`CHUNK_LEVEL`] or another level of zstd.
    pub fn compress(id: ChunkId, plain: &[u8], level: i32) -> io::Result<Self> {
        let zstd = encode::compressed(plain, level)?;
        Ok(Self { id, len: plain.len() as u32, zstd })
    }

    /// The chunk's plain bytes, checked against its length and id.
    pub fn plain(&self) -> Result<Vec<u8>, ChunkError> {
        decode::plain(self)
    }
}

/// A chunk whose bytes are not those that it should have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("chunk {id} is damaged: {message}")]
pub struct ChunkError {
    /// The chunk.
    pub id: ChunkId,
    /// What is wrong with it.
    pub message: String,
}

#[cfg(test)]
pub(crate) mod tests;
