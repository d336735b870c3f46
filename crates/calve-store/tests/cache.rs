//! Caches as their users see them.
#![cfg(feature = "cache")]

mod cache_support;

use std::collections::BTreeSet;
use std::io::Read;

use bytes::Bytes;
use cache_support::*;
use calve_nix::sign::fingerprint;
use calve_nix::{Compression, Sha256Hash, TrustedKeys};
use calve_store::cache::{Cache, CacheError, NarEncoding};
use calve_store::chunk::{ChunkId, StoredChunk};
use calve_store::remote::{Manifest, Remote, RemoteError};
use futures_util::{StreamExt, TryStreamExt, stream};

#[tokio::test]
async fn what_was_pushed_is_read_in_every_way() {
    let dir = tempfile::tempdir().unwrap();
    for cache in [local(&dir.path().join("a")).await, in_memory(&dir.path().join("b")).await] {
        let paths = closure(1);
        let (manifests, sent) = push(&cache, &paths).await.unwrap();
        assert!(sent > 10);
        assert_eq!(push(&cache, &paths).await.unwrap(), (manifests.clone(), 0), "again changes nothing");
        assert_intact(&cache, &paths).await;
        let wanted: Vec<_> = paths.iter().map(|made| made.info.path.clone()).collect();
        assert_eq!(cache.missing_paths(&wanted).await.unwrap(), []);
        let closure = cache.closure(&wanted[2..]).await.unwrap();
        let found: BTreeSet<_> = closure.iter().map(|manifest| manifest.info.path.clone()).collect();
        assert_eq!(found, wanted.into_iter().collect());
        for manifest in &closure {
            signed(&cache, manifest);
            let made = paths.iter().find(|made| made.info.path == manifest.info.path).unwrap();
            let zstd = cache.nar_stream(manifest, NarEncoding::Zstd).await.unwrap();
            let zstd = zstd.try_collect::<Vec<_>>().await.unwrap().concat();
            assert!(zstd::decode_all(&zstd[..]).unwrap() == made.archive);
            let size = made.info.nar_size;
            for (from, to) in [(0, 1), (1, 70_100.min(size)), (size / 2, size), (size - 1, size), (5, 5)] {
                let range = cache.nar_range(manifest, from..to).await.unwrap();
                let range = range.try_collect::<Vec<_>>().await.unwrap().concat();
                assert!(range == made.archive[from as usize..to as usize], "{from}..{to}");
            }
            let recipe = cache.recipes(&[manifest.recipe]).await.unwrap().remove(0);
            let ids: Vec<_> = recipe.pieces.iter().rev().map(|piece| piece.id).collect();
            let read: Vec<StoredChunk> =
                cache.chunks(ids.clone()).await.unwrap().try_collect().await.unwrap();
            assert_eq!(read.iter().map(|chunk| chunk.id).collect::<Vec<_>>(), ids);
            assert!(read.iter().all(|chunk| chunk.plain().is_ok()));
        }
    }
}

fn signed(cache: &Cache, manifest: &Manifest) {
    let info = &manifest.info;
    let keys: TrustedKeys = cache.public_keys().join(" ").parse().unwrap();
    let references = info.references.iter().cloned().collect();
    let text = fingerprint(&info.path, &info.nar_hash, info.nar_size, &references);
    let signatures: Vec<_> = info.signatures.iter().map(|signature| signature.parse().unwrap()).collect();
    assert_eq!(keys.verify(&text, &signatures).unwrap().name(), "test-1");
}

#[tokio::test]
async fn a_rebuild_that_changes_only_hashes_sends_no_chunk() {
    let dir = tempfile::tempdir().unwrap();
    let cache = local(dir.path()).await;
    let (old, new) = (closure(1), closure(2));
    let (first, _) = push(&cache, &old).await.unwrap();
    let (second, sent) = push(&cache, &new).await.unwrap();
    assert_eq!(sent, 0);
    assert!(first.iter().zip(&second).all(|(old, new)| old.recipe == new.recipe));
    assert_intact(&cache, &old).await;
    assert_intact(&cache, &new).await;
}

#[tokio::test]
async fn signatures_of_clients_are_kept_and_added() {
    let dir = tempfile::tempdir().unwrap();
    let cache = local(dir.path()).await;
    let mut made = made("a", 1, 1000, &[]);
    let by = |name: &str| calve_nix::SecretKey::from_seed(name, [7; 32]).unwrap().sign("x").to_string();
    made.info.signatures = vec![by("first")];
    push(&cache, std::slice::from_ref(&made)).await.unwrap();
    made.info.signatures = vec![by("second")];
    let (manifests, _) = push(&cache, std::slice::from_ref(&made)).await.unwrap();
    let found = cache.find(made.info.path.hash_part()).await.unwrap();
    assert_eq!(found.as_ref(), manifests.first());
    let signatures = found.unwrap().info.signatures;
    assert_eq!(signatures.len(), 3);
    assert!(signatures.contains(&by("first")) && signatures.contains(&by("second")));
    made.info.signatures = vec!["no signature".to_owned()];
    assert!(push(&cache, &[made]).await.is_err());
}

#[tokio::test]
async fn what_is_wrong_never_appears() {
    let dir = tempfile::tempdir().unwrap();
    let cache = local(dir.path()).await;
    let paths = closure(1);
    let refused = |result: Result<(Vec<Manifest>, usize), RemoteError>| result.unwrap_err().to_string();
    // A reference that is not there.
    let text = refused(push(&cache, &paths[1..]).await);
    assert!(text.contains(&paths[0].info.path.to_string()), "{text}");
    // Another hash, another size.
    let mut lying = paths[0].clone();
    lying.info.nar_hash = Sha256Hash::of(b"");
    assert!(refused(push(&cache, &[lying.clone()]).await).contains("libc is damaged: its chunks give"));
    lying.info.nar_size -= 1;
    assert!(refused(push(&cache, &[lying]).await).contains("bytes instead of"));
    // Content addresses that are none, and of another path.
    for hash in ["sha356:", "sha256:"].map(|name| format!("{name}{}", Sha256Hash::of(b"").to_base32())) {
        let mut lying = paths[0].clone();
        lying.info.ca = Some(format!("fixed:r:{hash}"));
        assert!(refused(push(&cache, &[lying.clone()]).await).contains("its content address"));
        stage(&cache, "ca.nar", &lying.archive).await;
        let error = cache.put_nar("ca.nar", Compression::None, lying.info).await.unwrap_err();
        assert!(error.to_string().contains("its content address"), "{error}");
    }
    // Archives that Nix would not write: each that the reader refuses is refused here, too.
    let archive = archive_of(&noise(3, 100));
    let mut padded = archive.clone();
    padded[96 + 100] = 1;
    let directory = |names: &[&str]| {
        let mut text = vec![&b"nix-archive-1"[..], b"(", b"type", b"directory"];
        for name in names {
            text.extend([&b"entry"[..], b"(", b"name", name.as_bytes(), b"node", b"(", b"type", b"symlink"]);
            text.extend([&b"target"[..], b"there", b")", b")"]);
        }
        text.push(b")");
        strings(&text)
    };
    assert!(cache_takes(&cache, &directory(&["a", "b"])).await.is_ok());
    let link =
        |target: &[u8]| strings(&[b"nix-archive-1", b"(", b"type", b"symlink", b"target", target, b")"]);
    for (what, archive) in [
        ("padding", padded),
        ("more", [&archive[..], &[0; 8]].concat()),
        ("less", archive[..archive.len() - 8].to_vec()),
        ("order", directory(&["b", "a"])),
        ("double", directory(&["a", "a"])),
        ("dot", directory(&["."])),
        ("dots", directory(&[".."])),
        ("slash", directory(&["a/b"])),
        ("zero", directory(&["a\0"])),
        ("no name", directory(&[""])),
        ("no target", link(b"")),
        ("a zero in a target", link(b"a\0b")),
        ("type", strings(&[b"nix-archive-1", b"(", b"type", b"socket", b")"])),
        ("noise", noise(9, 4000)),
    ] {
        let error = cache_takes(&cache, &archive).await.expect_err(what);
        assert!(error.contains("archive"), "{what}: {error}");
    }
    // Chunks that were not sent.
    let other = made("other", 1, 200_000, &[]);
    let (recipe, mut stored) = chunks(&other);
    let manifest = Manifest { info: other.info.clone(), recipe: recipe.id(), lazy: None };
    let commit = cache.commit(vec![manifest.clone()], vec![recipe.clone()]).await;
    assert!(matches!(commit, Err(RemoteError::Missing { .. })), "{commit:?}");
    assert!(matches!(cache.commit(vec![manifest], vec![]).await, Err(RemoteError::Missing { .. })));
    // Chunks with other bytes than their ids say.
    stored[0].id = ChunkId::of(b"other");
    assert!(matches!(cache.put_chunks(stored).await, Err(RemoteError::Damaged { .. })));
    for made in paths.iter().chain([&other]) {
        assert_eq!(cache.find(made.info.path.hash_part()).await.unwrap(), None, "{}", made.info.path);
    }
    let gone = cache.closure(&[other.info.path]).await;
    assert!(matches!(gone, Err(RemoteError::Missing { .. })));
}

fn strings(texts: &[&[u8]]) -> Vec<u8> {
    let mut archive = Vec::new();
    for text in texts {
        archive.extend_from_slice(&(text.len() as u64).to_le_bytes());
        archive.extend_from_slice(text);
        archive.resize(archive.len().next_multiple_of(8), 0);
    }
    archive
}

/// Pushes an archive, and uploads it; both end in the same way.
async fn cache_takes(cache: &Cache, archive: &[u8]) -> Result<(), String> {
    let build =
        Sha256Hash::of(archive).as_bytes()[..8].iter().fold(0, |build, byte| build << 8 | u64::from(*byte));
    let mut made = made("odd", build, 1000, &[]);
    made.archive = archive.to_vec();
    (made.info.nar_hash, made.info.nar_size) = (Sha256Hash::of(archive), archive.len() as u64);
    stage(cache, "odd.nar", archive).await;
    let uploaded = cache.put_nar("odd.nar", Compression::None, made.info.clone()).await;
    let pushed = push(cache, &[made]).await;
    assert_eq!(uploaded.is_ok(), pushed.is_ok());
    uploaded.map(drop).map_err(|error| error.to_string())?;
    pushed.map(drop).map_err(|error| error.to_string())
}

fn compress(compression: Compression, plain: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    match compression {
        Compression::None => out.extend_from_slice(plain),
        Compression::Zstd => out = zstd::encode_all(plain, 1).unwrap(),
        Compression::Xz => {
            let mut encoder = liblzma::bufread::XzEncoder::new(plain, 0);
            encoder.read_to_end(&mut out).unwrap();
        }
        Compression::Bzip2 => {
            // Two streams, one after the other, as `pbzip2` writes them; nothing in them gets smaller.
            for part in plain.chunks(plain.len().div_ceil(2)) {
                bzip2::bufread::BzEncoder::new(part, bzip2::Compression::best())
                    .read_to_end(&mut out)
                    .unwrap();
            }
        }
        // Stored, not compressed (RFC 7932): window bits, then meta-blocks of at most 64 KiB, then the last, empty one.
        Compression::Br => brotli_stored(plain, &mut out),
    }
    out
}

fn brotli_stored(plain: &[u8], out: &mut Vec<u8>) {
    // The first byte's lowest bit 0 says 16 window bits. A header is then 1 bit ISLAST = 0, 2 bits MNIBBLES = 0 (four),
    // 16 bits of length - 1, 1 bit ISUNCOMPRESSED = 1, and zeros to the next byte.
    let mut first = true;
    for block in plain.chunks(65_536) {
        let header = (block.len() as u32 - 1) << 3 | 1 << 19;
        let bits = if first { header << 1 } else { header };
        first = false;
        out.extend_from_slice(&bits.to_le_bytes()[..3]);
        out.extend_from_slice(block);
    }
    out.push(3);
}

async fn stage(cache: &Cache, name: &str, bytes: &[u8]) {
    let parts: Vec<_> =
        bytes.chunks(30_000).map(|part| Ok::<_, String>(Bytes::copy_from_slice(part))).collect();
    assert_eq!(cache.stage_nar(name, stream::iter(parts)).await.unwrap(), bytes.len() as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn archives_of_nix_copy_are_taken_in_every_compression() {
    let dir = tempfile::tempdir().unwrap();
    let cache = local(dir.path()).await;
    for (build, compression) in (1..).zip(Compression::ALL) {
        // Large enough for several threads where decompression is quick without optimisation, too.
        let quick = matches!(compression, Compression::None | Compression::Zstd);
        let len = if quick { 9_000_000 } else { 300_000 };
        let made = made("large", build, len, &[&path("large", build)]);
        let name = format!("{build}.nar{}", compression.extension());
        stage(&cache, &name, &compress(compression, &made.archive)).await;
        assert!(cache.has_nar(&name).await.unwrap());
        let manifest = cache.put_nar(&name, compression, made.info.clone()).await.unwrap();
        signed(&cache, &manifest);
        assert_intact(&cache, std::slice::from_ref(&made)).await;
        // Another path with the same archive: nix does not upload it again.
        assert!(cache.has_nar(&name).await.unwrap());
        let again = Manifest { info: made.info.clone(), ..manifest };
        let mut twin = again.info;
        twin.path = path("twin", build);
        cache.put_nar(&name, compression, twin.clone()).await.unwrap();
        assert!(archive(&cache, &twin.path).await == made.archive);
    }
    assert_eq!(std::fs::read_dir(dir.path().join("uploads")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_that_lie_are_refused_and_can_be_sent_again() {
    let dir = tempfile::tempdir().unwrap();
    let cache = local(dir.path()).await;
    let made = made("a", 1, 300_000, &[]);
    let good = compress(Compression::Xz, &made.archive);
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    let bomb = compress(Compression::Zstd, &archive_of(&vec![0; 50_000_000]));
    let other = compress(Compression::None, &archive_of(&noise(5, 300_000 - FRAME_BYTES)));
    for (compression, bytes, message) in [
        (Compression::Xz, &good[..good.len() - 9], "x.nar"),
        (Compression::Xz, &flipped[..], "x.nar"),
        (Compression::Zstd, &bomb[..], "more than the 300000 bytes"),
        (Compression::None, &other[..], "instead of 300000"),
        (Compression::Zstd, &good[..], "x.nar"),
    ] {
        stage(&cache, "x.nar", bytes).await;
        let error = cache.put_nar("x.nar", compression, made.info.clone()).await.unwrap_err();
        assert!(matches!(&error, CacheError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains(message), "{error}");
        assert_eq!(cache.find(made.info.path.hash_part()).await.unwrap(), None);
    }
    let broken = stream::iter([Ok(Bytes::from_static(b"a")), Err("the line broke")]);
    assert!(cache.stage_nar("y.nar", broken).await.is_err());
    assert!(!cache.has_nar("y.nar").await.unwrap());
    for name in ["", "../key", "a/b", ".hidden"] {
        let body = stream::iter([Ok::<_, String>(Bytes::new())]).boxed();
        assert!(cache.stage_nar(name, body).await.is_err(), "{name}");
    }
    stage(&cache, "x.nar", &good).await;
    cache.put_nar("x.nar", Compression::Xz, made.info.clone()).await.unwrap();
    assert_intact(&cache, &[made]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_writers_of_one_path_both_succeed_with_one_result() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (local(dir.path()).await, local(dir.path()).await);
    let paths = closure(1);
    let (a, b) = tokio::join!(push(&one, &paths), push(&two, &paths));
    assert_eq!(a.unwrap().0, b.unwrap().0);
    assert_intact(&one, &paths).await;
}

#[tokio::test]
async fn a_lost_index_is_built_anew_and_a_foreign_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let paths = closure(1);
    let manifests = push(&local(dir.path()).await, &paths).await.unwrap().0;
    for file in std::fs::read_dir(dir.path()).unwrap().flatten() {
        if file.file_name().to_string_lossy().starts_with("index") {
            std::fs::remove_file(file.path()).unwrap();
        }
    }
    let cache = local(dir.path()).await;
    assert_intact(&cache, &paths).await;
    let closure = cache.closure(&[paths[2].info.path.clone()]).await.unwrap();
    assert_eq!(closure.len(), 3);
    assert!(closure.iter().all(|manifest| manifests.contains(manifest)));
    std::fs::write(dir.path().join("objects/cache-id"), "somebody").unwrap();
    let error = Cache::open(options(dir.path())).await.err().unwrap();
    assert!(matches!(error, CacheError::Foreign { .. }), "{error}");
}
