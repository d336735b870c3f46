//! Store paths that lie on the host, for measurements below the server.

use std::fs;
use std::path::PathBuf;

use calve_store::ClosurePath;

use crate::support::{new_id, order};

/// The first path holds the program.
pub struct Store {
    dir: tempfile::TempDir,
    names: Vec<String>,
}

impl Store {
    pub fn new(paths: usize) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let names: Vec<_> =
            (0..paths).map(|n| format!("0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-path-{n}")).collect();
        for name in &names {
            fs::create_dir_all(dir.path().join(name).join("bin")).expect("made");
        }
        fs::copy("/bin/busybox", dir.path().join(&names[0]).join("bin/busybox"))
            .expect("busybox-static is installed");
        Self { dir, names }
    }

    /// Where each lies, and where it is seen.
    pub fn mounts(&self) -> impl Iterator<Item = (PathBuf, String)> {
        self.names.iter().map(|name| (self.dir.path().join(name), format!("/nix/store/{name}")))
    }

    pub fn program(&self) -> String {
        format!("/nix/store/{}/bin/busybox", self.names[0])
    }

    pub fn order(&self) -> calve_node::Order {
        let mut order = order(new_id(), 1);
        let path = |(host_path, path): (PathBuf, String)| ClosurePath {
            path: path.parse().expect("a path"),
            host_path,
        };
        order.closure.paths = self.mounts().map(path).collect();
        order
    }
}
