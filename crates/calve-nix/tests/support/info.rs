//! Store paths, hashes and narinfos made at random.

use calve_nix::content_address::IngestionMethod;
use calve_nix::{
    AnyHash, Compression, ContentAddress, HashAlgorithm, NarInfo, SecretKey, Sha256Hash, Signature,
    StorePath, base32,
};
use proptest::prelude::*;

pub fn store_path() -> impl Strategy<Value = StorePath> {
    let name = "[a-zA-Z0-9+_?=][a-zA-Z0-9+._?=-]{0,30}";
    (any::<[u8; 20]>(), name).prop_map(|(hash, name)| {
        StorePath::from_base_name(&format!("{}-{name}", base32::encode(&hash))).unwrap()
    })
}

pub fn sha256() -> impl Strategy<Value = Sha256Hash> {
    any::<[u8; 32]>().prop_map(Sha256Hash::from)
}

pub fn content_address() -> impl Strategy<Value = ContentAddress> {
    let algorithms = [HashAlgorithm::Md5, HashAlgorithm::Sha1, HashAlgorithm::Sha256, HashAlgorithm::Sha512];
    let method =
        prop::sample::select(vec![IngestionMethod::Flat, IngestionMethod::Nar, IngestionMethod::Git]);
    let hash =
        (prop::sample::select(algorithms.to_vec()), any::<[u8; 32]>()).prop_map(|(algorithm, bytes)| {
            let digest = [bytes, bytes].concat()[..algorithm.digest_bytes()].to_vec();
            AnyHash::new(algorithm, digest).unwrap()
        });
    prop_oneof![
        sha256().prop_map(ContentAddress::Text),
        (method, hash).prop_map(|(method, hash)| ContentAddress::Fixed { method, hash }),
    ]
}

pub fn signature() -> impl Strategy<Value = Signature> {
    ("[a-z][a-z0-9.-]{0,20}", any::<[u8; 32]>())
        .prop_map(|(name, seed)| SecretKey::from_seed(&name, seed).unwrap().sign("anything"))
}

pub fn narinfo() -> impl Strategy<Value = NarInfo> {
    let file = (
        "[a-zA-Z0-9/._~%?=&-]{1,60}",
        prop::sample::select(Compression::ALL.to_vec()),
        prop::option::of(sha256()),
        prop::option::of(any::<u64>()),
    );
    let nar = (sha256(), 1..=u64::MAX, prop::collection::btree_set(store_path(), 0..5));
    let rest = (
        prop::option::of(store_path()),
        prop::option::of("[a-z0-9_]{1,10}-[a-z]{1,8}"),
        prop::collection::btree_set(signature(), 0..3),
        prop::option::of(content_address()),
    );
    (store_path(), file, nar, rest).prop_map(|(store_path, file, nar, rest)| {
        let (url, compression, file_hash, file_size) = file;
        let (nar_hash, nar_size, references) = nar;
        let (deriver, system, signatures, content_address) = rest;
        NarInfo {
            store_path,
            url,
            compression,
            file_hash,
            file_size,
            nar_hash,
            nar_size,
            references,
            deriver,
            system,
            signatures,
            content_address,
        }
    })
}
