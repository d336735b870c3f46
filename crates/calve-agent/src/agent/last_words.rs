//! What no server has heard, left in the run directory of a machine that the agent ends by itself: the next server finds it
//! before it removes the directory.

use std::fs;
use std::io;
use std::path::Path;

use calve_wire::agent::{FromAgent, LAST_WORDS_FILE, LAST_WORDS_MAX_BYTES, Status};
use calve_wire::frame::Frame;

use super::spool::Spool;

/// Writes the rest of the log and the last status, all at once or not at all. The spool is bounded, and so is this; should it
/// ever be larger, the oldest output gives way.
pub fn leave(run_dir: &Path, spool: &Spool, status: &Status) -> io::Result<()> {
    let json = serde_json::to_vec(&FromAgent::Status { status: status.clone() });
    let mut said = Vec::new();
    Frame::Control(json.expect("a status holds nothing that JSON cannot say")).encode(&mut said);
    let mut entries = Vec::new();
    let mut bytes = said.len();
    for entry in spool.after(0).collect::<Vec<_>>().into_iter().rev() {
        let mut frame = Vec::new();
        Frame::Log(entry.clone()).encode(&mut frame);
        bytes += frame.len();
        if bytes as u64 > LAST_WORDS_MAX_BYTES {
            break;
        }
        entries.push(frame);
    }
    let text: Vec<u8> = entries.into_iter().rev().flatten().chain(said).collect();
    let unfinished = run_dir.join(format!("{LAST_WORDS_FILE}.new"));
    fs::write(&unfinished, text)?;
    fs::rename(unfinished, run_dir.join(LAST_WORDS_FILE))
}
