//! Whether QEMU accepts connections: it greets on its control socket once its machine is set up.

use std::io::Read as _;
use std::os::unix::net::UnixStream;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// Where QEMU is controlled, in the working directory.
const QMP_SOCKET: &str = "qmp.sock";

/// A connection that waits for the greeting.
#[derive(Debug, Default)]
pub(super) struct Readiness {
    connection: Option<UnixStream>,
}

impl Readiness {
    /// Looks once, without waiting. The connection is given up then: QEMU serves one at a time.
    pub(super) fn is_ready(&mut self) -> bool {
        if self.connection.is_none() {
            self.connection = connected();
        }
        let mut byte = [0];
        let greeted = self.connection.as_mut().is_some_and(|stream| matches!(stream.read(&mut byte), Ok(1)));
        if greeted {
            self.connection = None;
        }
        greeted
    }
}

fn connected() -> Option<UnixStream> {
    let address = SocketAddrUnix::new(QMP_SOCKET).ok()?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).ok()?;
    connect(&socket, &address).ok()?;
    Some(socket.into())
}
