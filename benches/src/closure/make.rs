//! Closures made up in a Nix store of their own, and registered there by Nix itself.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, ensure};
use calve_nix::{Sha256Hash, StorePath};
use calve_store::archive::hash_tree;

use super::content::{Contents, Random};
use super::nix::NixRoot;

/// Bytes of a file's copy in memory on its way to the disk.
const BUFFER_BYTES: usize = 1 << 20;
/// Levels that paths refer to each other over, about as in a system of that many paths.
const LEVELS: usize = 20;
/// What most paths refer to.
const REFERENCES: usize = 5;
/// Files of one directory.
const DIR_FILES: usize = 50;

/// A closure in the store that everything is pushed from.
pub struct Made {
    pub root: StorePath,
    pub archive_bytes: u64,
    paths: Vec<StorePath>,
}

pub struct Maker<'a> {
    nix: &'a NixRoot,
    contents: Contents,
}

impl<'a> Maker<'a> {
    pub fn new(nix: &'a NixRoot) -> anyhow::Result<Self> {
        Ok(Self { nix, contents: Contents::new()? })
    }

    /// One path of many small files.
    pub fn small_files(&self, count: usize) -> anyhow::Result<Made> {
        let path = path_of("small-files", 0, 0)?;
        for n in 0..count {
            let dir = self.nix.host_path(&path).join(format!("dir-{}", n / DIR_FILES));
            fs::create_dir_all(&dir)?;
            let file = dir.join(format!("file-{n}"));
            fs::write(&file, self.contents.small_file(n)?)?;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o444))?;
        }
        self.register(vec![(path, Vec::new())])
    }

    /// One path of few large files, like programs.
    pub fn large_files(&self, count: usize, bytes: usize) -> anyhow::Result<Made> {
        let path = path_of("large-files", 0, 0)?;
        let mut random = Random::new(2);
        for n in 0..count {
            let file = self.nix.host_path(&path).join(format!("lib/lib{n}.so"));
            self.file(&file, Contents::elf, &mut random, bytes, &[])?;
        }
        self.register(vec![(path, Vec::new())])
    }

    /// One path with a static program and files like libraries.
    pub fn program_with_files(&self, count: usize, bytes: usize) -> anyhow::Result<Made> {
        let path = path_of("program", 0, 0)?;
        let host = self.nix.host_path(&path);
        let mut random = Random::new(3);
        for n in 0..count {
            self.file(&host.join(format!("lib/lib{n}.so")), Contents::elf, &mut random, bytes, &[])?;
        }
        fs::create_dir_all(host.join("bin"))?;
        fs::copy("/bin/busybox", host.join("bin/busybox")).context("busybox-static is installed")?;
        self.register(vec![(path, Vec::new())])
    }

    /// Many paths of a few files, on levels as in real closures: each names some of those below it, the last all that
    /// nobody else does. `version` changes what they are called and what their references are called, and nothing else.
    pub fn many_paths(&self, name: &str, count: usize, bytes: usize, version: u64) -> anyhow::Result<Made> {
        let mut paths: Vec<(StorePath, Vec<StorePath>)> = Vec::new();
        let mut unused: BTreeSet<usize> = BTreeSet::new();
        // The first path of the level that path `n` stands on.
        let level = |n: usize| (n * LEVELS / count * count).div_ceil(LEVELS);
        for n in 0..count {
            let path = path_of(&format!("{name}-{n}"), n as u64, version)?;
            let mut random = Random::new(1000 + n as u64);
            let mut used = BTreeSet::new();
            if let Some(below) = level(n).checked_sub(1) {
                let from = level(below);
                used.insert(from + random.below((below + 1 - from) as u64) as usize);
                used.extend((1..REFERENCES).map(|_| random.below(below as u64 + 1) as usize));
            }
            unused = &unused - &used;
            if n + 1 == count {
                used.append(&mut unused);
            }
            unused.insert(n);
            // Named in the order of their making, which no hash changes.
            let references: Vec<_> = used.into_iter().map(|n| paths[n].0.clone()).collect();
            // Sizes as in real closures: most paths are small, a few hold most of the bytes.
            let size = if n % 10 == 0 { bytes * 6 } else { bytes * 4 / 9 };
            let host = self.nix.host_path(&path);
            self.file(&host.join("lib/program"), Contents::elf, &mut random, size * 3 / 4, &references)?;
            self.file(&host.join("share/text"), Contents::text, &mut random, size / 4, &references)?;
            paths.push((path, references));
        }
        self.register(paths)
    }

    /// The same with one file of it changed. Gives the changed file's size too.
    pub fn changed(&self, made: &Made, file: &str) -> anyhow::Result<(Made, u64)> {
        let name = made.root.name().to_owned();
        let path = path_of(&name, 0, 1)?;
        let (from, to) = (self.nix.host_path(&made.root), self.nix.host_path(&path));
        link_tree(&from, &to)?;
        let file = to.join(file);
        let mut bytes = fs::read(&file)?;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::remove_file(&file)?;
        fs::write(&file, &bytes)?;
        Ok((self.register(vec![(path, Vec::new())])?, bytes.len() as u64))
    }

    fn file(
        &self,
        file: &Path,
        content: impl Fn(&Contents, &mut Random, usize, &mut BufWriter<File>) -> std::io::Result<()>,
        random: &mut Random,
        size: usize,
        references: &[StorePath],
    ) -> anyhow::Result<()> {
        fs::create_dir_all(file.parent().expect("below a root"))?;
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, File::create(file)?);
        for part in 0..=references.len() {
            content(&self.contents, random, size / (references.len() + 1), &mut out)?;
            if let Some(reference) = references.get(part) {
                write!(out, "\0{reference}/lib\0")?;
            }
        }
        let file = out.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        file.set_permissions(fs::Permissions::from_mode(0o444))?;
        Ok(())
    }

    fn register(&self, paths: Vec<(StorePath, Vec<StorePath>)>) -> anyhow::Result<Made> {
        use std::fmt::Write;
        let (mut text, mut archive_bytes) = (String::new(), 0);
        for (path, references) in &paths {
            let (hash, size) = hash_tree(&self.nix.host_path(path))?;
            archive_bytes += size;
            writeln!(text, "{path}\n{}\n{size}\n\n{}", hash.to_hex(), references.len())?;
            references.iter().try_for_each(|reference| writeln!(text, "{reference}"))?;
        }
        let mut command = self.nix.command("nix-store");
        command.args(["--load-db", "--store"]).arg(self.nix.root()).stdin(Stdio::piped());
        let mut child = command.spawn().context("nix-store starts")?;
        child.stdin.take().expect("piped").write_all(text.as_bytes())?;
        ensure!(child.wait()?.success(), "nix-store --load-db failed");
        let root = paths.last().context("a path")?.0.clone();
        Ok(Made { root, archive_bytes, paths: paths.into_iter().map(|(path, _)| path).collect() })
    }
}

impl Made {
    pub fn paths(&self) -> &[StorePath] {
        &self.paths
    }

    pub fn files(&self, nix: &NixRoot) -> Vec<PathBuf> {
        let mut files = Vec::new();
        let mut dirs: Vec<PathBuf> = self.paths.iter().map(|path| nix.host_path(path)).collect();
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).expect("made here").map(|entry| entry.expect("made here").path()) {
                if entry.is_dir() { dirs.push(entry) } else { files.push(entry) }
            }
        }
        files.sort_unstable();
        files
    }
}

fn path_of(name: &str, n: u64, version: u64) -> anyhow::Result<StorePath> {
    Ok(StorePath::from_source(name, &Sha256Hash::of(format!("{n} {version}").as_bytes()))?)
}

/// Equal files are the same ones: nothing here writes to them again.
fn link_tree(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let at = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => link_tree(&entry.path(), &at)?,
            false => fs::hard_link(entry.path(), at)?,
        }
    }
    Ok(())
}
