//! Connecting to a Unix socket whose path may be longer than an address holds.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use tokio::net::UnixStream;

/// Longest path in a socket address, without its final zero (`unix(7)`: `sun_path` has 108 bytes).
const PATH_MAX_BYTES: usize = 107;

/// Connects to the socket at `path`, of any length whose file name alone has at most some 80 bytes.
pub(super) async fn connect(path: &Path) -> io::Result<UnixStream> {
    if path.as_os_str().as_bytes().len() <= PATH_MAX_BYTES {
        return UnixStream::connect(path).await;
    }
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the socket's path has no file name"));
    };
    let dir = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(dir)?;
    UnixStream::connect(Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name)).await
}
