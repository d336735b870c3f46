//! QEMU's format, version 2 (QEMU `docs/interop/qcow2.txt`): what is empty takes no room.
//!
//! ```text
//!  cluster 0  header    1  table of reference counts    2 …  reference counts    L1 table    L2 tables    data
//! ```

use std::fs::File;
use std::io::{self, Write as _};

const CLUSTER_BITS: u32 = 16;
const CLUSTER_BYTES: usize = 1 << CLUSTER_BITS;
/// Entries of eight bytes in one cluster.
const ENTRIES: usize = CLUSTER_BYTES / 8;
/// Counts of two bytes in one cluster.
const COUNTS: usize = CLUSTER_BYTES / 2;
/// That no snapshot has the cluster too: it may be written in place.
const OWN: u64 = 1 << 63;

/// Writes `disk`.
pub(super) fn write(file: &mut File, disk: &[u8]) -> io::Result<()> {
    let guest: Vec<&[u8]> = disk.chunks(CLUSTER_BYTES).collect();
    let used: Vec<usize> = (0..guest.len()).filter(|n| guest[*n].iter().any(|byte| *byte != 0)).collect();
    let tables = guest.len().div_ceil(ENTRIES);
    assert!(tables <= ENTRIES, "a disk of ours is far below 4 TiB");
    // With their own counts; a few clusters more or less do not change how many blocks of counts there are.
    let blocks = (used.len() + tables + 4).div_ceil(COUNTS - 1);
    let first_table = 2 + blocks + 1;
    let first_data = first_table + tables;
    let total = first_data + used.len();

    let offset = |cluster: usize| (cluster * CLUSTER_BYTES) as u64;
    let mut header = Vec::new();
    header.extend_from_slice(b"QFI\xfb");
    header.extend_from_slice(&2_u32.to_be_bytes());
    header.extend_from_slice(&[0; 12]);
    header.extend_from_slice(&CLUSTER_BITS.to_be_bytes());
    header.extend_from_slice(&(disk.len() as u64).to_be_bytes());
    header.extend_from_slice(&[0; 4]);
    header.extend_from_slice(&(tables as u32).to_be_bytes());
    header.extend_from_slice(&offset(2 + blocks).to_be_bytes());
    header.extend_from_slice(&offset(1).to_be_bytes());
    header.extend_from_slice(&1_u32.to_be_bytes());
    header.extend_from_slice(&[0; 12]);

    let mut data = vec![0_u64; tables * ENTRIES];
    for (n, cluster) in used.iter().enumerate() {
        data[*cluster] = OWN | offset(first_data + n);
    }
    let counts: Vec<u8> = (0..total).flat_map(|_| 1_u16.to_be_bytes()).collect();
    let words = |words: &mut dyn Iterator<Item = u64>| words.flat_map(u64::to_be_bytes).collect::<Vec<u8>>();
    let mut put = |mut bytes: Vec<u8>, clusters: usize| {
        bytes.resize(clusters * CLUSTER_BYTES, 0);
        file.write_all(&bytes)
    };
    put(header, 1)?;
    put(words(&mut (0..blocks).map(|n| offset(2 + n))), 1)?;
    put(counts, blocks)?;
    put(words(&mut (0..tables).map(|n| OWN | offset(first_table + n))), 1)?;
    put(words(&mut data.into_iter()), tables)?;
    for cluster in used {
        put(guest[cluster].to_vec(), 1)?;
    }
    file.flush()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn a_disk_is_read_back_as_the_format_says_and_holes_take_no_room() {
        let mut disk = vec![0; 10 * CLUSTER_BYTES];
        disk[3 * CLUSTER_BYTES + 5] = 7;
        disk[9 * CLUSTER_BYTES] = 8;
        let mut file = tempfile::tempfile().expect("a file");
        write(&mut file, &disk).expect("written");
        assert!(file.metadata().expect("open").len() <= 7 * CLUSTER_BYTES as u64);
        let word = |at: u64| {
            let mut bytes = [0; 8];
            file.read_exact_at(&mut bytes, at).expect("there");
            u64::from_be_bytes(bytes)
        };
        assert_eq!((word(0) >> 32, word(24)), (0x5146_49fb, disk.len() as u64));
        let first_level = word(40);
        let second_level = word(first_level) & !OWN;
        let byte = |n: u64| {
            let cluster = word(second_level + n / CLUSTER_BYTES as u64 * 8) & !OWN;
            if cluster == 0 {
                return 0;
            }
            let mut byte = [0];
            file.read_exact_at(&mut byte, cluster + n % CLUSTER_BYTES as u64).expect("there");
            byte[0]
        };
        for n in [0, 3 * CLUSTER_BYTES + 5, 9 * CLUSTER_BYTES, 9 * CLUSTER_BYTES + 1] {
            assert_eq!(byte(n as u64), disk[n], "{n}");
        }
        // Each cluster of the file is counted once.
        let counts = word(word(word(48)));
        assert_eq!(counts, 0x0001_0001_0001_0001);
    }
}
