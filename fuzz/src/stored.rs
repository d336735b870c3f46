//! Fuzz targets of what a cache stores and sends: messages, frames, recipes, archives told of, manifests, packs, problems, addresses. Sizes in
//! them may lie, and must cost nothing then.

use bytes::Bytes;
use calve_nix::StorePath;
use calve_store::Address;
use calve_store::cache::stored::{read_manifest, read_pack, write_manifest};
use calve_store::chunk::{CHUNK_MAX, CHUNK_STORED_MAX, ChunkId, StoredChunk};
use calve_store::http::ahead::{AheadDecoder, encode_part};
use calve_store::http::frame::{Decoder, encode};
use calve_store::http::message::Message;
use calve_store::http::{Problem, pack_recipe, unpack_recipe};
use calve_store::normal::Restorer;
use calve_store::recipe::Recipe;
use calve_store::remote::{Asker, CacheInfo, Directory, Manifest};

/// A target: its name, which is that of its corpus below `corpus/`, and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: &[Target] = &[
    ("address", address),
    ("ahead", ahead),
    ("frames", frames),
    ("message", message),
    ("pack", pack),
    ("problem", problem),
    ("recipe", recipe),
    ("stored_manifest", stored_manifest),
];

fn address(bytes: &[u8]) {
    let Some(address) = str::from_utf8(bytes).ok().and_then(|text| text.parse::<Address>().ok()) else {
        return;
    };
    assert_eq!(address.to_string().parse().as_ref(), Ok(&address));
}

/// The first byte says how long the pieces are in which the rest comes; the parts begin where the path is read.
fn ahead(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    let (mut decoder, mut begin, mut again) = (AheadDecoder::default(), None, Vec::new());
    for piece in rest.chunks(usize::from(*first).max(1)) {
        decoder.push(piece);
        if begin.is_none() {
            match decoder.path() {
                Ok(None) => continue,
                Ok(Some(_)) => {
                    begin = rest.first_chunk().map(|length| 4 + u32::from_le_bytes(*length) as usize)
                }
                Err(_) => return,
            }
        }
        loop {
            match decoder.part() {
                Ok(None) => break,
                Ok(Some(part)) => again.extend(encode_part(&part)),
                Err(_) => return,
            }
        }
    }
    let Some(begin) = begin else { return };
    assert!(rest[begin..].starts_with(&again));
    assert_eq!(decoder.finish().is_ok(), begin + again.len() == rest.len());
}

/// The first byte says how long the pieces are in which the rest comes.
fn frames(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    let mut decoder = Decoder::new(CHUNK_MAX, CHUNK_STORED_MAX);
    let mut again = Vec::new();
    for piece in rest.chunks(usize::from(*first).max(1)) {
        decoder.push(piece);
        loop {
            match decoder.next_frame() {
                Ok(None) => break,
                Err(_) => return assert!(rest.starts_with(&again)),
                Ok(Some(frame)) => {
                    if let Ok(plain) = frame.plain() {
                        assert!(ChunkId::of(&plain) == frame.id && plain.len() == frame.len as usize);
                    }
                    again.extend(encode(frame).concat());
                }
            }
        }
    }
    assert!(rest.starts_with(&again));
    assert_eq!(decoder.finish().is_ok(), again.len() == rest.len());
}

/// As every kind of message; packed too, because nearly no change of packed bytes gets as far as a list.
fn message(bytes: &[u8]) {
    each::<CacheInfo>(bytes);
    each::<Asker>(bytes);
    each::<Directory>(bytes);
    each::<Vec<ChunkId>>(bytes);
    each::<Vec<StorePath>>(bytes);
    each::<Vec<Manifest>>(bytes);
}

fn each<T: Message + PartialEq>(bytes: &[u8]) {
    let _ = T::decode(bytes);
    let packed = zstd::bulk::compress(bytes, 1).expect("compressing into memory does not fail");
    let Ok(value) = T::decode(&packed) else { return };
    assert!(T::decode(&value.encode()).as_ref() == Ok(&value), "sent on, it is read as something else");
}

/// As a pack; and as one whose list of contents is right by its hash: two bytes say how long the frames are, these and the
/// list follow.
fn pack(bytes: &[u8]) {
    let _ = read_pack(bytes);
    let Some((length, rest)) = bytes.split_first_chunk() else { return };
    let (frames, contents) = rest.split_at(usize::from(u16::from_le_bytes(*length)).min(rest.len()));
    const MAGIC: &[u8] = b"calve-pack-1";
    let length = (contents.len() as u32).to_le_bytes();
    let object = [MAGIC, frames, contents, &length, &ChunkId::of(contents).0, MAGIC].concat();
    if let Ok(bytes) = read_pack(&object) {
        assert_eq!(bytes, frames.len() as u64);
    }
}

fn problem(bytes: &[u8]) {
    let Some(problem) = Problem::from_json(bytes) else { return };
    assert_eq!(Problem::from_json(&problem.to_json()).as_ref(), Some(&problem));
    let said = problem.into_error("a cache".to_owned()).to_string();
    assert!(!said.chars().any(char::is_control), "{said:?} is no text for a terminal");
    assert!(said.chars().count() < 2000);
}

fn recipe(bytes: &[u8]) {
    let stranger = StoredChunk { id: ChunkId::of(bytes), len: u32::MAX, zstd: Bytes::copy_from_slice(bytes) };
    let _ = unpack_recipe(&stranger);
    let Ok(recipe) = Recipe::decode(bytes) else { return };
    assert_eq!(Recipe::decode(&recipe.encode()).as_ref(), Ok(&recipe));
    assert_eq!(unpack_recipe(&pack_recipe(&recipe)).ok().as_ref(), Some(&recipe));
    let path =
        |digit: &str| StorePath::from_base_name(&format!("{}-a", digit.repeat(32))).expect("a store path");
    let (one, other) = (path("0"), path("1"));
    if let Ok(restorer) = Restorer::new(&recipe.positions, &[&one, &other]) {
        let mut part = vec![b'e'; 4096];
        restorer.restore(&mut part, recipe.nar_size() / 2);
        restorer.restore(&mut part, 0);
        assert!(part.iter().all(|byte| b"e01".contains(byte)));
    }
}

fn stored_manifest(bytes: &[u8]) {
    let Ok(manifest) = read_manifest(bytes) else { return };
    assert_eq!(read_manifest(&write_manifest(&manifest)).ok().as_ref(), Some(&manifest));
}
