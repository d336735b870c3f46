//! Connecting to a Unix socket whose path may be longer than an address holds.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect as connect_socket, socket_with,
};
use tokio::net::UnixStream;

/// Longest path in a socket address, without its final zero (`unix(7)`: `sun_path` has 108 bytes).
const PATH_MAX_BYTES: usize = 107;

/// Connects to the socket at `path`, of any length whose file name alone has at most some 80 bytes. Never waits: on a Unix
/// socket a connection is there at once, or its listener's queue is full, which is an error.
pub(super) fn connect(path: &Path) -> io::Result<UnixStream> {
    if path.as_os_str().as_bytes().len() <= PATH_MAX_BYTES {
        return connect_short(path);
    }
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the socket's path has no file name"));
    };
    let dir = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(dir)?;
    connect_short(&Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name))
}

fn connect_short(path: &Path) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect_socket(&socket, &address)?;
    UnixStream::from_std(socket.into())
}
