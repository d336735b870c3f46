//! A closure seen as the machine will see it: links inside it point to `/nix/store/…`, wherever its bytes lie here.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Component, Path, PathBuf};

use calve_nix::store_path::STORE_DIR;
use calve_store::Closure;

/// Most links followed for one path, as in the kernel (`path_resolution(7)`).
const LINKS_MAX: usize = 40;

/// Finds logical paths of a closure on this host; an empty closure leaves paths as they are.
#[derive(Debug, Clone, Default)]
pub struct ClosureView {
    places: BTreeMap<OsString, PathBuf>,
}

impl ClosureView {
    /// The view of a closure.
    pub fn new(closure: &Closure) -> Self {
        let place =
            |entry: &calve_store::ClosurePath| (entry.path.base_name().into(), entry.host_path.clone());
        Self { places: closure.paths.iter().map(place).collect() }
    }

    /// Where the file or directory behind a logical path lies on this host, links followed.
    ///
    /// # Errors
    /// `NotFound` where the path or a link on the way leads out of the closure.
    pub fn resolve(&self, logical: &Path) -> io::Result<PathBuf> {
        if self.places.is_empty() {
            return logical.canonicalize();
        }
        let mut path = logical.to_owned();
        for _ in 0..LINKS_MAX {
            match self.first_link(&path)? {
                None => return self.on_host(&path),
                Some(target) => path = target,
            }
        }
        Err(io::Error::from_raw_os_error(libc::ELOOP))
    }

    /// The path with its first link replaced by where that leads; none where no component is a link.
    fn first_link(&self, path: &Path) -> io::Result<Option<PathBuf>> {
        let mut seen = PathBuf::new();
        let mut components = path.components();
        while let Some(component) = components.next() {
            match component {
                Component::ParentDir => {
                    seen.pop();
                    continue;
                }
                component => seen.push(component),
            }
            if seen.strip_prefix(STORE_DIR).is_ok_and(|rest| rest.as_os_str().is_empty())
                || !seen.starts_with(STORE_DIR)
            {
                continue;
            }
            let host = self.on_host(&seen)?;
            if host.symlink_metadata()?.is_symlink() {
                let target = std::fs::read_link(&host)?;
                seen.pop();
                return Ok(Some(seen.join(target).join(components.as_path())));
            }
        }
        Ok(None)
    }

    fn on_host(&self, logical: &Path) -> io::Result<PathBuf> {
        let outside = || {
            io::Error::new(io::ErrorKind::NotFound, format!("{} is not in the closure", logical.display()))
        };
        let mut inside = PathBuf::new();
        for component in logical.components() {
            match component {
                Component::ParentDir => drop(inside.pop()),
                component => inside.push(component),
            }
        }
        let rest = inside.strip_prefix(STORE_DIR).map_err(|_| outside())?;
        let mut parts = rest.components();
        let base = parts.next().ok_or_else(outside)?;
        let place = self.places.get(base.as_os_str()).ok_or_else(outside)?;
        let rest = parts.as_path();
        Ok(if rest.as_os_str().is_empty() { place.clone() } else { place.join(rest) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use calve_nix::StorePath;
    use calve_store::ClosurePath;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_between_store_paths_are_followed_to_where_the_bytes_lie() {
        let dir = std::env::temp_dir().join(format!("calve-view-{}", std::process::id()));
        let (a, b) = ("0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-top", "1c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-linux");
        fs::create_dir_all(dir.join(a)).unwrap();
        fs::create_dir_all(dir.join(b).join("lib")).unwrap();
        fs::write(dir.join(b).join("lib/f"), "x").unwrap();
        symlink(format!("/nix/store/{b}/lib"), dir.join(a).join("m")).unwrap();
        symlink("lib/../lib/f", dir.join(b).join("g")).unwrap();
        symlink("/etc", dir.join(a).join("out")).unwrap();
        symlink("loop", dir.join(a).join("loop")).unwrap();
        let paths = [a, b].map(|base| ClosurePath {
            path: StorePath::from_base_name(base).unwrap(),
            host_path: dir.join(base),
        });
        let view = ClosureView::new(&Closure { paths: paths.to_vec() });
        let resolve = |path: &str| view.resolve(Path::new(path));
        let file = dir.join(b).join("lib/f");
        assert_eq!(resolve(&format!("/nix/store/{a}/m/f")).unwrap(), file);
        assert_eq!(resolve(&format!("/nix/store/{b}/g")).unwrap(), file);
        assert_eq!(
            resolve(&format!("/nix/store/{a}/out/passwd")).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        assert_eq!(resolve(&format!("/nix/store/{a}/loop")).unwrap_err().raw_os_error(), Some(libc::ELOOP));
        fs::remove_dir_all(dir).unwrap();
    }
}
