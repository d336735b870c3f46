//! Manifests as they are stored.

use calve_nix::{Sha256Hash, StorePath};
use serde::{Deserialize, Serialize};

use super::CacheError;
use crate::PathInfo;
use crate::chunk::ChunkId;
use crate::lazy::Proof;
use crate::remote::Manifest;

/// The version of manifests without a proof, and that of those with one.
const VERSIONS: [u8; 2] = [1, 2];

#[derive(Serialize, Deserialize)]
struct Stored {
    path: String,
    nar_hash: [u8; 32],
    nar_size: u64,
    references: Vec<String>,
    deriver: Option<String>,
    ca: Option<String>,
    signatures: Vec<String>,
    recipe: ChunkId,
}

/// The bytes that are stored (postcard, with a version in front).
pub(super) fn encode(manifest: &Manifest) -> Vec<u8> {
    let info = &manifest.info;
    let stored = Stored {
        path: info.path.base_name().to_owned(),
        nar_hash: *info.nar_hash.as_bytes(),
        nar_size: info.nar_size,
        references: info.references.iter().map(|path| path.base_name().to_owned()).collect(),
        deriver: info.deriver.as_ref().map(|path| path.base_name().to_owned()),
        ca: info.ca.clone(),
        signatures: info.signatures.clone(),
        recipe: manifest.recipe,
    };
    let mut bytes = vec![VERSIONS[usize::from(manifest.lazy.is_some())]];
    bytes.extend(postcard::to_allocvec(&stored).expect("a manifest is plain data"));
    if let Some(proof) = &manifest.lazy {
        bytes.extend(postcard::to_allocvec(proof).expect("a proof is plain data"));
    }
    bytes
}

/// What [`encode`] gave.
pub(super) fn decode(bytes: &[u8]) -> Result<Manifest, CacheError> {
    let damaged = |message: String| CacheError::damaged("a manifest", message);
    let (version, rest) = match bytes.split_first() {
        Some((version, rest)) if VERSIONS.contains(version) => (*version, rest),
        Some((version, _)) => return Err(damaged(format!("version {version} is newer than this program"))),
        None => return Err(damaged("it is empty".to_owned())),
    };
    let (stored, rest): (Stored, _) =
        postcard::take_from_bytes(rest).map_err(|error| damaged(error.to_string()))?;
    let lazy: Option<Proof> = match version {
        1 => None,
        _ => Some(postcard::from_bytes(rest).map_err(|error| damaged(error.to_string()))?),
    };
    let path = |base: &str| StorePath::from_base_name(base).map_err(|error| damaged(error.to_string()));
    let info = PathInfo {
        path: path(&stored.path)?,
        nar_hash: Sha256Hash::from(stored.nar_hash),
        nar_size: stored.nar_size,
        references: stored.references.iter().map(|base| path(base)).collect::<Result<_, _>>()?,
        deriver: stored.deriver.as_deref().map(path).transpose()?,
        ca: stored.ca,
        signatures: stored.signatures,
    };
    Ok(Manifest { info, recipe: stored.recipe, lazy })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded() {
        let path = |name: &str| {
            StorePath::from_base_name(&format!("0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-{name}")).unwrap()
        };
        let info = PathInfo {
            path: path("a"),
            nar_hash: Sha256Hash::of(b"a"),
            nar_size: 5,
            references: vec![path("a"), path("b")],
            deriver: Some(path("a.drv")),
            ca: Some("fixed:sha256:0".to_owned()),
            signatures: vec!["k:AA==".to_owned()],
        };
        let proof = Proof { listing: ChunkId::of(b"l"), signatures: vec!["k:BB==".to_owned()] };
        for lazy in [None, Some(proof)] {
            let manifest = Manifest { info: info.clone(), recipe: ChunkId::of(b"r"), lazy };
            let bytes = encode(&manifest);
            assert_eq!(decode(&bytes).unwrap(), manifest);
            assert!(decode(&bytes[..bytes.len() - 1]).is_err());
        }
        assert!(decode(&[3]).unwrap_err().to_string().contains("newer"));
    }
}
