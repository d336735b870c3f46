use calve_nix::{NarWriter, Sha256Hash};
use calve_wire::seed::{HashAt, Part};

use super::*;

const A: &str = "0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-a";
const B: &str = "1c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-b";
const HASH: &str = "0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq";

fn archive(text: &[u8]) -> Vec<u8> {
    let mut nar = NarWriter::new(Vec::new()).expect("in memory");
    nar.begin_directory(b"").expect("in order");
    nar.file(b"tool", true, text.len() as u64, &mut { text }).expect("in order");
    nar.symlink(b"way", b"tool").expect("in order");
    nar.end_directory().expect("in order");
    nar.finish().expect("whole")
}

fn header(name: &str, archive: &[u8]) -> Vec<u8> {
    let (nar_hash, nar_size) = (Sha256Hash::of(archive).to_hex(), archive.len() as u64);
    format!("{}\n", Header { base_name: name.to_owned(), nar_hash, nar_size }).into_bytes()
}

fn bytes(part: &[u8]) -> Vec<u8> {
    [format!("{}\n", Part::Bytes(part.len() as u32)).as_bytes(), part].concat()
}

fn copy(at: usize, len: usize, hashes: &[(u32, &str)]) -> Vec<u8> {
    let part = Part::Copy { from: A.to_owned(), at: at as u64, len: len as u32, hashes: hashes.len() as u32 };
    let hashes =
        hashes.iter().map(|(at, hash)| format!("{}\n", HashAt { at: *at, hash: (*hash).to_owned() }));
    [format!("{part}\n"), hashes.collect()].concat().into_bytes()
}

fn sent(name: &str, archive: &[u8]) -> Vec<u8> {
    [header(name, archive), bytes(archive)].concat()
}

fn frame(plain: &[u8]) -> Vec<u8> {
    zstd::encode_all(plain, 1).expect("in memory")
}

/// What becomes of a frame that holds these bytes.
fn seed(store: &Path, plain: &[u8]) -> (io::Result<()>, String) {
    seed_frame(store, &frame(plain))
}

fn seed_frame(store: &Path, input: &[u8]) -> (io::Result<()>, String) {
    let mut said = Vec::new();
    let taken = take(store, &mut said, input);
    (taken, String::from_utf8(said).expect("names"))
}

#[test]
fn a_closure_comes_path_by_path_and_goes_on_where_it_was_cut() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = dir.path().join("nix/store");
    let (a, b) = (sent(A, &archive(b"alpha")), sent(B, &archive(&vec![7; 300_000])));
    let whole = [&a[..], &b, b"end\n"].concat();
    // Cut within the second path: the first is there, of the second nothing.
    let (cut, said) = seed(&store, &whole[..a.len() + b.len() / 2]);
    assert!(cut.is_err());
    assert_eq!(said, "\n");
    assert!(store.join(A).exists() && !store.join(B).exists());
    // Killed in the middle of it, which leaves something behind.
    fs::create_dir(store.join(format!("{UNDER_WAY}{B}"))).expect("made");
    let (taken, said) = seed(&store, &[&b[..], b"end\n"].concat());
    taken.expect("taken");
    assert_eq!(said, format!("{A}\n\n"));
    assert_eq!(fs::read(store.join(A).join("way")).expect("a link to it"), b"alpha");
    let mode = fs::metadata(store.join(B).join("tool")).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o555);
    assert_eq!(fs::read_dir(&store).expect("there").count(), 2);
    // Sent again, nothing changes.
    seed(&store, &whole).0.expect("taken");
}

#[test]
fn what_stands_in_another_path_is_copied_but_for_hashes() {
    let dir = tempfile::tempdir().expect("a directory");
    let old = archive(format!("{}{HASH}{}", "x".repeat(5000), "y".repeat(5000)).as_bytes());
    let other = "1".repeat(32);
    let new = archive(format!("{}{other}{}", "x".repeat(5000), "y".repeat(4000)).as_bytes());
    seed(dir.path(), &[&sent(A, &old)[..], b"end\n"].concat()).0.expect("taken");
    let place = old.windows(32).position(|found| found == HASH.as_bytes()).expect("it names it");
    // The hash part lies across the border of two copied parts.
    let parts = [
        header(B, &new),
        bytes(&new[..1000]),
        copy(1000, place + 10 - 1000, &[((place - 1000) as u32, &other[..10])]),
        copy(place + 10, 3000, &[(0, &other[10..])]),
        bytes(&new[place + 3010..]),
        b"end\n".to_vec(),
    ];
    let sent = parts.concat();
    seed(dir.path(), &sent).0.expect("taken");
    let text = fs::read(dir.path().join(B).join("tool")).expect("there");
    assert!(text[5000..5032] == *other.as_bytes() && text.len() == 9032);
    // Where what is copied is not what it was, nothing comes of it.
    fs::remove_file(dir.path().join(B).join("way")).expect("removed");
    remove(&dir.path().join(B)).expect("removed");
    fs::remove_file(dir.path().join(A).join("tool")).expect("removed");
    fs::write(dir.path().join(A).join("tool"), vec![b'x'; 10_032]).expect("written");
    let said = seed(dir.path(), &sent).0.expect_err("refused").to_string();
    assert!(said.contains("its hash is another"), "{said}");
    remove(&dir.path().join(A)).expect("removed");
    let said = seed(dir.path(), &sent).0.expect_err("refused").to_string();
    assert!(said.contains(&format!("it is a copy of {A}, which is not here")), "{said}");
    assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 0);
}

#[test]
fn parts_that_make_no_sense_are_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let new = archive(b"alpha");
    seed(dir.path(), &[&sent(A, &new)[..], b"end\n"].concat()).0.expect("taken");
    for (parts, why) in [
        (bytes(&[&new[..], b"more"].concat()), "larger than it was announced"),
        (copy(0, new.len() + 1, &[]), "larger than it was announced"),
        (copy(10, new.len(), &[]), "changed while it was read"),
        (copy(usize::MAX, 8, &[]), "changed while it was read"),
        (copy(0, 8, &[(8, HASH)]), "no part of an archive"),
        (copy(0, 40, &[(9, HASH)]), "no part of an archive"),
        (b"bytes 0\n".to_vec(), "no part of an archive"),
        ([bytes(&new[..8]), b"end\n".to_vec()].concat(), "no part of an archive"),
        (vec![b'x'; 2000], "no store path"),
        (bytes(&new[..8]), "ends too early"),
        ([bytes(&new), b"end\nmore".to_vec()].concat(), "more than it announced"),
    ] {
        let said = seed(dir.path(), &[header(B, &new), parts].concat()).0.expect_err("refused").to_string();
        assert!(said.contains(why), "{said} instead of {why}");
        let _ = remove(&dir.path().join(B));
        assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 1);
    }
}

#[test]
fn bytes_that_are_not_the_announced_ones_never_get_their_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let archive = archive(b"alpha");
    let mut spoilt = sent(A, &archive);
    let at = spoilt.windows(5).position(|five| five == b"alpha").expect("its contents");
    spoilt[at] ^= 1;
    let (taken, _) = seed(dir.path(), &[&spoilt[..], b"end\n"].concat());
    assert!(taken.expect_err("refused").to_string().contains("hash"));
    assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 0);
    for bad in ["path ../x 00 7\n", "nonsense\n", ""] {
        assert!(seed(dir.path(), bad.as_bytes()).0.is_err(), "{bad}");
        assert!(seed_frame(dir.path(), bad.as_bytes()).0.is_err(), "{bad} without a frame");
    }
}
