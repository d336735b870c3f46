//! The formats beside the real Nix: the same bytes out, the same bytes refused.
#![allow(missing_docs)]

mod support;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Write};
use std::path::Path;

use calve_nix::{
    CacheFile, CacheInfo, Compression, ContentAddress, HashWriter, Listing, NarInfo, NarReader, NarWriter,
    PublicKey, Realisation, SecretKey, Sha256Hash, StorePath, TrustedKeys,
};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use support::nix::Nix;
use support::tree::{Tree, archive, make, tree, unpack};

/// Trees made at random in one directory, so that Nix is started once for all.
const TREES: usize = 60;
/// Nested directories, about half of what fits into the longest path that Nix can name.
const DEEP: usize = 1000;
/// Beyond 32 bits of length.
const LARGE_BYTES: u64 = (4 << 30) + 5;

fn odd_tree() -> Tree {
    let mut runner = TestRunner::deterministic();
    let mut entries: BTreeMap<_, _> = (0..TREES)
        .map(|n| (format!("tree-{n}").into_bytes(), tree(5).new_tree(&mut runner).unwrap().current()))
        .collect();
    let deep = (0..DEEP).fold(Tree::File { executable: true, contents: b"deep".to_vec() }, |inner, _| {
        Tree::Directory(BTreeMap::from([(b"d".to_vec(), inner)]))
    });
    entries.insert(b"deep".to_vec(), deep);
    entries
        .insert(b"megabytes".to_vec(), Tree::File { executable: false, contents: vec![0xa5; (5 << 20) + 3] });
    entries.insert(b"long-target".to_vec(), Tree::Symlink(vec![b'x'; 4095]));
    Tree::Directory(entries)
}

/// Trees of this depth are built and dropped by recursion.
fn on_a_large_stack(work: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new().stack_size(256 << 20).spawn(work).unwrap().join().unwrap();
}

#[test]
fn archives_are_those_of_nix_both_ways() {
    let Some(nix) = Nix::find() else { return };
    on_a_large_stack(move || {
        let tree = odd_tree();
        make(&tree, &nix.path("tree"));
        let ours = archive(&tree);
        let theirs = nix.run("nix-store", ["--dump".as_ref(), nix.path("tree").as_os_str()]);
        assert!(ours == theirs, "the archives differ");
        assert!(unpack(&*theirs).unwrap() == tree, "the archive of Nix is read as another tree");
        let restored = nix.restore(&ours, &nix.path("restored"));
        assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
        let again = nix.run("nix-store", ["--dump".as_ref(), nix.path("restored").as_os_str()]);
        assert!(ours == again, "Nix restored another tree");
        let hash = nix.run("nix", ["hash".as_ref(), "path".as_ref(), nix.path("tree").as_os_str()]);
        let hash: Sha256Hash = String::from_utf8(hash).unwrap().trim().parse().unwrap();
        assert_eq!(hash, Sha256Hash::of(&ours));
    });
}

#[test]
fn a_file_beyond_four_gibibytes_is_read_and_written_in_little_memory() {
    let size = LARGE_BYTES.next_multiple_of(8) + 112;
    // Written into a pipe, read at the other end.
    let (read, write) = io::pipe().unwrap();
    let writer = std::thread::spawn(move || {
        let mut nar = NarWriter::new(io::BufWriter::new(write)).unwrap();
        nar.file(b"", false, LARGE_BYTES, &mut io::repeat(0)).unwrap();
        nar.finish().unwrap();
    });
    let mut nar = NarReader::with_size(BufReader::new(read), size);
    nar.next_event().unwrap();
    assert_eq!(nar.contents().remaining(), LARGE_BYTES);
    assert_eq!(io::copy(&mut nar.contents(), &mut io::sink()).unwrap(), LARGE_BYTES);
    assert_eq!(nar.finish().unwrap(), size);
    writer.join().unwrap();
}

/// The strings of an archive that is written as its words, `''` for the empty one.
fn words(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in text.split(' ').map(|word| if word == "''" { "" } else { word }) {
        bytes.extend((word.len() as u64).to_le_bytes());
        bytes.extend(word.replace('?', "\0").bytes());
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
    bytes
}

#[test]
fn what_nix_refuses_is_refused() {
    let Some(nix) = Nix::find() else { return };
    let link = "node ( type symlink target x ) )";
    let mut archives: Vec<(String, Vec<u8>)> = [
        "nix-archive-2 ( type regular contents x )".to_owned(),
        "nix-archive-1 [ type regular contents x )".to_owned(),
        "nix-archive-1 ( kind regular contents x )".to_owned(),
        "nix-archive-1 ( type device contents x )".to_owned(),
        "nix-archive-1 ( type regular contents x".to_owned(),
        "nix-archive-1 ( type regular contents x ]".to_owned(),
        "nix-archive-1 ( type regular executable x contents y )".to_owned(),
        "nix-archive-1 ( type regular type regular contents x )".to_owned(),
        "nix-archive-1 ( type symlink contents x )".to_owned(),
        "nix-archive-1 ( type directory contents x )".to_owned(),
        "nix-archive-1 ( type directory entry ( node ( type symlink target x ) ) )".to_owned(),
        format!("nix-archive-1 ( type directory entry ( name '' {link} )"),
        format!("nix-archive-1 ( type directory entry ( name . {link} )"),
        format!("nix-archive-1 ( type directory entry ( name .. {link} )"),
        format!("nix-archive-1 ( type directory entry ( name a/b {link} )"),
        format!("nix-archive-1 ( type directory entry ( name a? {link} )"),
        format!("nix-archive-1 ( type directory entry ( name a {link} entry ( name a {link} )"),
        format!("nix-archive-1 ( type directory entry ( name {} {link} )", "n".repeat(256)),
    ]
    .into_iter()
    .map(|text| (text.clone(), words(&text)))
    .collect();
    let good = words("nix-archive-1 ( type regular contents x )");
    let length = good.len() - 32;
    let mut changed = |what: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut archive = good.clone();
        change(&mut archive);
        archives.push((what.to_owned(), archive));
    };
    changed("padding", &|archive| archive[length + 15] = 1);
    changed("a length that is too large", &|archive| archive[length + 4] = 1);
    changed("a length that is too small", &|archive| archive[length] = 0);
    changed("the largest length", &|archive| archive[length..length + 8].fill(0xff));
    changed("nothing", &Vec::clear);
    changed("a cut", &|archive| archive.truncate(length + 9));
    changed("another cut", &|archive| archive.truncate(good.len() - 1));
    for (index, (what, archive)) in archives.iter().enumerate() {
        assert!(unpack(&**archive).is_err(), "we read {what}");
        let restored = nix.restore(archive, &nix.path(&format!("refused-{index}")));
        assert!(!restored.status.success(), "Nix reads {what}");
    }
    // Entries out of order and bytes behind the end pass in old versions of Nix; never here.
    let unordered =
        words(&format!("nix-archive-1 ( type directory entry ( name b {link} entry ( name a {link} )"));
    assert!(unpack(&*unordered).is_err());
    assert!(unpack(&*[&good[..], b"x"].concat()).is_err());
    assert!(nix.restore(&good, &nix.path("good")).status.success());
}

#[test]
fn key_files_are_those_of_nix() {
    let Some(nix) = Nix::find() else { return };
    let (secret, public) = (nix.path("secret"), nix.path("public"));
    let arguments = ["--generate-binary-cache-key".as_ref(), "cache.example.org-1".as_ref()];
    nix.run("nix-store", arguments.into_iter().chain([secret.as_os_str(), public.as_os_str()]));
    let text = fs::read_to_string(&secret).unwrap();
    let key: SecretKey = text.parse().unwrap();
    assert_eq!(key.to_text(), text.trim_end());
    assert_eq!(fs::read_to_string(&public).unwrap().parse(), Ok(key.public()));
    let ours = SecretKey::from_seed("ours-1", [7; 32]).unwrap();
    let mut convert = nix.command("nix");
    convert
        .args(["key", "convert-secret-to-public"])
        .stdin(File::open(write(&secret, &ours.to_text())).unwrap());
    let theirs: PublicKey = String::from_utf8(convert.output().unwrap().stdout).unwrap().parse().unwrap();
    assert_eq!(theirs, ours.public());
}

fn write<'a>(path: &'a Path, text: &str) -> &'a Path {
    fs::write(path, text).unwrap();
    path
}

/// A store below `name`, with a text that refers to another, and a tree; gives their paths.
fn store(nix: &Nix, name: &str) -> Vec<StorePath> {
    let root = nix.path(name);
    let tree = Tree::Directory(BTreeMap::from([
        (b"bin".to_vec(), Tree::File { executable: true, contents: b"#!/bin/sh\n".to_vec() }),
        (b"empty".to_vec(), Tree::Directory(BTreeMap::new())),
        (b"link \"\n".to_vec(), Tree::Symlink(b"bin".to_vec())),
    ]));
    make(&tree, &nix.path("thing"));
    let thing = nix.path("thing");
    let added =
        nix.run("nix-store", ["--store".as_ref(), root.as_os_str(), "--add".as_ref(), thing.as_os_str()]);
    let expression = "builtins.toFile \"upper\" \"refers to ${builtins.toFile \"lower\" \"hello\"}\"";
    let arguments = [
        "--eval".as_ref(),
        "--read-write-mode".as_ref(),
        "--expr".as_ref(),
        expression.as_ref(),
        "--store".as_ref(),
        root.as_os_str(),
    ];
    let upper = nix.run("nix-instantiate", arguments);
    let path = |bytes: Vec<u8>| {
        StorePath::parse(String::from_utf8(bytes).unwrap().trim().trim_matches('"')).unwrap()
    };
    vec![path(added), path(upper)]
}

#[test]
fn a_cache_that_nix_writes_is_read_and_printed_alike() {
    let Some(nix) = Nix::find() else { return };
    let paths = store(&nix, "root");
    let secret = nix.path("secret");
    let key = SecretKey::from_seed("ours-1", [7; 32]).unwrap();
    write(&secret, &key.to_text());
    let trusted = TrustedKeys::from_iter([key.public()]);
    for compression in
        [Compression::Xz, Compression::Bzip2, Compression::None, Compression::Br, Compression::Zstd]
    {
        let cache = nix.path(compression.name());
        let to = format!(
            "file://{}?compression={compression}&secret-key={}&write-nar-listing=true",
            cache.display(),
            secret.display()
        );
        let mut copy = nix.command("nix");
        copy.args(["copy", "--no-check-sigs", "--store"]).arg(nix.path("root")).args(["--to", &to]);
        let copied = copy.args(paths.iter().map(StorePath::to_string)).output().unwrap();
        assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
        let mut infos = 0;
        for file in fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap()) {
            let name = file.file_name().into_string().unwrap();
            if name.ends_with(".narinfo") {
                check_narinfo(&cache, &fs::read(file.path()).unwrap(), &trusted);
                infos += 1;
            }
        }
        assert_eq!(infos, 3, "two paths and what one of them refers to");
        let info = fs::read_to_string(cache.join("nix-cache-info")).unwrap();
        assert!(info.parse::<CacheInfo>().is_ok(), "{info}");
    }
}

fn check_narinfo(cache: &Path, bytes: &[u8], trusted: &TrustedKeys) {
    let info = NarInfo::from_bytes(bytes).unwrap();
    assert_eq!(info.to_string().as_bytes(), bytes);
    assert_eq!(info.verify(trusted).unwrap().name(), "ours-1");
    let file_hash = info.file_hash.unwrap();
    assert_eq!(info.url, CacheFile::Nar { file_hash, compression: info.compression }.to_string());
    let file = fs::read(cache.join(&info.url)).unwrap();
    assert_eq!((Sha256Hash::of(&file), file.len() as u64), (file_hash, info.file_size.unwrap()));
    let address: &ContentAddress = info.content_address.as_ref().unwrap();
    assert_eq!(address.store_path(info.store_path.name(), &info.references, false).unwrap(), info.store_path);
    if info.compression == Compression::None {
        let theirs = fs::read_to_string(cache.join(format!("{}.ls", info.store_path.hash_part()))).unwrap();
        assert_eq!(theirs.parse::<Listing>().unwrap(), Listing::of_nar(&*file).unwrap());
    }
}

/// Puts an archive with its narinfo into a cache.
fn publish(
    cache: &Path,
    name: &str,
    archive: &[u8],
    key: &SecretKey,
    change: impl FnOnce(&mut NarInfo),
) -> StorePath {
    let mut hash = HashWriter::default();
    hash.write_all(archive).unwrap();
    let (nar_hash, nar_size) = hash.finish();
    let store_path = StorePath::from_source(name, &nar_hash).unwrap();
    let url = CacheFile::Nar { file_hash: nar_hash, compression: Compression::None }.to_string();
    fs::create_dir_all(cache.join("nar")).unwrap();
    fs::write(cache.join(&url), archive).unwrap();
    let mut info = NarInfo {
        store_path: store_path.clone(),
        url,
        compression: Compression::None,
        file_hash: Some(nar_hash),
        file_size: Some(nar_size),
        nar_hash,
        nar_size,
        references: [store_path.clone()].into(),
        deriver: Some(StorePath::from_base_name("0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-thing.drv").unwrap()),
        system: None,
        signatures: [].into(),
        content_address: None,
    };
    info.sign(key);
    change(&mut info);
    fs::write(cache.join(info.file_name()), info.to_string()).unwrap();
    store_path
}

#[test]
fn nix_copies_from_a_cache_written_here_and_checks_its_signatures() {
    let Some(nix) = Nix::find() else { return };
    let (cache, root) = (nix.path("cache"), nix.path("to"));
    let key = SecretKey::from_seed("ours-1", [7; 32]).unwrap();
    let file = |text: &str| archive(&Tree::File { executable: true, contents: text.as_bytes().to_vec() });
    let good = publish(&cache, "good", &file("good"), &key, |_| {});
    let other_deriver = publish(&cache, "other", &file("other"), &key, |info| info.deriver = None);
    let forged = publish(&cache, "forged", &file("forged"), &key, |info| info.references.clear());
    fs::write(cache.join("nix-cache-info"), CacheInfo::default().to_string()).unwrap();
    let copy = |path: &StorePath| {
        let mut copy = nix.command("nix");
        copy.args(["copy", "--option", "trusted-public-keys", &key.public().to_string(), "--store"])
            .arg(&root);
        copy.args(["--from", &format!("file://{}", cache.display()), &path.to_string()]).output().unwrap()
    };
    for path in [&good, &other_deriver] {
        let copied = copy(path);
        assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
        let path = path.to_string();
        nix.run("nix-store", ["--store".as_ref(), root.as_os_str(), "--verify-path".as_ref(), path.as_ref()]);
    }
    // Its references are signed, its deriver is not.
    assert!(!copy(&forged).status.success(), "Nix took a path whose references are not the signed ones");
}

#[test]
fn realisations_are_those_of_nix() {
    let Some(nix) = Nix::find() else { return };
    let key = SecretKey::from_seed("ours-1", [7; 32]).unwrap();
    let (secret, cache) = (nix.path("secret"), nix.path("cache"));
    write(&secret, &key.to_text());
    let expression = "let make = name: script: derivation {
        inherit name; system = builtins.currentSystem; builder = \"/bin/sh\"; args = [ \"-c\" script ];
        __contentAddressed = true; outputHashMode = \"recursive\"; outputHashAlgo = \"sha256\"; };
        in make \"upper\" \"echo ${make \"lower\" \"echo hello > $out\"} > $out\"";
    // Builds outside of a sandbox need a store at its own place.
    let run = |arguments: &[&str]| {
        let mut command = nix.command("nix");
        command.env("NIX_STORE_DIR", nix.path("store")).env("NIX_STATE_DIR", nix.path("state"));
        command.env("NIX_LOG_DIR", nix.path("log")).args(arguments);
        command.args(["--option", "secret-key-files"]).arg(&secret).args(["--impure", "--expr", expression]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    run(&["build", "--no-link"]);
    run(&["copy", "--no-check-sigs", "--to", &format!("file://{}", cache.display())]);
    let mut found = 0;
    for file in fs::read_dir(cache.join("realisations")).unwrap() {
        let file = file.unwrap();
        let text = fs::read_to_string(file.path()).unwrap();
        let realisation: Realisation = text.parse().unwrap();
        assert_eq!(realisation.to_string(), text);
        assert!(realisation.verify(&TrustedKeys::from_iter([key.public()])).is_ok(), "{text}");
        let name = format!("realisations/{}", file.file_name().into_string().unwrap());
        assert_eq!(name.parse(), Ok(CacheFile::Realisation(realisation.id)));
        found += 1;
    }
    assert!(found >= 1, "no realisation was copied");
}
