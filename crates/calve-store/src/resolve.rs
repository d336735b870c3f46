//! Following a path through directories and symbolic links, where store paths may lie elsewhere than their names say.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use calve_nix::StorePath;
use calve_nix::store_path::STORE_DIR;

/// Most symbolic links on the way to a file, as in Linux (path_resolution(7)).
pub const LINKS_MAX: usize = 40;

/// A place inside a store path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inside {
    /// The store path.
    pub path: StorePath,
    /// The names that lead from it to the place.
    pub names: Vec<OsString>,
}

/// Where a path led.
#[derive(Debug)]
pub struct Resolved {
    /// The first store path on the way, with what was still to go from there; none where no link led there, or where
    /// what was to go holds `..`, which means nothing before links are followed.
    pub entry: Option<Inside>,
    /// Where it ended.
    pub end: End,
}

/// Where a path ended; nothing there is a symbolic link.
#[derive(Debug)]
pub enum End {
    /// In a store path, at this place on the host.
    Inside(Inside, PathBuf),
    /// Outside of every store path.
    Outside(PathBuf),
}

/// Why a path leads nowhere.
#[derive(Debug)]
pub enum ResolveError {
    /// To a store path that is not held.
    NotHeld(StorePath),
    /// The operating system refused at this place.
    Io(PathBuf, io::Error),
    /// Through too many links.
    TooManyLinks,
    /// Out of the store, where that is not allowed.
    LeadsOut(PathBuf),
}

/// The world in which a path is followed.
pub struct World<'a> {
    /// Directories of the host that hold store paths besides the logical store directory.
    pub store_dirs: &'a [&'a Path],
    /// Where a store path lies on the host.
    pub host_path_of: &'a dyn Fn(&StorePath) -> Option<PathBuf>,
    /// Whether there is anything but store paths.
    pub has_outside: bool,
}

enum Here {
    Outside(PathBuf),
    StoreDir,
    Inside(Inside),
}

struct Walker<'a> {
    world: &'a World<'a>,
    here: Here,
    todo: VecDeque<OsString>,
    entry: Option<Option<Inside>>,
    links: usize,
}

/// Follows the absolute `path` to its end.
pub fn resolve(path: &Path, world: &World) -> Result<Resolved, ResolveError> {
    let here = Here::Outside("/".into());
    let mut walker = Walker { world, here, todo: VecDeque::new(), entry: None, links: 0 };
    walker.go(path);
    while let Some(name) = walker.todo.pop_front() {
        walker.step(name)?;
    }
    let end = match walker.here {
        Here::Inside(inside) => {
            let host = walker.world.host_path(&inside)?;
            End::Inside(inside, host)
        }
        Here::StoreDir => End::Outside(STORE_DIR.into()),
        Here::Outside(path) => End::Outside(path),
    };
    match end {
        End::Outside(path) if !world.has_outside => Err(ResolveError::LeadsOut(path)),
        end => Ok(Resolved { entry: walker.entry.flatten(), end }),
    }
}

impl World<'_> {
    fn host_path(&self, inside: &Inside) -> Result<PathBuf, ResolveError> {
        let root = (self.host_path_of)(&inside.path);
        let mut host = root.ok_or_else(|| ResolveError::NotHeld(inside.path.clone()))?;
        host.extend(&inside.names);
        Ok(host)
    }
}

impl Walker<'_> {
    /// Puts a path before what is still to go.
    fn go(&mut self, path: &Path) {
        let mut rest = path;
        if path.is_absolute() {
            self.here = Here::Outside("/".into());
            // The logical directory need not exist on this host.
            if let Ok(inside) = path.strip_prefix(STORE_DIR) {
                self.here = Here::StoreDir;
                rest = inside;
            }
        }
        for component in rest.components().rev() {
            match component {
                Component::Normal(name) => self.todo.push_front(name.to_owned()),
                Component::ParentDir => self.todo.push_front("..".into()),
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
    }

    fn step(&mut self, name: OsString) -> Result<(), ResolveError> {
        if name == ".." {
            self.up();
            return Ok(());
        }
        match &self.here {
            Here::Outside(dir) if !self.world.has_outside => Err(ResolveError::LeadsOut(dir.join(name))),
            Here::Outside(dir) => {
                let next = dir.join(name);
                if next == Path::new(STORE_DIR) || self.world.store_dirs.contains(&next.as_path()) {
                    self.here = Here::StoreDir;
                    return Ok(());
                }
                let host = next.clone();
                self.enter(Here::Outside(next), &host)
            }
            Here::StoreDir => match name.to_str().and_then(|name| StorePath::from_base_name(name).ok()) {
                Some(path) => {
                    let inside = Inside { path, names: Vec::new() };
                    self.remember_entry(&inside);
                    let host = self.world.host_path(&inside)?;
                    self.enter(Here::Inside(inside), &host)
                }
                None => {
                    let next = Path::new(STORE_DIR).join(name);
                    if !self.world.has_outside {
                        return Err(ResolveError::LeadsOut(next));
                    }
                    let host = next.clone();
                    self.enter(Here::Outside(next), &host)
                }
            },
            Here::Inside(inside) => {
                let mut next = inside.clone();
                next.names.push(name);
                let host = self.world.host_path(&next)?;
                self.enter(Here::Inside(next), &host)
            }
        }
    }

    /// Goes to `next`, which lies at `host`, or where it leads if it is a link.
    fn enter(&mut self, next: Here, host: &Path) -> Result<(), ResolveError> {
        let at = |error| ResolveError::Io(host.to_owned(), error);
        if !fs::symlink_metadata(host).map_err(at)?.is_symlink() {
            self.here = next;
            return Ok(());
        }
        self.links += 1;
        if self.links > LINKS_MAX {
            return Err(ResolveError::TooManyLinks);
        }
        self.go(&fs::read_link(host).map_err(at)?);
        Ok(())
    }

    fn up(&mut self) {
        match &mut self.here {
            Here::Outside(dir) => {
                dir.pop();
            }
            Here::StoreDir => {
                self.here = Here::Outside(Path::new(STORE_DIR).parent().expect("not the root").into())
            }
            Here::Inside(inside) => {
                if inside.names.pop().is_none() {
                    self.here = Here::StoreDir;
                }
            }
        }
    }

    fn remember_entry(&mut self, inside: &Inside) {
        if self.entry.is_none() {
            let plain = !self.todo.iter().any(|name| name == "..");
            let names = self.todo.iter().cloned().collect();
            self.entry = Some(plain.then(|| Inside { path: inside.path.clone(), names }));
        }
    }
}
