//! `<hash>.ls`: the tree in an archive, worked out from the archive itself.

use std::io;

use axum::body::Body;
use calve_nix::listing::Listing;
use calve_store::cache::{Cache, NarEncoding};
use calve_store::remote::Manifest;
use futures_util::StreamExt;
use tokio_util::io::{StreamReader, SyncIoBridge};

use super::answer;
use crate::cache::answer::{Answered, Refusal};
use crate::cache::blocking;

/// The listing of a path's archive.
pub async fn listing(cache: &Cache, manifest: &Manifest) -> Answered {
    let archive = cache.nar_stream(manifest, NarEncoding::Plain).await;
    let archive = archive.map_err(|error| Refusal::from(error.into_remote("calve")))?;
    let reader = SyncIoBridge::new(StreamReader::new(archive.map(|bytes| bytes.map_err(io::Error::other))));
    let listed = blocking(move || Listing::of_nar(reader)).await;
    let listing = listed.map_err(|error| {
        Refusal::failed(&format!("the archive of {} cannot be listed", manifest.info.path), &error)
    })?;
    Ok(answer("application/json", Body::from(listing.to_string())))
}
