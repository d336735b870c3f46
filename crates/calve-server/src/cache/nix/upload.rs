//! Uploads as `nix copy --to` makes them: the archive first, then what is known of its path.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::Response;
use calve_nix::narinfo::NARINFO_MAX_BYTES;
use calve_nix::{CacheFile, Compression, NarInfo};
use calve_store::PathInfo;
use calve_store::cache::CacheError;
use calve_store::remote::{Manifest, Remote};
use futures_util::stream;

use super::Asked;
use crate::cache::Context;
use crate::cache::access::Sight;
use crate::cache::answer::{Answered, Refusal};
use crate::cache::body::Incoming;

/// Most bytes of an uploaded archive as it is compressed.
const ARCHIVE_MAX_BYTES: u64 = 1 << 40;

fn failed(error: CacheError) -> Refusal {
    match error {
        CacheError::Setting(message) => Refusal::damaged("the upload", message),
        error => error.into_remote("calve").into(),
    }
}

/// An archive under the name that a client gave it. Before an upload it asks whether it is there; who has just uploaded it
/// may ask for it under that name for as long as it remembers its own narinfo.
pub async fn get(context: &Context, sight: &Sight, file: &str, headers: &HeaderMap) -> Answered {
    let missing = || Refusal::missing(file);
    let Ok(CacheFile::Nar { compression, .. }) = format!("nar/{file}").parse() else { return Err(missing()) };
    match context.cache.uploaded(file).await.map_err(failed)? {
        Some(manifest) if sight.has_path(&manifest.info.path) => {
            super::archive::send_as(context, &manifest, compression, headers).await
        }
        // Its narinfo has not come yet.
        None if sight.is_all() && context.cache.has_nar(file).await.map_err(failed)? => {
            Ok(Response::new(Body::empty()))
        }
        _ => Err(missing()),
    }
}

/// Keeps an archive until its narinfo comes.
pub async fn put_archive((State(context), Path(file), headers, body): Asked<String>) -> Answered {
    context.gate.push(&headers)?;
    let Ok(CacheFile::Nar { .. }) = format!("nar/{file}").parse() else {
        let message = "it has another name than the archives that Nix uploads, like nar/<hash>.nar.xz";
        return Err(Refusal::damaged(format!("nar/{file}"), message));
    };
    let body = Incoming::new(&headers, body, ARCHIVE_MAX_BYTES)?;
    let refused = Arc::new(std::sync::Mutex::new(None));
    let told = refused.clone();
    let parts = stream::try_unfold(body, move |mut body| {
        let told = told.clone();
        async move {
            match body.next().await {
                Ok(part) => Ok(part.map(|part| (part, body))),
                Err(refusal) => {
                    let message = refusal.problem().message.clone();
                    *told.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(refusal);
                    Err(message)
                }
            }
        }
    });
    let staged = context.cache.stage_nar(&file, parts).await;
    // What the client did wrong says more than that the upload broke.
    if let Some(refusal) = refused.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take() {
        return Err(refusal);
    }
    staged.map_err(failed)?;
    Ok(Response::new(Body::empty()))
}

/// Makes the path appear whose archive was uploaded.
pub async fn put_nar_info(context: &Context, hash_part: &str, headers: &HeaderMap, body: Body) -> Answered {
    let bytes = Incoming::new(headers, body, NARINFO_MAX_BYTES as u64)?.collect().await?;
    let what = format!("{hash_part}.narinfo");
    let damaged = |message: String| Refusal::damaged(what.as_str(), message);
    let sent = NarInfo::from_bytes(&bytes).map_err(|error| damaged(error.to_string()))?;
    if sent.store_path.hash_part() != hash_part {
        return Err(damaged(format!("it is about {}", sent.store_path)));
    }
    let name = sent.url.strip_prefix("nar/").unwrap_or(&sent.url).to_owned();
    if !matches!(sent.url.parse(), Ok(CacheFile::Nar { .. })) {
        return Err(damaged(format!("its archive lies at {}, where none was uploaded", sent.url)));
    }
    let compression = sent.compression;
    let info = path_info(sent);
    match context.cache.find(hash_part).await.map_err(failed)? {
        // Known already: what is new is its signatures.
        Some(known) if known.info.nar_hash == info.nar_hash => {
            let manifest = Manifest { info, recipe: known.recipe, lazy: None };
            context.cache.commit(vec![manifest], Vec::new()).await?;
        }
        _ => take(context, &name, compression, info).await?,
    }
    Ok(Response::new(Body::empty()))
}

async fn take(context: &Context, name: &str, compression: Compression, info: PathInfo) -> Answered<()> {
    // A task of its own: what was begun ends, also where nobody waits for it any more.
    let (cache, name) = (context.cache.clone(), name.to_owned());
    let taking = tokio::spawn(async move { cache.put_nar(&name, compression, info).await });
    let taken = taking.await.map_err(|error| Refusal::failed("an upload was not taken", &error))?;
    taken.map(drop).map_err(failed)
}

/// What a narinfo says of its path.
pub fn path_info(sent: NarInfo) -> PathInfo {
    PathInfo {
        path: sent.store_path,
        nar_hash: sent.nar_hash,
        nar_size: sent.nar_size,
        references: sent.references.into_iter().collect(),
        deriver: sent.deriver,
        ca: sent.content_address.map(|address| address.to_string()),
        signatures: sent.signatures.iter().map(ToString::to_string).collect(),
    }
}
