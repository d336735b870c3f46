//! Store paths of a world, and how they are brought to a cache.

use std::collections::BTreeSet;

use calve_nix::{ContentAddress, Sha256Hash, StorePath};
use calve_store::PathInfo;
use calve_store::chunk::StoredChunk;
use calve_store::cut::cut_stored;
use calve_store::recipe::Recipe;
use calve_store::remote::{Manifest, Remote, RemoteError};

use super::PACKAGES;
use crate::closure::archive;
use crate::faults::Faults;
use crate::rng::Rng;

/// Bytes of a file below: several chunks.
const FILE_BYTES_MAX: u64 = 200_000;
/// Level of zstd.
const LEVEL: i32 = 1;

/// A store path with its archive.
#[derive(Debug, Clone)]
pub struct Package {
    pub info: PathInfo,
    pub archive: Vec<u8>,
    contents: Vec<u8>,
}

/// The paths of a world, each after what it refers to.
pub fn make(rng: &mut Rng) -> Vec<Package> {
    let mut made: Vec<Package> = Vec::new();
    for n in 0..rng.range(PACKAGES.0, PACKAGES.1) {
        let mut contents = noise(rng);
        let package = if rng.chance(250) {
            Package::addressed(&format!("p{n}"), contents)
        } else {
            let references: Vec<_> =
                made.iter().filter(|_| rng.chance(500)).map(|package| package.info.path.clone()).collect();
            references.iter().for_each(|path| contents.extend(path.to_string().bytes()));
            let hash = Sha256Hash::of(&rng.next().to_le_bytes()).to_base32();
            let path = StorePath::from_base_name(&format!("{}-p{n}", &hash[..32])).expect("a name");
            Package::new(path, references, None, contents)
        };
        made.push(package);
    }
    made
}

fn noise(rng: &mut Rng) -> Vec<u8> {
    let len = rng.range(1, FILE_BYTES_MAX) as usize;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&rng.next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

impl Package {
    fn new(path: StorePath, mut references: Vec<StorePath>, ca: Option<String>, contents: Vec<u8>) -> Self {
        references.sort_unstable();
        let archive = archive(&contents);
        let (nar_hash, nar_size) = (Sha256Hash::of(&archive), archive.len() as u64);
        let signatures = Vec::new();
        let info = PathInfo { path, nar_hash, nar_size, references, deriver: None, ca, signatures };
        Self { info, archive, contents }
    }

    /// A file whose name follows from its bytes.
    fn addressed(name: &str, contents: Vec<u8>) -> Self {
        let address = format!("fixed:{}", Sha256Hash::of(&contents).to_nix());
        let parsed: ContentAddress = address.parse().expect("an address");
        let path = parsed.store_path(name, &BTreeSet::new(), false).expect("a path");
        Self::new(path, Vec::new(), Some(address), contents)
    }

    /// As the trace calls it.
    pub fn name(&self) -> &str {
        self.info.path.name()
    }

    /// What a stranger has under this name.
    pub fn forged(&self) -> Self {
        let mut contents = self.contents.clone();
        contents[0] ^= 1;
        // An address would give it away to its own cache; what it tells others is another matter.
        Self::new(self.info.path.clone(), self.info.references.clone(), None, contents)
    }

    /// Cut into chunks.
    pub fn cut(&self) -> (Recipe, Vec<StoredChunk>) {
        let references = self.info.counted_references();
        cut_stored(&references, None, LEVEL, |out| out.write_all(&self.archive)).expect("in memory")
    }
}

/// What is brought to a cache for one path.
pub struct Upload {
    manifest: Manifest,
    recipe: Recipe,
    chunks: Vec<StoredChunk>,
}

impl Upload {
    /// As it should be.
    pub fn of(package: &Package) -> Self {
        let (recipe, chunks) = package.cut();
        let manifest = Manifest { info: package.info.clone(), recipe: recipe.id(), lazy: None };
        Self { manifest, recipe, chunks }
    }

    /// One that says what is not so, and what of it that is. `before` are in the cache.
    pub fn spoilt(package: &Package, before: &[Package], faults: &mut Faults) -> (Self, &'static str) {
        let mut upload = Self::of(package);
        let info = &mut upload.manifest.info;
        let how = match faults.range(0, 7) {
            0 => {
                info.nar_hash = Sha256Hash::of(b"another");
                "hash is another's"
            }
            1 => {
                info.nar_size += 8;
                "size is another's"
            }
            2 => {
                let at = faults.range(0, upload.chunks.len() as u64) as usize;
                let forged =
                    StoredChunk::compress(upload.chunks[at].id, b"forged", LEVEL).expect("in memory");
                upload.chunks[at] = StoredChunk { len: upload.chunks[at].len, ..forged };
                "chunk is another's"
            }
            3 => {
                let (recipe, chunks) = package.forged().cut();
                upload.manifest.recipe = recipe.id();
                (upload.recipe, upload.chunks) = (recipe, chunks);
                "recipe is another's"
            }
            4 if upload.recipe.pieces.len() > 1 => {
                upload.recipe.pieces[0].len += 1;
                upload.recipe.pieces[1].len -= 1;
                upload.manifest.recipe = upload.recipe.id();
                "chunks have other lengths"
            }
            4 | 5 => {
                let nowhere = StorePath::from_base_name(&format!("{}-nowhere", "0".repeat(32)));
                info.references.push(nowhere.expect("a name"));
                info.references.sort_unstable();
                "reference is nowhere"
            }
            _ => {
                let address = before.iter().find_map(|other| other.info.ca.clone());
                info.ca =
                    Some(address.unwrap_or_else(|| format!("fixed:r:{}", Sha256Hash::of(b"").to_nix())));
                "address is another's"
            }
        };
        (upload, how)
    }

    /// Brings it.
    pub async fn give(self, cache: &dyn Remote) -> Result<(), RemoteError> {
        cache.put_chunks(self.chunks).await?;
        cache.commit(vec![self.manifest], vec![self.recipe]).await.map(drop)
    }
}
