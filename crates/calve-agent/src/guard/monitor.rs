//! The guard's own connection to QEMU's control (QEMU `docs/interop/qmp-spec.rst`): QEMU greets once its machine is set
//! up, and says at the end who wanted it.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::net::UnixStream;

use calve_wire::guard::GUARD_SOCKET;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde::Deserialize;

/// Longest message that is read: events here have 200 bytes.
const MESSAGE_MAX_BYTES: usize = 64 * 1024;
/// Ends the negotiation that comes before everything else.
const CAPABILITIES: &[u8] = b"{\"execute\":\"qmp_capabilities\"}\n";

/// The connection, made as soon as QEMU listens.
#[derive(Debug, Default)]
pub(super) struct Monitor {
    connection: Option<UnixStream>,
    unread: Vec<u8>,
    greeted: bool,
    shutdown: Option<Shutdown>,
}

/// Who wanted QEMU to end (`SHUTDOWN` in QEMU's `qapi/run-state.json`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shutdown {
    /// The guest, by a power-off or a restart.
    Guest,
    /// The guest's kernel, by its panic.
    Panic,
    /// Somebody on the host.
    Host,
}

#[derive(Deserialize)]
struct Message {
    #[serde(rename = "QMP")]
    greeting: Option<serde::de::IgnoredAny>,
    event: Option<String>,
    data: Option<Data>,
}

#[derive(Deserialize)]
struct Data {
    #[serde(default)]
    guest: bool,
    reason: Option<String>,
}

impl Monitor {
    /// Whether QEMU has set up its machine. Tries to connect, without waiting, until it could once.
    pub(super) fn is_ready(&mut self) -> bool {
        if self.connection.is_none() && !self.greeted {
            self.connection = connected().ok();
        }
        self.read();
        self.greeted
    }

    /// The descriptor that says when there is something to read.
    pub(super) fn descriptor(&self) -> Option<RawFd> {
        self.connection.as_ref().map(|stream| stream.as_raw_fd())
    }

    /// Reads what came, without waiting.
    pub(super) fn read(&mut self) {
        let mut bytes = [0; 4096];
        while let Some(stream) = &mut self.connection {
            match stream.read(&mut bytes) {
                Ok(count) if count > 0 => self.take(&bytes[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => self.connection = None,
            }
        }
    }

    /// Who wanted QEMU to end, where it said so.
    pub(super) fn shutdown(&self) -> Option<Shutdown> {
        self.shutdown
    }

    fn take(&mut self, bytes: &[u8]) {
        self.unread.extend_from_slice(bytes);
        while let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.unread.drain(..=end).collect();
            // What is of no interest may look as it likes.
            if let Ok(message) = serde_json::from_slice(&line) {
                self.hear(&message);
            }
        }
        if self.unread.len() > MESSAGE_MAX_BYTES {
            self.unread.clear();
        }
    }

    fn hear(&mut self, message: &Message) {
        if message.greeting.is_some() {
            self.greeted = true;
            if let Some(stream) = &mut self.connection {
                // Where it fails, QEMU is ending, and its exit status has to tell why.
                let _ = stream.write_all(CAPABILITIES);
            }
        }
        let Some(data) = message.data.as_ref().filter(|_| message.event.as_deref() == Some("SHUTDOWN"))
        else {
            return;
        };
        self.shutdown = Some(match (data.guest, data.reason.as_deref()) {
            (true, Some("guest-panic")) => Shutdown::Panic,
            (true, _) => Shutdown::Guest,
            (false, _) => Shutdown::Host,
        });
    }
}

fn connected() -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(GUARD_SOCKET)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &address)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_of_qemu_is_heard_in_any_pieces() {
        let heard = |text: &str| {
            let mut monitor = Monitor::default();
            text.as_bytes().chunks(7).for_each(|piece| monitor.take(piece));
            (monitor.greeted, monitor.shutdown())
        };
        let greeting = "{\"QMP\": {\"version\": {}, \"capabilities\": [\"oob\"]}}\r\n{\"return\": {}}\r\n";
        assert_eq!(heard(greeting), (true, None));
        for (guest, reason, shutdown) in [
            (true, "guest-reset", Shutdown::Guest),
            (true, "guest-shutdown", Shutdown::Guest),
            (true, "guest-panic", Shutdown::Panic),
            (false, "host-signal", Shutdown::Host),
            (false, "host-qmp-quit", Shutdown::Host),
        ] {
            let event = format!(
                "{greeting}{{\"timestamp\": {{\"seconds\": 1}}, \"event\": \"SHUTDOWN\", \"data\": {{\"guest\": {guest}, \
                 \"reason\": \"{reason}\"}}}}\r\n"
            );
            assert_eq!(heard(&event), (true, Some(shutdown)), "{reason}");
        }
    }
}
