//! Closures of systems on their way to a host: the bytes that a server sends, what may become of them on its disk, and the
//! agent's own code that takes them.

use std::fs;
use std::io;

use calve_agent::seed;
use calve_nix::{NarWriter, Sha256Hash};
use calve_wire::seed::{END, Header, Part};
use tempfile::TempDir;

use crate::faults::Faults;
use crate::systems::{System, base_name};

/// What a path is called until it is whole.
const UNDER_WAY: &str = ".taking-";

/// What a host has of systems.
#[derive(Debug)]
pub struct HostStore(TempDir);

impl HostStore {
    /// One that has a system.
    pub fn with(system: System) -> Self {
        let store = Self(tempfile::tempdir().expect("a temporary directory"));
        store.take(&sent(system)).expect("it is whole");
        store
    }

    /// Takes what is sent, as an agent does.
    pub fn take(&self, sent: &[u8]) -> io::Result<()> {
        seed::receive(self.0.path(), UNDER_WAY, sent)
    }

    /// Whether both paths of a system have their names there.
    pub fn has(&self, system: System) -> bool {
        parts(system).iter().all(|(name, _)| self.0.path().join(name).exists())
    }

    /// Whether they are what they were made as.
    pub fn is_genuine(&self, system: System) -> bool {
        parts(system).iter().all(|(name, text)| {
            fs::read_to_string(self.0.path().join(name)).is_ok_and(|found| found == *text)
        })
    }
}

/// The paths of a system, what they refer to first: names and contents.
fn parts(system: System) -> [(String, String); 2] {
    let kernel = system % 4;
    [
        (format!("{kernel:1>32}-kernel"), format!("kernel {kernel}")),
        (base_name(system), format!("system {system} with kernel {kernel}")),
    ]
}

/// What a server sends of a system: each archive behind the hash under which it was registered.
pub fn sent(system: System) -> Vec<u8> {
    let own = archives(system).1;
    frame(&[message(system, &own), end()].concat())
}

/// The same, where something has become of the archives since they were registered, or the connection breaks.
pub fn spoilt(system: System, faults: &mut Faults) -> Vec<u8> {
    let mut own = archives(system).1;
    match faults.range(0, 4) {
        // One bit of its own archive is another.
        0 => {
            let bit = faults.range(0, 8 * own.len() as u64) as usize;
            own[bit / 8] ^= 1 << (bit % 8);
        }
        // The archive is that of another system.
        1 => own = archives(system + 1).1,
        // It ends early, as far as its sender goes.
        2 => {
            own.truncate(faults.range(0, own.len() as u64) as usize);
            return frame(&message(system, &own));
        }
        // It ends early on the way.
        _ => {
            let mut sent = sent(system);
            sent.truncate(faults.range(0, sent.len() as u64) as usize);
            return sent;
        }
    }
    frame(&[message(system, &own), end()].concat())
}

/// The archives of a system's kernel and of itself.
fn archives(system: System) -> (Vec<u8>, Vec<u8>) {
    let [kernel, own] = parts(system).map(|(_, text)| archive(text.as_bytes()));
    (kernel, own)
}

/// All but the end, where this became of the system's own archive. What that has of its kernel's is copied.
fn message(system: System, own: &[u8]) -> Vec<u8> {
    let [(kernel_name, _), (name, _)] = parts(system);
    let (kernel, genuine) = archives(system);
    let mut message = header(&kernel_name, &kernel).into_bytes();
    message.extend(bytes(&kernel));
    message.extend(header(&name, &genuine).into_bytes());
    let alike = kernel.iter().zip(own).take_while(|(a, b)| a == b).count();
    if alike > 0 {
        let copy = Part::Copy { from: kernel_name, at: 0, len: alike as u32, hashes: 0 };
        message.extend(format!("{copy}\n").bytes());
    }
    message.extend(bytes(&own[alike..]));
    message
}

fn bytes(part: &[u8]) -> Vec<u8> {
    match part.len() {
        0 => Vec::new(),
        len => [format!("{}\n", Part::Bytes(len as u32)).as_bytes(), part].concat(),
    }
}

fn end() -> Vec<u8> {
    format!("{END}\n").into_bytes()
}

fn frame(plain: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(plain, 1).expect("in memory")
}

/// The archive of a file.
pub fn archive(contents: &[u8]) -> Vec<u8> {
    let mut nar = NarWriter::new(Vec::new()).expect("in memory");
    nar.file(b"", false, contents.len() as u64, &mut &*contents).expect("in order");
    nar.finish().expect("whole")
}

fn header(name: &str, archive: &[u8]) -> String {
    let (nar_hash, nar_size) = (Sha256Hash::of(archive).to_hex(), archive.len() as u64);
    format!("{}\n", Header { base_name: name.to_owned(), nar_hash, nar_size })
}
