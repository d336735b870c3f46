//! One connection that is there from the beginning, over pipes or sockets that somebody else has opened.

use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use calve_wire::frame::Decoder;
use tokio::net::unix::pipe::{Receiver, Sender};

use crate::agent::Agent;
use crate::agent::connection::{Preamble, await_preamble, serve as serve_connection};

/// The connection.
pub struct Given {
    /// From the server.
    pub input: OwnedFd,
    /// To the server.
    pub output: OwnedFd,
    /// What was read from it already.
    pub received: Vec<u8>,
}

/// Serves it to its end, which is an error: there is no other.
pub async fn serve(agent: &Rc<Agent>, given: Given) -> io::Result<Infallible> {
    let Given { input, output, received } = given;
    for descriptor in [&input, &output] {
        rustix::io::ioctl_fionbio(descriptor, true)?;
    }
    // Sockets are read and written like pipes, and are what some servers of SSH give to a session.
    let mut reader = Receiver::from_owned_fd_unchecked(input)?;
    let writer = Sender::from_owned_fd_unchecked(output)?;
    let mut decoder = Decoder::new(agent.token.borrow().clone());
    decoder.push(&received);
    if await_preamble(&mut reader, &mut decoder).await.is_ok() {
        serve_connection(agent, reader, writer, &mut decoder, Preamble::Unsent).await;
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}
