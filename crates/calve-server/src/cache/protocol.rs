//! `/calve/v1`: many things in one request (`calve_store::http` describes it).

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use axum::routing::post;
use bytes::{Buf, Bytes};
use calve_nix::StorePath;
use calve_store::cache::{Ahead, CacheError};
use calve_store::chunk::{CHUNK_MAX, CHUNK_STORED_MAX, ChunkId, StoredChunk};
use calve_store::http::ahead::{AheadDecoder, AheadError, PATH_BYTES_MAX};
use calve_store::http::frame::{self, Decoder, FrameError};
use calve_store::http::message::{MESSAGE_RATIO_MAX, Message};
use calve_store::http::{
    AHEAD_MAX_BYTES, COMMIT_BEAT, COMMIT_DONE, COMMIT_MAX_BYTES, COMMIT_REFUSED, MEDIA_TYPE,
    MESSAGE_MAX_BYTES, PREFIX, Problem, RECIPE_FRAME_MAX_BYTES, unpack_recipe,
};
use calve_store::recipe::Recipe;
use calve_store::remote::{Asker, ITEMS_MAX, Manifest, Remote, RemoteError, UPLOAD_BYTES_MAX};
use futures_util::{Stream, StreamExt, stream};

use super::Context;
use super::answer::{Answered, Refusal};
use super::body::Incoming;

/// Most bytes of one upload: its chunks and what stands before each.
const UPLOAD_BODY_MAX_BYTES: usize = UPLOAD_BYTES_MAX + ITEMS_MAX * frame::HEAD_BYTES;
/// Chunks and recipes of an answer that are sent at once where they are there: 2 MiB of chunks, usually.
const FRAMES_READY_MAX: usize = 32;
/// Time between two signs of life while a commit is being checked; clients give up after 30 s without one.
const BEAT: Duration = Duration::from_secs(5);

/// The routes of the protocol.
pub fn routes() -> Router<Arc<Context>> {
    let at = |what: &str| format!("{PREFIX}/{what}");
    Router::new()
        .route(&at("info"), post(info))
        .route(&at("directory"), post(directory))
        .route(&at("missing-paths"), post(missing_paths))
        .route(&at("missing-chunks"), post(missing_chunks))
        .route(&at("chunks"), post(chunks))
        .route(&at("recipes"), post(recipes))
        .route(&at("upload"), post(upload))
        .route(&at("ahead"), post(ahead))
        .route(&at("commit"), post(commit))
        .route(&at("closure"), post(closure))
        .layer(DefaultBodyLimit::disable())
}

type Asked = (State<Arc<Context>>, HeaderMap, Body);

async fn info((State(context), headers, _): Asked) -> Answered {
    context.gate.pull(&headers, &context.cache).await?;
    Ok(message(&context.cache.info().await?))
}

/// Only for those who may do over HTTP what they want to do past it, and are the cache's own user on its own host: they could do
/// it by hand as well.
async fn directory((State(context), headers, body): Asked) -> Answered {
    let sight = context.gate.pull(&headers, &context.cache).await?;
    let asker: Asker = read(&context, &headers, body).await?;
    if asker.pushes {
        context.gate.push(&headers)?;
    }
    let directory = context.cache.directory(&asker).filter(|_| sight.is_all());
    Ok(message(directory.ok_or_else(|| Refusal::missing("directory"))?))
}

async fn missing_paths((State(context), headers, body): Asked) -> Answered {
    let sight = context.gate.pull(&headers, &context.cache).await?;
    let asked: Vec<StorePath> = read(&context, &headers, body).await?;
    let seen: Vec<StorePath> = asked.iter().filter(|path| sight.has_path(path)).cloned().collect();
    let mut missing = context.cache.missing_paths(&seen).await?;
    if !sight.is_all() {
        let lacking: std::collections::HashSet<_> = missing.into_iter().collect();
        missing = asked.into_iter().filter(|path| !sight.has_path(path) || lacking.contains(path)).collect();
    }
    Ok(message(&missing))
}

async fn missing_chunks((State(context), headers, body): Asked) -> Answered {
    let sight = context.gate.pull(&headers, &context.cache).await?;
    let asked: Vec<ChunkId> = read(&context, &headers, body).await?;
    let seen: Vec<ChunkId> = asked.iter().filter(|id| sight.has_chunk(id)).copied().collect();
    let mut missing = context.cache.missing_chunks(&seen).await?;
    if !sight.is_all() {
        let lacking: std::collections::HashSet<_> = missing.into_iter().collect();
        missing = asked.into_iter().filter(|id| !sight.has_chunk(id) || lacking.contains(id)).collect();
    }
    Ok(message(&missing))
}

async fn closure((State(context), headers, body): Asked) -> Answered {
    let sight = context.gate.pull(&headers, &context.cache).await?;
    let roots: Vec<StorePath> = read(&context, &headers, body).await?;
    if let Some(hidden) = roots.iter().find(|root| !sight.has_path(root)) {
        return Err(Refusal::missing(hidden.to_string()));
    }
    for root in &roots {
        context.obtain(root.hash_part()).await?;
    }
    Ok(message(&context.cache.closure(&roots).await?))
}

async fn chunks((State(context), headers, body): Asked) -> Answered {
    let sight = context.gate.pull(&headers, &context.cache).await?;
    let ids: Vec<ChunkId> = read(&context, &headers, body).await?;
    if let Some(hidden) = ids.iter().find(|id| !sight.has_chunk(id)) {
        return Err(Refusal::missing(format!("chunk {hidden}")));
    }
    Ok(frames(context.cache.chunks(ids).await?))
}

async fn recipes((State(context), headers, body): Asked) -> Answered {
    let sight = context.gate.pull(&headers, &context.cache).await?;
    let ids: Vec<ChunkId> = read(&context, &headers, body).await?;
    if let Some(hidden) = ids.iter().find(|id| !sight.has_chunk(id)) {
        return Err(Refusal::missing(format!("recipe {hidden}")));
    }
    // A recipe is stored as it travels, and who asked for it checks it.
    Ok(frames(context.cache.chunks(ids).await?))
}

async fn upload((State(context), headers, body): Asked) -> Answered {
    context.gate.push(&headers)?;
    let mut body = Incoming::new(&headers, body, UPLOAD_BODY_MAX_BYTES as u64)?;
    let _room = context.room(body.bound()).await;
    let mut decoder = Decoder::new(CHUNK_MAX, CHUNK_STORED_MAX);
    let mut chunks = Vec::new();
    while let Some(bytes) = body.next().await? {
        decoder.push(&bytes);
        while let Some(chunk) = decoder.next_frame().map_err(damaged)? {
            chunks.push(chunk);
        }
    }
    decoder.finish().map_err(damaged)?;
    context.cache.put_chunks(chunks).await?;
    Ok(Response::new(Body::empty()))
}

/// A body that comes as slowly as the archive is cut and uploaded, and is hashed as it comes. No room is taken for it: how many
/// there are at once is bounded, and what each holds.
async fn ahead((State(context), headers, body): Asked) -> Answered {
    context.gate.push(&headers)?;
    let mut body = Incoming::new(&headers, body, AHEAD_MAX_BYTES as u64)?;
    let refused = |error: AheadError| Refusal::damaged("the archive", error.to_string());
    let told = |error: CacheError| Refusal::from(error.into_remote("calve"));
    let (mut decoder, mut begun) = (AheadDecoder::default(), None::<Ahead>);
    loop {
        let next = match &mut begun {
            Some(ahead) => ahead.meanwhile(body.next()).await.map_err(told)??,
            None => body.next().await?,
        };
        let Some(bytes) = next else { break };
        decoder.push(&bytes);
        if begun.is_none() {
            let _unpacked = context.room_to_unpack((PATH_BYTES_MAX * MESSAGE_RATIO_MAX) as u64).await;
            let Some(info) = decoder.path().map_err(refused)? else { continue };
            begun = Some(context.cache.hash_ahead_of(info).map_err(told)?);
        }
        if let Some(ahead) = &mut begun {
            while let Some(part) = decoder.part().map_err(refused)? {
                ahead.take(part).await.map_err(told)?;
            }
        }
    }
    decoder.finish().map_err(refused)?;
    let ahead = begun.ok_or_else(|| Refusal::damaged("the archive", "no path is named"))?;
    ahead.finish().await.map_err(told)?;
    Ok(Response::new(Body::empty()))
}

async fn commit((State(context), headers, body): Asked) -> Answered {
    context.gate.push(&headers)?;
    let body = Incoming::new(&headers, body, COMMIT_MAX_BYTES as u64)?;
    let room = context.room(body.bound()).await;
    let (manifests, recipes) = parse_commit(body.collect().await?)?;
    let remote = context.cache.clone();
    // A task of its own: what was begun ends, also where nobody waits for it any more.
    let working = tokio::spawn(async move {
        let _room = room;
        match remote.commit(manifests, recipes).await {
            Ok(manifests) => [&[COMMIT_DONE][..], &manifests.encode()].concat(),
            Err(error) => {
                tracing::warn!("a commit was refused: {}", crate::chain(&error));
                [&[COMMIT_REFUSED][..], &Problem::of(&error).to_json()].concat()
            }
        }
    });
    let beats = stream::unfold(Some(working), |working| async move {
        let mut working = working?;
        match tokio::time::timeout(BEAT, &mut working).await {
            Err(_) => Some((Ok(Bytes::from_static(&[COMMIT_BEAT])), Some(working))),
            Ok(Ok(told)) => Some((Ok(Bytes::from(told)), None)),
            Ok(Err(error)) => Some((Err(error), None)),
        }
    });
    Ok(binary(Body::from_stream(beats)))
}

/// `length of the manifests (u32, little-endian), manifests, frames of recipes`.
fn parse_commit(mut bytes: Bytes) -> Answered<(Vec<Manifest>, Vec<Recipe>)> {
    let short = || Refusal::damaged("the commit", "it is too short");
    if bytes.len() < 4 {
        return Err(short());
    }
    let length = bytes.get_u32_le() as usize;
    if length > bytes.len() {
        return Err(short());
    }
    let manifests = bytes.split_to(length);
    let manifests = Vec::<Manifest>::decode(&manifests)
        .map_err(|error| Refusal::damaged("the commit", error.to_string()))?;
    let mut decoder = Decoder::new(RECIPE_FRAME_MAX_BYTES, RECIPE_FRAME_MAX_BYTES);
    decoder.push(&bytes);
    drop(bytes);
    let mut recipes = Vec::new();
    while let Some(frame) = decoder.next_frame().map_err(damaged)? {
        recipes.push(unpack_recipe(&frame)?);
    }
    decoder.finish().map_err(damaged)?;
    Ok((manifests, recipes))
}

async fn read<T: Message>(context: &Context, headers: &HeaderMap, body: Body) -> Answered<T> {
    let body = Incoming::new(headers, body, MESSAGE_MAX_BYTES as u64)?;
    let _room = context.room(body.bound()).await;
    let travelled = body.collect().await?;
    let _unpacked = context.room_to_unpack(travelled.len() as u64 * MESSAGE_RATIO_MAX as u64).await;
    T::decode(&travelled).map_err(|error| Refusal::damaged("the request", error.to_string()))
}

fn damaged(error: FrameError) -> Refusal {
    Refusal::damaged("the upload", error.to_string())
}

fn message(value: &impl Message) -> Response {
    binary(Body::from(value.encode()))
}

fn binary(body: Body) -> Response {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    response
}

/// An error in the middle is the last frame: the status has long been sent.
fn frames(chunks: impl Stream<Item = Result<StoredChunk, RemoteError>> + Send + 'static) -> Response {
    let parts = |chunk: Result<StoredChunk, RemoteError>| match chunk {
        Ok(chunk) => frame::encode(chunk),
        Err(error) => {
            tracing::warn!("an answer was cut off: {}", crate::chain(&error));
            frame::encode_problem(&Problem::of(&error))
        }
    };
    let sent = chunks.ready_chunks(FRAMES_READY_MAX).flat_map(move |ready| {
        stream::iter(frame::joined(ready.into_iter().flat_map(parts)).into_iter().map(Ok::<_, Infallible>))
    });
    binary(Body::from_stream(sent))
}
