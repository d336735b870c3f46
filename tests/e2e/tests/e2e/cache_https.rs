//! A cache behind TLS: authorities of the user's choice, names that must be right, and a token that goes nowhere else.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use e2e::{Home, Ran};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::cache::serve;

/// A private authority.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate, for clients.
    file: PathBuf,
}

impl Authority {
    fn new(file: PathBuf) -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        // Each its own name: two of one name are told apart by their signatures, which reads differently.
        params.distinguished_name.push(DnType::CommonName, file.display().to_string());
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        std::fs::write(&file, params.self_signed(&key).unwrap().pem()).unwrap();
        Self { issuer: Issuer::new(params, key), file }
    }
}

/// What stands in front of a cache and ends TLS, until the test program ends.
struct Front {
    url: String,
    /// Connections on which a client went past the handshake.
    trusted: Arc<AtomicUsize>,
}

impl Front {
    /// With a certificate for `name`, in front of what listens on `behind`.
    fn new(authority: &Authority, name: &str, behind: SocketAddr) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &authority.issuer).unwrap().der().clone();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let config = config.with_single_cert(vec![certificate], key).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        listener.set_nonblocking(true).unwrap();
        let (trusted, acceptor) = (Arc::new(AtomicUsize::new(0)), TlsAcceptor::from(Arc::new(config)));
        let count = trusted.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                loop {
                    let (socket, _) = listener.accept().await.unwrap();
                    let (acceptor, count) = (acceptor.clone(), count.clone());
                    tokio::spawn(async move {
                        let Ok(mut client) = acceptor.accept(socket).await else { return };
                        count.fetch_add(1, Ordering::Relaxed);
                        let Ok(mut server) = tokio::net::TcpStream::connect(behind).await else { return };
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                    });
                }
            });
        });
        Self { url, trusted }
    }
}

#[test]
fn a_cache_behind_tls_is_used_by_who_trusts_its_authority_and_finds_its_name() {
    let home = Home::alone();
    let dir = home.path().join("cache");
    let serving = serve(&home, &dir, &[]);
    let behind: SocketAddr = serving.url.strip_prefix("http://").unwrap().parse().unwrap();
    let dir = dir.to_str().unwrap();
    let token = home.ok(&["cache", "token", "add", "ci", "--push", "--dir", dir]);
    let key = home.ok(&["cache", "key", "--dir", dir]);
    let [ours, stranger] = ["ours", "stranger"].map(|name| Authority::new(home.path().join(name)));
    let asked = |home: &Home, authority: &Path, args: &[&str]| {
        let mut command = home.command(args);
        command.env("CALVE_CACHE_TOKEN", token.trim()).env("SSL_CERT_FILE", authority);
        command.env_remove("NIX_SSL_CERT_FILE");
        Ran::of(command)
    };
    let front = Front::new(&ours, "127.0.0.1", behind);
    let app = home.app();
    let tree = Path::new(&app).parent().unwrap().parent().unwrap().to_str().unwrap();
    let pushed = asked(&home, &ours.file, &["push", tree, "--to", &front.url, "--json"]);
    assert_eq!(pushed.code, 0, "{pushed:?}");
    assert!(!pushed.stderr.contains("in the clear"), "{pushed:?}");
    let pushed: serde_json::Value = serde_json::from_str(&pushed.stdout).unwrap();
    let path = pushed["roots"][0].as_str().unwrap();
    let pull = |authority: &Path, url: &str| {
        let other = Home::alone();
        asked(&other, authority, &["pull", path, "--private", "--trusted-key", key.trim(), "--from", url])
    };
    let pulled = pull(&ours.file, &front.url);
    assert_eq!(pulled.code, 0, "{pulled:?}");

    // Nothing is said to who cannot show the right certificate.
    for (front, authority, why) in [
        (Front::new(&ours, "127.0.0.1", behind), &stranger.file, "UnknownIssuer"),
        (Front::new(&ours, "elsewhere.example", behind), &ours.file, "not valid for name"),
        (Front::new(&stranger, "127.0.0.1", behind), &ours.file, "UnknownIssuer"),
    ] {
        let refused = pull(authority, &front.url);
        assert_ne!(refused.code, 0, "{refused:?}");
        assert!(refused.stderr.contains(why) && refused.stderr.contains(&front.url), "{refused:?}");
        assert_eq!(front.trusted.load(Ordering::Relaxed), 0, "{why}");
    }
    let nobody = pull(Path::new("/nonexistent"), &front.url);
    assert!(nobody.code != 0 && nobody.stderr.contains("/nonexistent cannot be read"), "{nobody:?}");
}

#[test]
fn a_redirect_is_told_and_takes_the_token_nowhere() {
    let home = Home::alone();
    let [first, second] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let address = first.local_addr().unwrap();
    let target = format!("http://{}/", second.local_addr().unwrap());
    let sending = target.clone();
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = first.accept().unwrap();
        let mut head = vec![0; 16 * 1024];
        let read = stream.read(&mut head).unwrap();
        let answer = format!(
            "HTTP/1.1 307 Temporary Redirect\r\nLocation: {sending}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(answer.as_bytes()).unwrap();
        String::from_utf8_lossy(&head[..read]).into_owned()
    });
    let url = format!("http://{address}");
    let mut command = home.command(["cache", "info", &url]);
    command.env("CALVE_CACHE_TOKEN", "calve_secret");
    let refused = Ran::of(command);
    assert_ne!(refused.code, 0, "{refused:?}");
    assert!(refused.stderr.contains("307") && !refused.stderr.contains("calve_secret"), "{refused:?}");
    assert!(answering.join().unwrap().to_lowercase().contains("authorization: bearer calve_secret"));
    second.set_nonblocking(true).unwrap();
    let asked = second.accept();
    assert!(asked.is_err(), "{asked:?}");
}
