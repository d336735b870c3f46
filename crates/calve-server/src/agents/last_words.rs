//! What agents left in their run directories, as they ended their machines while no server heard them.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use calve_core::MachineId;
use calve_wire::agent::{FromAgent, LAST_WORDS_MAX_BYTES, Phase, Status};
use calve_wire::frame::{Frame, LogEntry};

use super::{Agents, lock};
use crate::chain;

impl Agents {
    /// Takes in the last words of an agent that has ended, where `file` holds any: what its program wrote goes to the log, and
    /// its last status is what is known of it from here on. Repeated: nothing changes. Blocks on the disk.
    pub fn hear_last_words(&self, id: MachineId, file: &Path) {
        if lock(&self.last_words).contains_key(&id) {
            return;
        }
        let Some((entries, mut status)) = read(file) else { return };
        status.phase = Phase::Ended;
        if let Err(error) = self.keep_last_log(id, &entries) {
            tracing::warn!(machine = %id, error = chain(&error), "the last output of a machine was not kept");
        }
        lock(&self.last_words).insert(id, Arc::new(status));
        self.bell.ring();
    }

    /// Forgets the last words of a machine.
    pub fn forget_last_words(&self, id: MachineId) {
        lock(&self.last_words).remove(&id);
    }

    fn keep_last_log(&self, id: MachineId, entries: &[LogEntry]) -> Result<(), crate::logs::LogError> {
        let Some(first) = entries.first() else { return Ok(()) };
        // What lies before was lost here after it was acknowledged.
        if first.seq > self.logs.last_seq(id)? + 1 {
            self.logs.skip_to(id, first.seq)?;
        }
        self.logs.append(id, entries)
    }
}

/// The log entries and the status; none where there is no such file, or a broken one.
fn read(file: &Path) -> Option<(Vec<LogEntry>, Status)> {
    let mut bytes = Vec::new();
    File::open(file).ok()?.take(LAST_WORDS_MAX_BYTES).read_to_end(&mut bytes).ok()?;
    let (mut rest, mut entries, mut status) = (bytes.as_slice(), Vec::new(), None);
    while let Ok(Some((frame, length))) = Frame::decode(rest) {
        rest = &rest[length..];
        match frame {
            Frame::Log(entry) => entries.push(entry),
            Frame::Control(json) => match serde_json::from_slice(&json).ok()? {
                FromAgent::Status { status: said } => status = Some(said),
                _ => return None,
            },
            Frame::Data { .. } => return None,
        }
    }
    // What never began has nothing to say, and may be made again.
    Some((entries, status.filter(|status| status.starts > 0)?))
}
