//! The lists of the protocol: postcard in one zstd frame. `tests/messages/` holds an example of each.
//!
//! Store paths go as the 20 bytes of their hash part and a name that is written once; what refers to them counts. With
//! signatures as bytes, a thousand paths take some 200 KB, most of it hashes and signatures that nothing compresses.

mod counted;

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use calve_nix::{ContentAddress, Sha256Hash, StorePath, base32};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::MESSAGE_PLAIN_MAX_BYTES;
use crate::PathInfo;
use crate::chunk::ChunkId;
use crate::lazy::Proof;
use crate::remote::{Asker, CacheInfo, Directory, ITEMS_MAX, Manifest};

/// Level at which messages are compressed: they are small, and waited for.
const ZSTD_LEVEL: i32 = 1;
/// How many times as large a message may be unpacked as it travels: hashes and keys, of which messages are made, do not
/// shrink, and names of the greatest length beside them give a twelfth. Whoever sends a message pays for the memory.
pub const MESSAGE_RATIO_MAX: usize = 16;
/// What a message may have unpacked, however small it is as it travels.
const MESSAGE_PLAIN_MIN_BYTES: usize = 64 << 10;
/// Bytes of an ed25519 signature.
const SIGNATURE_BYTES: usize = 64;

/// Why bytes are no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the message is damaged: {0}")]
pub struct MessageError(pub String);

/// A type that is sent as a whole.
pub trait Message: Sized {
    /// As it travels.
    fn encode(&self) -> Vec<u8>;

    /// What [`Message::encode`] gave, checked.
    fn decode(bytes: &[u8]) -> Result<Self, MessageError>;
}

/// What `/info` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Info {
    #[serde(deserialize_with = "counted::counted")]
    keys: Vec<String>,
    priority: u32,
}

/// What `/directory` is asked with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Asking {
    mark: [u8; 32],
    pushes: bool,
}

/// What `/directory` answers: a path's bytes, which need not be text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    #[serde(deserialize_with = "counted::counted")]
    path: Vec<u8>,
    mark: [u8; 32],
}

/// A store path without its directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Path {
    hash: [u8; 20],
    name: String,
}

/// Store paths.
#[derive(Serialize, Deserialize)]
struct Paths(#[serde(deserialize_with = "counted::counted")] Vec<Path>);

/// Manifests with everything that they have in common written once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Manifests {
    #[serde(deserialize_with = "counted::counted")]
    paths: Vec<Path>,
    #[serde(deserialize_with = "counted::counted")]
    key_names: Vec<String>,
    #[serde(deserialize_with = "counted::counted")]
    manifests: Vec<Entry>,
}

/// The proofs of manifests, behind [`Manifests`]: who knows nothing of them leaves them unread, and where there are none
/// nothing is written.
#[derive(Default, Serialize, Deserialize)]
struct Proofs(#[serde(deserialize_with = "counted::counted")] Vec<ProofEntry>);

/// One proof, of the manifest with this number.
#[derive(Serialize, Deserialize)]
struct ProofEntry {
    manifest: u32,
    listing: ChunkId,
    #[serde(deserialize_with = "counted::counted")]
    signatures: Vec<Signature>,
}

/// One manifest; numbers are places in the lists of [`Manifests`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    path: u32,
    nar_hash: [u8; 32],
    nar_size: u64,
    #[serde(deserialize_with = "counted::counted")]
    references: Vec<u32>,
    deriver: Option<u32>,
    ca: Option<String>,
    #[serde(deserialize_with = "counted::counted")]
    signatures: Vec<Signature>,
    recipe: ChunkId,
}

/// A signature; one that is no ed25519 is kept as it is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Signature {
    Ed25519 { key: u32, first: [u8; 32], second: [u8; 32] },
    Text(String),
}

impl Message for CacheInfo {
    fn encode(&self) -> Vec<u8> {
        pack(&Info { keys: self.keys.clone(), priority: self.priority })
    }

    fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let Info { keys, priority } = unpack(bytes)?;
        Ok(Self { keys, priority })
    }
}

impl Message for Asker {
    fn encode(&self) -> Vec<u8> {
        let Self { mark, pushes } = *self;
        pack(&Asking { mark, pushes })
    }

    fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let Asking { mark, pushes } = unpack(bytes)?;
        Ok(Self { mark, pushes })
    }
}

impl Message for Directory {
    fn encode(&self) -> Vec<u8> {
        pack(&Place { path: self.path.as_os_str().as_bytes().to_vec(), mark: self.mark })
    }

    fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let Place { path, mark } = unpack(bytes)?;
        let path = PathBuf::from(OsString::from_vec(path));
        if !path.is_absolute() {
            return Err(MessageError(format!("{} is no absolute path", path.display())));
        }
        Ok(Self { path, mark })
    }
}

impl Message for Vec<ChunkId> {
    fn encode(&self) -> Vec<u8> {
        pack(self)
    }

    fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        limited(unpack(bytes)?)
    }
}

impl Message for Vec<StorePath> {
    fn encode(&self) -> Vec<u8> {
        pack(&Paths(self.iter().map(Path::of).collect()))
    }

    fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let Paths(paths) = unpack(bytes)?;
        limited(paths)?.into_iter().map(Path::parse).collect()
    }
}

impl Message for Vec<Manifest> {
    fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        for manifest in self {
            writer.add(manifest);
        }
        pack_bytes(&writer.finish())
    }

    fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let plain = decompress(bytes, plain_max(bytes.len()))?;
        let read = counted::within_limit(|| {
            let (manifests, rest) = postcard::take_from_bytes(&plain)?;
            let proofs = if rest.is_empty() { Proofs::default() } else { postcard::from_bytes(rest)? };
            Ok((manifests, proofs))
        });
        let (Manifests { paths, key_names, manifests }, Proofs(proofs)) =
            read.map_err(|error: postcard::Error| MessageError(error.to_string()))?;
        let paths: Vec<StorePath> = paths.into_iter().map(Path::parse).collect::<Result<_, _>>()?;
        let reader = Reader { paths: &paths, key_names: &key_names };
        let manifests = limited(manifests)?.into_iter().map(|entry| reader.read(entry));
        let mut manifests: Vec<_> = manifests.collect::<Result<_, _>>()?;
        for ProofEntry { manifest: number, listing, signatures } in proofs {
            let manifest = manifests.get_mut(number as usize);
            let manifest =
                manifest.ok_or_else(|| MessageError(format!("it has no manifest number {number}")))?;
            let signatures =
                signatures.into_iter().map(|it| reader.signature(it)).collect::<Result<_, _>>()?;
            manifest.lazy = Some(Proof { listing, signatures });
        }
        Ok(manifests)
    }
}

fn pack(value: &impl Serialize) -> Vec<u8> {
    pack_bytes(&postcard::to_allocvec(value).expect("messages are plain data"))
}

fn pack_bytes(plain: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(plain, ZSTD_LEVEL).expect("compressing into memory does not fail")
}

fn unpack<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, MessageError> {
    let plain = decompress(bytes, plain_max(bytes.len()))?;
    let read = counted::within_limit(|| postcard::from_bytes(&plain));
    read.map_err(|error| MessageError(error.to_string()))
}

/// Most bytes of a message when it is unpacked, of one that travels in so many.
fn plain_max(travelled: usize) -> usize {
    travelled.saturating_mul(MESSAGE_RATIO_MAX).clamp(MESSAGE_PLAIN_MIN_BYTES, MESSAGE_PLAIN_MAX_BYTES)
}

/// The plain bytes of one zstd frame, at most `max` of them.
pub fn decompress(bytes: &[u8], max: usize) -> Result<Vec<u8>, MessageError> {
    use std::io::Read;
    // Read as a stream: room is taken as bytes come, not as the frame claims.
    let wrong = |error: std::io::Error| MessageError(error.to_string());
    let mut plain = Vec::new();
    let reader = zstd::stream::read::Decoder::with_buffer(bytes).map_err(wrong)?.single_frame();
    reader.take(max as u64 + 1).read_to_end(&mut plain).map_err(wrong)?;
    if plain.len() > max {
        return Err(MessageError(format!("it holds more than {max} bytes")));
    }
    Ok(plain)
}

fn limited<T>(items: Vec<T>) -> Result<Vec<T>, MessageError> {
    if items.len() > ITEMS_MAX {
        return Err(MessageError(format!(
            "it names {} things, and at most {ITEMS_MAX} are taken",
            items.len()
        )));
    }
    Ok(items)
}

impl Path {
    fn of(path: &StorePath) -> Self {
        let hash = base32::decode(path.hash_part()).expect("a store path's hash part is base32");
        let hash = hash.try_into().expect("32 characters of base32 are 20 bytes");
        Self { hash, name: path.name().to_owned() }
    }

    fn parse(self) -> Result<StorePath, MessageError> {
        let base_name = format!("{}-{}", base32::encode(&self.hash), self.name);
        StorePath::from_base_name(&base_name).map_err(|error| MessageError(error.to_string()))
    }
}

#[derive(Default)]
struct Writer {
    written: Manifests,
    paths: HashMap<StorePath, u32>,
    key_names: HashMap<String, u32>,
    proofs: Proofs,
}

impl Writer {
    fn add(&mut self, manifest: &Manifest) {
        let info = &manifest.info;
        let entry = Entry {
            path: self.path(&info.path),
            nar_hash: *info.nar_hash.as_bytes(),
            nar_size: info.nar_size,
            references: info.references.iter().map(|path| self.path(path)).collect(),
            deriver: info.deriver.as_ref().map(|path| self.path(path)),
            ca: info.ca.clone(),
            signatures: info.signatures.iter().map(|text| self.signature(text)).collect(),
            recipe: manifest.recipe,
        };
        if let Some(proof) = &manifest.lazy {
            let signatures = proof.signatures.iter().map(|text| self.signature(text)).collect();
            let manifest = self.written.manifests.len() as u32;
            self.proofs.0.push(ProofEntry { manifest, listing: proof.listing, signatures });
        }
        self.written.manifests.push(entry);
    }

    fn finish(self) -> Vec<u8> {
        let mut bytes = postcard::to_allocvec(&self.written).expect("messages are plain data");
        if !self.proofs.0.is_empty() {
            bytes.extend(postcard::to_allocvec(&self.proofs).expect("messages are plain data"));
        }
        bytes
    }

    fn path(&mut self, path: &StorePath) -> u32 {
        if let Some(number) = self.paths.get(path) {
            return *number;
        }
        let number = self.written.paths.len() as u32;
        self.written.paths.push(Path::of(path));
        self.paths.insert(path.clone(), number);
        number
    }

    fn signature(&mut self, text: &str) -> Signature {
        let ed25519 = text.split_once(':').and_then(|(name, base64)| {
            let bytes = STANDARD.decode(base64).ok().filter(|bytes| bytes.len() == SIGNATURE_BYTES)?;
            // Only what is written again exactly as it was.
            (STANDARD.encode(&bytes) == base64).then_some((name, bytes))
        });
        let Some((name, bytes)) = ed25519 else { return Signature::Text(text.to_owned()) };
        let next = self.written.key_names.len() as u32;
        let key = *self.key_names.entry(name.to_owned()).or_insert(next);
        if key == next {
            self.written.key_names.push(name.to_owned());
        }
        let half = |range| <[u8; 32]>::try_from(&bytes[range]).expect("half of 64 bytes");
        Signature::Ed25519 { key, first: half(0..32), second: half(32..64) }
    }
}

struct Reader<'a> {
    paths: &'a [StorePath],
    key_names: &'a [String],
}

impl Reader<'_> {
    fn read(&self, entry: Entry) -> Result<Manifest, MessageError> {
        let path = |number: u32| {
            let path = self.paths.get(number as usize).cloned();
            path.ok_or_else(|| MessageError(format!("it has no path number {number}")))
        };
        let nar_hash = format!("sha256:{}", base32::encode(&entry.nar_hash));
        let nar_hash: Sha256Hash = nar_hash.parse().expect("32 bytes are a hash");
        let info = PathInfo {
            path: path(entry.path)?,
            nar_hash,
            nar_size: entry.nar_size,
            references: entry.references.into_iter().map(path).collect::<Result<_, _>>()?,
            deriver: entry.deriver.map(path).transpose()?,
            ca: entry.ca,
            signatures: entry
                .signatures
                .into_iter()
                .map(|it| self.signature(it))
                .collect::<Result<_, _>>()?,
        };
        if let Some(Err(error)) = info.ca.as_deref().map(str::parse::<ContentAddress>) {
            return Err(MessageError(format!("the content address of {}: {error}", info.path)));
        }
        if !info.references.is_sorted_by(|a, b| a < b) {
            return Err(MessageError(format!("the references of {} are not in order", info.path)));
        }
        Ok(Manifest { info, recipe: entry.recipe, lazy: None })
    }

    fn signature(&self, signature: Signature) -> Result<String, MessageError> {
        match signature {
            Signature::Text(text) => Ok(text),
            Signature::Ed25519 { key, first, second } => {
                let name = self.key_names.get(key as usize);
                let name = name.ok_or_else(|| MessageError(format!("it has no key number {key}")))?;
                Ok(format!("{name}:{}", STANDARD.encode([first, second].concat())))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(digit: char, name: &str) -> StorePath {
        let hash: String = std::iter::repeat_n(digit, 32).collect();
        StorePath::from_base_name(&format!("{hash}-{name}")).unwrap()
    }

    fn manifests() -> Vec<Manifest> {
        let info = |digit, references: &[StorePath], signatures: &[&str]| PathInfo {
            path: path(digit, "a"),
            nar_hash: Sha256Hash::of(&[digit as u8]),
            nar_size: 1 << 40,
            references: references.to_vec(),
            deriver: Some(path('2', "a.drv")),
            ca: Some("fixed:r:sha256:094qif9n4cq4fdg459qzbhg1c6wywawwaaivx0k0x8xhbyx4vwic".to_owned()),
            signatures: signatures.iter().map(|it| (*it).to_owned()).collect(),
        };
        let signature = format!("key-1:{}", STANDARD.encode([9; 64]));
        let first = info('0', &[], &[&signature, "odd", "odd:AAAA"]);
        let second = info('1', &[path('0', "a"), path('1', "a")], &[&signature]);
        [first, second].map(|info| Manifest { info, recipe: ChunkId([5; 32]), lazy: None }).to_vec()
    }

    /// The example that a release wrote is read as this value.
    fn check<T: Message + PartialEq + std::fmt::Debug>(file: &str, value: T) {
        let file = format!("{}/tests/messages/{file}", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("CALVE_WRITE_EXAMPLES").is_some() {
            std::fs::write(&file, value.encode()).unwrap();
        }
        let bytes = std::fs::read(&file).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert_eq!(T::decode(&bytes).as_ref(), Ok(&value), "{file}");
        assert_eq!(T::decode(&value.encode()).as_ref(), Ok(&value));
        for end in 0..bytes.len() {
            assert!(T::decode(&bytes[..end]).is_err(), "{file} cut at {end}");
        }
    }

    #[test]
    fn examples_are_read_and_cut_ones_refused() {
        check("asker.1.bin", Asker { mark: [8; 32], pushes: true });
        check("directory.1.bin", Directory { path: "/var/cache/calve".into(), mark: [7; 32] });
        check("info.1.bin", CacheInfo { keys: vec!["a:b".to_owned()], priority: 30 });
        check("paths.1.bin", vec![path('0', "a"), path('1', "b-2.0")]);
        check("ids.1.bin", vec![ChunkId([1; 32]), ChunkId([2; 32])]);
        check("manifests.1.bin", manifests());
        let mut proven = manifests();
        let signatures = vec![format!("key-1:{}", STANDARD.encode([7; 64])), "odd".to_owned()];
        proven[1].lazy = Some(Proof { listing: ChunkId([6; 32]), signatures });
        check("manifests.2.bin", proven);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let refused = |change: fn(&mut Manifests)| {
            let mut message: Manifests = unpack(&manifests().encode()).unwrap();
            change(&mut message);
            Vec::<Manifest>::decode(&pack(&message)).unwrap_err().to_string()
        };
        assert!(refused(|it| it.manifests[0].path = 9).contains("path number 9"));
        assert!(refused(|it| it.key_names.clear()).contains("key number 0"));
        assert!(refused(|it| it.paths[0].name = "../x".to_owned()).contains("name part"));
        assert!(refused(|it| it.manifests[1].references.reverse()).contains("not in order"));
        let ids: Vec<_> = (0..=ITEMS_MAX as u64).map(|n| ChunkId::of(&n.to_le_bytes())).collect();
        let refused = Vec::<ChunkId>::decode(&ids.encode()).unwrap_err().to_string();
        assert!(refused.contains("at most"), "{refused}");
        assert!(Vec::<ChunkId>::decode(&ids[1..].to_vec().encode()).is_ok());
    }

    /// Few bytes that stand for many, and small items on the wire that are large ones in memory.
    #[test]
    fn a_message_takes_no_more_memory_than_its_limits_say() {
        let alike = pack(&vec![ChunkId([0; 32]); ITEMS_MAX]);
        let refused = Vec::<ChunkId>::decode(&alike).unwrap_err().to_string();
        assert!(alike.len() < 1000 && refused.contains("more than"), "{refused}");
        // Two bytes each that become seventy, and random ones before them, so that the whole may be long.
        let mut message: Manifests = unpack(&manifests().encode()).unwrap();
        let noise = (0..100_000_u32).flat_map(|n| ChunkId::of(&n.to_le_bytes()).0);
        message.key_names = vec![STANDARD.encode(noise.collect::<Vec<_>>())];
        message.manifests[0].signatures = vec![Signature::Text(String::new()); 2_500_000];
        let refused = Vec::<Manifest>::decode(&pack(&message)).unwrap_err().to_string();
        assert!(refused.contains("damaged"), "{refused}");
        message.manifests[0].signatures.truncate(1000);
        assert!(Vec::<Manifest>::decode(&pack(&message)).is_ok());
    }

    #[test]
    fn a_bomb_stays_packed() {
        let bomb = zstd::bulk::compress(&vec![0; 1 << 20], 1).unwrap();
        assert!(decompress(&bomb, 1 << 20).is_ok());
        assert!(decompress(&bomb, (1 << 20) - 1).unwrap_err().to_string().contains("more than"));
    }
}
