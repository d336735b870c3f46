//! Putting paths into a Nix store by hand, as Nix itself does: under its locks, registered in its database.
//!
//! ```text
//! gc.lock shared ─▶ <path>.lock each ─▶ trees renamed into the store ─▶ rows of the database (one transaction) ─▶ locks gone
//! ```
//! What is cut off before the registration is a tree that Nix does not know: its next garbage collection removes it, and
//! the next pull replaces it. (`src/libstore/{gc,pathlocks}.cc` of Nix.)

mod database;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use calve_store_dir::StoreDir;

use crate::partial::Partials;
use crate::place::seal_root;
use crate::scratch::Scratch;
use crate::store::RootLock;
use crate::{PathInfo, Store, StoreError, TransferError};

/// The version of Nix's tables (`/nix/var/nix/db/schema`) that is known here.
const SCHEMA: &str = "10";

#[derive(Debug)]
pub(crate) struct NixPlace {
    /// `/nix/var/nix`.
    state: PathBuf,
    /// Where trees are unpacked: not in the store itself, in which the garbage collector removes what it does not know.
    dir: PathBuf,
}

/// The lock that Nix takes on a path while it writes it.
struct PathLock {
    file: File,
    path: PathBuf,
}

impl NixPlace {
    pub fn new(store: &Store) -> Result<Self, StoreError> {
        let state = store.nix.path().ancestors().nth(2).unwrap_or(Path::new("/")).to_owned();
        let dir = state.join("calve");
        let tmp = dir.join("tmp");
        fs::create_dir_all(&tmp).map_err(StoreError::io("make the directory", &tmp))?;
        Ok(Self { state, dir })
    }

    pub fn partials(&self) -> Partials {
        Partials::new(self.dir.join("partial"))
    }

    pub fn scratch(&self) -> Result<Scratch, StoreError> {
        let lock = RootLock::wait(&self.dir.join("lock"))?;
        let tmp = self.dir.join("tmp");
        let leftovers = Scratch::leftovers(&tmp, &lock)?;
        let partials = self.partials();
        leftovers.iter().for_each(|leftover| partials.take(leftover.path()));
        let scratch = Scratch::new(&tmp, &lock);
        // Removing big trees takes time that others need not wait for.
        drop(lock);
        drop(leftovers);
        scratch
    }

    pub fn land(
        &self,
        store: &Store,
        trees: &[(&PathInfo, PathBuf)],
        scratch: &Scratch,
        flush: bool,
    ) -> Result<(), TransferError> {
        for (info, _) in trees {
            info.content_address()
                .map_err(|message| TransferError::WrongAddress { path: info.path.clone(), message })?;
        }
        let _collector = self.keep_collector_away()?;
        let dir =
            StoreDir::open(&store.nix_store_dir).map_err(StoreError::io("write to", &store.nix_store_dir))?;
        let place = |info: &PathInfo| dir.path(&store.nix_store_dir.join(info.path.base_name()));
        let aside = dir.path(scratch.path());
        // In one order for everybody, so that two never wait for each other.
        let mut places: Vec<_> = trees.iter().map(|(info, _)| place(info)).collect();
        places.sort_unstable();
        let locks: Result<Vec<_>, _> = places.iter().map(|place| PathLock::wait(place)).collect();
        let locks = locks?;
        let paths: Vec<_> = trees.iter().map(|(info, _)| info.path.clone()).collect();
        let present = store.present_in_nix(&paths)?;
        let new: Vec<_> = trees.iter().filter(|(info, _)| !present.contains(&info.path)).collect();
        let moves: Vec<_> = new.iter().map(|(info, tree)| (dir.path(tree), place(info))).collect();
        let landed = move_in(store, &moves, &aside, flush).and_then(|()| {
            let infos: Vec<_> = new.iter().map(|(info, _)| *info).collect();
            self.register(store, &infos)
        });
        if landed.is_err() {
            // Whether Nix took them before it failed is asked again: what is valid stays.
            let valid = store.present_in_nix(&paths).unwrap_or_default();
            for (info, _) in new.iter().filter(|(info, _)| !valid.contains(&info.path)) {
                let _ = store.move_away(&place(info), &aside);
            }
        }
        locks.into_iter().for_each(PathLock::release);
        landed
    }

    /// Holds off Nix's garbage collector, or waits for one that runs.
    fn keep_collector_away(&self) -> Result<File, StoreError> {
        let path = self.state.join("gc.lock");
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let locked = file.and_then(|file| file.lock_shared().map(|()| file));
        locked.map_err(StoreError::io("lock", &path))
    }

    /// Registers paths, by hand where the tables are known and by Nix's program where they are not.
    fn register(&self, store: &Store, infos: &[&PathInfo]) -> Result<(), TransferError> {
        if infos.is_empty() {
            return Ok(());
        }
        let schema = fs::read_to_string(self.state.join("db/schema")).unwrap_or_default();
        if schema.trim() != SCHEMA {
            return load(store, infos);
        }
        if database::knows(infos) {
            return database::register(store, infos);
        }
        load(store, infos)?;
        database::add_signatures(store, infos)
    }
}

/// Moves trees to their places; what lies there goes to `aside`.
fn move_in(
    store: &Store,
    moves: &[(PathBuf, PathBuf)],
    aside: &Path,
    flush: bool,
) -> Result<(), TransferError> {
    for (tree, place) in moves {
        store.move_away(place, aside)?;
        fs::rename(tree, place).map_err(StoreError::io("write", place))?;
        seal_root(place)?;
    }
    if !flush {
        return Ok(());
    }
    let dir = &store.nix_store_dir;
    let synced = File::open(dir).and_then(|dir| Ok(rustix::fs::syncfs(dir)?));
    Ok(synced.map_err(StoreError::io("write", dir))?)
}

/// What `nix-store --load-db` reads to know of these paths: as `nix-store --dump-db` writes it, without signatures.
pub fn registration<'a>(infos: impl IntoIterator<Item = &'a PathInfo>) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    for info in infos {
        let deriver = info.deriver.as_ref().map(ToString::to_string).unwrap_or_default();
        let (hash, size, count) = (info.nar_hash.to_hex(), info.nar_size, info.references.len());
        writeln!(text, "{}\n{hash}\n{size}\n{deriver}\n{count}", info.path).expect("into a string");
        info.references.iter().for_each(|path| writeln!(text, "{path}").expect("into a string"));
    }
    text
}

/// Registers paths in one transaction, by Nix's own program.
fn load(store: &Store, infos: &[&PathInfo]) -> Result<(), TransferError> {
    let text = registration(infos.iter().copied());
    let failed = |message| TransferError::NixRegistration { paths: infos.len(), message };
    let run = || {
        let mut child = Command::new(store.nix.program())
            .arg("--load-db")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut input = child.stdin.take().expect("it is piped");
        // It reads all before it writes anything; when it died early, its own words say why.
        let _ = input.write_all(text.as_bytes());
        drop(input);
        child.wait_with_output()
    };
    let output = run().map_err(|error| failed(format!("{}: {error}", store.nix.program().display())))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no message");
    Err(failed(last.trim().to_owned()))
}

impl PathLock {
    fn wait(place: &Path) -> Result<Self, StoreError> {
        let mut name = place.as_os_str().to_owned();
        name.push(".lock");
        let path = PathBuf::from(name);
        loop {
            let open = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path);
            let locked = open.and_then(|file| {
                file.lock()?;
                Ok((file.metadata()?.len(), file))
            });
            match locked.map_err(StoreError::io("lock", &path))? {
                (0, file) => return Ok(Self { file, path }),
                // Whoever held it has removed it meanwhile, and says so by its length.
                _ => continue,
            }
        }
    }

    fn release(mut self) {
        let _ = fs::remove_file(&self.path);
        let _ = self.file.write_all(b"d");
    }
}
