//! Descriptors in the runtime.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

/// Lets the runtime watch a descriptor that does not block; call inside of the runtime.
pub fn watched(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` names the same open descriptor for as long as it lives, and the runtime owns it from here on.
    Ok(unsafe { AsyncFd::register(descriptor) }?)
}
