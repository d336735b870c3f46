//! `/nar/…`: archives, put together from chunks as they are sent.

use std::ops::Range;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use calve_nix::store_path::HASH_CHARS;
use calve_nix::{Compression, Sha256Hash, StorePath};
use calve_store::cache::{CacheError, NarEncoding};
use calve_store::remote::Manifest;
use futures_util::stream::{BoxStream, StreamExt};

use super::{Asked, is_hash_part, xz};
use crate::cache::Context;
use crate::cache::answer::{Answered, Refusal};

/// The media type of archives, as Nix sends it.
const MEDIA_TYPE: &str = "application/x-nix-nar";
/// Changes whenever the same archive would be compressed to other bytes, so that nobody joins parts of both.
const ENCODING_VERSION: u32 = 1;

/// Where a path's archive lies, for a narinfo.
pub fn url(path: &StorePath, nar_hash: &Sha256Hash) -> String {
    format!("nar/{}-{}.nar.zst", path.hash_part(), nar_hash.to_base32())
}

/// What a file's name asks for: `<hash part>-<hash of the archive>.nar[.zst]`.
struct Wanted<'a> {
    hash_part: &'a str,
    nar_hash: Sha256Hash,
    encoding: NarEncoding,
}

impl<'a> Wanted<'a> {
    fn parse(file: &'a str) -> Option<Self> {
        let (stem, encoding) = match (file.strip_suffix(".nar.zst"), file.strip_suffix(".nar")) {
            (Some(stem), _) => (stem, NarEncoding::Zstd),
            (None, stem) => (stem?, NarEncoding::Plain),
        };
        let (hash_part, nar_hash) = stem.split_at_checked(HASH_CHARS)?;
        let nar_hash = format!("sha256:{}", nar_hash.strip_prefix('-')?).parse().ok()?;
        is_hash_part(hash_part).then_some(Self { hash_part, nar_hash, encoding })
    }
}

/// Answers GET and HEAD.
pub async fn get((State(context), Path(file), headers, _): Asked<String>) -> Answered {
    let sight = context.gate.pull(&headers, &context.cache).await?;
    let missing = || Refusal::missing(file.as_str());
    let Some(wanted) = Wanted::parse(&file) else {
        // Also what is asked before an upload: whether a file of this name is there.
        return super::upload::get(&context, &sight, &file, &headers).await;
    };
    if !sight.has_hash_part(wanted.hash_part) {
        return Err(missing());
    }
    let manifest = context.obtain(wanted.hash_part).await?.ok_or_else(missing)?;
    if manifest.info.nar_hash != wanted.nar_hash {
        return Err(missing());
    }
    send(&context, &manifest, wanted.encoding, &headers).await
}

/// An archive under the name of an upload, compressed as it was then.
pub async fn send_as(
    context: &Context,
    manifest: &Manifest,
    compression: Compression,
    headers: &HeaderMap,
) -> Answered {
    match compression {
        Compression::None => send(context, manifest, NarEncoding::Plain, headers).await,
        Compression::Zstd => send(context, manifest, NarEncoding::Zstd, headers).await,
        Compression::Xz => {
            let archive = open(context, manifest, NarEncoding::Plain).await?;
            let mut response = body(xz::compress(archive));
            set(&mut response, header::CONTENT_TYPE, MEDIA_TYPE);
            Ok(response)
        }
        Compression::Bzip2 | Compression::Br => Err(Refusal::missing(manifest.info.path.to_string())),
    }
}

async fn send(
    context: &Context,
    manifest: &Manifest,
    encoding: NarEncoding,
    headers: &HeaderMap,
) -> Answered {
    let hash = manifest.info.nar_hash.to_base32();
    let (tag, size) = match encoding {
        NarEncoding::Plain => (format!("\"{hash}\""), Some(manifest.info.nar_size)),
        // How long it gets is known when it has been sent.
        NarEncoding::Zstd => (format!("\"{hash}-zstd-{ENCODING_VERSION}\""), None),
    };
    let mut response = match asked_range(headers, &tag) {
        None => {
            let mut response = body(open(context, manifest, encoding).await?);
            if let Some(size) = size {
                set(&mut response, header::CONTENT_LENGTH, &size.to_string());
            }
            response
        }
        Some(asked) => {
            let size = match size {
                Some(size) => size,
                None => measure(context, manifest).await?,
            };
            match asked.within(size) {
                Some(range) => partial(context, manifest, encoding, range, size).await?,
                None => return Ok(beyond(size)),
            }
        }
    };
    set(&mut response, header::ETAG, &tag);
    set(&mut response, header::ACCEPT_RANGES, "bytes");
    set(&mut response, header::CONTENT_TYPE, MEDIA_TYPE);
    Ok(response)
}

type Archive = BoxStream<'static, Result<Bytes, CacheError>>;

fn failed(error: CacheError) -> Refusal {
    error.into_remote("calve").into()
}

async fn open(context: &Context, manifest: &Manifest, encoding: NarEncoding) -> Answered<Archive> {
    context.cache.nar_stream(manifest, encoding).await.map_err(failed)
}

/// How long the compressed archive is. Takes as long as sending it to nobody: only who resumes a transfer asks.
async fn measure(context: &Context, manifest: &Manifest) -> Answered<u64> {
    let mut archive = open(context, manifest, NarEncoding::Zstd).await?;
    let mut size = 0;
    while let Some(bytes) = archive.next().await {
        size += bytes.map_err(failed)?.len() as u64;
    }
    Ok(size)
}

async fn partial(
    context: &Context,
    manifest: &Manifest,
    encoding: NarEncoding,
    range: Range<u64>,
    size: u64,
) -> Answered {
    let archive = match encoding {
        NarEncoding::Plain => context.cache.nar_range(manifest, range.clone()).await.map_err(failed)?,
        NarEncoding::Zstd => part(open(context, manifest, encoding).await?, range.clone()),
    };
    let mut response = body(archive);
    *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    let says = format!("bytes {}-{}/{size}", range.start, range.end - 1);
    set(&mut response, header::CONTENT_RANGE, &says);
    set(&mut response, header::CONTENT_LENGTH, &(range.end - range.start).to_string());
    Ok(response)
}

/// These bytes of an archive that is only known from its beginning.
fn part(archive: Archive, range: Range<u64>) -> Archive {
    let parts = archive.scan(0, move |at, bytes| {
        let part = bytes.map(|bytes| {
            let (begin, end) = (*at, *at + bytes.len() as u64);
            *at = end;
            let from = range.start.clamp(begin, end) - begin;
            let to = range.end.clamp(begin, end) - begin;
            (begin < range.end).then(|| bytes.slice(from as usize..to as usize))
        });
        // Nothing is read behind the end.
        std::future::ready(part.transpose())
    });
    parts.filter(|part| std::future::ready(!matches!(part, Ok(bytes) if bytes.is_empty()))).boxed()
}

/// The one range of a `Range` header (RFC 9110, section 14); several are not worth their trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OneRange {
    From(u64),
    FromTo(u64, u64),
    Last(u64),
}

impl OneRange {
    fn parse(text: &str) -> Option<Self> {
        let (from, to) = text.trim().strip_prefix("bytes=")?.split_once('-')?;
        match (from, to) {
            ("", last) => last.parse().ok().map(Self::Last),
            (from, "") => from.parse().ok().map(Self::From),
            (from, to) => {
                let (from, to) = (from.parse().ok()?, to.parse().ok()?);
                (from <= to).then_some(Self::FromTo(from, to))
            }
        }
    }

    /// None where it begins behind the end.
    fn within(self, size: u64) -> Option<Range<u64>> {
        let range = match self {
            Self::From(from) => from..size,
            Self::FromTo(from, to) => from..size.min(to.saturating_add(1)),
            Self::Last(count) => size.saturating_sub(count)..size,
        };
        (range.start < range.end).then_some(range)
    }
}

/// None where everything is to be sent: nothing was asked, it makes no sense, or it is about other bytes (`If-Range`).
fn asked_range(headers: &HeaderMap, tag: &str) -> Option<OneRange> {
    if headers.get(header::IF_RANGE).is_some_and(|about| about.as_bytes() != tag.as_bytes()) {
        return None;
    }
    OneRange::parse(headers.get(header::RANGE)?.to_str().ok()?)
}

fn beyond(size: u64) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
    set(&mut response, header::CONTENT_RANGE, &format!("bytes */{size}"));
    response
}

fn body(archive: Archive) -> Response {
    // The connection breaks with the error, so that nobody takes what was sent for the whole.
    let told = archive.inspect(|bytes| {
        if let Err(error) = bytes {
            tracing::error!("an archive was cut off: {}", crate::chain(error));
        }
    });
    Response::new(Body::from_stream(told))
}

fn set(response: &mut Response, name: header::HeaderName, value: &str) {
    let value = HeaderValue::from_str(value).expect("made of digits and base32");
    response.headers_mut().insert(name, value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_rfc_9110_has_them() {
        let range = |text: &str| OneRange::parse(text).and_then(|range| range.within(100));
        assert_eq!(range("bytes=10-19"), Some(10..20));
        assert_eq!(range("bytes=90-"), Some(90..100));
        assert_eq!(range("bytes=-10"), Some(90..100));
        assert_eq!(range("bytes=-1000"), Some(0..100));
        assert_eq!(range(&format!("bytes=0-{}", u64::MAX)), Some(0..100));
        assert_eq!(range("bytes=100-"), None);
        assert_eq!(range("bytes=-0"), None);
        for bad in ["bytes=2-1", "bytes=a-", "0-1", "bytes=0-1,3-4", "bytes=-"] {
            assert_eq!(OneRange::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn archives_are_named_by_path_and_hash() {
        let path = StorePath::from_base_name("0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-a").unwrap();
        let hash = Sha256Hash::of(b"");
        let name = url(&path, &hash);
        let name = name.strip_prefix("nar/").unwrap();
        let wanted = Wanted::parse(name).unwrap();
        assert_eq!((wanted.hash_part, wanted.nar_hash), (path.hash_part(), hash));
        assert_eq!(wanted.encoding, NarEncoding::Zstd);
        assert_eq!(Wanted::parse(name.strip_suffix(".zst").unwrap()).unwrap().encoding, NarEncoding::Plain);
        for bad in ["x.nar", "", &name[1..], &name.replace(".nar", ".rar"), &name.replace('-', "_")] {
            assert!(Wanted::parse(bad).is_none(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_part_of_a_stream_is_cut_out_of_it() {
        let whole: Vec<u8> = (0..50).collect();
        for range in [0..50_u64, 7..8, 9..21, 40..50, 0..10] {
            let pieces: Vec<_> = whole.chunks(10).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
            let part = part(futures_util::stream::iter(pieces).boxed(), range.clone());
            let part: Vec<_> = part.map(|bytes| bytes.unwrap()).collect().await;
            assert_eq!(part.concat(), whole[range.start as usize..range.end as usize]);
        }
    }
}
