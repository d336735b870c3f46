//! A FAT16 volume made in one go, out of files that are known (Microsoft's "FAT32 File System Specification", 1.03).

use std::collections::BTreeMap;

use super::SECTOR_BYTES;

/// Size of every volume.
pub const VOLUME_BYTES: usize = 64 << 20;
const SECTORS: usize = VOLUME_BYTES / SECTOR_BYTES;
/// Boot loaders read cluster by cluster, through a BIOS and in emulation slowly: not too small.
const CLUSTER_SECTORS: usize = 8;
const CLUSTER_BYTES: usize = CLUSTER_SECTORS * SECTOR_BYTES;
/// Sectors before the tables: the boot sector, and clusters at multiples of their size.
const RESERVED: usize = 8;
/// Sectors of a table with two bytes for each cluster, rounded up by taking all sectors for clusters.
const TABLE_SECTORS: usize = SECTORS / CLUSTER_SECTORS * 2 / SECTOR_BYTES;
const TABLES: usize = 2;
/// Entries of the root directory, which has its own place.
const ROOT_ENTRIES: usize = 512;
const ROOT_SECTOR: usize = RESERVED + TABLES * TABLE_SECTORS;
const DATA_SECTOR: usize = ROOT_SECTOR + ROOT_ENTRIES * ENTRY_BYTES / SECTOR_BYTES;
const CLUSTERS: usize = (SECTORS - DATA_SECTOR) / CLUSTER_SECTORS;
/// The kind is told by the number of clusters alone.
const _: () = assert!(CLUSTERS >= 4085);
const _: () = assert!(CLUSTERS < 65_525);
/// The first cluster has this number.
const FIRST_CLUSTER: u16 = 2;
/// The last cluster of a file.
const END: u16 = 0xffff;
const ENTRY_BYTES: usize = 32;
const DIRECTORY: u8 = 0x10;
const ARCHIVE: u8 = 0x20;
const LABEL: u8 = 0x08;
const LONG_NAME: u8 = 0x0f;
/// Characters in one entry of a long name.
const LONG_NAME_CHARACTERS: usize = 13;
/// The first day that can be said: the same files make the same bytes.
const DATE: u16 = 0x21;

/// A volume that is being filled.
#[derive(Debug, Clone, Default)]
pub struct Volume {
    label: String,
    root: Dir,
}

#[derive(Debug, Clone, Default)]
struct Dir(BTreeMap<String, Node>);

#[derive(Debug, Clone)]
enum Node {
    Dir(Dir),
    File(Vec<u8>),
}

impl Volume {
    /// An empty one; the label has at most eleven characters.
    pub fn new(label: &str) -> Self {
        Self { label: label.to_owned(), root: Dir::default() }
    }

    /// Puts a file at the path, in directories that are made where they are missing.
    pub fn file(&mut self, path: &str, bytes: Vec<u8>) {
        let (dirs, name) = path.rsplit_once('/').unwrap_or(("", path));
        let mut dir = &mut self.root;
        for part in dirs.split('/').filter(|part| !part.is_empty()) {
            let node = dir.0.entry(part.to_owned()).or_insert_with(|| Node::Dir(Dir::default()));
            if matches!(node, Node::File(_)) {
                *node = Node::Dir(Dir::default());
            }
            let Node::Dir(next) = node else { unreachable!("made one just now") };
            dir = next;
        }
        dir.0.insert(name.to_owned(), Node::File(bytes));
    }

    /// The volume; none where it is too small for its files.
    pub fn to_bytes(&self) -> Option<Vec<u8>> {
        let mut writer = Writer { bytes: vec![0; VOLUME_BYTES], next: FIRST_CLUSTER };
        writer.chain(0, &[0xfff8, END]);
        let label = padded(&self.label);
        let mut root = short_entry(&label, LABEL, 0, 0).to_vec();
        root.extend(writer.entries(&self.root, 0)?);
        if root.len() > ROOT_ENTRIES * ENTRY_BYTES {
            return None;
        }
        writer.bytes[ROOT_SECTOR * SECTOR_BYTES..][..root.len()].copy_from_slice(&root);
        writer.head(&label);
        Some(writer.bytes)
    }
}

struct Writer {
    bytes: Vec<u8>,
    next: u16,
}

impl Writer {
    /// Clusters for so many bytes, chained; the first of them, 0 for none.
    fn allocate(&mut self, length: usize) -> Option<u16> {
        let count = length.div_ceil(CLUSTER_BYTES);
        let first = self.next;
        if usize::from(first - FIRST_CLUSTER) + count > CLUSTERS {
            return None;
        }
        if count == 0 {
            return Some(0);
        }
        self.next += count as u16;
        let chain: Vec<u16> = (first + 1..self.next).chain([END]).collect();
        self.chain(first, &chain);
        Some(first)
    }

    fn chain(&mut self, first: u16, values: &[u16]) {
        for table in 0..TABLES {
            let at = (RESERVED + table * TABLE_SECTORS) * SECTOR_BYTES + usize::from(first) * 2;
            for (n, value) in values.iter().enumerate() {
                self.bytes[at + n * 2..at + n * 2 + 2].copy_from_slice(&value.to_le_bytes());
            }
        }
    }

    fn put(&mut self, cluster: u16, bytes: &[u8]) {
        let at = DATA_SECTOR * SECTOR_BYTES + usize::from(cluster - FIRST_CLUSTER) * CLUSTER_BYTES;
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Writes a directory with everything below it; its cluster. The root directory, as a parent, is called 0.
    fn dir(&mut self, dir: &Dir, parent: u16) -> Option<u16> {
        let of = |name: &String| 1 + name.encode_utf16().count().div_ceil(LONG_NAME_CHARACTERS);
        let count = 2 + dir.0.keys().map(of).sum::<usize>();
        let cluster = self.allocate(count * ENTRY_BYTES)?;
        let mut entries = short_entry(b".          ", DIRECTORY, cluster, 0).to_vec();
        entries.extend(short_entry(b"..         ", DIRECTORY, parent, 0));
        entries.extend(self.entries(dir, cluster)?);
        self.put(cluster, &entries);
        Some(cluster)
    }

    /// Writes what is in a directory; its entries.
    fn entries(&mut self, dir: &Dir, cluster: u16) -> Option<Vec<u8>> {
        let mut entries = Vec::new();
        for (n, (name, node)) in dir.0.iter().enumerate() {
            let (kind, first, size) = match node {
                Node::Dir(below) => (DIRECTORY, self.dir(below, cluster)?, 0),
                Node::File(bytes) => {
                    let first = self.allocate(bytes.len())?;
                    if first != 0 {
                        self.put(first, bytes);
                    }
                    (ARCHIVE, first, u32::try_from(bytes.len()).ok()?)
                }
            };
            let short = padded(&format!("F{n:07}"));
            entries.extend(long_entries(name, &short));
            entries.extend(short_entry(&short, kind, first, size));
        }
        Some(entries)
    }

    fn head(&mut self, label: &[u8; 11]) {
        let boot = &mut self.bytes[..SECTOR_BYTES];
        let mut put = |at: usize, bytes: &[u8]| boot[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &[0xeb, 0x3c, 0x90]);
        put(3, b"MSWIN4.1");
        put(11, &(SECTOR_BYTES as u16).to_le_bytes());
        put(13, &[CLUSTER_SECTORS as u8]);
        put(14, &(RESERVED as u16).to_le_bytes());
        put(16, &[TABLES as u8]);
        put(17, &(ROOT_ENTRIES as u16).to_le_bytes());
        put(21, &[0xf8]);
        put(22, &(TABLE_SECTORS as u16).to_le_bytes());
        put(24, &63_u16.to_le_bytes());
        put(26, &255_u16.to_le_bytes());
        put(28, &super::PARTITION_SECTOR.to_le_bytes());
        put(32, &(SECTORS as u32).to_le_bytes());
        put(36, &[0x80, 0, 0x29]);
        put(39, b"calv");
        put(43, label);
        put(54, b"FAT16   ");
        put(510, &super::SIGNATURE);
    }
}

/// Eleven bytes, filled with spaces.
fn padded(name: &str) -> [u8; 11] {
    let mut padded = [b' '; 11];
    for (to, from) in padded.iter_mut().zip(name.bytes()) {
        *to = from.to_ascii_uppercase();
    }
    padded
}

fn short_entry(name: &[u8; 11], kind: u8, cluster: u16, size: u32) -> [u8; ENTRY_BYTES] {
    let mut entry = [0; ENTRY_BYTES];
    entry[..11].copy_from_slice(name);
    entry[11] = kind;
    entry[26..28].copy_from_slice(&cluster.to_le_bytes());
    for at in [16, 18, 24] {
        entry[at..at + 2].copy_from_slice(&DATE.to_le_bytes());
    }
    entry[28..].copy_from_slice(&size.to_le_bytes());
    entry
}

/// The entries that hold the real name, the last part first.
fn long_entries(name: &str, short: &[u8; 11]) -> Vec<u8> {
    // Where the characters lie in an entry.
    const PLACES: [std::ops::Range<usize>; 3] = [1..11, 14..26, 28..32];
    let sum = short.iter().fold(0_u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));
    let mut characters: Vec<u16> = name.encode_utf16().collect();
    let count = characters.len().div_ceil(LONG_NAME_CHARACTERS);
    if characters.len() < count * LONG_NAME_CHARACTERS {
        characters.push(0);
        characters.resize(count * LONG_NAME_CHARACTERS, 0xffff);
    }
    let mut entries = Vec::new();
    for (n, part) in characters.chunks(LONG_NAME_CHARACTERS).enumerate().rev() {
        let mut entry = [0; ENTRY_BYTES];
        entry[0] = (n as u8 + 1) | if n + 1 == count { 0x40 } else { 0 };
        entry[11] = LONG_NAME;
        entry[13] = sum;
        for (at, character) in PLACES.into_iter().flat_map(|place| place.step_by(2)).zip(part) {
            entry[at..at + 2].copy_from_slice(&character.to_le_bytes());
        }
        entries.extend(entry);
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a file back, following what the tables say.
    fn contents(volume: &[u8], mut cluster: u16) -> Vec<u8> {
        let mut bytes = Vec::new();
        while cluster < 0xfff8 {
            let at = DATA_SECTOR * SECTOR_BYTES + usize::from(cluster - FIRST_CLUSTER) * CLUSTER_BYTES;
            bytes.extend_from_slice(&volume[at..at + CLUSTER_BYTES]);
            let at = RESERVED * SECTOR_BYTES + usize::from(cluster) * 2;
            cluster = u16::from_le_bytes(volume[at..at + 2].try_into().expect("two bytes"));
        }
        bytes
    }

    #[test]
    fn a_volume_holds_its_files_under_their_names() {
        let mut volume = Volume::new("cidata");
        let text = vec![7; 3 * CLUSTER_BYTES + 1];
        volume.file("a/user-data", text.clone());
        volume.file("empty", Vec::new());
        let bytes = volume.to_bytes().expect("room");
        assert_eq!((&bytes[43..54], &bytes[54..59]), (&b"CIDATA     "[..], &b"FAT16"[..]));
        let root = &bytes[ROOT_SECTOR * SECTOR_BYTES..];
        // The label, then the long name of `a`, then `a`.
        assert_eq!((root[11], root[32], root[32 + 11], root[64 + 11]), (LABEL, 0x41, LONG_NAME, DIRECTORY));
        assert_eq!(root[33], b'a');
        let dir = contents(&bytes, root[64 + 26].into());
        assert_eq!((dir[0], dir[32], dir[64 + 11]), (b'.', b'.', LONG_NAME));
        let entry = &dir[96..128];
        let size = u32::from_le_bytes(entry[28..32].try_into().expect("four bytes")) as usize;
        assert_eq!(contents(&bytes, entry[26].into())[..size], text);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut volume = Volume::new("x");
        volume.file("large", vec![0; VOLUME_BYTES]);
        assert!(volume.to_bytes().is_none());
    }
}
