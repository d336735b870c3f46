//! The little of ELF that an initrd needs (`elf(5)`), for 64-bit little-endian programs.

const PT_LOAD: usize = 1;
const PT_INTERP: usize = 3;

/// A program header's kind, and where its bytes end in the file.
struct Segment {
    kind: usize,
    file_end: usize,
}

fn number(elf: &[u8], at: usize, size: usize) -> Option<usize> {
    let bytes = elf.get(at..at.checked_add(size)?)?;
    Some(bytes.iter().rev().fold(0, |n, byte| n << 8 | usize::from(*byte)))
}

/// The program headers; none where they are not all there.
fn segments(elf: &[u8]) -> Option<Vec<Segment>> {
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (table, size, count) = (number(elf, 32, 8)?, number(elf, 54, 2)?, number(elf, 56, 2)?);
    let segment = |n: usize| {
        let at = table.checked_add(n * size)?;
        let (offset, length) = (number(elf, at.checked_add(8)?, 8)?, number(elf, at.checked_add(32)?, 8)?);
        Some(Segment { kind: number(elf, at, 4)?, file_end: offset.checked_add(length)? })
    };
    (0..count).map(segment).collect()
}

/// Whether a program names no interpreter.
pub(super) fn is_static(elf: &[u8]) -> bool {
    segments(elf).is_some_and(|segments| segments.iter().all(|segment| segment.kind != PT_INTERP))
}

/// Cuts off what is never loaded, symbols and debug data: every byte of an initrd is copied during the boot. What cannot
/// be understood stays as it is.
pub(super) fn strip(elf: &mut Vec<u8>) {
    let Some(segments) = segments(elf) else { return };
    let loaded = segments.iter().filter(|segment| segment.kind == PT_LOAD).map(|segment| segment.file_end);
    let Some(end) = loaded.max().filter(|end| (64..elf.len()).contains(end)) else { return };
    elf.truncate(end);
    // The section table went as well: its offset, and the number of sections and of their names.
    elf[40..48].fill(0);
    elf[60..64].fill(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn static_programs_are_told_from_dynamic_ones() {
        let me = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(is_static(&me), "everything here is linked statically");
        assert!(!is_static(b"#!/bin/sh"));
        assert!(!is_static(b"\x7fELF\x02\x01"));
    }

    #[test]
    fn a_stripped_program_is_smaller_and_still_runs() {
        use std::os::unix::fs::PermissionsExt as _;
        let mut me = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let whole = me.len();
        strip(&mut me);
        assert!(me.len() < whole && is_static(&me));
        let path = std::env::temp_dir().join(format!("calve-stripped-{}", std::process::id()));
        std::fs::write(&path, me).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let output = std::process::Command::new(&path).arg("--list").output().unwrap();
        std::fs::remove_file(path).unwrap();
        assert!(output.status.success());
    }
}
