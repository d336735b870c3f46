//! The few words between the agent and init while the sandbox is made: whole messages, and an end that both notice
//! (`SOCK_SEQPACKET`, unix(7)).

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, SocketFlags, SocketType, recv, recvmsg, send, sendmsg,
    shutdown, socketpair,
};

/// Most descriptors of one message; the kernel takes 253 (unix(7)).
pub const DESCRIPTORS_MAX: usize = 200;

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

    /// Hands over at most [`DESCRIPTORS_MAX`] descriptors; an error means that the other end is gone.
    pub fn hand_over(&self, descriptors: &[OwnedFd]) -> Result<(), Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(Errno::INVAL);
        }
        sendmsg(&self.0, &[IoSlice::new(b"d")], &mut control, SendFlags::NOSIGNAL).map(drop)
    }

    /// Takes the descriptors of one message; none where the other end is gone.
    pub fn take_over(&self) -> Result<Vec<OwnedFd>, Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        recvmsg(&self.0, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let rights = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(received) => Some(received),
            _ => None,
        });
        Ok(rights.flatten().collect())
    }
}
