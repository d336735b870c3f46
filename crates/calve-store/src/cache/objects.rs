//! Where a cache's objects lie: a local directory, or S3.

use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};

use super::CacheError;

/// Which storage.
#[derive(Debug, Clone)]
pub enum Storage {
    /// The directory `objects` beside the index.
    Local,
    /// Another directory.
    Directory(PathBuf),
    /// S3, as `s3://bucket/prefix`, with options as the `object_store` crate names them (`endpoint`, `region`,
    /// `access_key_id`, `secret_access_key`, `allow_http`, …); what is not named is taken from `AWS_…` variables.
    S3 {
        /// The address.
        url: String,
        /// Its options.
        options: Vec<(String, String)>,
    },
    /// The memory of this process, for tests.
    Memory(Arc<object_store::memory::InMemory>),
}

/// An object that was listed.
#[derive(Debug, Clone)]
pub(super) struct Listed {
    pub name: String,
    pub bytes: u64,
    /// When it was written, by the storage's clock, in milliseconds since 1970.
    pub made_ms: i64,
}

/// The objects.
#[derive(Debug, Clone)]
pub(super) struct Objects {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    shown: String,
    /// Where they are files.
    dir: Option<PathBuf>,
}

impl Objects {
    /// Opens the storage of a cache with this directory.
    pub fn open(storage: &Storage, dir: &FsPath) -> Result<Self, CacheError> {
        match storage {
            Storage::Local => Self::directory(&local_dir(dir)),
            Storage::Directory(dir) => Self::directory(dir),
            Storage::S3 { url, options } => Self::s3(url, options),
            Storage::Memory(store) => Ok(Self {
                store: store.clone(),
                prefix: Path::default(),
                shown: "memory".to_owned(),
                dir: None,
            }),
        }
    }

    /// Whether they are files in the directory of a cache.
    pub fn lie_in(&self, dir: &FsPath) -> bool {
        self.dir.as_deref().is_some_and(|objects| objects == local_dir(dir))
    }

    fn directory(dir: &FsPath) -> Result<Self, CacheError> {
        std::fs::create_dir_all(dir).map_err(CacheError::io("create", dir))?;
        // A row that names an object is written after it: the object must not be lost with the power before its row.
        let store = LocalFileSystem::new_with_prefix(dir).map_err(storage("open", &dir.display()))?;
        let store = Arc::new(store.with_fsync(true));
        let shown = dir.display().to_string();
        Ok(Self { store, prefix: Path::default(), shown, dir: Some(dir.to_owned()) })
    }

    fn s3(url: &str, options: &[(String, String)]) -> Result<Self, CacheError> {
        // Whoever else runs in this process may have chosen already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let rest = url.strip_prefix("s3://").ok_or_else(|| {
            CacheError::Setting(format!("{url:?} is no address of S3 storage; write s3://bucket/prefix"))
        })?;
        let prefix = rest.split_once('/').map_or("", |(_, prefix)| prefix);
        let prefix = Path::parse(prefix)
            .map_err(|error| CacheError::Setting(format!("{url:?} has a bad prefix: {error}")))?;
        let mut builder = object_store::aws::AmazonS3Builder::from_env().with_url(url);
        for (key, value) in options {
            let key = key.to_ascii_lowercase().parse().map_err(|_| {
                CacheError::Setting(format!(
                    "{key:?} is no option of S3 storage; for example: endpoint, region"
                ))
            })?;
            builder = builder.with_config(key, value);
        }
        let store = builder.build().map_err(storage("open", &url))?;
        Ok(Self { store: Arc::new(store), prefix, shown: url.to_owned(), dir: None })
    }

    /// Its address.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    fn path(&self, name: &str) -> Path {
        self.prefix.parts().chain(Path::from(name).parts()).collect()
    }

    /// Writes an object, whole or not at all.
    pub async fn put(&self, name: &str, bytes: PutPayload) -> Result<(), CacheError> {
        let put = self.store.put(&self.path(name), bytes).await;
        put.map(drop).map_err(storage("write", &name))
    }

    /// The whole object.
    pub async fn get(&self, name: &str) -> Result<Bytes, CacheError> {
        let got = self.store.get(&self.path(name)).await.map_err(storage("read", &name))?;
        got.bytes().await.map_err(storage("read", &name))
    }

    /// Bytes `from..from + len` of an object.
    pub async fn range(&self, name: &str, from: u64, len: u64) -> Result<Bytes, CacheError> {
        // For a file, this is one job on another thread, where `get_range` is two.
        let range = from..from + len;
        let path = self.path(name);
        let shorter = || CacheError::damaged(format!("object {name}"), "it is shorter than the index says");
        match self.store.get_ranges(&path, std::slice::from_ref(&range)).await {
            Ok(ranges) => {
                let bytes = ranges.into_iter().next();
                bytes.filter(|bytes| bytes.len() as u64 == len).ok_or_else(shorter)
            }
            // That a file is too short is one error among others.
            Err(error) => match self.store.head(&path).await {
                Ok(meta) if meta.size < range.end => Err(shorter()),
                _ => Err(storage("read", &name)(error)),
            },
        }
    }

    /// Removes an object; absence is success.
    pub async fn delete(&self, name: &str) -> Result<(), CacheError> {
        match self.store.delete(&self.path(name)).await {
            Err(object_store::Error::NotFound { .. }) => Ok(()),
            result => result.map_err(storage("remove", &name)),
        }
    }

    /// Removes the files of half-written objects older than a time, where objects are files: `object_store` writes to
    /// `<name>#<number>` first and lists no such name. Blocks. Gives how many there were.
    pub fn remove_halves(&self, before: SystemTime) -> Result<u64, CacheError> {
        let mut removed = 0;
        let mut open: Vec<_> = self.dir.iter().map(|dir| dir.join("packs")).collect();
        while let Some(dir) = open.pop() {
            let Ok(files) = std::fs::read_dir(&dir) else { continue };
            for file in files.flatten() {
                let Ok(metadata) = file.metadata() else { continue };
                let half = file.file_name().to_string_lossy().contains('#');
                if metadata.is_dir() {
                    open.push(file.path());
                } else if half && metadata.modified().is_ok_and(|time| time < before) {
                    let path = file.path();
                    std::fs::remove_file(&path).map_err(CacheError::io("remove", &path))?;
                    removed += 1;
                }
            }
        }
        Ok(removed)
    }

    /// The objects whose names begin with `folder/`.
    pub fn list(&self, folder: &str) -> BoxStream<'static, Result<Listed, CacheError>> {
        let skip = self.prefix.as_ref().len() + usize::from(!self.prefix.as_ref().is_empty());
        let folder_name = folder.to_owned();
        let listed = self.store.list(Some(&self.path(folder)));
        listed
            .map(move |meta| {
                let meta = meta.map_err(storage("list", &folder_name))?;
                Ok(Listed {
                    name: meta.location.as_ref()[skip..].to_owned(),
                    bytes: meta.size,
                    made_ms: meta.last_modified.timestamp_millis(),
                })
            })
            .boxed()
    }
}

impl CacheError {
    /// Whether an object is gone, as after a collection that moved its chunks.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self, Self::Storage { source: object_store::Error::NotFound { .. }, .. })
    }
}

/// Where the objects of a cache with this directory are, unless it is said.
fn local_dir(dir: &FsPath) -> PathBuf {
    dir.join("objects")
}

fn storage(
    action: &'static str,
    object: &dyn std::fmt::Display,
) -> impl FnOnce(object_store::Error) -> CacheError + use<> {
    let object = object.to_string();
    move |source| CacheError::Storage { action, object, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_object_that_is_too_short_is_damaged_and_one_that_is_gone_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        for storage in [Storage::Local, Storage::Memory(Arc::default())] {
            let objects = Objects::open(&storage, dir.path()).unwrap();
            objects.put("packs/a", PutPayload::from_static(b"0123456789")).await.unwrap();
            assert_eq!(objects.range("packs/a", 2, 8).await.unwrap(), "23456789");
            for (from, len) in [(2, 9), (10, 1), (11, 5)] {
                let error = objects.range("packs/a", from, len).await.unwrap_err();
                assert!(matches!(error, CacheError::Damaged { .. }), "{from}, {len}: {error}");
            }
            assert!(objects.range("packs/b", 0, 1).await.unwrap_err().is_gone());
        }
    }
}
