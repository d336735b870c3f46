//! Hash parts found and replaced in streams, however they are cut.
#![allow(missing_docs)]

mod support;

use std::io::Write;

use calve_nix::references::{HashPart, Needles, Rewriter, Scanner};
use proptest::prelude::*;

/// What a search by comparing everywhere finds.
fn plainly(parts: &[HashPart], bytes: &[u8]) -> Vec<(u64, usize)> {
    let first = |window: &[u8]| parts.iter().position(|part| part == window);
    let windows = bytes.windows(32).enumerate();
    windows.filter_map(|(at, window)| Some((at as u64, first(window)?))).collect()
}

fn scan(needles: &Needles, pieces: &[&[u8]]) -> Vec<(u64, usize)> {
    let (mut scanner, mut found) = (Scanner::new(needles), Vec::new());
    for piece in pieces {
        scanner.feed(piece, |offset, index| found.push((offset, index)));
    }
    found
}

/// Two characters only, so that needles overlap themselves and each other.
fn part() -> impl Strategy<Value = HashPart> {
    prop_oneof![
        1 => prop::array::uniform32(prop::sample::select(b"ab".to_vec())),
        2 => prop::array::uniform32(prop::sample::select(b"0123456789abcdfghijklmnpqrsvwxyz".to_vec())),
        1 => Just([b'a'; 32]),
    ]
}

/// A stream with needles, halves of needles and other bytes, and the places where it is cut.
fn stream() -> impl Strategy<Value = (Vec<HashPart>, Vec<u8>, Vec<usize>)> {
    prop::collection::vec(part(), 1..6).prop_flat_map(|parts| {
        let whole = prop::sample::select(parts.clone()).prop_map(|part| part.to_vec());
        let half =
            (prop::sample::select(parts.clone()), 0..32usize).prop_map(|(part, at)| part[at..].to_vec());
        let filler = prop_oneof![
            prop::collection::vec(any::<u8>(), 0..40),
            prop::collection::vec(prop::sample::select(b"ab".to_vec()), 0..80),
        ];
        let bytes =
            prop::collection::vec(prop_oneof![whole, half, filler], 0..12).prop_map(|parts| parts.concat());
        (Just(parts), bytes, prop::collection::vec(0..50usize, 0..20))
    })
}

fn cut<'a>(mut bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    for at in cuts {
        let (piece, rest) = bytes.split_at((*at).min(bytes.len()));
        pieces.push(piece);
        bytes = rest;
    }
    pieces.push(bytes);
    pieces
}

#[test]
fn only_hash_parts_can_be_looked_for() {
    assert!(Needles::new([*b"0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq"]).is_ok());
    let error = Needles::new([*b"0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8ke"]).unwrap_err();
    assert!(error.to_string().contains("8ke"), "{error}");
    assert!(scan(&Needles::new([]).unwrap(), &[&[b'a'; 100]]).is_empty());
}

#[test]
fn rewriting_reaches_across_blocks() {
    let (from, to) = (*b"0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq", [b'0'; 32]);
    let needles = Needles::new([from]).unwrap();
    for before in (65536 - 70)..(65536 + 5) {
        let mut bytes = vec![b'a'; before];
        bytes.extend(from);
        bytes.extend(b"rest");
        let mut seen = Vec::new();
        let mut rewriter = Rewriter::new(&needles, Vec::new(), |offset, index| {
            seen.push((offset, index));
            to
        });
        rewriter.write_all(&bytes).unwrap();
        let out = rewriter.finish().unwrap();
        assert_eq!(seen, [(before as u64, 0)]);
        assert_eq!(
            (&out[before..before + 32], &out[before + 32..], out.len()),
            (&to[..], &b"rest"[..], bytes.len())
        );
    }
}

proptest! {
    #![proptest_config(support::cases(1024))]

    #[test]
    fn cuts_change_nothing((parts, bytes, cuts) in stream()) {
        let needles = Needles::new(parts.clone()).unwrap();
        let pieces = cut(&bytes, &cuts);
        prop_assert_eq!(scan(&needles, &pieces), plainly(&parts, &bytes));
    }

    /// Replacing with something that is no needle and back gives the stream again, at the offsets that were told.
    #[test]
    fn rewriting_is_undone_at_its_offsets((parts, bytes, cuts) in stream()) {
        let needles = Needles::new(parts.clone()).unwrap();
        let mut places = Vec::new();
        let mut rewriter = Rewriter::new(&needles, Vec::new(), |offset, index| {
            places.push((offset as usize, index));
            [b'e'; 32]
        });
        for piece in cut(&bytes, &cuts) {
            rewriter.write_all(piece).unwrap();
        }
        let mut out = rewriter.finish().unwrap();
        prop_assert!(plainly(&parts, &out).is_empty());
        for (at, index) in places {
            prop_assert_eq!(&out[at..at + 32], &[b'e'; 32]);
            out[at..at + 32].copy_from_slice(&parts[index]);
        }
        prop_assert_eq!(out, bytes);
    }
}
