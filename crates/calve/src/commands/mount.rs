//! `calve mount`: closures mounted before they are here, by hand or for machines.

mod machines;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use calve_nix::StorePath;
use calve_nix::sign::TrustedKeys;
use calve_server::dirs::Dirs;
use calve_store::lazy::{Chunks, ChunksOptions, LazyClosure, LazyError, Mount, MountError};
use calve_store::pull::PullOptions;
use calve_store::{Closure, ClosurePath, Destination, Store, TransferError};
use tokio::signal::unix::{SignalKind, signal};

use super::pull::parse_path;
use crate::caches::{self, Place, Purpose, TrustArgs, parse_place};
use crate::dirs;
use crate::failure::{ExitStatus, Failure, Outcome};
use crate::resolve;
use crate::ui;

/// Time from the mount to the prefetch of what was not touched: a program that starts shall have the line for itself.
const PREFETCH_AFTER: Duration = Duration::from_secs(2);
/// Variable that keeps what is not touched from coming, with the value `never`: for lines that cost, and for tests.
const PREFETCH: &str = "CALVE_PREFETCH";

/// Mounts store paths with everything that they refer to before they are here, read-only.
///
/// What is read comes out of the caches as it is touched, each block verified; the rest follows into calve's own store while
/// nothing is read, unless CALVE_PREFETCH=never. Ends when the directory is unmounted, or with Ctrl-C.
///
/// A path counts only if a trusted key signed it: those given, those in CALVE_TRUSTED_KEYS, and those that Nix on this host
/// trusts.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What is mounted: /nix/store/…
    #[arg(required = true, value_name = "PATH", value_parser = parse_path)]
    paths: Vec<StorePath>,
    /// The directory on which they are mounted, under their base names.
    #[arg(long, value_name = "DIR", required_unless_present = "for_machines")]
    on: Option<PathBuf>,
    /// A cache, as http://…, https://…, unix:/SOCKET or a directory; may be repeated, the next is asked where one fails.
    #[arg(long, value_name = "CACHE", env = "CALVE_CACHE", hide_env_values = true, value_parser = parse_place, required = true)]
    from: Vec<Place>,
    #[command(flatten)]
    trust: TrustArgs,
    /// Started by `calve run --store lazy`: serves this user's machines until the last has gone.
    #[arg(long, hide = true, conflicts_with = "on")]
    for_machines: bool,
}

/// Serves on threads of its own: blocks are decompressed and verified on all processors.
pub fn run(args: Args) -> Outcome {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed("the program cannot begin").caused_by(error))?;
    let outcome = runtime.block_on(async {
        match &args.on {
            Some(on) => by_hand(&args, on.clone()).await,
            None => machines::serve(&args).await,
        }
    });
    runtime.shutdown_background();
    outcome
}

async fn by_hand(args: &Args, on: PathBuf) -> Outcome {
    if !on.is_dir() {
        return Err(Failure::not_found(format!("there is no directory {}", on.display())));
    }
    let mounted = Mounted::new(args, &on).await?;
    ui::note(&format!("mounted on {}; Ctrl-C ends it", on.display()));
    mounted.prefetch_soon();
    mounted.wait_for_end().await?;
    Ok(ExitStatus::Success)
}

/// A mounted closure with what serves it.
struct Mounted {
    /// Where each path lies.
    closure: Closure,
    mount: Arc<Mount>,
    store: Arc<Store>,
    trusted: TrustedKeys,
    dirs: Dirs,
}

impl Mounted {
    async fn new(args: &Args, on: &std::path::Path) -> Outcome<Self> {
        Mount::check().map_err(refused)?;
        let dirs = dirs::find()?;
        let store = Arc::new(resolve::store()?);
        let (sources, trusted) = args.trust.open(&args.from, Purpose::Read).await?;
        let options = ChunksOptions { dir: Some(dirs.store()), ..ChunksOptions::new(sources.clone()) };
        let chunks = Chunks::new(options);
        // Machines use what is on this host from there.
        let here = |paths: &[StorePath]| match args.for_machines {
            true => store.present(paths).map_err(TransferError::from),
            false => Ok(BTreeSet::new()),
        };
        let lazy = LazyClosure::open(&sources, &chunks, &args.paths, &trusted, here).await;
        let lazy = lazy.map_err(not_lazy)?;
        let own = lazy.paths.iter().map(|path| &path.info.path);
        let mut paths: Vec<_> = own
            .map(|path| ClosurePath { path: path.clone(), host_path: on.join(path.base_name()) })
            .collect();
        for path in &lazy.present {
            let host_path = store
                .host_path_of(path)
                .ok_or_else(|| Failure::failed(format!("{path} was here and is gone")).hint("try again"))?;
            paths.push(ClosurePath { path: path.clone(), host_path });
        }
        let mount = Arc::new(Mount::new(lazy, chunks, on).map_err(refused)?);
        Ok(Self { closure: Closure::new(paths), mount, store, trusted, dirs })
    }

    /// Pulls the rest into the private store, beginning in a moment; not where the environment forbids it.
    fn prefetch_soon(&self) {
        if std::env::var_os(PREFETCH).is_some_and(|value| value == "never") {
            return;
        }
        let options = PullOptions {
            trusted: self.trusted.clone(),
            index: caches::chunk_index().ok().flatten(),
            destination: Some(Destination::Private),
            ..PullOptions::default()
        };
        let (mount, store, root) = (self.mount.clone(), self.store.clone(), self.dirs.store());
        tokio::spawn(async move {
            tokio::time::sleep(PREFETCH_AFTER).await;
            mount.prefetch(store, options, &root).await;
        });
    }

    /// Asks for those paths that lie on this host: what is asked for counts as used, and is not pruned.
    async fn note_use(&self) {
        let paths: Vec<_> = self.closure.paths.iter().map(|path| path.path.clone()).collect();
        let store = self.store.clone();
        // What cannot be asked for cannot be pruned either, as that looks into the same store.
        let _ = tokio::task::spawn_blocking(move || store.present(&paths).map(drop)).await;
    }

    /// Waits until nothing uses the mount any more, or this process is told to end.
    async fn wait_for_end(&self) -> Outcome<()> {
        let hear =
            |kind| signal(kind).map_err(|error| Failure::failed("signals cannot be heard").caused_by(error));
        let (mut interrupt, mut terminate) = (hear(SignalKind::interrupt())?, hear(SignalKind::terminate())?);
        tokio::select! {
            () = self.mount.ended() => {}
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        self.mount.detach();
        Ok(())
    }
}

fn refused(error: MountError) -> Failure {
    let hint = error.hint();
    let failure = Failure::failed(error.to_string()).hint(hint);
    match std::error::Error::source(&error).map(ToString::to_string) {
        Some(source) => failure.caused_by(source),
        None => failure,
    }
}

fn not_lazy(error: LazyError) -> Failure {
    match error {
        LazyError::Transfer(error) => caches::transfer_failed(error),
        error => {
            let failure = Failure::failed(error.to_string());
            match error.hint() {
                Some(hint) => failure.hint(hint),
                None => failure,
            }
        }
    }
}
