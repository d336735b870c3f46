//! Narinfos read and printed, and texts that are none.
#![allow(missing_docs)]

mod support;

use calve_nix::{Compression, NarInfo, NarInfoError, SecretKey, TrustedKeys};
use proptest::prelude::*;
use support::info::narinfo;

/// From `https://cache.nixos.org`.
const HELLO: &str = "\
StorePath: /nix/store/syd87l2rxw8cbsxmxl853h0r6pdwhwjr-curl-7.82.0-bin
URL: nar/05ra3y72i3qjri7xskf9qj8kb29r6naqy1sqpbs3azi3xcigmj56.nar.xz
Compression: xz
FileHash: sha256:05ra3y72i3qjri7xskf9qj8kb29r6naqy1sqpbs3azi3xcigmj56
FileSize: 68852
NarHash: sha256:1b4sb93wp679q4zx9k1ignby1yna3z7c4c2ri3wphylbc2dwsys0
NarSize: 196040
References: 0jqd0rlxzra1rs38rdxl43yh6rxchgc6-curl-7.82.0 6w8g7njm4mck5dmjxws0z1xnrxvl81xa-glibc-2.34-115 j5jxw3iy7bbz4a57fh9g2xm2gxmyal8h-zlib-1.2.12 yxvjs9drzsphm9pcf42a4byzj1kb9m7k-openssl-1.1.1n
Deriver: 5rwxzi7pal3qhpsyfc16gzkh939q1np6-curl-7.82.0.drv
Sig: cache.nixos.org-1:TsTTb3WGTZKphvYdBHXwo6weVILmTytUjLB+vcX89fOjjRicCHmKA4RCPMVLkj6TMJ4GMX3HPVWRdD1hkeKZBQ==
";

#[test]
fn a_narinfo_is_printed_as_it_was_read() {
    let info: NarInfo = HELLO.parse().unwrap();
    assert_eq!(info.to_string(), HELLO);
    assert_eq!((info.compression, info.file_size, info.references.len()), (Compression::Xz, Some(68852), 4));
    assert_eq!(info.file_name(), "syd87l2rxw8cbsxmxl853h0r6pdwhwjr.narinfo");
}

#[test]
fn the_signature_of_a_public_cache_holds() {
    let info: NarInfo = HELLO.parse().unwrap();
    let trusted: TrustedKeys =
        "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=".parse().unwrap();
    assert_eq!(info.verify(&trusted).unwrap().name(), "cache.nixos.org-1");
}

#[test]
fn every_spelling_of_a_hash_is_read_and_unknown_fields_are_ignored() {
    let info: NarInfo = HELLO.parse().unwrap();
    let sri = "sha256-QOY7OldjyrvD/0hU2WDZMWgzFdQY+aqe1uiCK4tiyQ8=";
    let base32 = calve_nix::Sha256Hash::to_nix(&sri.parse().unwrap());
    for spelling in [
        sri.to_owned(),
        sri.replace('-', ":"),
        base32.clone(),
        sri.parse::<calve_nix::Sha256Hash>().unwrap().to_string(),
    ] {
        let text = HELLO.replace(&info.file_hash.unwrap().to_nix(), &spelling);
        let read: NarInfo = (text + "Later: a field that is to come\n").parse().unwrap();
        assert_eq!(read.file_hash.unwrap().to_nix(), base32, "{spelling}");
    }
}

#[test]
fn what_old_caches_leave_out_has_its_meaning() {
    let text: String = HELLO
        .lines()
        .filter(|line| {
            !["Compression", "FileHash", "FileSize", "Deriver", "Sig"]
                .iter()
                .any(|field| line.starts_with(field))
        })
        .map(|line| format!("{line}\n"))
        .collect::<String>()
        + "Deriver: unknown-deriver\nSystem: x86_64-linux\n";
    let info: NarInfo = text.parse().unwrap();
    assert_eq!((info.compression, info.file_hash, info.file_size), (Compression::Bzip2, None, None));
    assert_eq!((info.deriver, info.system.as_deref()), (None, Some("x86_64-linux")));
    assert!(info.signatures.is_empty());
}

#[test]
fn errors_name_line_and_field() {
    let cases = [
        ("StorePath: /nix/store/syd", "StorePath: /gnu/store/syd", "line 1 of the narinfo, StorePath: "),
        ("URL: nar/", "URL: nar/ ", "line 2 of the narinfo, URL: "),
        ("Compression: xz", "Compression: rot13", "line 3 of the narinfo, Compression: \"rot13\" is none of"),
        ("FileHash: sha256:0", "FileHash: sha256:", "line 4 of the narinfo, FileHash: "),
        ("FileSize: 68852", "FileSize: -1", "line 5 of the narinfo, FileSize: \"-1\" is no number of bytes"),
        ("FileSize: 68852", "FileSize: +1", "line 5 of the narinfo, FileSize: \"+1\" is no number of bytes"),
        ("NarHash: sha256:1b", "NarHash: sha1:1b", "line 6 of the narinfo, NarHash: "),
        ("NarSize: 196040", "NarSize: 0", "line 7 of the narinfo, NarSize: no archive has 0 bytes"),
        ("NarSize: 196040", "NarSize: 18446744073709551616", "line 7 of the narinfo, NarSize: "),
        (
            "NarSize: 196040\n",
            "NarSize: 196040\nNarSize: 1\n",
            "line 8 of the narinfo, NarSize: it stands twice",
        ),
        ("References: 0jq", "References: /nix/store/0jq", "line 8 of the narinfo, References: "),
        ("Deriver: 5", "Deriver: e", "line 9 of the narinfo, Deriver: "),
        ("Sig: cache.nixos.org-1:", "Sig: ", "line 10 of the narinfo, Sig: "),
        ("Sig: cache", "CA: cache", "line 10 of the narinfo, CA: "),
        ("NarSize: 196040\n", "", "the narinfo has no NarSize"),
        ("URL: ", "URL:", "line 2 of the narinfo is no field"),
        ("BQ==\n", "BQ==", "line 10 of the narinfo is cut short"),
    ];
    for (part, other, message) in cases {
        let text = HELLO.replacen(part, other, 1);
        assert_ne!(text, HELLO);
        let error = text.parse::<NarInfo>().unwrap_err().to_string();
        assert!(error.starts_with(message), "{error}");
    }
    let not_text = [HELLO.as_bytes(), b"\xff"].concat();
    assert_eq!(NarInfo::from_bytes(&not_text), Err(NarInfoError::NotText { line: 11 }));
    let large = vec![b'a'; calve_nix::narinfo::NARINFO_MAX_BYTES + 1];
    assert!(matches!(NarInfo::from_bytes(&large), Err(NarInfoError::TooLarge(_))));
}

proptest! {
    #![proptest_config(support::cases(256))]

    #[test]
    fn narinfos_round_trip(info in narinfo()) {
        let text = info.to_string();
        let read = NarInfo::from_bytes(text.as_bytes()).unwrap();
        prop_assert_eq!(&read, &info);
        prop_assert_eq!(read.to_string(), text);
    }

    #[test]
    fn signing_signs_and_any_change_of_what_is_signed_breaks_it(info in narinfo(), other in narinfo(), seed: [u8; 32]) {
        let key = SecretKey::from_seed("ours-1", seed).unwrap();
        let trusted = TrustedKeys::from_iter([key.public()]);
        let mut info = info;
        prop_assert!(info.verify(&trusted).is_err());
        info.sign(&key);
        prop_assert_eq!(info.verify(&trusted).unwrap(), &key.public());
        let forged = [
            NarInfo { store_path: other.store_path, ..info.clone() },
            NarInfo { nar_hash: other.nar_hash, ..info.clone() },
            NarInfo { nar_size: other.nar_size, ..info.clone() },
            NarInfo { references: other.references, ..info.clone() },
        ];
        for forged in forged.iter().filter(|forged| forged.fingerprint() != info.fingerprint()) {
            prop_assert!(forged.verify(&trusted).is_err());
        }
    }

    #[test]
    fn no_text_makes_it_panic(text in "((StorePath|URL|NarHash|NarSize|Sig|CA|References|X): ?[ -~é]{0,60}\n?){0,6}") {
        let _ = text.parse::<NarInfo>();
    }
}
