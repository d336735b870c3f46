//! Where in a segment the events of a time begin.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes that are read at once: a line and the end of the one before, almost always. A longer line ends the search early, so
/// that more is read than needed.
const PROBE_BYTES: usize = 8 * 1024;

/// What the search looks at of an event.
#[derive(serde::Deserialize)]
struct Head {
    seq: u64,
    time_unix_ms: u64,
}

/// Where a line begins and the number of its event, which happened before `unix_ms` while most that did come before it; none
/// where already the first event happened later.
pub(super) fn last_before(file: &File, unix_ms: u64) -> io::Result<Option<(u64, u64)>> {
    let mut probe = vec![0; PROBE_BYTES];
    let Some((_, head)) = line_at(file, 0, true, &mut probe)?.filter(|(_, head)| head.time_unix_ms < unix_ms)
    else {
        return Ok(None);
    };
    let mut found = (0, head.seq);
    let mut end = file.metadata()?.len();
    while end - found.0 > PROBE_BYTES as u64 {
        let middle = found.0 + (end - found.0) / 2;
        match line_at(file, middle, false, &mut probe)? {
            Some((begin, head)) if begin < end && head.time_unix_ms < unix_ms => found = (begin, head.seq),
            Some(_) => end = middle,
            None => break,
        }
    }
    Ok(Some(found))
}

/// The line that begins at `offset`, else the first one behind it, where it is whole within [`PROBE_BYTES`].
fn line_at(file: &File, offset: u64, begins: bool, probe: &mut [u8]) -> io::Result<Option<(u64, Head)>> {
    let read = file.read_at(probe, offset)?;
    let bytes = &probe[..read];
    let newline = |bytes: &[u8]| bytes.iter().position(|byte| *byte == b'\n');
    let begin = if begins { Some(0) } else { newline(bytes).map(|at| at + 1) };
    let line = begin.and_then(|begin| Some((begin, &bytes[begin..begin + newline(&bytes[begin..])?])));
    Ok(line.and_then(|(begin, line)| Some((offset + begin as u64, serde_json::from_slice(line).ok()?))))
}
