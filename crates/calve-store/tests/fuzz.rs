//! The fuzz targets of what a cache stores and sends, on a stable Rust: over their corpora, over changed corpora, and over
//! arbitrary bytes; and a client whose cache answers anything at all.
#![cfg(all(feature = "cache", feature = "http"))]
#![allow(missing_docs)]

#[path = "../../../fuzz/src/changes.rs"]
mod changes;
#[path = "../../../fuzz/src/stored.rs"]
mod stored;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use calve_store::HttpRemote;
use calve_store::cache::stored::read_manifest;
use calve_store::chunk::{ChunkId, StoredChunk};
use calve_store::http::ahead::{encode_part, encode_path};
use calve_store::http::frame::{encode, encode_problem};
use calve_store::http::{Problem, ProblemKind, pack_recipe};
use calve_store::recipe::{Piece, Position, Recipe};
use calve_store::remote::{ArchivePart, Remote};
use changes::{change, changed, check, check_all, check_arbitrary, check_changed, corpus, write_corpus};
use futures_util::StreamExt;
use proptest::prelude::*;
use stored::TARGETS;

fn chunk(text: &str) -> StoredChunk {
    StoredChunk::compress(ChunkId::of(text.as_bytes()), text.as_bytes(), 3).unwrap()
}

fn a_recipe() -> Recipe {
    let piece = |len| Piece { id: ChunkId([len as u8; 32]), len };
    let positions = vec![Position { skip: 3, reference: 1 }, Position { skip: 0, reference: 0 }];
    Recipe { pieces: vec![piece(60), piece(40)], positions }
}

/// The first inputs; plain lists are what `tests/messages/` holds packed.
fn first_inputs() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let unpacked = |file: &str| {
        let file = format!("{}/tests/messages/{file}", env!("CARGO_MANIFEST_DIR"));
        zstd::stream::decode_all(std::fs::File::open(file).unwrap()).unwrap()
    };
    let frames = [encode(chunk("one")).concat(), encode(pack_recipe(&a_recipe())).concat()].concat();
    let problem = Problem::new(ProblemKind::Missing, "gone");
    let ended = [&[7][..], &frames, &encode_problem(&problem).concat()].concat();
    // One entry: a chunk of two bytes, stored in three, and the hash of the frames.
    let contents = [&[1, 0][..], &[5; 32], &[3, 2], &ChunkId::of(b"abc").0].concat();
    let manifest = {
        let path = b"0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-a";
        let text = [&[path.len() as u8][..], path].concat();
        let signature = [&[4][..], b"k:AA"].concat();
        [&[1][..], &text, &[1; 32], &[100], &[1], &text, &[0, 0, 1], &signature, &[2; 32]].concat()
    };
    let parts = ArchivePart { pieces: a_recipe().pieces, positions: a_recipe().positions };
    let path = read_manifest(&manifest).unwrap().info;
    let archive = [&[90][..], &encode_path(&path), &encode_part(&parts), &encode_part(&parts)].concat();
    vec![
        ("ahead", "two", archive),
        ("address", "http", b"https://h:8443/a/b/".to_vec()),
        ("address", "unix", b"unix:/run/c.sock:/cache".to_vec()),
        ("frames", "two", [&[200][..], &frames].concat()),
        ("frames", "problem", ended),
        ("message", "asker", unpacked("asker.1.bin")),
        ("message", "directory", unpacked("directory.1.bin")),
        ("message", "ids", unpacked("ids.1.bin")),
        ("message", "info", unpacked("info.1.bin")),
        ("message", "manifests", unpacked("manifests.1.bin")),
        ("message", "paths", unpacked("paths.1.bin")),
        ("pack", "one", [&[3, 0][..], b"abc", &contents].concat()),
        ("problem", "missing", problem.to_json()),
        ("recipe", "two", a_recipe().encode()),
        ("stored_manifest", "one", manifest),
    ]
}

#[test]
fn every_target_has_a_corpus_and_a_program() {
    write_corpus(&first_inputs());
    check(TARGETS);
    // What the corpus is made of is what the cache itself writes.
    let manifest = corpus(TARGETS).into_iter().find(|(name, _)| *name == "stored_manifest").unwrap().1;
    let read = read_manifest(&manifest).unwrap();
    assert_eq!(calve_store::cache::stored::write_manifest(&read), manifest);
}

#[test]
fn changed_corpora_do_no_harm() {
    check_changed(TARGETS, 2000);
}

#[test]
fn arbitrary_bytes_do_no_harm() {
    check_arbitrary(TARGETS, 2000);
}

/// A cache that answers every request with the same bytes; gives its address.
fn answering(body: Arc<Mutex<Vec<u8>>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, mut head) = (stream.unwrap(), vec![0; 64 * 1024]);
            // Small requests, which come in one piece or whose rest nobody waits for.
            let _ = stream.read(&mut head);
            let body = body.lock().unwrap().clone();
            let answer =
                format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
            let _ = stream.write_all(&[answer.as_bytes(), &body].concat());
        }
    });
    format!("http://{address}")
}

#[test]
fn a_client_survives_whatever_a_cache_answers() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let body = Arc::new(Mutex::new(Vec::new()));
    let remote = HttpRemote::new(answering(body.clone()).parse().unwrap(), None).unwrap();
    let inputs = corpus(TARGETS).into_iter().filter(|(target, _)| ["frames", "message"].contains(target));
    let inputs: Vec<_> = inputs.map(|(_, bytes)| bytes).collect();
    let changes = prop::collection::vec(change(), 0..3);
    let arbitrary = (prop::sample::select(inputs), changes, any::<bool>(), 0..3_u8);
    check_all(60, &arbitrary, |(bytes, changes, packed, first)| {
        let bytes = changed(bytes, changes);
        let bytes = if packed { zstd::bulk::compress(&bytes, 1).unwrap() } else { bytes };
        // What a commit's answer begins with.
        *body.lock().unwrap() = [&[0, first][..], &bytes].concat();
        runtime.block_on(async {
            let (ids, id) = (vec![ChunkId([1; 32])], ChunkId([1; 32]));
            let _ = remote.commit(Vec::new(), Vec::new()).await;
            *body.lock().unwrap() = bytes;
            let _ = remote.info().await;
            let _ = remote.missing_paths(&[]).await;
            let _ = remote.closure(&[]).await;
            let recipes = remote.recipes(&ids).await;
            assert!(recipes.is_err(), "nothing has the id {id}");
            if let Ok(mut chunks) = remote.chunks(ids).await {
                while let Some(Ok(chunk)) = chunks.next().await {
                    assert_eq!(chunk.id, id);
                }
            }
        });
    });
}
