//! The store engine in a process of its own, as a user's `calve push` and `calve pull` are: so its memory can be told, and
//! starting it counts as it counts for Nix.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use calve_nix::StorePath;
use calve_server::memory;
use calve_store::index::LocalIndex;
use calve_store::progress::Progress;
use calve_store::pull::{PullOptions, Source, pull};
use calve_store::push::{PushOptions, push};
use calve_store::remote::Remote;
use calve_store::{Address, Destination, HttpRemote, at_hand_to_pull, at_hand_to_push};
use serde_json::{Value, json};

use super::nix::{self, NixRoot};
use super::server::{Server, peak_kib};

/// Verbs of pushes and pulls that do not leave the cache's process aside, as of a cache on another host.
pub const PUSH_HTTP: &str = "push-http";
pub const PULL_HTTP: &str = "pull-http";
/// The word in front of the arguments of such a process.
pub const WORD: &str = "engine";

/// What one call of the engine cost.
pub struct Cost {
    /// What only its work took, as it measured it itself.
    pub inner: Duration,
    pub bytes_moved: u64,
    pub peak_kib: u64,
}

/// One call: `verb` is push, pull, one of those above, or metadata.
pub fn call(
    verb: &str,
    nix: &NixRoot,
    (server, url): (&Server, &str),
    root: &StorePath,
    level: i32,
) -> anyhow::Result<Cost> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(WORD).arg(verb).arg(nix.dir()).args([url, &server.token, &server.key, &root.to_string()]);
    command.arg(level.to_string());
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{verb}: {}: {said}", output.status);
    let told: Value = serde_json::from_slice(&output.stdout)?;
    let number = |name: &str| told[name].as_u64().with_context(|| format!("a number of {name}"));
    let (bytes_moved, peak_kib) = (number("bytes_moved")?, number("peak_kib")?);
    Ok(Cost { inner: Duration::from_micros(number("micros")?), bytes_moved, peak_kib })
}

/// The process itself.
pub async fn run(words: &[String]) -> anyhow::Result<()> {
    let [verb, dir, url, token, key, root, level] = words else { anyhow::bail!("wrong arguments") };
    let (dir, root) = (PathBuf::from(dir), root.parse::<StorePath>()?);
    memory::keep();
    let remote = HttpRemote::new(url.parse::<Address>()?, Some(token))?;
    let progress = Arc::new(Progress::default());
    let begun = Instant::now();
    match verb.as_str() {
        "push" | PUSH_HTTP => {
            let remote: Arc<dyn Remote> = match verb.as_str() {
                PUSH_HTTP => Arc::new(remote),
                _ => at_hand_to_push(remote).await,
            };
            let options =
                PushOptions { index: index(&dir)?, level: level.parse()?, ..PushOptions::default() };
            push(Arc::new(nix::open(&dir)?), &[root], remote, options, progress.clone()).await?;
        }
        "pull" | PULL_HTTP => {
            let remote: Arc<dyn Remote> = match verb.as_str() {
                PULL_HTTP => Arc::new(remote),
                _ => at_hand_to_pull(remote).await,
            };
            let options = PullOptions {
                trusted: key.parse()?,
                index: index(&dir)?,
                destination: Some(Destination::Nix),
                ..PullOptions::default()
            };
            let sources = [Source { name: url.clone(), remote }];
            pull(Arc::new(nix::open(&dir)?), &sources, &[root], options, progress.clone()).await?;
        }
        _ => {
            let manifests = remote.closure(&[root]).await?;
            let ids: Vec<_> = manifests.iter().map(|manifest| manifest.recipe).collect();
            ensure!(remote.recipes(&ids).await?.len() == manifests.len(), "recipes are missing");
        }
    }
    let micros = begun.elapsed().as_micros() as u64;
    let (bytes_moved, peak_kib) = (progress.bytes_moved.get(), peak_kib("self")?);
    println!("{}", json!({ "micros": micros, "bytes_moved": bytes_moved, "peak_kib": peak_kib }));
    Ok(())
}

fn index(dir: &Path) -> anyhow::Result<Option<Arc<LocalIndex>>> {
    Ok(Some(Arc::new(LocalIndex::open(&dir.join("chunks.sqlite"))?)))
}
