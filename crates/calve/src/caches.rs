//! Caches as users name them, and the keys that they trust.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use calve_nix::TrustedKeys;
use calve_nix::sign::PublicKey;
use calve_store::cache::{Cache, CacheError, CacheOptions};
use calve_store::index::LocalIndex;
use calve_store::pull::Source;
use calve_store::remote::{Remote, RemoteError};
use calve_store::{Address, HttpRemote, StoreError, TransferError, at_hand_to_pull, at_hand_to_push};

use crate::dirs;
use crate::failure::{ExitStatus, Failure, Outcome};
use crate::ui;

/// Where Nix keeps its settings.
const NIX_CONF: &str = "/etc/nix/nix.conf";
/// The setting in it, and the one that adds to it.
const NIX_KEYS: [&str; 2] = ["trusted-public-keys", "extra-trusted-public-keys"];

/// Where a cache is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Behind HTTP.
    Http(Address),
    /// In a directory of this host.
    Directory(PathBuf),
}

/// Parses a cache's place.
pub fn parse_place(text: &str) -> Result<Place, String> {
    if text.starts_with('/') || text.starts_with('.') {
        return Ok(Place::Directory(text.into()));
    }
    text.parse()
        .map(Place::Http)
        .map_err(|error: calve_store::http::AddressError| format!("{error}; a directory begins with / or ."))
}

/// Parses a public key.
pub fn parse_key(text: &str) -> Result<PublicKey, String> {
    text.parse().map_err(|error: calve_nix::sign::KeyError| error.to_string())
}

/// How a cache's token is told.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct TokenArgs {
    /// File of the cache's token; the environment's CALVE_CACHE_TOKEN holds the token itself.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// Whom to trust of caches that are pulled from, and how to speak with them.
#[derive(Debug, clap::Args)]
pub struct TrustArgs {
    /// A public key to trust; may be repeated.
    #[arg(long, value_name = "NAME:KEY", value_parser = parse_key)]
    trusted_key: Vec<PublicKey>,
    #[command(flatten)]
    token: TokenArgs,
}

impl TrustArgs {
    /// Opens caches; gives them, and the keys that count.
    pub async fn open(&self, places: &[Place], purpose: Purpose) -> Outcome<(Vec<Source>, TrustedKeys)> {
        let opened = open_all(places, &self.token, purpose).await?;
        let trusted = trusted_keys(&self.trusted_key, &opened)?;
        let sources = opened.into_iter().map(|cache| Source { name: cache.name, remote: cache.remote });
        Ok((sources.collect(), trusted))
    }
}

/// A cache that can be asked.
pub struct Opened {
    /// How messages call it.
    pub name: String,
    /// The cache.
    pub remote: Arc<dyn Remote>,
    /// Its own keys where it lies on this host, in the hands of who asks.
    pub own_keys: Vec<PublicKey>,
}

/// What a cache is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To look something up, or to read it for as long as somebody likes: through its process, which may be replaced by one of
    /// another version meanwhile.
    Read,
    /// For one pull: where it lies in this user's own directory, its process is left aside.
    Pull,
    /// For one push, likewise.
    Push,
}

/// Opens caches, one after the other.
pub async fn open_all(places: &[Place], token: &TokenArgs, purpose: Purpose) -> Outcome<Vec<Opened>> {
    let mut opened = Vec::with_capacity(places.len());
    for place in places {
        opened.push(open(place, token, purpose).await?);
    }
    Ok(opened)
}

/// Opens a cache.
pub async fn open(place: &Place, token: &TokenArgs, purpose: Purpose) -> Outcome<Opened> {
    match place {
        Place::Http(address) => {
            let remote = behind_http(address, token)?;
            let remote = match purpose {
                Purpose::Read => Arc::new(remote),
                Purpose::Pull => at_hand_to_pull(remote).await,
                Purpose::Push => at_hand_to_push(remote).await,
            };
            Ok(Opened { name: address.to_string(), remote, own_keys: Vec::new() })
        }
        Place::Directory(dir) => {
            if !dir.is_dir() {
                return Err(Failure::not_found(format!("there is no cache in {}", dir.display()))
                    .hint("`calve cache serve --dir DIR` makes one"));
            }
            let cache = Cache::open(CacheOptions::local(dir)).await.map_err(cache_failed)?;
            let own_keys = cache.public_keys().iter().filter_map(|key| key.parse().ok()).collect();
            Ok(Opened { name: dir.display().to_string(), remote: Arc::new(cache), own_keys })
        }
    }
}

fn behind_http(address: &Address, token: &TokenArgs) -> Outcome<HttpRemote> {
    let token = token.read()?;
    if token.is_some() && address.is_open_to_readers() {
        ui::note(&format!("the token goes to {address} in the clear; https would hide it"));
    }
    HttpRemote::new(address.clone(), token.as_deref()).map_err(refused)
}

impl TokenArgs {
    /// The token's file, where one is named.
    pub fn file(&self) -> Option<&Path> {
        self.token_file.as_deref()
    }

    /// The token, where one is told.
    fn read(&self) -> Outcome<Option<String>> {
        let text = match &self.token_file {
            Some(file) => std::fs::read_to_string(file).map_err(|error| {
                Failure::failed(format!("the token file {} cannot be read", file.display())).caused_by(error)
            })?,
            None => std::env::var("CALVE_CACHE_TOKEN").unwrap_or_default(),
        };
        let text = text.trim();
        Ok((!text.is_empty()).then(|| text.to_owned()))
    }
}

/// The keys that count: those given, and those that Nix on this host trusts.
fn trusted_keys(given: &[PublicKey], opened: &[Opened]) -> Outcome<TrustedKeys> {
    let environment = std::env::var("CALVE_TRUSTED_KEYS").unwrap_or_default();
    let named: TrustedKeys = environment.parse().map_err(|error: calve_nix::sign::KeyError| {
        Failure::usage("CALVE_TRUSTED_KEYS holds something other than public keys").caused_by(error)
    })?;
    let own = opened.iter().flat_map(|cache| &cache.own_keys);
    let all = given.iter().chain(named.keys()).chain(own).cloned().chain(nix_keys(Path::new(NIX_CONF)));
    let keys: TrustedKeys = all.collect();
    if keys.keys().is_empty() {
        return Err(Failure::usage("no key is trusted, so that nothing from a cache could be")
            .hint("say --trusted-key KEY; `calve cache key` prints a cache's own"));
    }
    Ok(keys)
}

fn nix_keys(conf: &Path) -> Vec<PublicKey> {
    let text = std::fs::read_to_string(conf).unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.split('#').next()?.split_once('='));
    let values = lines.filter(|(name, _)| NIX_KEYS.contains(&name.trim())).map(|(_, value)| value);
    // A key that Nix could not read either is Nix's to complain about.
    values.flat_map(str::split_whitespace).filter_map(|key| key.parse().ok()).collect()
}

/// The cache's directory where none is said: in the data directory.
pub fn default_dir() -> Outcome<PathBuf> {
    let dirs = dirs::find()?;
    Ok(dirs.data.join("cache"))
}

/// Where calve notes which chunks lie in local paths; none where it cannot be used, which only costs time.
pub fn chunk_index() -> Outcome<Option<Arc<LocalIndex>>> {
    let dirs = dirs::find()?;
    dirs::make(&dirs)?;
    match LocalIndex::open(&dirs.data.join("chunks.sqlite")) {
        Ok(index) => Ok(Some(Arc::new(index))),
        Err(error) => {
            ui::note(&format!("going on without the index of local chunks: {error}"));
            Ok(None)
        }
    }
}

/// What went wrong with a push or pull.
pub fn transfer_failed(error: TransferError) -> Failure {
    let error = match error {
        TransferError::Remote(error) => return refused(error),
        error => error,
    };
    let hint = error.hint();
    let status = match &error {
        TransferError::Store(StoreError::Unknown { .. } | StoreError::MissingOnDisk { .. }) => {
            ExitStatus::NotFound
        }
        _ => ExitStatus::Failed,
    };
    let mut failure = Failure::new(status, error.to_string());
    failure.hint = hint;
    failure.source = std::error::Error::source(&error).map(|source| source.to_string().into());
    failure
}

/// What a cache here says.
pub fn cache_failed(error: CacheError) -> Failure {
    let hint = error.hint();
    let failure = Failure::failed(error.to_string());
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// What a cache anywhere says.
pub fn refused(error: RemoteError) -> Failure {
    let sentence = error.to_string();
    match error {
        RemoteError::Unreachable { .. } => {
            Failure::failed(sentence).hint("check the address and the network, then try again")
        }
        RemoteError::Denied { .. } => Failure::failed(sentence)
            .hint("set CALVE_CACHE_TOKEN to a token of that cache (`calve cache token add`)"),
        RemoteError::Missing { .. } => Failure::new(ExitStatus::NotFound, sentence),
        RemoteError::Damaged { .. } => {
            Failure::failed(sentence).hint("`calve cache verify` checks the cache")
        }
        RemoteError::Failed { .. } => Failure::failed(sentence),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_addresses_or_directories() {
        assert_eq!(parse_place("./c"), Ok(Place::Directory("./c".into())));
        assert!(matches!(parse_place("https://c.example.org"), Ok(Place::Http(_))));
        assert!(parse_place("c").unwrap_err().contains("begins with /"));
    }

    #[test]
    fn the_keys_of_nix_are_found_in_its_settings() {
        let dir = tempfile::tempdir().unwrap();
        let conf = dir.path().join("nix.conf");
        let key = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";
        std::fs::write(&conf, format!("cores = 1\ntrusted-public-keys = {key} bad # comment\n")).unwrap();
        assert_eq!(nix_keys(&conf).len(), 1);
        assert!(nix_keys(Path::new("/nonexistent")).is_empty());
    }
}
