//! The fuzz targets of a cache behind HTTP, on a stable Rust: over their corpora, over changed corpora, and over arbitrary
//! bytes.
#![allow(missing_docs)]

#[path = "../../../fuzz/src/changes.rs"]
mod changes;
#[path = "../../../fuzz/src/served.rs"]
mod served;

use calve_store::chunk::{ChunkId, StoredChunk};
use calve_store::http::frame::encode;
use calve_store::http::message::Message;
use calve_store::remote::Manifest;
use changes::{check, check_arbitrary, check_changed, write_corpus};
use served::{ROUTES, TARGETS};

/// A request of one of the routes.
fn request(path: &str, packed: bool, body: &[u8]) -> Vec<u8> {
    let route = ROUTES.iter().position(|(_, at)| at.starts_with(path)).expect("a route");
    [&[route as u8, u8::from(!packed)][..], body].concat()
}

fn first_inputs() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let ids = zstd::stream::decode_all(&*vec![ChunkId::of(b"a"), ChunkId::of(b"b")].encode()).unwrap();
    let path = calve_nix::StorePath::from_base_name("0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-a").unwrap();
    let paths = zstd::stream::decode_all(&*vec![path].encode()).unwrap();
    let chunk = StoredChunk::compress(ChunkId::of(b"one"), b"one", 3).unwrap();
    let none = Vec::<Manifest>::new().encode();
    let commit = [&(none.len() as u32).to_le_bytes()[..], &none].concat();
    let mut nar = calve_nix::NarWriter::new(Vec::new()).unwrap();
    nar.file(b"", false, 3, &mut &b"one"[..]).unwrap();
    let nar = nar.finish().unwrap();
    let narinfo = format!(
        "StorePath: /nix/store/00000000000000000000000000000000-a\nURL: nar/a.nar.zst\nCompression: zstd\n\
         NarHash: {}\nNarSize: {}\nReferences: \n",
        calve_nix::Sha256Hash::of(&nar),
        nar.len()
    );
    let token = format!(r#"{{"version":1,"sha256":"{}","right":"push"}}"#, "0".repeat(64));
    vec![
        ("authorization", "basic", b"Basic YTpi".to_vec()),
        ("authorization", "bearer", b"Bearer calve_x".to_vec()),
        ("request", "chunks", request("/calve/v1/chunks", true, &ids)),
        ("request", "missing-chunks", request("/calve/v1/missing-chunks", true, &ids)),
        ("request", "missing-paths", request("/calve/v1/missing-paths", true, &paths)),
        ("request", "closure", request("/calve/v1/closure", true, &paths)),
        ("request", "upload", request("/calve/v1/upload", false, &encode(chunk).concat())),
        ("request", "commit", request("/calve/v1/commit", false, &commit)),
        ("request", "cache-info", request("/nix-cache-info", false, b"StoreDir: /nix/store\n")),
        ("request", "nar", request("/nar/", true, &nar)),
        (
            "request",
            "narinfo",
            request("/00000000000000000000000000000000.narinfo", false, narinfo.as_bytes()),
        ),
        ("request", "realisation", request("/realisations/", false, b"{}")),
        ("request", "get", [&[200, 0][..], b"/nar/0.nar.zst"].concat()),
        ("token_file", "push", token.into_bytes()),
        ("token_file", "closure", br#"{"version":1,"sha256":"00","right":{"closure":["x"]}}"#.to_vec()),
    ]
}

#[test]
fn every_target_has_a_corpus_and_a_program() {
    write_corpus(&first_inputs());
    check(TARGETS);
}

#[test]
fn changed_corpora_do_no_harm() {
    check_changed(TARGETS, 300);
}

#[test]
fn arbitrary_bytes_do_no_harm() {
    check_arbitrary(TARGETS, 300);
}
