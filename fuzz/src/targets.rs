//! What the fuzz targets do with arbitrary bytes. Each must not panic, whatever the bytes are, and checks that what is read
//! is printed as something that is read alike.

use std::io::{self, Read, Write};
use std::str::FromStr;

use calve_nix::nar::{NarContents, NarError};
use calve_nix::references::{HashPart, Needles, Rewriter, Scanner};
use calve_nix::{
    AnyHash, CacheFile, CacheInfo, ContentAddress, Listing, NarEvent, NarInfo, NarReader, NarWriter,
    PublicKey, Realisation, SecretKey, Signature, StorePath, TrustedKeys, base32,
};

/// A target: its name, which is that of its corpus below `corpus/`, and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: &[Target] = &[
    ("base32", base32),
    ("cache_file", round_trip::<CacheFile>),
    ("cache_info", round_trip::<CacheInfo>),
    ("content_address", round_trip::<ContentAddress>),
    ("hash", round_trip::<AnyHash>),
    ("keys", keys),
    ("listing", round_trip::<Listing>),
    ("nar", nar),
    ("narinfo", narinfo),
    ("realisation", round_trip::<Realisation>),
    ("references", references),
    ("store_path", store_path),
];

/// What is read is printed as text that is read as the same.
fn round_trip<T: FromStr + ToString + PartialEq>(bytes: &[u8]) {
    let Some(value) = str::from_utf8(bytes).ok().and_then(|text| text.parse::<T>().ok()) else { return };
    let text = value.to_string();
    let again = text.parse::<T>().ok();
    assert!(again.as_ref() == Some(&value), "printed, it is read as something else: {text}");
    assert_eq!(again.map(|value| value.to_string()), Some(text));
}

fn base32(bytes: &[u8]) {
    assert_eq!(base32::decode(&base32::encode(bytes)).as_deref(), Ok(bytes));
    if let Ok(text) = str::from_utf8(bytes)
        && let Ok(decoded) = base32::decode(text)
    {
        assert_eq!(base32::encode(&decoded), text);
    }
}

fn keys(bytes: &[u8]) {
    round_trip::<Signature>(bytes);
    round_trip::<PublicKey>(bytes);
    let Ok(text) = str::from_utf8(bytes) else { return };
    if let Ok(key) = text.parse::<SecretKey>() {
        assert!(key.public().verify(text, &key.sign(text)));
    }
    let _ = text.parse::<TrustedKeys>();
}

fn store_path(bytes: &[u8]) {
    round_trip::<StorePath>(bytes);
    let Ok(text) = str::from_utf8(bytes) else { return };
    if let Ok((path, rest)) = StorePath::split(text) {
        assert_eq!(format!("{path}{rest}"), text);
    }
}

fn narinfo(bytes: &[u8]) {
    round_trip::<NarInfo>(bytes);
    if let Ok(info) = NarInfo::from_bytes(bytes) {
        assert!(info.fingerprint().starts_with("1;/nix/store/"));
    }
}

/// An archive that is read is written as the same bytes, and has a listing unless a name is no text.
fn nar(bytes: &[u8]) {
    if let Ok(copy) = copy(bytes) {
        assert!(copy == bytes, "another archive stands for the same tree");
        let listing = Listing::of_nar(bytes);
        assert!(
            listing.is_ok_and(|listing| listing.to_string().parse() == Ok(listing))
                || str::from_utf8(bytes).is_err()
        );
    }
    let _ = NarReader::with_size(bytes, bytes.len() as u64 / 2).finish();
}

fn copy(bytes: &[u8]) -> Result<Vec<u8>, NarError> {
    let mut reader = NarReader::new(bytes);
    let mut writer = NarWriter::new(Vec::new())?;
    while let Some(event) = reader.next_event().map_err(io::Error::from)? {
        match event {
            NarEvent::Enter { name } => writer.begin_directory(&name)?,
            NarEvent::Leave => writer.end_directory()?,
            NarEvent::Symlink { name, target } => writer.symlink(&name, &target)?,
            NarEvent::File { name, executable, size, .. } => {
                let mut contents: NarContents<_> = reader.contents();
                assert_eq!(contents.remaining(), size);
                writer.file(&name, executable, size, &mut contents.by_ref())?;
            }
        }
    }
    reader.finish().map_err(io::Error::from)?;
    writer.finish()
}

/// The first byte says how long the pieces are, the next 64 make two needles, the rest is searched.
fn references(bytes: &[u8]) {
    const ALPHABET: &[u8] = b"0123456789abcdfghijklmnpqrsvwxyz";
    let Some((head, rest)) = bytes.split_at_checked(65) else { return };
    let part = |seed: &[u8]| -> HashPart { std::array::from_fn(|at| ALPHABET[usize::from(seed[at] % 32)]) };
    let parts = [part(&head[1..33]), part(&head[33..])];
    let needles = Needles::new(parts).expect("made of the alphabet");
    let piece = usize::from(head[0]).max(1);
    let (mut scanner, mut found) = (Scanner::new(&needles), Vec::new());
    rest.chunks(piece).for_each(|piece| scanner.feed(piece, |offset, index| found.push((offset, index))));
    let plainly = rest
        .windows(32)
        .enumerate()
        .filter_map(|(at, window)| Some((at as u64, parts.iter().position(|part| part == window)?)));
    assert!(plainly.eq(found.iter().copied()), "a plain search finds something else");
    let mut places = Vec::new();
    let mut rewriter = Rewriter::new(&needles, Vec::new(), |offset, index| {
        places.push((offset as usize, index));
        [b'e'; 32]
    });
    rest.chunks(piece).try_for_each(|piece| rewriter.write_all(piece)).expect("memory takes everything");
    let mut rewritten = rewriter.finish().expect("memory takes everything");
    for (at, index) in places {
        rewritten[at..at + 32].copy_from_slice(&parts[index]);
    }
    assert!(rewritten == rest, "undone, the rewritten bytes are others");
}
