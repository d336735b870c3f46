use std::net::SocketAddr;
use std::path::PathBuf;

use calve_nix::sign::PublicKey;
use calve_server::cache::tokens::Tokens;
use calve_server::cache::{Upstreams, Visibility};
use calve_store::Address;
use calve_store::cache::{Cache, PRIORITY};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::CacheArgs;
use crate::caches;
use crate::failure::{ExitStatus, Failure, Outcome};
use crate::ui;

/// Serves a cache over HTTP, making it where it does not exist.
///
/// Nix uses it with `substituters = http://HOST:PORT`, the key that `calve cache key` prints, and for a private cache the
/// token as a password in a netrc file (`netrc-file`). `nix copy --to http://HOST:PORT` uploads.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    cache: CacheArgs,
    /// Where to listen; port 0 takes a free one.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8117")]
    listen: SocketAddr,
    /// Let everybody pull; pushing always takes a token.
    #[arg(long, conflicts_with = "private")]
    public: bool,
    /// Let nobody pull without a token. [default]
    #[arg(long)]
    private: bool,
    /// Ask this cache for what is missing here, and keep it; may be repeated.
    #[arg(long, value_name = "URL", requires = "trusted_key")]
    upstream: Vec<Address>,
    /// A key that must have signed what upstream caches give; may be repeated.
    #[arg(long, value_name = "NAME:KEY", value_parser = caches::parse_key, requires = "upstream")]
    trusted_key: Vec<PublicKey>,
    /// Name of the key that a new cache signs with. [default: the host's name and a random number]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Rank among the caches of a client: lower ones are asked first.
    #[arg(long, value_name = "N", default_value_t = PRIORITY)]
    priority: u32,
    /// Write the address that it listens on into this file, once it does.
    #[arg(long, value_name = "FILE", hide = true)]
    address_file: Option<PathBuf>,
}

pub async fn run(args: Args) -> Outcome {
    calve_server::cache::log_to_stderr();
    let options = args.cache.options()?;
    let dir = options.dir.clone();
    let name = args.name.clone();
    let options = calve_store::cache::CacheOptions { name, priority: args.priority, ..options };
    let cache = Cache::open(options).await.map_err(caches::cache_failed)?;
    if let Some(name) = args.name.filter(|name| *name != cache.key_name()) {
        ui::note(&format!(
            "the cache is there already and keeps its key {}; {name} is not used",
            cache.key_name()
        ));
    }
    let keys = args.trusted_key.into_iter().collect();
    let upstreams = Upstreams::new(args.upstream, keys).map_err(caches::refused)?;
    let listener = TcpListener::bind(args.listen).await.map_err(|error| {
        Failure::failed(format!("the address {} cannot be used", args.listen)).caused_by(error)
    })?;
    let address = listener.local_addr().map_or_else(|_| args.listen.to_string(), |addr| addr.to_string());
    let visibility = if args.public { Visibility::Public } else { Visibility::Private };
    announce(&address, args.public, &cache);
    if let Some(file) = &args.address_file {
        std::fs::write(file, format!("http://{address}")).map_err(|error| {
            Failure::failed(format!("{} cannot be written", file.display())).caused_by(error)
        })?;
    }
    if Tokens::new(&dir).list().map_err(super::token::refused)?.is_empty() {
        ui::note("nobody may push yet: `calve cache token add NAME --push` makes a token");
    }
    let router = calve_server::cache::router(cache, visibility, upstreams);
    calve_server::cache::serve(listener, router, until_told()?).await;
    Ok(ExitStatus::Success)
}

fn announce(address: &str, public: bool, cache: &Cache) {
    let who = if public { "public" } else { "private" };
    ui::note(&format!("a {who} cache, listening on http://{address}; its chunks lie in {}", cache.storage()));
    for key in cache.public_keys() {
        ui::note(&format!("its key is {key}"));
    }
}

/// Cancelled by SIGTERM or SIGINT.
fn until_told() -> Outcome<CancellationToken> {
    let told = CancellationToken::new();
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals =
            signal(kind).map_err(|error| Failure::failed("signals cannot be handled").caused_by(error))?;
        let told = told.clone();
        tokio::spawn(async move {
            signals.recv().await;
            told.cancel();
        });
    }
    Ok(told)
}
