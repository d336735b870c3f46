//! The few words between the agent and init while the sandbox is made: whole messages, and an end that both notice
//! (`SOCK_SEQPACKET`, unix(7)).

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, recv, send, shutdown, socketpair,
};

/// One end.
#[derive(Debug)]
pub struct Talk(OwnedFd);

impl Talk {
    /// Both ends.
    pub fn pair() -> Result<(Self, Self), Errno> {
        let (one, other) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self(one), Self(other)))
    }

    /// Says something; an error means that the other end is gone.
    pub fn say(&self, message: &[u8]) -> Result<(), Errno> {
        send(&self.0, message, SendFlags::NOSIGNAL).map(drop)
    }

    /// Says nothing more; the other end hears that.
    pub fn fall_silent(&self) {
        // It fails only where the other end is gone, which is as well.
        let _ = shutdown(&self.0, Shutdown::Write);
    }

    /// Hears one message and gives its length; 0 where the other end is gone.
    pub fn hear(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        match recv(&self.0, &mut *buffer, RecvFlags::empty()) {
            // It went without having heard all that we said; what it said itself comes behind this error.
            Err(Errno::CONNRESET) => recv(&self.0, buffer, RecvFlags::empty()),
            result => result,
        }
        .map(|(_, length)| length)
    }
}
