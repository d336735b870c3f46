//! The host's store: what it lacks, and what was brought put into it, as Nix itself would where the host has one.
//!
//! ```text
//! room: which paths are missing ─▶ the server brings them into a directory beside the store
//! take_in: gc.lock shared ─▶ a root for the collector ─▶ paths renamed into the store ─▶ nix-store --load-db
//! ```
//! Without Nix's own database a path counts as there because it is there. With it only what is registered counts: anything
//! else Nix's next collection removes, the running system too.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use calve_store_dir::StoreDir;
use calve_wire::system::{HostOrder, HostRoom, REGISTRATION};

use crate::host::{Host, remove, replace_link};
use crate::program::{Program, environment};

const STORE: &str = "/nix/store";
/// Nix's database, where the host has one.
const DATABASE: &str = "/nix/var/nix/db/db.sqlite";
/// Nix's lock against its own garbage collector (`src/libstore/gc.cc` of Nix).
const COLLECTOR_LOCK: &str = "/nix/var/nix/gc.lock";
/// Keeps what was brought from the collector until the system runs or has a generation.
const ROOT: &str = "/nix/var/nix/gcroots/calve-switch";
/// What a directory begins with into which a closure is brought. It lies beside the store where that is one file system with it, as
/// Nix's collector removes what it does not know from the store itself.
const INCOMING: &str = ".calve-switch-";
/// Longest run of one call of `nix-store`.
const NIX_MAX: Duration = Duration::from_secs(60);
/// Paths of one call.
const NIX_PATHS: usize = 400;
/// How long a collection that is under way is waited for.
const COLLECTOR_MAX: Duration = Duration::from_secs(20);

/// What the host lacks of the paths with these base names, one a line, and where they are to be brought for the switch `id`.
pub fn room(host: &Host, id: &str, names: &str) -> anyhow::Result<HostRoom> {
    let current = host
        .current()
        .context("the host has no /run/current-system: it runs no NixOS that can be switched")?;
    let store = host.path(STORE);
    let dir = StoreDir::open(&store).context("nothing can be written to the host's store")?;
    let names: Vec<&str> = names.lines().map(str::trim).filter(|name| !name.is_empty()).collect();
    let (there, mut missing): (Vec<&str>, Vec<&str>) =
        names.into_iter().partition(|name| store.join(name).symlink_metadata().is_ok());
    let registers = has_database(host);
    if registers {
        missing.extend(unregistered(host, &there)?);
    }
    let parent = if dir.takes_from_beside() { "/nix" } else { STORE };
    Ok(HostRoom {
        missing: missing.into_iter().map(str::to_owned).collect(),
        dir: format!("{parent}/{INCOMING}{id}"),
        registers,
        current: Some(current),
    })
}

/// Puts what was brought for a switch into the store: whole paths only, each in one step.
pub fn take_in(host: &Host, order: &HostOrder) -> anyhow::Result<()> {
    let Some(incoming) = &order.incoming else { return Ok(()) };
    let registration = host.path(incoming).join(REGISTRATION);
    let dir = StoreDir::open(&host.path(STORE)).context("nothing can be written to the host's store")?;
    let brought = dir.path(&host.path(incoming));
    // It was taken in before, where the order is repeated.
    let mut names = names(&brought)?;
    names.retain(|name| !name.starts_with('.'));
    let (mut unknown, mut collector) = (Vec::new(), None);
    if has_database(host) {
        collector = Some(keep_collector_away(host)?);
        let link = host.path(ROOT);
        fs::create_dir_all(link.parent().expect("it has one"))?;
        replace_link(&order.toplevel, &link).context("no root for the collector can be made")?;
        let there: Vec<&str> = names.iter().map(String::as_str).collect();
        unknown = unregistered(host, &there)?.into_iter().map(str::to_owned).collect();
    }
    for name in &names {
        let place = dir.path(&host.path(STORE).join(name));
        if place.symlink_metadata().is_ok() {
            if !unknown.contains(name) {
                continue;
            }
            // Whoever wrote it was cut off.
            let aside = brought.join(format!(".replaced-{name}"));
            remove_all(&aside)?;
            fs::rename(&place, aside)?;
        }
        fs::rename(brought.join(name), &place)
            .with_context(|| format!("{name} cannot be moved into the host's store"))?;
    }
    if !unknown.is_empty() {
        register(host, &registration)?;
    }
    drop(collector);
    remove_incoming(host, &dir)
}

/// Gives up the root: the system has a generation, or runs, or is not wanted.
pub fn unroot(host: &Host) {
    let _ = remove(&host.path(ROOT));
}

fn has_database(host: &Host) -> bool {
    host.path(DATABASE).exists()
}

/// Which of the paths with these base names Nix does not know on this host.
fn unregistered<'a>(host: &Host, names: &[&'a str]) -> anyhow::Result<Vec<&'a str>> {
    let mut found = Vec::new();
    for names in names.chunks(NIX_PATHS) {
        let paths = names.iter().map(|name| format!("{STORE}/{name}"));
        let said = nix_store(host, &["--check-validity", "--print-invalid"], paths, None)?;
        let told: HashSet<&str> = said.lines().filter_map(|line| line.strip_prefix("/nix/store/")).collect();
        found.extend(names.iter().copied().filter(|name| told.contains(name)));
    }
    Ok(found)
}

/// Tells Nix of the paths that were moved in, in one transaction.
fn register(host: &Host, registration: &Path) -> anyhow::Result<()> {
    let text = File::open(registration).context("what Nix is to know of the paths was not brought")?;
    nix_store(host, &["--load-db"], std::iter::empty(), Some(text)).map(drop)
}

fn nix_store(
    host: &Host,
    words: &[&str],
    paths: impl Iterator<Item = String>,
    input: Option<File>,
) -> anyhow::Result<String> {
    let Some(program) = host.program(&[], "nix-store") else {
        bail!("the host has a Nix database and no nix-store, by which it would learn of the system")
    };
    let mut command = std::process::Command::new(program);
    environment(host, &[], &mut command);
    command.args(words).args(paths);
    if let Some(input) = input {
        command.stdin(input);
    }
    let (ended, said) = Program::start(command).and_then(|it| it.finish(NIX_MAX)).context("nix-store")?;
    let Some(ended) = ended else {
        bail!("nix-store {} did not end within {} s", words[0], NIX_MAX.as_secs())
    };
    anyhow::ensure!(ended.success(), "nix-store {}: {}", words[0], last_line(&said));
    Ok(said)
}

fn last_line(said: &str) -> &str {
    said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no message")
}

/// Holds off Nix's garbage collector, or waits a little for one that runs.
fn keep_collector_away(host: &Host) -> anyhow::Result<File> {
    let path = host.path(COLLECTOR_LOCK);
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let file = file.with_context(|| path.display().to_string())?;
    let until = Instant::now() + COLLECTOR_MAX;
    loop {
        match file.try_lock_shared() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(error).context("Nix's lock"),
            Err(TryLockError::WouldBlock) if Instant::now() >= until => {
                bail!("a garbage collection is under way on the host: try again once it has ended")
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// Also what was brought for a switch that was refused before it could begin.
fn remove_incoming(host: &Host, dir: &StoreDir) -> anyhow::Result<()> {
    for parent in ["/nix", STORE] {
        let parent = dir.path(&host.path(parent));
        for name in names(&parent)?.iter().filter(|name| name.starts_with(INCOMING)) {
            fs::remove_dir_all(parent.join(name)).with_context(|| name.clone())?;
        }
    }
    Ok(())
}

/// Removes whatever lies there; absence is success.
fn remove_all(path: &Path) -> io::Result<()> {
    match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        _ => remove(path),
    }
}

/// What a directory holds; nothing where it is not there.
fn names(dir: &PathBuf) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let names = entries.map(|entry| Ok(entry?.file_name().into_string().unwrap_or_default()));
    names.collect()
}
