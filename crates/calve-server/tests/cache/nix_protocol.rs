use std::fmt::Write as _;

use base64::Engine;
use calve_nix::NarInfo;
use calve_server::cache::Visibility;
use calve_server::cache::tokens::Right;

use crate::support::{Served, made, noise, push};

fn body(answer: &[u8]) -> Vec<u8> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    answer[end..].to_vec()
}

async fn nar(served: &Served, url: &str, headers: &str) -> (String, Vec<u8>) {
    // HTTP/1.0: the body is not cut into chunks, and ends with the connection.
    let answer = served.ask(format!("GET /{url} HTTP/1.0\r\nHost: c\r\n{headers}\r\n")).await;
    (String::from_utf8_lossy(&answer[..answer.len().min(800)]).into_owned(), body(&answer))
}

#[tokio::test]
async fn archives_are_sent_whole_and_in_parts() {
    let served = Served::new(Visibility::Public).await;
    let below = made("below", b"x", &[]);
    let one = made("one", &noise(500_000), &[&below]);
    push(&served.cache, &[&below, &one]).await;
    let narinfo = served.get(&format!("/{}.narinfo", one.info.path.hash_part()), "").await;
    let narinfo = NarInfo::from_bytes(&body(narinfo.as_bytes())).unwrap();
    assert_eq!((narinfo.nar_hash, narinfo.nar_size), (one.info.nar_hash, one.info.nar_size));
    assert_eq!(narinfo.references.len(), 1);

    let (_, packed) = nar(&served, &narinfo.url, "").await;
    assert_eq!(zstd::stream::decode_all(packed.as_slice()).unwrap(), one.nar);
    let (head, rest) = nar(&served, &narinfo.url, "Range: bytes=1000-\r\n").await;
    assert!(head.starts_with("HTTP/1.0 206"), "{head}");
    assert_eq!(rest, packed[1000..]);

    let plain = narinfo.url.strip_suffix(".zst").unwrap();
    assert_eq!(nar(&served, plain, "").await.1, one.nar);
    let (head, part) = nar(&served, plain, "Range: bytes=200000-200009\r\n").await;
    assert!(head.contains(&format!("bytes 200000-200009/{}", one.nar.len())), "{head}");
    assert_eq!(part, one.nar[200_000..200_010]);
    assert!(nar(&served, plain, "Range: bytes=9999999-\r\n").await.0.starts_with("HTTP/1.0 416"));
    let stale = nar(&served, plain, "Range: bytes=1-\r\nIf-Range: \"other\"\r\n").await;
    assert_eq!(stale.1, one.nar);

    let listing = served.get(&format!("/{}.ls", one.info.path.hash_part()), "").await;
    assert!(listing.contains("narOffset") && listing.contains(r#""type":"regular""#), "{listing}");
}

#[tokio::test]
async fn an_upload_as_nix_makes_it_is_kept_signed_and_given_back_under_both_names() {
    let served = Served::new(Visibility::Private).await;
    let token = served.token("ci", &Right::Push);
    let basic = base64::engine::general_purpose::STANDARD.encode(format!("anybody:{token}"));
    let auth = format!("Authorization: Basic {basic}\r\nConnection: close\r\n");
    let put = async |path: &str, bytes: &[u8]| {
        let head = format!("PUT {path} HTTP/1.1\r\nHost: c\r\n{auth}Content-Length: {}\r\n\r\n", bytes.len());
        served.say([head.as_bytes(), bytes].concat()).await
    };
    let one = made("one", &noise(100_000), &[]);
    let packed = zstd::bulk::compress(&one.nar, 3).unwrap();
    let file_hash = calve_nix::Sha256Hash::of(&packed).to_base32();
    let url = format!("nar/{file_hash}.nar.zst");
    let mut narinfo = format!("StorePath: {}\nURL: {url}\nCompression: zstd\n", one.info.path);
    let _ = writeln!(
        narinfo,
        "NarHash: {}\nNarSize: {}\nReferences: ",
        one.info.nar_hash.to_nix(),
        one.info.nar_size
    );
    let at = format!("/{}.narinfo", one.info.path.hash_part());

    let early = put(&at, narinfo.as_bytes()).await;
    assert!(early.starts_with("HTTP/1.1 404"), "{early}");
    assert!(served.get(&format!("/{url}"), &auth).await.starts_with("HTTP/1.1 404"));
    let stored = put(&format!("/{url}"), &packed).await;
    assert!(stored.starts_with("HTTP/1.1 200"), "{stored}");
    assert!(served.get(&format!("/{url}"), &auth).await.starts_with("HTTP/1.1 200"));
    let wrong = narinfo.replace(&one.info.nar_size.to_string(), "7");
    assert!(put(&at, wrong.as_bytes()).await.starts_with("HTTP/1.1 400"));
    let stored = put(&at, narinfo.as_bytes()).await;
    assert!(stored.starts_with("HTTP/1.1 200"), "{stored}");
    let given = served.get(&at, &auth).await;
    assert!(given.contains(&format!("Sig: {}:", served.cache.key_name())), "{given}");
    assert!(served.get(&at, "").await.starts_with("HTTP/1.1 401"));
    let (_, again) = nar(&served, &url, &auth).await;
    assert_eq!(zstd::stream::decode_all(again.as_slice()).unwrap(), one.nar);
}

#[tokio::test]
async fn logs_and_realisations_are_kept() {
    let served = Served::new(Visibility::Public).await;
    let token = served.token("ci", &Right::Push);
    let hash = calve_nix::Sha256Hash::of(b"");
    for (path, text) in [
        ("/log/0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-a.drv".to_owned(), "it was built"),
        (format!("/realisations/{hash}!out.doi"), "{}"),
    ] {
        assert!(served.get(&path, "").await.starts_with("HTTP/1.1 404"));
        let put = format!(
            "PUT {path} HTTP/1.1\r\nHost: c\r\nAuthorization: Bearer {token}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{text}",
            text.len()
        );
        assert!(served.say(put.clone()).await.starts_with("HTTP/1.1 200"));
        assert!(served.get(&path, "").await.ends_with(text));
        assert!(served.say(put.replace(&token, "x")).await.starts_with("HTTP/1.1 401"));
    }
}
