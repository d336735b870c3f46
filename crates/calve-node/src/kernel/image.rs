//! Kernel images: what lies inside a bzImage (Linux `Documentation/arch/x86/boot.rst`), and whether QEMU can start it
//! by its PVH entry (Xen `public/elfnote.h`).

use std::io::Read as _;

/// Largest kernel after decompression: distribution kernels have 50 MiB, ones with everything built in 200 MiB.
const KERNEL_MAX_BYTES: usize = 512 * 1024 * 1024;
/// Blocks of the legacy LZ4 format hold this much (LZ4 frame format, "Legacy frame").
const LZ4_LEGACY_BLOCK_BYTES: usize = 8 * 1024 * 1024;
/// `XEN_ELFNOTE_PHYS32_ENTRY`.
const NOTE_PHYS32_ENTRY: u32 = 18;
const PT_NOTE: u32 = 4;

/// What QEMU is given, and what the file says of itself.
#[derive(Debug)]
pub(super) struct Image {
    /// The bytes for QEMU.
    pub bytes: Vec<u8>,
    /// The kernel's release.
    pub version: String,
    /// Whether `bytes` are an ELF image with a PVH entry.
    pub pvh: bool,
}

/// Opens a bzImage or an ELF image; the error says for people why it is none.
pub(super) fn open(file: &[u8]) -> Result<Image, String> {
    if file.starts_with(b"\x7fELF") {
        if !has_pvh_entry(file) {
            return Err("it is an ELF image without a PVH entry (CONFIG_PVH)".into());
        }
        let version = banner_version(file).ok_or("no kernel version is found in it")?;
        return Ok(Image { bytes: file.to_vec(), version, pvh: true });
    }
    if file.get(0x202..0x206) != Some(b"HdrS") {
        return Err("it is neither a bzImage nor an ELF image".into());
    }
    let version = header_version(file).ok_or("its header names no version")?;
    match payload(file).and_then(decompress) {
        Some(vmlinux) if has_pvh_entry(&vmlinux) => Ok(Image { bytes: vmlinux, version, pvh: true }),
        _ => Ok(Image { bytes: file.to_vec(), version, pvh: false }),
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<usize> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?).into())
}

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?)).ok()
}

fn u64_at(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?)).ok()
}

fn first_word(bytes: &[u8]) -> Option<String> {
    let word = bytes.split(|byte| *byte == 0 || byte.is_ascii_whitespace()).next()?;
    let sane = !word.is_empty() && word.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'/');
    sane.then(|| String::from_utf8_lossy(word).into_owned())
}

/// The release that a bzImage's header points to.
fn header_version(file: &[u8]) -> Option<String> {
    let at = u16_at(file, 0x20e)? + 0x200;
    first_word(file.get(at..(at + 256).min(file.len()))?)
}

/// The release in the banner that every kernel holds.
fn banner_version(file: &[u8]) -> Option<String> {
    const BANNER: &[u8] = b"Linux version ";
    let mut rest = file;
    loop {
        let at = rest.windows(BANNER.len()).position(|window| window == BANNER)?;
        rest = &rest[at + BANNER.len()..];
        // Format strings such as "Linux version %s" stand in some kernels as well.
        if rest.first().is_some_and(u8::is_ascii_digit) {
            return first_word(&rest[..rest.len().min(256)]);
        }
    }
}

/// The compressed kernel inside a bzImage; protocols before 2.08 do not say where it is.
fn payload(file: &[u8]) -> Option<&[u8]> {
    if u16_at(file, 0x206)? < 0x208 {
        return None;
    }
    let setup_sectors = match file[0x1f1] {
        0 => 4,
        n => usize::from(n),
    };
    let at = (setup_sectors + 1) * 512 + u32_at(file, 0x248)?;
    file.get(at..at.checked_add(u32_at(file, 0x24c)?)?)
}

/// Decompresses by magic number; none where the format is not known or the data broken. But for gzip, the kernel's build
/// puts the length behind the data.
fn decompress(payload: &[u8]) -> Option<Vec<u8>> {
    let length = u32_at(payload, payload.len().checked_sub(4)?)?;
    if length > KERNEL_MAX_BYTES {
        return None;
    }
    let mut out = Vec::with_capacity(length);
    let limit = KERNEL_MAX_BYTES as u64;
    let data = &payload[..payload.len() - 4];
    match payload {
        [0x1f, 0x8b, ..] => {
            flate2::read::GzDecoder::new(payload).take(limit).read_to_end(&mut out).ok().map(drop)?
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            liblzma::read::XzDecoder::new(data).take(limit).read_to_end(&mut out).ok().map(drop)?;
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            zstd::stream::read::Decoder::new(data)
                .ok()?
                .single_frame()
                .take(limit)
                .read_to_end(&mut out)
                .ok()
                .map(drop)?;
        }
        [0x02, 0x21, 0x4c, 0x18, ..] => lz4_legacy(&data[4..], length, &mut out)?,
        [0x7f, b'E', b'L', b'F', ..] => out.extend_from_slice(payload),
        _ => return None,
    }
    Some(out)
}

fn lz4_legacy(mut data: &[u8], length: usize, out: &mut Vec<u8>) -> Option<()> {
    out.resize(length, 0);
    let mut filled = 0;
    while filled < length {
        let block_length = u32_at(data, 0)?;
        let block = data.get(4..4 + block_length)?;
        let end = length.min(filled + LZ4_LEGACY_BLOCK_BYTES);
        filled += lz4_flex::block::decompress_into(block, &mut out[filled..end]).ok()?;
        data = &data[4 + block_length..];
    }
    Some(())
}

/// Whether a 64-bit ELF image has the note from which QEMU takes its PVH entry.
fn has_pvh_entry(elf: &[u8]) -> bool {
    pvh_note(elf).is_some()
}

fn pvh_note(elf: &[u8]) -> Option<()> {
    const ELF64_LITTLE_ENDIAN: &[u8] = b"\x7fELF\x02\x01";
    if !elf.starts_with(ELF64_LITTLE_ENDIAN) {
        return None;
    }
    let (table, entry_size, count) = (u64_at(elf, 32)?, u16_at(elf, 54)?, u16_at(elf, 56)?);
    (0..count).find_map(|n| {
        let header = elf.get(table.checked_add(n * entry_size)?..)?;
        let is_note = u32_at(header, 0)? == PT_NOTE as usize;
        let (at, size) = (u64_at(header, 8)?, u64_at(header, 32)?);
        if is_note { find_note(elf.get(at..at.checked_add(size)?)?) } else { None }
    })
}

fn find_note(mut notes: &[u8]) -> Option<()> {
    loop {
        let (name_size, size, kind) = (u32_at(notes, 0)?, u32_at(notes, 4)?, u32_at(notes, 8)?);
        if notes.get(12..12 + name_size.min(4))? == b"Xen\0" && kind == NOTE_PHYS32_ENTRY as usize {
            return Some(());
        }
        let padded = |n: usize| n.checked_next_multiple_of(4);
        notes = notes.get(12usize.checked_add(padded(name_size)?)?.checked_add(padded(size)?)?..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    /// The smallest ELF image that QEMU would take for a PVH kernel.
    fn elf(note_kind: u32) -> Vec<u8> {
        let mut elf = vec![0; 120];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[32] = 64;
        elf[54] = 56;
        elf[56] = 1;
        elf[64] = 4;
        elf[72] = 120;
        elf[96] = 20 + 20;
        for kind in [6, note_kind] {
            for word in [4u32, 4, kind] {
                elf.extend(word.to_le_bytes());
            }
            elf.extend(b"Xen\0\x01\x02\x03\x04");
        }
        elf
    }

    fn bz_image(payload: &[u8]) -> Vec<u8> {
        let mut file = vec![0; 1024];
        file[0x1f1] = 1;
        file[0x202..0x206].copy_from_slice(b"HdrS");
        file[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
        file[0x20e..0x210].copy_from_slice(&0x100u16.to_le_bytes());
        file[0x300..0x309].copy_from_slice(b"6.1.0-x #");
        file[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
        file[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        file.extend([0; 16]);
        file.extend(payload);
        file
    }

    fn with_length(mut packed: Vec<u8>, length: usize) -> Vec<u8> {
        packed.extend((length as u32).to_le_bytes());
        packed
    }

    #[test]
    fn the_kernel_is_found_inside_a_bz_image_however_it_was_packed() {
        let elf = elf(NOTE_PHYS32_ENTRY);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&elf).unwrap();
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(&elf).unwrap();
        let block = lz4_flex::block::compress(&elf);
        let mut lz4 = vec![0x02, 0x21, 0x4c, 0x18];
        lz4.extend((block.len() as u32).to_le_bytes());
        lz4.extend(block);
        let packed = [
            gzip.finish().unwrap(),
            with_length(xz.finish().unwrap(), elf.len()),
            with_length(zstd::encode_all(&elf[..], 1).unwrap(), elf.len()),
            with_length(lz4, elf.len()),
        ];
        for payload in packed {
            let image = open(&bz_image(&payload)).unwrap();
            assert_eq!((image.version.as_str(), image.pvh), ("6.1.0-x", true));
            assert!(image.bytes == elf);
        }
    }

    #[test]
    fn without_a_pvh_entry_the_bz_image_stays_as_it_is() {
        let elf = elf(17);
        let file = bz_image(&with_length(zstd::encode_all(&elf[..], 1).unwrap(), elf.len()));
        let image = open(&file).unwrap();
        assert!(!image.pvh && image.bytes == file);
        assert!(open(&elf).is_err());
    }

    #[test]
    fn broken_files_are_refused_and_never_read_past_their_end() {
        assert!(open(b"").is_err());
        assert!(open(b"#!/bin/sh").is_err());
        let whole = bz_image(&with_length(zstd::encode_all(&elf(18)[..], 1).unwrap(), 160));
        for end in 0..whole.len() {
            // Any answer will do as long as it is one.
            let _ = open(&whole[..end]);
        }
        let elf = elf(18);
        for end in 0..elf.len() {
            let _ = open(&elf[..end]);
        }
    }
}
