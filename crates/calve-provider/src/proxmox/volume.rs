//! The volume that tells a machine what it shall be: an ISO 9660 image labelled `cidata`, as cloud-init's NoCloud reads it.
//!
//! ```text
//!  sector 16 volume descriptor · 17 end of descriptors · 18, 19 path tables · 20 root directory · 21.. files
//! ```
//! Sources: ECMA-119; the names in lower case are those of Rock Ridge (IEEE P1282), which Linux prefers; cloud-init's
//! documentation of NoCloud for label and names.

/// Bytes of a sector.
const SECTOR: usize = 2048;
/// The label by which the volume is known.
const LABEL: &str = "cidata";
/// Where things are, in sectors.
const DESCRIPTOR: usize = 16;
const PATHS_LITTLE: usize = 18;
const PATHS_BIG: usize = 19;
const ROOT: usize = 20;
const FILES: usize = 21;
/// Bytes of the path table: the root's entry alone.
const PATHS_BYTES: u32 = 10;

/// A volume with these user data, for the machine that is told apart by `instance`.
pub(super) fn cidata(instance: &str, name: &str, user_data: &str) -> Vec<u8> {
    let meta_data = format!("instance-id: {instance}\nlocal-hostname: {name}\n");
    // In the order of their plain names, as a directory must be.
    image(&[
        ("META_DAT.;1", "meta-data", meta_data.as_bytes()),
        ("USER_DAT.;1", "user-data", user_data.as_bytes()),
    ])
}

fn image(files: &[(&str, &str, &[u8])]) -> Vec<u8> {
    let sectors_of = |bytes: &[u8]| bytes.len().div_ceil(SECTOR);
    let mut at = FILES;
    let mut root = Vec::new();
    // The root's own entries begin Rock Ridge: SP, and ER that names it.
    let mut own = b"SP\x07\x01\xbe\xef\x00".to_vec();
    own.extend(attributes(true));
    own.extend(b"ER\x12\x01\x0a\x00\x00\x01RRIP_1991A");
    root.extend(record(&[0], ROOT, SECTOR, true, &own));
    root.extend(record(&[1], ROOT, SECTOR, true, &attributes(true)));
    for (plain, name, bytes) in files {
        let mut system = attributes(false);
        let length = u8::try_from(5 + name.len()).expect("names are short");
        system.extend([b'N', b'M', length, 1, 0]);
        system.extend(name.as_bytes());
        root.extend(record(plain.as_bytes(), at, bytes.len(), false, &system));
        at += sectors_of(bytes);
    }
    assert!(root.len() <= SECTOR, "the root directory is one sector");
    let mut image = vec![0; at * SECTOR];
    let mut put =
        |sector: usize, bytes: &[u8]| image[sector * SECTOR..][..bytes.len()].copy_from_slice(bytes);
    put(DESCRIPTOR, &descriptor(at));
    put(DESCRIPTOR + 1, b"\xffCD001\x01");
    let root_sector = u32::try_from(ROOT).expect("small");
    put(PATHS_LITTLE, &[&[1, 0][..], &root_sector.to_le_bytes(), &1u16.to_le_bytes(), &[0, 0]].concat());
    put(PATHS_BIG, &[&[1, 0][..], &root_sector.to_be_bytes(), &1u16.to_be_bytes(), &[0, 0]].concat());
    put(ROOT, &root);
    let mut at = FILES;
    for (_, _, bytes) in files {
        put(at, bytes);
        at += sectors_of(bytes);
    }
    image
}

/// A number in both orders (ECMA-119, 7.3.3).
fn both(number: usize) -> [u8; 8] {
    let number = u32::try_from(number).expect("the volume is small");
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    bytes[4..].copy_from_slice(&number.to_be_bytes());
    bytes
}

/// A number of 16 bits in both orders (ECMA-119, 7.2.3).
fn both_short(number: u16) -> [u8; 4] {
    let (little, big) = (number.to_le_bytes(), number.to_be_bytes());
    [little[0], little[1], big[0], big[1]]
}

/// Mode, links and owner in Rock Ridge: root alone reads what a token stands in.
fn attributes(is_directory: bool) -> Vec<u8> {
    let (mode, links) = if is_directory { (0o040_700, 2) } else { (0o100_400, 1) };
    let mut bytes = vec![b'P', b'X', 36, 1];
    for number in [mode, links, 0, 0] {
        bytes.extend(both(number));
    }
    bytes
}

/// An entry of a directory (ECMA-119, 9.1), undated.
fn record(name: &[u8], sector: usize, bytes: usize, is_directory: bool, system: &[u8]) -> Vec<u8> {
    let mut record = vec![0, 0];
    record.extend(both(sector));
    record.extend(both(bytes));
    // 1 January 1970: two machines with the same data have the same volume.
    record.extend([70, 1, 1, 0, 0, 0, 0]);
    record.extend([if is_directory { 2 } else { 0 }, 0, 0]);
    record.extend(both_short(1));
    record.push(u8::try_from(name.len()).expect("names are short"));
    record.extend(name);
    if name.len().is_multiple_of(2) {
        record.push(0);
    }
    record.extend(system);
    if record.len() % 2 == 1 {
        record.push(0);
    }
    record[0] = u8::try_from(record.len()).expect("entries are short");
    record
}

/// The primary volume descriptor (ECMA-119, 8.4).
fn descriptor(sectors: usize) -> Vec<u8> {
    let mut bytes = vec![0; SECTOR];
    let mut put = |at: usize, what: &[u8]| bytes[at..at + what.len()].copy_from_slice(what);
    put(0, b"\x01CD001\x01");
    put(8, &[b' '; 64]);
    put(40, LABEL.as_bytes());
    put(80, &both(sectors));
    put(120, &both_short(1));
    put(124, &both_short(1));
    put(128, &both_short(u16::try_from(SECTOR).expect("small")));
    put(132, &both(PATHS_BYTES as usize));
    put(140, &u32::try_from(PATHS_LITTLE).expect("small").to_le_bytes());
    put(148, &u32::try_from(PATHS_BIG).expect("small").to_be_bytes());
    put(156, &record(&[0], ROOT, SECTOR, true, &[]));
    put(190, &[b' '; 623]);
    // No dates: sixteen digits of zero and a zone each.
    for date in 0..4 {
        put(813 + 17 * date, &[b'0'; 16]);
    }
    put(881, &[1]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The file with this name, read as Linux does: the root by the descriptor, the name by Rock Ridge.
    fn file(image: &[u8], wanted: &str) -> Option<Vec<u8>> {
        let number = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().unwrap()) as usize;
        let descriptor = DESCRIPTOR * SECTOR;
        let (mut at, end) = (number(descriptor + 158) * SECTOR, number(descriptor + 166));
        let end = at + end;
        while at < end && image[at] != 0 {
            let record = &image[at..at + image[at] as usize];
            let name_bytes = record[32] as usize;
            let mut system = &record[33 + name_bytes + usize::from(name_bytes.is_multiple_of(2))..];
            while system.len() > 4 {
                if &system[..2] == b"NM" && &system[5..system[2] as usize] == wanted.as_bytes() {
                    let start = number(at + 2) * SECTOR;
                    return Some(image[start..start + number(at + 10)].to_vec());
                }
                system = &system[system[2] as usize..];
            }
            at += image[at] as usize;
        }
        None
    }

    #[test]
    fn what_was_put_on_the_volume_is_found_by_its_name() {
        for user_data in ["", "{\"calve\":1}", &"x".repeat(SECTOR), &"y".repeat(70_000)] {
            let image = cidata("calve:machine:1:1", "run-1", user_data);
            assert_eq!((image.len() % SECTOR, &image[DESCRIPTOR * SECTOR + 40..][..7]), (0, &b"cidata "[..]));
            assert_eq!(file(&image, "user-data").unwrap(), user_data.as_bytes());
            let meta = String::from_utf8(file(&image, "meta-data").unwrap()).unwrap();
            assert_eq!(meta, "instance-id: calve:machine:1:1\nlocal-hostname: run-1\n");
            assert!(file(&image, "vendor-data").is_none());
        }
    }
}
