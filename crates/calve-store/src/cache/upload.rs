//! Archives as `nix copy` uploads them: first the compressed archive under a name, then what is known of the path.
//!
//! References are known only then, and chunks are cut without them: so the archive waits in a file meanwhile. Afterwards its
//! name leads to the path, since `nix` asks for it again before it uploads an equal archive of another path.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use calve_nix::{Compression, HashWriter};
use futures_util::stream::{Stream, StreamExt};
use rusqlite::OptionalExtension;
use tokio::io::AsyncWriteExt;
use tokio::runtime::Handle;

use super::check::check_file;
use super::commit::Check;
use super::index::chunks;
use super::listing::read_listing;
use super::pack::{Kind, PackWriter};
use super::{Cache, CacheError, NarEncoding, blocking, now_ms};
use crate::PathInfo;
use crate::chunk::{ChunkId, StoredChunk};

use crate::cut::{CHUNK_LEVEL, cut};
use crate::lazy::Tree;
use crate::processors::processors;
use crate::recipe::{RECIPE_CHUNKS_MAX, Recipe};
use crate::remote::Manifest;

/// Longest name of an upload in bytes: a digest and an extension have less than 80.
const NAME_BYTES_MAX: usize = 128;
/// Bytes that are read of an upload, and decompressed of it, at once.
const BUFFER_BYTES: usize = 128 * 1024;
/// Archives from this size on are hashed and compressed by all processors, smaller ones by one.
const PARALLEL_BYTES: u64 = 8 << 20;
/// Most memory that xz may take to decompress: its highest level needs 65 MiB.
const XZ_MEMORY_BYTES: u64 = 96 << 20;

/// An archive that was uploaded before.
enum Upload {
    File(PathBuf),
    /// It was stored as that of the path with this hash part.
    Stored(String),
}

impl Cache {
    /// Keeps an uploaded archive, as compressed as it comes, under the last part of its address (`….nar.xz`).
    pub async fn stage_nar<S, E>(&self, name: &str, body: S) -> Result<u64, CacheError>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: std::fmt::Display,
    {
        let file = self.upload_file(name)?;
        let dir = self.uploads();
        tokio::fs::create_dir_all(&dir).await.map_err(CacheError::io("create", &dir))?;
        let failed = |error| CacheError::io("write to", &dir)(error);
        let new = blocking({
            let dir = dir.clone();
            move || tempfile::NamedTempFile::new_in(dir)
        });
        let new = new.await.map_err(failed)?;
        let handle = new.as_file().try_clone().map_err(failed)?;
        let mut out = tokio::fs::File::from_std(handle);
        let mut bytes = 0;
        let mut body = std::pin::pin!(body);
        while let Some(part) = body.next().await {
            let part = part.map_err(|error| CacheError::damaged(format!("the upload {name}"), error))?;
            out.write_all(&part).await.map_err(failed)?;
            bytes += part.len() as u64;
        }
        out.flush().await.map_err(failed)?;
        blocking(move || new.persist(file)).await.map_err(|error| failed(error.error))?;
        Ok(bytes)
    }

    /// Whether an archive of this name was uploaded.
    pub async fn has_nar(&self, name: &str) -> Result<bool, CacheError> {
        Ok(self.upload(name).await?.is_some())
    }

    /// The path that was made of an archive with this name, if it was and is still there.
    pub async fn uploaded(&self, name: &str) -> Result<Option<Manifest>, CacheError> {
        match self.upload(name).await? {
            Some(Upload::Stored(hash_part)) => self.find(&hash_part).await,
            Some(Upload::File(_)) | None => Ok(None),
        }
    }

    /// Makes the path appear whose archive was uploaded under this name, signed. The archive is decompressed, checked
    /// against size and hash, cut and stored as a stream.
    pub async fn put_nar(
        &self,
        name: &str,
        compression: Compression,
        info: PathInfo,
    ) -> Result<Manifest, CacheError> {
        info.content_address().map_err(|message| CacheError::damaged(&info.path, message))?;
        let upload = self.upload(name).await?;
        let upload = upload.ok_or_else(|| CacheError::Missing(format!("uploaded archive {name}")))?;
        let source: Box<dyn Read + Send> = match upload {
            Upload::File(file) => {
                let file = File::open(&file).map_err(CacheError::io("read", &file))?;
                decompressed(compression, BufReader::with_capacity(BUFFER_BYTES, file))?
            }
            Upload::Stored(hash_part) => self.stored_archive(&hash_part).await?,
        };
        let cpu = self.0.cpus.acquire().await.expect("never closed");
        let (this, of, shown, runtime) = (self.clone(), info.clone(), name.to_owned(), Handle::current());
        let (recipe, tree) = blocking(move || this.take_archive(&shown, &of, source, &runtime)).await?;
        drop(cpu);
        let manifest = Manifest { info, recipe: recipe.id(), lazy: None };
        let check = Check::AlreadyDone(tree);
        let mut committed = self.commit_paths(vec![manifest], vec![recipe], check).await?;
        let manifest = committed.remove(0);
        self.forget_upload(name, manifest.info.path.hash_part()).await?;
        Ok(manifest)
    }

    fn uploads(&self) -> PathBuf {
        self.0.dir.join("uploads")
    }

    fn upload_file(&self, name: &str) -> Result<PathBuf, CacheError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        if name.is_empty()
            || name.len() > NAME_BYTES_MAX
            || name.starts_with('.')
            || !name.bytes().all(allowed)
        {
            return Err(CacheError::Setting(format!(
                "{name:?} is no name of an archive; for example: 0c0b….nar.xz"
            )));
        }
        Ok(self.uploads().join(name))
    }

    async fn upload(&self, name: &str) -> Result<Option<Upload>, CacheError> {
        let file = self.upload_file(name)?;
        if tokio::fs::try_exists(&file).await.map_err(CacheError::io("read", &file))? {
            return Ok(Some(Upload::File(file)));
        }
        let name = name.to_owned();
        let read = move |index: &rusqlite::Connection| {
            let mut statement = index.prepare_cached(
                "SELECT hash_part FROM uploads JOIN paths USING (hash_part) WHERE name = ?1 AND NOT broken",
            )?;
            statement.query_row([name], |row| row.get(0)).optional()
        };
        Ok(self.0.index.read(read).await?.map(Upload::Stored))
    }

    /// The file of an upload gives way to a row that says of which path it was.
    async fn forget_upload(&self, name: &str, hash_part: &str) -> Result<(), CacheError> {
        let (name, hash_part, file) = (name.to_owned(), hash_part.to_owned(), self.upload_file(name)?);
        let change = move |index: &rusqlite::Transaction<'_>| {
            let row = rusqlite::params![name, hash_part, now_ms()];
            Ok(index.execute("INSERT OR REPLACE INTO uploads VALUES (?1, ?2, ?3)", row).map(drop)?)
        };
        self.0.index.write(change).await?;
        match tokio::fs::remove_file(&file).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.map_err(CacheError::io("remove", &file)),
        }
    }

    async fn stored_archive(&self, hash_part: &str) -> Result<Box<dyn Read + Send>, CacheError> {
        let manifest = self.find(hash_part).await?;
        let manifest = manifest.ok_or_else(|| CacheError::Missing(format!("path {hash_part}")))?;
        let stream = self.nar_stream(&manifest, NarEncoding::Plain).await?;
        let stream = stream.map(|bytes| bytes.map_err(io::Error::other));
        let reader = tokio_util::io::StreamReader::new(stream);
        Ok(Box::new(tokio_util::io::SyncIoBridge::new(reader)))
    }

    /// Cuts and stores an archive on this thread; gives its recipe and, where it is one of files, its tree.
    fn take_archive(
        &self,
        name: &str,
        info: &PathInfo,
        source: Box<dyn Read + Send>,
        runtime: &Handle,
    ) -> Result<(Recipe, Option<Tree>), CacheError> {
        let threads = NonZeroUsize::new(processors()).filter(|_| info.nar_size >= PARALLEL_BYTES);
        let references = info.counted_references();
        let store =
            Incoming { cache: self, runtime, pack: Mutex::new(PackWriter::new()), seen: Mutex::default() };
        let (mut hash, mut tree, mut check) = (HashWriter::default(), None, info.file_check());
        let recipe = cut(
            &references,
            threads,
            |out| {
                let mut hashed = |bytes: &[u8]| {
                    check.iter_mut().try_for_each(|check| check.write_all(bytes))?;
                    hash.write_all(bytes)
                };
                tree = copy_archive(source, out, &mut hashed, info.nar_size)?;
                Ok(())
            },
            |chunk| store.take(chunk.id, &chunk.bytes).map_err(io::Error::other),
        );
        let recipe = recipe.map_err(|error| taken_back(name, error))?;
        let (found, size) = hash.finish();
        if (found, size) != (info.nar_hash, info.nar_size) {
            let message = format!(
                "its archive has {size} bytes and the hash {} instead of {} and {}",
                found.to_nix(),
                info.nar_size,
                info.nar_hash.to_nix()
            );
            return Err(CacheError::damaged(&info.path, message));
        }
        check_file(info, check)?;
        if recipe.pieces.len() > RECIPE_CHUNKS_MAX {
            return Err(CacheError::damaged(&info.path, "its archive is larger than archives may be"));
        }
        store.finish()?;
        Ok((recipe, tree))
    }
}

/// Chunks of one upload on their way into packs.
struct Incoming<'a> {
    cache: &'a Cache,
    runtime: &'a Handle,
    pack: Mutex<PackWriter>,
    seen: Mutex<HashSet<ChunkId>>,
}

impl Incoming<'_> {
    fn take(&self, id: ChunkId, plain: &[u8]) -> Result<(), CacheError> {
        let first = self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        if !first || self.cache.0.index.read_now(|index| chunks::contains(index, &id))? {
            return Ok(());
        }
        let chunk = StoredChunk::compress(id, plain, CHUNK_LEVEL);
        let chunk = chunk.map_err(|error| CacheError::damaged(format!("chunk {id}"), error))?;
        let mut pack = self.pack.lock().unwrap_or_else(PoisonError::into_inner);
        pack.push(Kind::Chunk, &chunk);
        if !pack.is_full() {
            return Ok(());
        }
        let full = std::mem::replace(&mut *pack, PackWriter::new());
        drop(pack);
        self.runtime.block_on(self.cache.store_pack(full))
    }

    fn finish(self) -> Result<(), CacheError> {
        let rest = self.pack.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.runtime.block_on(self.cache.store_pack(rest))
    }
}

/// Copies the archive, hashes it and lists it; one that is larger than it says is not read to its end.
fn copy_archive(
    source: impl Read,
    out: &mut dyn Write,
    hash: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    nar_size: u64,
) -> io::Result<Option<Tree>> {
    let mut size: u64 = 0;
    read_listing(BufReader::with_capacity(BUFFER_BYTES, source), None, |bytes| {
        size += bytes.len() as u64;
        if size > nar_size {
            return Err(io::Error::other(format!(
                "it has more than the {nar_size} bytes that it should have"
            )));
        }
        hash(bytes)?;
        out.write_all(bytes)
    })
}

/// An error of this cache that went through `io::Error`, or one of the upload's bytes.
fn taken_back(name: &str, error: io::Error) -> CacheError {
    match error.downcast::<CacheError>() {
        Ok(error) => error,
        Err(error) => CacheError::damaged(format!("the upload {name}"), error),
    }
}

fn decompressed(
    compression: Compression,
    source: impl BufRead + Send + 'static,
) -> Result<Box<dyn Read + Send>, CacheError> {
    let failed = |error: &dyn std::fmt::Display| CacheError::damaged("the upload", error);
    Ok(match compression {
        Compression::None => Box::new(source),
        Compression::Zstd => {
            Box::new(zstd::stream::read::Decoder::with_buffer(source).map_err(|error| failed(&error))?)
        }
        Compression::Xz => {
            let stream =
                liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY_BYTES, liblzma::stream::CONCATENATED);
            let stream = stream.map_err(|error| failed(&error))?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(source, stream))
        }
        Compression::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(source)),
        Compression::Br => Box::new(brotli_decompressor::Decompressor::new(source, BUFFER_BYTES)),
    })
}
