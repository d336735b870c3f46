//! The few files that programs expect in a guest without a system. What is there already stays.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;

/// Writes them.
pub(super) fn write(hostname: &str, name_servers: &[IpAddr]) -> io::Result<()> {
    for dir in ["/etc", "/root", "/var/tmp", "/usr/bin", "/bin"] {
        super::mounts::directory(dir)?;
    }
    let files = [
        (
            "/etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n".to_owned(),
        ),
        ("/etc/group", "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n".to_owned()),
        ("/etc/hosts", format!("127.0.0.1 localhost {hostname}\n::1 localhost\n")),
        ("/etc/hostname", format!("{hostname}\n")),
        ("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n".to_owned()),
    ];
    for (path, text) in files {
        write_new(path, &text)?;
    }
    if !name_servers.is_empty() {
        let lines: String = name_servers.iter().map(|address| format!("nameserver {address}\n")).collect();
        write_new("/etc/resolv.conf", &lines)?;
    }
    Ok(())
}

fn write_new(path: &str, text: &str) -> io::Result<()> {
    if Path::new(path).exists() { Ok(()) } else { fs::write(path, text) }
}
