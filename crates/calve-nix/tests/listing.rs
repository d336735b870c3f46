//! Listings built from archives, written and read.
#![allow(missing_docs)]

mod support;

use calve_nix::listing::{ListNarError, ListingEntry, ListingError, ListingNode};
use calve_nix::nar::DEPTH_MAX;
use calve_nix::{Listing, NarWriter};
use proptest::prelude::*;
use support::tree::{Tree, archive, tree};

fn small() -> Vec<u8> {
    let mut nar = NarWriter::new(Vec::new()).unwrap();
    nar.begin_directory(b"").unwrap();
    nar.begin_directory(b"bin").unwrap();
    nar.file(b"run", true, 3, &mut &b"run"[..]).unwrap();
    nar.end_directory().unwrap();
    nar.begin_directory(b"empty").unwrap();
    nar.end_directory().unwrap();
    nar.file(b"file", false, 0, &mut &b""[..]).unwrap();
    nar.symlink("link\"\n\u{e9}".as_bytes(), b"bin/run").unwrap();
    nar.end_directory().unwrap();
    nar.finish().unwrap()
}

#[test]
fn a_listing_is_json_as_nix_writes_it() {
    let listing = Listing::of_nar(&*small()).unwrap();
    let run = listing.find("bin/run").unwrap();
    let ListingNode::File { nar_offset: Some(offset), .. } = run.node else { panic!("{run:?}") };
    assert_eq!(&small()[offset as usize..][..3], b"run");
    let ListingNode::File { nar_offset: Some(empty), .. } = listing.find("file").unwrap().node else {
        panic!()
    };
    assert_eq!(
        listing.to_string(),
        format!(
            "{}{}{}{}",
            "{\"version\":1,\"root\":{\"type\":\"directory\",\"entries\":{\"bin\":{\"type\":\"directory\",\"entries\":{",
            format_args!(
                "\"run\":{{\"type\":\"regular\",\"size\":3,\"executable\":true,\"narOffset\":{offset}}}}}}},"
            ),
            "\"empty\":{\"type\":\"directory\",\"entries\":{}},",
            format_args!(
                "\"file\":{{\"type\":\"regular\",\"size\":0,\"narOffset\":{empty}}},{}",
                "\"link\\\"\\n\u{e9}\":{\"type\":\"symlink\",\"target\":\"bin/run\"}}}}"
            ),
        )
    );
    assert_eq!(listing.to_string().parse(), Ok(listing.clone()));
    assert_eq!(listing.find("").unwrap().depth, 0);
    for absent in ["run", "bin/file", "file/x", "zz"] {
        assert_eq!(listing.find(absent), None, "{absent}");
    }
}

#[test]
fn keys_come_in_any_order_and_unknown_ones_are_ignored() {
    let text = r#" { "root" : {"entries":{"b":{"size":1,"type":"regular","x":[{"y":[]},"}",null]},
        "a":{"target":"\u0062","type":"symlink"}},"type":"directory"}, "more":{"a":{}}, "version":1 } "#;
    let listing: Listing = text.parse().unwrap();
    let names: Vec<_> = listing.entries().iter().map(|entry| (entry.depth, entry.name.as_str())).collect();
    assert_eq!(names, [(0, ""), (1, "a"), (1, "b")]);
    assert_eq!(listing.find("a").unwrap().node, ListingNode::Symlink { target: "b".to_owned() });
}

#[test]
fn what_is_no_listing_is_refused() {
    let file = r#"{"type":"regular","size":1}"#;
    let dir =
        |entries: &str| format!(r#"{{"version":1,"root":{{"type":"directory","entries":{{{entries}}}}}}}"#);
    for (text, message) in [
        (String::new(), "byte 0 of the listing: \"{\" belongs here"),
        ("[]".to_owned(), "\"{\" belongs here"),
        (format!(r#"{{"version":2,"root":{file}}}"#), "not of version 1"),
        (format!(r#"{{"root":{file}}}"#), "not of version 1"),
        (r#"{"version":1}"#.to_owned(), "not complete"),
        (format!(r#"{{"version":1,"root":{file}}}x"#), "JSON belongs here"),
        (format!(r#"{{"version":1,"root":{file}}}{{"#), "the end belongs here"),
        (format!(r#"{{"version":1 "root":{file}}}"#), "\",\" or \"}\" belongs here"),
        (dir(&format!(r#""..":{file}"#)), "cannot be the name"),
        (dir(&format!(r#""a/b":{file}"#)), "cannot be the name"),
        (dir(&format!(r#""":{file}"#)), "cannot be the name"),
        (dir(&format!(r#""a\u0000":{file}"#)), "cannot be the name"),
        (dir(&format!(r#""a":{file},"b":{file},"a":{file}"#)), "has \"a\" twice"),
        (dir(r#""a":{}"#), "no directory, regular file or symbolic link"),
        (dir(r#""a":{"type":"device"}"#), "no directory, regular file or symbolic link"),
        (dir(r#""a":{"type":"regular"}"#), "no file with a size"),
        (dir(r#""a":{"type":"symlink"}"#), "no symbolic link with a target"),
        (dir(r#""a":{"type":"directory"}"#), "no directory with entries"),
        (dir(r#""a":{"type":"regular","size":1,"entries":{}}"#), "has entries"),
        (dir(r#""a":{"type":"regular","size":-1}"#), "a whole number"),
        (dir(r#""a":{"type":"regular","size":1.5}"#), "a whole number"),
        (dir(r#""a":{"type":"regular","size":1,"executable":1}"#), "true or false"),
        (dir(r#""a":{"type":"regular","size":1,"more":]}"#), "a value belongs here"),
        (dir(r#""a":1"#), "\"{\" belongs here"),
        (dir(r#""a"#), "belongs here"),
    ] {
        let error = text.parse::<Listing>().unwrap_err().to_string();
        assert!(error.contains(message), "{text}: {error}");
    }
}

#[test]
fn the_deepest_tree_is_listed_and_read_on_a_small_stack() {
    let deep = |depth: usize| {
        let mut nar = NarWriter::new(Vec::new()).unwrap();
        (0..depth).for_each(|_| nar.begin_directory(b"d").unwrap());
        (0..depth).for_each(|_| nar.end_directory().unwrap());
        nar.finish().unwrap()
    };
    let work = move || {
        let listing = Listing::of_nar(&*deep(DEPTH_MAX)).unwrap();
        assert_eq!(listing.entries().len(), DEPTH_MAX);
        assert_eq!(listing.to_string().parse(), Ok(listing));
        let node = "{\"type\":\"directory\",\"entries\":{\"d\":";
        let deeper = format!("{{\"version\":1,\"root\":{}", node.repeat(DEPTH_MAX + 2));
        assert!(matches!(deeper.parse::<Listing>(), Err(ListingError::TooDeep(_))));
    };
    std::thread::Builder::new().stack_size(128 << 10).spawn(work).unwrap().join().unwrap();
}

#[test]
fn names_that_json_cannot_hold_are_told() {
    let tree = Tree::Directory([(vec![0xff], Tree::Symlink(b"x".to_vec()))].into());
    let error = Listing::of_nar(&*archive(&tree)).unwrap_err();
    assert!(matches!(error, ListNarError::Listing(ListingError::NotText(_))));
}

proptest! {
    #![proptest_config(support::cases(256))]

    #[test]
    fn listings_round_trip_and_lead_to_every_file(tree in tree(5)) {
        let archive = archive(&tree);
        let listing = match Listing::of_nar(&*archive) {
            Err(ListNarError::Listing(ListingError::NotText(_))) => return Ok(()),
            listing => listing.unwrap(),
        };
        let mut path: Vec<String> = Vec::new();
        for entry in listing.entries() {
            path.truncate(entry.depth);
            path.push(entry.name.clone());
            prop_assert_eq!(listing.find(&path[1..].join("/")), Some(entry));
        }
        let read: Listing = listing.to_string().parse().unwrap();
        prop_assert_eq!(read, listing);
    }

    #[test]
    fn what_is_read_is_printed(text in r#"(\{|\}|\[|\]|:|,|"(version|root|type|entries|size|a|directory|regular)"|1|true| ){0,40}"#) {
        if let Ok(listing) = text.parse::<Listing>() {
            let entries: &[ListingEntry] = listing.entries();
            prop_assert!(!entries.is_empty());
            prop_assert_eq!(listing.to_string().parse(), Ok(listing));
        }
    }
}
