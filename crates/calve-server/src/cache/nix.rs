//! What Nix asks of a binary cache (`src/libstore/http-binary-cache-store.cc` and `binary-cache-store.cc` of Nix).
//!
//! ```text
//! GET  /nix-cache-info     GET, PUT /<hash>.narinfo     GET, PUT /nar/<file>     GET, PUT /log/<derivation>
//! GET, PUT /<hash>.ls      GET, PUT /realisations/<id>.doi
//! nix copy --to:   GET narinfo ─▶ [PUT ls] ─▶ HEAD nar ─▶ PUT nar ─▶ PUT narinfo
//! ```
//! HEAD is answered wherever GET is.

mod archive;
mod listing;
mod small;
mod upload;
mod xz;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use axum::routing::get;
use calve_nix::cache_info::{CACHE_INFO_MAX_BYTES, CacheInfo};
use calve_nix::store_path::is_hash_part;
use calve_nix::{Compression, NarInfo};
use calve_store::http::ProblemKind;
use calve_store::remote::{Manifest, Remote};

use super::Context;
use super::answer::{Answered, Refusal};
use super::body::Incoming;

/// Most bytes of a listing that is sent to us; it is not kept, as the archive says the same.
const LISTING_MAX_BYTES: u64 = 1 << 30;

pub use upload::path_info;

/// The routes that Nix uses.
pub fn routes() -> Router<Arc<Context>> {
    Router::new()
        .route("/nix-cache-info", get(cache_info).put(put_cache_info))
        .route("/{file}", get(file).put(put_file))
        .route("/nar/{file}", get(archive::get).put(upload::put_archive))
        .route("/log/{derivation}", get(small::log).put(small::put_log))
        .route("/realisations/{file}", get(small::realisation).put(small::put_realisation))
        .layer(DefaultBodyLimit::disable())
}

type Asked<T = ()> = (State<Arc<Context>>, Path<T>, HeaderMap, Body);

/// A file in the cache's own directory, by the end of its name.
enum Named<'a> {
    NarInfo(&'a str),
    Listing(&'a str),
}

fn named(file: &str) -> Answered<Named<'_>> {
    let (hash_part, kind) = file.split_once('.').ok_or_else(|| Refusal::missing(file))?;
    if !is_hash_part(hash_part) {
        return Err(Refusal::missing(file));
    }
    match kind {
        "narinfo" => Ok(Named::NarInfo(hash_part)),
        "ls" => Ok(Named::Listing(hash_part)),
        _ => Err(Refusal::missing(file)),
    }
}

async fn cache_info(State(context): State<Arc<Context>>, headers: HeaderMap) -> Answered {
    context.gate.pull(&headers, &context.cache).await?;
    let info = CacheInfo { want_mass_query: true, priority: context.cache.info().await?.priority };
    Ok(answer("text/x-nix-cache-info", Body::from(info.to_string())))
}

/// Some clients write it before anything else. Ours stands; one for another store directory is refused.
async fn put_cache_info(State(context): State<Arc<Context>>, headers: HeaderMap, body: Body) -> Answered {
    context.gate.push(&headers)?;
    let text = Incoming::new(&headers, body, CACHE_INFO_MAX_BYTES as u64)?.collect().await?;
    match String::from_utf8_lossy(&text).parse::<CacheInfo>() {
        Ok(_) => Ok(Response::new(Body::empty())),
        Err(error) => Err(Refusal::damaged("nix-cache-info", error.to_string())),
    }
}

async fn file((State(context), Path(file), headers, _): Asked<String>) -> Answered {
    let sight = context.gate.pull(&headers, &context.cache).await?;
    let named = named(&file)?;
    let (Named::NarInfo(hash_part) | Named::Listing(hash_part)) = named;
    if !sight.has_hash_part(hash_part) {
        return Err(Refusal::missing(file));
    }
    match named {
        Named::NarInfo(hash_part) => {
            if let Some(manifest) = context.find(hash_part).await? {
                return Ok(answer("text/x-nix-narinfo", Body::from(nar_info(&manifest)?.to_string())));
            }
            let found = context.upstreams.nar_info(hash_part).await?;
            let found = found.ok_or_else(|| Refusal::missing(file.as_str()))?;
            // Its archive is fetched when it is asked for, and lies here from then on.
            let ours = NarInfo {
                url: archive::url(&found.store_path, &found.nar_hash),
                compression: Compression::Zstd,
                file_hash: None,
                file_size: None,
                ..found
            };
            Ok(answer("text/x-nix-narinfo", Body::from(ours.to_string())))
        }
        Named::Listing(hash_part) => {
            let manifest = context.obtain(hash_part).await?.ok_or_else(|| Refusal::missing(file.as_str()))?;
            listing::listing(&context.cache, &manifest).await
        }
    }
}

async fn put_file((State(context), Path(file), headers, body): Asked<String>) -> Answered {
    context.gate.push(&headers)?;
    match named(&file)? {
        Named::NarInfo(hash_part) => upload::put_nar_info(&context, hash_part, &headers, body).await,
        Named::Listing(_) => {
            let mut body = Incoming::new(&headers, body, LISTING_MAX_BYTES)?;
            while body.next().await?.is_some() {}
            Ok(Response::new(Body::empty()))
        }
    }
}

/// What Nix is told of a path.
fn nar_info(manifest: &Manifest) -> Answered<NarInfo> {
    let info = &manifest.info;
    let damaged = |what: &str| {
        Refusal::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            ProblemKind::Failed,
            format!("the {what} of {} cannot be read", info.path),
        )
    };
    let content_address = info.ca.as_ref().map(|ca| ca.parse()).transpose();
    Ok(NarInfo {
        store_path: info.path.clone(),
        url: archive::url(&info.path, &info.nar_hash),
        compression: Compression::Zstd,
        file_hash: None,
        file_size: None,
        nar_hash: info.nar_hash,
        nar_size: info.nar_size,
        references: info.references.iter().cloned().collect(),
        deriver: info.deriver.clone(),
        system: None,
        // One that cannot be read convinces nobody.
        signatures: info.signatures.iter().filter_map(|signature| signature.parse().ok()).collect(),
        content_address: content_address.map_err(|_| damaged("content address"))?,
    })
}

fn answer(content_type: &'static str, body: Body) -> Response {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
