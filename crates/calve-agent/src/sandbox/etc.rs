//! The files under `/etc` that programs expect, read or made before the host is out of sight.

use std::fs;
use std::path::PathBuf;

use calve_wire::agent::SandboxSpec;
use calve_wire::machine::Network;

/// Users: root, who runs everything, and the one to whom unknown files belong.
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";
const GROUP: &str = "root:x:0:\nnogroup:x:65534:\n";
/// Names come from files first; DNS only helps where there is a network.
const NSSWITCH: &str = "passwd: files\ngroup: files\nhosts: files dns\n";
/// Where hosts keep a BusyBox that needs no libraries.
const BUSYBOX: [&str; 2] = ["/bin/busybox", "/usr/bin/busybox"];

/// What is taken into the tree besides the closure.
#[derive(Debug)]
pub struct Files {
    /// Names under `/etc` and their contents.
    pub etc: Vec<(&'static str, Vec<u8>)>,
    /// A static BusyBox of the host for a machine that has nothing else to run.
    pub busybox: Option<PathBuf>,
}

impl Files {
    /// Those for this machine.
    pub fn new(spec: &SandboxSpec) -> Self {
        let name = &spec.hostname;
        let hosts = format!("127.0.0.1 localhost {name}\n::1 localhost {name}\n");
        let mut etc = vec![
            ("passwd", PASSWD.into()),
            ("group", GROUP.into()),
            ("nsswitch.conf", NSSWITCH.into()),
            ("hosts", hosts.into_bytes()),
            ("hostname", format!("{name}\n").into_bytes()),
        ];
        if spec.network == Network::Host {
            etc.extend(fs::read("/etc/resolv.conf").ok().map(|text| ("resolv.conf", text)));
        }
        // A machine with a closure shows that closure and nothing else; one without has nothing but this to exec into.
        let bare = spec.store_paths.is_empty();
        let busybox = BUSYBOX.map(PathBuf::from).into_iter().find(|path| bare && is_static(path));
        Self { etc, busybox }
    }
}

/// Whether it is an ELF file of 64 bits that names no interpreter (elf(5)).
fn is_static(path: &PathBuf) -> bool {
    /// Enough for the header and the program headers of any BusyBox.
    const HEAD_BYTES: usize = 4096;
    const PT_INTERP: u32 = 3;
    let Ok(file) = fs::File::open(path) else { return false };
    let mut head = Vec::new();
    if std::io::Read::read_to_end(&mut std::io::Read::take(file, HEAD_BYTES as u64), &mut head).is_err() {
        return false;
    }
    let u16_at = |at: usize| Some(u16::from_le_bytes(head.get(at..at + 2)?.try_into().ok()?) as usize);
    let headers = || -> Option<bool> {
        let first = usize::try_from(u64::from_le_bytes(head.get(32..40)?.try_into().ok()?)).ok()?;
        let (size, count) = (u16_at(54)?, u16_at(56)?);
        let kinds = (0..count)
            .map(|n| Some(u32::from_le_bytes(head.get(first + n * size..)?.get(..4)?.try_into().ok()?)));
        let kinds: Option<Vec<u32>> = kinds.collect();
        Some(kinds?.iter().all(|kind| *kind != PT_INTERP))
    };
    head.starts_with(b"\x7fELF\x02\x01") && headers() == Some(true)
}
