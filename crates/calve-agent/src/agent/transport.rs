//! How the agent and the server reach each other: one file a transport. Each serves one connection at a time.

pub mod device;
pub mod dial;
pub mod given;
pub mod listen;

use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;

use tokio::net::UnixListener;

use super::Agent;

/// How the server is reached.
pub enum Transport {
    /// It connects to this Unix socket.
    Listen(UnixListener),
    /// It is at the other end of a virtio-serial port, or of any character device.
    Device {
        /// Its path.
        path: PathBuf,
        /// The device, where it is open already.
        opened: Option<device::Opened>,
    },
    /// It is at the other end of a connection that the agent was started for, and ends with.
    Given(given::Given),
    /// The agent connects to it, and joins first where it has something to join by.
    Dial(dial::Server, Option<dial::Join>),
}

impl Transport {
    /// Serves connections for ever; an error means that there will be none any more, which is how [`Self::Given`] always ends.
    pub async fn serve(self, agent: Rc<Agent>) -> io::Result<Infallible> {
        match self {
            Self::Listen(listener) => listen::serve(&agent, listener).await,
            Self::Given(given) => given::serve(&agent, given).await,
            Self::Device { path, opened } => device::serve(&agent, &path, opened).await,
            Self::Dial(server, join) => dial::serve(&agent, &server, join.as_ref()).await,
        }
    }
}
