use calve_server::cache::Visibility;
use calve_server::cache::tokens::Right;
use calve_store::PathInfo;
use calve_store::chunk::ChunkId;
use calve_store::http::ahead::{encode_part, encode_path};
use calve_store::http::message::Message;
use calve_store::recipe::Piece;
use calve_store::remote::{AHEAD_ROOM_KIB, ArchivePart, ITEMS_MAX, Remote, UPLOAD_BYTES_MAX, ahead_room_kib};

use crate::support::{PATIENCE, Served, made, noise, push};

fn post(what: &str, token: &str, length: usize, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST /calve/v1/{what} HTTP/1.1\r\nHost: c\r\nAuthorization: Bearer {token}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

#[tokio::test]
async fn bodies_that_are_too_large_cut_short_or_nonsense_are_refused_in_words() {
    let served = Served::new(Visibility::Private).await;
    let token = served.token("ci", &Right::Push);
    let huge = served.say(post("upload", &token, 2 * UPLOAD_BYTES_MAX, b"")).await;
    assert!(huge.starts_with("HTTP/1.1 413"), "{huge}");
    let short = served.break_off(post("upload", &token, 1000, &[1; 10])).await;
    assert!(short.starts_with("HTTP/1.1 400") && short.contains("1000 were announced"), "{short}");
    let cut = served.say(post("upload", &token, 60, &[1; 60])).await;
    assert!(cut.starts_with("HTTP/1.1 400"), "{cut}");
    let nonsense = served.say(post("closure", &token, 3, b"abc")).await;
    assert!(nonsense.starts_with("HTTP/1.1 400") && nonsense.contains("damaged"), "{nonsense}");
    let ids = (0..=ITEMS_MAX as u64).map(|n| ChunkId::of(&n.to_le_bytes()));
    let many = ids.collect::<Vec<_>>().encode();
    let many = served.say(post("missing-chunks", &token, many.len(), &many)).await;
    assert!(many.starts_with("HTTP/1.1 400") && many.contains("at most"), "{many}");
    let bomb = zstd::bulk::compress(&vec![0; 200 << 20], 3).unwrap();
    let bomb = served.say(post("closure", &token, bomb.len(), &bomb)).await;
    assert!(bomb.starts_with("HTTP/1.1 400") && bomb.contains("more than"), "{bomb}");
    // It goes on serving, and nothing stayed.
    assert_eq!(served.cache.stats().await.unwrap().chunks, 0);
}

#[tokio::test]
async fn odd_paths_and_methods_lead_nowhere() {
    let served = Served::new(Visibility::Public).await;
    let one = made("one", b"one", &[]);
    push(&served.cache, &[&one]).await;
    for path in [
        "/",
        "/../key",
        "/%2e%2e/key",
        "/nar/..%2fkey",
        "/nar/%2e%2e%2fkey",
        "/log/..%2f..%2fkey",
        "/key",
        "/index.sqlite",
        "/realisations/..",
        "/calve/v1/closure",
        "/x.narinfo",
    ] {
        let answer = served.get(path, "").await;
        assert!(
            ["404", "400", "405"].iter().any(|code| answer.starts_with(&format!("HTTP/1.1 {code}"))),
            "{path}: {answer}"
        );
    }
    let delete = served.say("DELETE /nix-cache-info HTTP/1.1\r\nHost: c\r\nConnection: close\r\n\r\n").await;
    assert!(delete.starts_with("HTTP/1.1 405"), "{delete}");
    let put = "PUT /nar/x.nar HTTP/1.1\r\nHost: c\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    assert!(served.say(put).await.starts_with("HTTP/1.1 401"));
}

#[tokio::test]
async fn a_narinfo_that_leads_out_of_the_store_or_of_the_uploads_is_refused() {
    let served = Served::new(Visibility::Private).await;
    let token = served.token("ci", &Right::Push);
    let hash = "0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq";
    let good = format!("/nix/store/{hash}-a");
    for (path, url, reference) in [
        ("/etc/passwd", "nar/x.nar", "a"),
        (&*format!("/nix/store/{hash}-../../etc"), "nar/x.nar", "a"),
        (&*format!("/tmp/{hash}-a"), "nar/x.nar", "a"),
        (&*format!("/nix/store/{}-a", "1".repeat(32)), "nar/x.nar", "a"),
        (&good, "../key", "a"),
        (&good, "nar/../../key", "a"),
        (&good, "http://127.0.0.1/x.nar", "a"),
        (&good, "nar/x.nar", "../../etc/passwd"),
    ] {
        let text = format!(
            "StorePath: {path}\nURL: {url}\nCompression: none\nNarHash: {}\nNarSize: 1\nReferences: {reference}\n",
            calve_nix::Sha256Hash::of(b"x")
        );
        let head = format!(
            "PUT /{hash}.narinfo HTTP/1.1\r\nHost: c\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n",
            text.len()
        );
        let answer = served.say(head + &text).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{path} {url} {reference}: {answer}");
    }
    assert_eq!(served.cache.stats().await.unwrap().paths, 0);
}

/// What is told of an archive over HTTP; parts in chunks of their own, as whoever cuts sends them.
fn chunked(what: &str, token: &str, parts: &[&[u8]], ends: bool) -> Vec<u8> {
    let head = format!(
        "POST /calve/v1/{what} HTTP/1.1\r\nHost: c\r\nAuthorization: Bearer {token}\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    let mut said = head.into_bytes();
    for part in parts {
        said.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
        said.extend_from_slice(part);
        said.extend_from_slice(b"\r\n");
    }
    said.extend_from_slice(if ends { b"0\r\n\r\n" } else { b"" });
    said
}

#[tokio::test]
async fn what_is_told_of_an_archive_is_believed_for_its_chunks_alone() {
    let served = Served::new(Visibility::Private).await;
    let token = served.token("ci", &Right::Push);
    let one = made("one", &noise(300_000), &[]);
    served.cache.put_chunks(one.chunks.clone()).await.unwrap();
    let path = encode_path(&one.info);
    let part = encode_part(&ArchivePart { pieces: one.recipe.pieces.clone(), positions: Vec::new() });
    let said = async |parts: &[&[u8]]| served.say(chunked("ahead", &token, parts, true)).await;
    assert!(said(&[&path, &part]).await.starts_with("HTTP/1.1 200"));
    for (why, status, parts) in [
        ("no path is named", 400, &[][..]),
        ("in the middle of a part", 400, &[&path[..], &part[..part.len() - 1]][..]),
        ("4294967295 chunks", 400, &[&path, &[255; 8]]),
        ("its path takes 4294967295 bytes", 400, &[&[255; 8]]),
        ("message is damaged", 400, &[&[4, 0, 0, 0, 1, 2, 3, 4]]),
        ("its archive is none", 400, &[&path]),
        ("more than the", 400, &[&path, &part, &part]),
    ] {
        let answer = said(parts).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(why), "{why}: {answer}");
    }
    let none = encode_part(&ArchivePart {
        pieces: vec![Piece { id: ChunkId([7; 32]), len: 9 }],
        positions: Vec::new(),
    });
    assert!(said(&[&path, &none]).await.starts_with("HTTP/1.1 404"));
    let broken = served.break_off(chunked("ahead", &token, &[&path], false)).await;
    assert!(broken.is_empty() || broken.starts_with("HTTP/1.1 400"), "{broken}");
    // Whoever may not push may not have anything hashed either.
    for (token, status) in [(served.token("reader", &Right::Pull), 403), ("wrong".to_owned(), 401)] {
        let denied = served.say(chunked("ahead", &token, &[&path, &part], true)).await;
        assert!(denied.starts_with(&format!("HTTP/1.1 {status}")), "{denied}");
    }
    assert_eq!(served.cache.stats().await.unwrap().paths, 0, "nothing appears without a commit");
}

/// Those who begin and go on with nothing take turns from nobody but each other, and their turns end with them.
#[tokio::test]
async fn who_stalls_while_an_archive_is_hashed_holds_nobody_up() {
    let served = Served::new(Visibility::Private).await;
    let token = served.token("ci", &Right::Push);
    let one = made("one", &noise(300_000), &[]);
    // They take as much room as one may.
    let path = encode_path(&PathInfo { nar_size: 1 << 40, ..one.info.clone() });
    let fit = AHEAD_ROOM_KIB / ahead_room_kib(1 << 40) as usize;
    let stalling: Vec<_> =
        (0..fit).map(|_| served.begin(chunked("ahead", &token, &[&path], false))).collect();
    let full = "it hashes 96 MiB of archives ahead of their commits already, and no more at once";
    let deadline = std::time::Instant::now() + PATIENCE;
    // They are read by a server that is busy with other things, too.
    while !served.say(chunked("ahead", &token, &[&path], true)).await.contains(full) {
        assert!(std::time::Instant::now() < deadline, "the stalling requests hold no turns");
    }
    push(&served.cache, &[&one]).await;
    drop(stalling);
    while served.say(chunked("ahead", &token, &[&path], true)).await.contains(full) {
        assert!(std::time::Instant::now() < deadline, "a turn outlives its request");
    }
}
