//! The cache behind `/calve/v1` as a [`Remote`].

use async_trait::async_trait;
use bytes::{BufMut, Bytes, BytesMut};
use calve_nix::StorePath;
use futures_util::stream::{self, BoxStream, StreamExt, TryStreamExt};
use hyper::Method;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use tokio::sync::mpsc::{Receiver, channel};

use super::ahead::{encode_part, encode_path};
use super::client::{Answer, AnswerBody, Client};
use super::frame::{self, Decoder, FrameError};
use super::message::{Message, decompress};
use super::{
    Address, COMMIT_BEAT, COMMIT_DONE, COMMIT_REFUSED, MEDIA_TYPE, MESSAGE_MAX_BYTES, PREFIX, Problem,
    RECIPE_FRAME_MAX_BYTES,
};
use crate::PathInfo;
use crate::chunk::{CHUNK_MAX, CHUNK_STORED_MAX, ChunkId, StoredChunk};
use crate::recipe::{Recipe, RecipeId};
use crate::remote::{ArchivePart, Asker, CacheInfo, Directory, Manifest, Remote, RemoteError};

/// Level at which recipes are compressed: hashes, which nothing compresses, and lengths.
const RECIPE_ZSTD_LEVEL: i32 = 1;
/// Parts of an archive that wait to be told of.
const AHEAD_PARTS: usize = 1;

/// A cache behind HTTP.
#[derive(Debug, Clone)]
pub struct HttpRemote {
    client: Client,
}

impl HttpRemote {
    /// The cache at `address`, asked with `token`. Connects with the first request.
    pub fn new(address: Address, token: Option<&str>) -> Result<Self, RemoteError> {
        Ok(Self { client: Client::new(address, token)? })
    }

    /// Its address, for people.
    pub fn shown(&self) -> &str {
        self.client.shown()
    }

    /// Where it lies, if it says so to this asker and is at an address of this host.
    pub async fn directory(&self, asker: &Asker) -> Option<Directory> {
        if !self.client.address().is_local() {
            return None;
        }
        // Older caches do not know the question, and who may not push or pull is told so by his pushes and pulls.
        self.ask("/directory", asker.encode()).await.ok()
    }

    async fn post(&self, what: &str, body: Vec<Bytes>) -> Result<Answer, RemoteError> {
        let answered = self.client.send(Method::POST, &format!("{PREFIX}{what}"), &media_type(), body).await;
        match answered {
            // The path of the protocol itself: no calve answers there.
            Err(RemoteError::Missing { cache, what }) if what.starts_with(PREFIX) => {
                Err(RemoteError::Failed {
                    cache,
                    message: "it does not speak calve's protocol (Nix may still copy from it)".to_owned(),
                })
            }
            answered => answered,
        }
    }

    async fn ask<T: Message>(&self, what: &str, question: Vec<u8>) -> Result<T, RemoteError> {
        let answer = self.post(what, vec![question.into()]).await?;
        self.read(&answer.body.collect(MESSAGE_MAX_BYTES).await?)
    }

    fn read<T: Message>(&self, bytes: &[u8]) -> Result<T, RemoteError> {
        T::decode(bytes).map_err(|error| {
            let what = format!("an answer of the cache {}", self.shown());
            RemoteError::Damaged { what, message: error.to_string() }
        })
    }

    /// Frames in the order of `ids`.
    fn frames(
        &self,
        body: AnswerBody,
        ids: Vec<ChunkId>,
        decoder: Decoder,
    ) -> BoxStream<'static, Result<StoredChunk, RemoteError>> {
        let cache = self.shown().to_owned();
        let frames = Frames { body, decoder, ids: ids.into_iter(), cache };
        stream::try_unfold(frames, |mut frames| async move {
            let frame = frames.next().await?;
            Ok(frame.map(|frame| (frame, frames)))
        })
        .boxed()
    }
}

struct Frames {
    body: AnswerBody,
    decoder: Decoder,
    ids: std::vec::IntoIter<ChunkId>,
    cache: String,
}

impl Frames {
    async fn next(&mut self) -> Result<Option<StoredChunk>, RemoteError> {
        loop {
            if let Some(frame) = self.decoder.next_frame().map_err(|error| self.refusal(error))? {
                return match self.ids.next() {
                    Some(id) if id == frame.id => Ok(Some(frame)),
                    Some(id) => Err(self.damaged(format!("{} came instead of {id}", frame.id))),
                    None => Err(self.damaged(format!("{} came and nobody asked for it", frame.id))),
                };
            }
            match self.body.next().await? {
                Some(bytes) => self.decoder.push(&bytes),
                None => {
                    self.decoder.finish().map_err(|error| self.refusal(error))?;
                    return match self.ids.next() {
                        None => Ok(None),
                        Some(id) => Err(self.damaged(format!("it ends before {id}"))),
                    };
                }
            }
        }
    }

    fn refusal(&self, error: FrameError) -> RemoteError {
        match error {
            FrameError::Problem(problem) => problem.into_error(self.cache.clone()),
            error => self.damaged(error.to_string()),
        }
    }

    fn damaged(&self, message: String) -> RemoteError {
        RemoteError::Damaged { what: format!("an answer of the cache {}", self.cache), message }
    }
}

#[async_trait]
impl Remote for HttpRemote {
    async fn info(&self) -> Result<CacheInfo, RemoteError> {
        self.ask("/info", Vec::new()).await
    }

    async fn missing_paths(&self, paths: &[StorePath]) -> Result<Vec<StorePath>, RemoteError> {
        self.ask("/missing-paths", paths.to_vec().encode()).await
    }

    async fn missing_chunks(&self, chunks: &[ChunkId]) -> Result<Vec<ChunkId>, RemoteError> {
        self.ask("/missing-chunks", chunks.to_vec().encode()).await
    }

    async fn put_chunks(&self, chunks: Vec<StoredChunk>) -> Result<(), RemoteError> {
        let body = frame::joined(chunks.into_iter().flat_map(frame::encode));
        self.post("/upload", body).await?.body.collect(MESSAGE_MAX_BYTES).await.map(drop)
    }

    async fn commit(&self, paths: Vec<Manifest>, recipes: Vec<Recipe>) -> Result<Vec<Manifest>, RemoteError> {
        let manifests = paths.encode();
        let mut head = BytesMut::with_capacity(4);
        head.put_u32_le(u32::try_from(manifests.len()).expect("manifests have fewer than 4 GiB"));
        let mut body = vec![head.freeze(), manifests.into()];
        body.extend(frame::joined(recipes.iter().flat_map(|recipe| frame::encode(pack_recipe(recipe)))));
        drop(recipes);
        let answer = self.post("/commit", body).await?.body;
        self.commit_answer(answer).await
    }

    async fn hash_ahead(&self, info: PathInfo, mut parts: Receiver<ArchivePart>) -> Result<(), RemoteError> {
        let (give, body) = channel(AHEAD_PARTS);
        let telling = async move {
            let mut bytes = encode_path(&info);
            // A cache that takes no more says why in its answer.
            while give.send(bytes).await.is_ok() {
                let Some(part) = parts.recv().await else { return };
                bytes = encode_part(&part);
            }
        };
        let (path, headers) = (format!("{PREFIX}/ahead"), media_type());
        let asking = self.client.post_stream(&path, &headers, body);
        let mut asking = std::pin::pin!(asking);
        let answer = tokio::select! {
            // An answer before the end is a refusal.
            answer = &mut asking => answer?,
            () = telling => asking.await?,
        };
        answer.body.collect(MESSAGE_MAX_BYTES).await.map(drop)
    }

    async fn closure(&self, roots: &[StorePath]) -> Result<Vec<Manifest>, RemoteError> {
        self.ask("/closure", roots.to_vec().encode()).await
    }

    async fn recipes(&self, ids: &[RecipeId]) -> Result<Vec<Recipe>, RemoteError> {
        let answer = self.post("/recipes", vec![ids.to_vec().encode().into()]).await?;
        let decoder = Decoder::new(RECIPE_FRAME_MAX_BYTES, RECIPE_FRAME_MAX_BYTES);
        let frames = self.frames(answer.body, ids.to_vec(), decoder);
        frames.and_then(|frame| async move { unpack_recipe(&frame) }).try_collect().await
    }

    async fn chunks(
        &self,
        ids: Vec<ChunkId>,
    ) -> Result<BoxStream<'static, Result<StoredChunk, RemoteError>>, RemoteError> {
        let answer = self.post("/chunks", vec![ids.encode().into()]).await?;
        Ok(self.frames(answer.body, ids, Decoder::new(CHUNK_MAX, CHUNK_STORED_MAX)))
    }
}

impl HttpRemote {
    /// Beats, and then what became of it.
    async fn commit_answer(&self, mut body: AnswerBody) -> Result<Vec<Manifest>, RemoteError> {
        let broken = || self.client.unreachable("the answer to the commit broke off".to_owned());
        let first = loop {
            let bytes = body.next().await?.ok_or_else(broken)?;
            let beats = bytes.iter().take_while(|byte| **byte == COMMIT_BEAT).count();
            if beats < bytes.len() {
                break bytes.slice(beats..);
            }
        };
        let rest = body.collect(MESSAGE_MAX_BYTES).await?;
        let told = [&first[1..], &rest].concat();
        match first[0] {
            COMMIT_DONE => self.read(&told),
            COMMIT_REFUSED => Err(match Problem::from_json(&told) {
                Some(problem) => problem.into_error(self.shown().to_owned()),
                None => broken(),
            }),
            _ => Err(RemoteError::Damaged {
                what: format!("an answer of the cache {}", self.shown()),
                message: "a commit is answered in another way".to_owned(),
            }),
        }
    }
}

fn media_type() -> [(HeaderName, HeaderValue); 1] {
    [(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE))]
}

/// A recipe as it travels.
pub fn pack_recipe(recipe: &Recipe) -> StoredChunk {
    let plain = recipe.encode();
    let zstd =
        crate::encode::compressed(&plain, RECIPE_ZSTD_LEVEL).expect("compressing into memory does not fail");
    let len = u32::try_from(plain.len()).expect("a recipe has at most RECIPE_BYTES_MAX");
    StoredChunk { id: ChunkId::of(&plain), len, zstd }
}

/// The recipe of [`pack_recipe`]; its id is checked.
pub fn unpack_recipe(frame: &StoredChunk) -> Result<Recipe, RemoteError> {
    let damaged = |message| RemoteError::Damaged { what: format!("the recipe {}", frame.id), message };
    // Most are small, and one decompressor does for all of those; for a large one room is taken as its bytes come.
    let plain = if frame.len <= CHUNK_MAX {
        frame.plain().map_err(|error| damaged(error.message))?
    } else {
        let plain =
            decompress(&frame.zstd, frame.len as usize).map_err(|error| damaged(error.to_string()))?;
        if ChunkId::of(&plain) != frame.id {
            return Err(damaged("its hash is another".to_owned()));
        }
        plain
    };
    Recipe::decode(&plain).map_err(|error| damaged(error.to_string()))
}
