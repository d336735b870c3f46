//! Published ports: listens on the node and carries each connection over the machine's link.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use calve_core::MachineId;
use calve_core::limits::PORTS_MAX;
use calve_wire::agent::Target;
use calve_wire::frame::Channel;
use calve_wire::machine::PortMapping;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};

use crate::agents::{AgentStream, Agents, LinkError, StreamEvent, StreamReceiver, StreamSender};

/// Connections at once to all published ports of one machine; further ones wait in the kernel. Half of the machine's
/// streams ([`crate::agents::STREAMS_MAX`]), so that commands and copies always find one.
pub const CONNECTIONS_MAX: usize = 128;
/// Read from a client at once.
const READ_BYTES: usize = 16 * 1024;
/// Pause after the kernel would not accept (most likely for want of descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why a port was not published.
#[derive(Debug, thiserror::Error)]
pub enum PortsError {
    /// Something listens there already.
    #[error("port {} on {} is in use: choose another one, or 0 for any free one", addr.port(), addr.ip())]
    InUse {
        /// The address.
        addr: SocketAddr,
    },
    /// This user may not listen there.
    #[error("port {} on {} needs privileges: choose one from 1024 on", addr.port(), addr.ip())]
    NotAllowed {
        /// The address.
        addr: SocketAddr,
    },
    /// The host has no such address.
    #[error("this host has no address {}", addr.ip())]
    NoSuchAddress {
        /// The address.
        addr: SocketAddr,
    },
    /// Too many.
    #[error("{0} ports are to be published; at most {PORTS_MAX} are")]
    TooMany(usize),
    /// Anything else that the kernel said.
    #[error("cannot listen on {addr}")]
    Io {
        /// The address.
        addr: SocketAddr,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl PortsError {
    fn new(addr: SocketAddr, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::AddrInUse => Self::InUse { addr },
            io::ErrorKind::PermissionDenied => Self::NotAllowed { addr },
            io::ErrorKind::AddrNotAvailable => Self::NoSuchAddress { addr },
            _ => Self::Io { addr, source },
        }
    }
}

/// Why a connection broke.
#[derive(Debug, thiserror::Error)]
enum CarryError {
    #[error("towards the client: {0}")]
    Client(#[from] io::Error),
    #[error("{0}")]
    Link(#[from] LinkError),
    #[error("in the machine: {0}")]
    Machine(String),
}

/// The published ports of all machines.
#[derive(Debug, Default)]
pub struct Ports {
    machines: Mutex<BTreeMap<MachineId, Published>>,
}

/// One machine's ports. Dropping it closes them and their connections.
#[derive(Debug)]
struct Published {
    mappings: Vec<PortMapping>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Published {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Ports {
    /// Publishes all of the machine's ports or none, and gives them with the host ports that the kernel chose for 0.
    /// Repeated with ports that are published already, it changes nothing; with others, it replaces them.
    pub fn publish(
        &self,
        id: MachineId,
        wanted: &[PortMapping],
        agents: &Arc<Agents>,
    ) -> Result<Vec<PortMapping>, PortsError> {
        if wanted.len() > PORTS_MAX {
            return Err(PortsError::TooMany(wanted.len()));
        }
        let mut machines = self.machines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(published) = machines.get(&id) {
            if satisfies(&published.mappings, wanted) {
                return Ok(published.mappings.clone());
            }
            machines.remove(&id);
        }
        let mut published = Published { mappings: Vec::new(), tasks: Vec::new() };
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        for mapping in wanted {
            let addr = SocketAddr::new(mapping.host_addr, mapping.host_port);
            let listener = listen(addr).map_err(|error| PortsError::new(addr, error))?;
            let local = listener.local_addr().map_err(|error| PortsError::new(addr, error))?;
            published.mappings.push(PortMapping { host_port: local.port(), ..*mapping });
            let target = Target::Tcp { port: mapping.machine_port };
            published.tasks.push(tokio::spawn(accept_all(
                listener,
                id,
                target,
                agents.clone(),
                room.clone(),
            )));
        }
        let mappings = published.mappings.clone();
        machines.insert(id, published);
        Ok(mappings)
    }

    /// The machine's published ports.
    pub fn published(&self, id: MachineId) -> Vec<PortMapping> {
        let machines = self.machines.lock().unwrap_or_else(PoisonError::into_inner);
        machines.get(&id).map(|published| published.mappings.clone()).unwrap_or_default()
    }

    /// Closes the machine's published ports and their connections. Absence is success.
    pub fn unpublish(&self, id: MachineId) {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }
}

/// Whether what is published is what is wanted, a wanted host port of 0 being any.
fn satisfies(published: &[PortMapping], wanted: &[PortMapping]) -> bool {
    published.len() == wanted.len()
        && published.iter().zip(wanted).all(|(is, want)| {
            is == want || (want.host_port == 0 && PortMapping { host_port: 0, ..*is } == *want)
        })
}

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(addr)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

async fn accept_all(
    listener: TcpListener,
    id: MachineId,
    target: Target,
    agents: Arc<Agents>,
    room: Arc<Semaphore>,
) {
    // Dropped with this task, and with it every connection.
    let mut connections = JoinSet::new();
    loop {
        let permit = room.clone().acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((client, _)) => {
                let (agents, target) = (agents.clone(), target.clone());
                connections.spawn(async move {
                    let _permit = permit;
                    if let Err(error) = carry(client, id, target, &agents).await {
                        tracing::debug!(machine = %id, "a connection to a published port broke: {error}");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(machine = %id, %error, "cannot accept connections to a published port");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

/// Carries one connection. One that breaks in the machine is reset towards the client, so that it is not mistaken for
/// one that ended well.
async fn carry(
    mut client: TcpStream,
    id: MachineId,
    target: Target,
    agents: &Agents,
) -> Result<(), CarryError> {
    client.set_nodelay(true)?;
    let result = match agents.open(id, target) {
        Ok(stream) => splice(&mut client, stream).await,
        Err(error) => Err(error.into()),
    };
    if result.is_err() {
        // Closing then resets the connection (socket(7): SO_LINGER with no time).
        client.set_zero_linger()?;
    }
    result
}

/// Carries bytes both ways. The machine's side says when the connection has ended: a client may have sent its last byte
/// long before.
async fn splice(client: &mut TcpStream, stream: AgentStream) -> Result<(), CarryError> {
    let (from_client, to_client) = client.split();
    let (to_machine, from_machine) = stream.split();
    let mut upward = pin!(upward(from_client, to_machine));
    let mut downward = pin!(downward(from_machine, to_client));
    tokio::select! {
        result = &mut downward => result,
        result = &mut upward => {
            result?;
            downward.await
        }
    }
}

async fn upward(mut client: ReadHalf<'_>, machine: StreamSender) -> Result<(), CarryError> {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let length = client.read(&mut buffer).await?;
        let sent = match length {
            0 => machine.close_stdin().await,
            _ => machine.send(&buffer[..length]).await,
        };
        // Where the machine takes no more, it may still send; it says how that ends.
        if length == 0 || sent.is_err() {
            return Ok(());
        }
    }
}

async fn downward(mut machine: StreamReceiver, mut client: WriteHalf<'_>) -> Result<(), CarryError> {
    while let Some(event) = machine.recv().await {
        match event {
            StreamEvent::Data(Channel::Stdout, bytes) if bytes.is_empty() => client.shutdown().await?,
            StreamEvent::Data(Channel::Stdout, bytes) => client.write_all(&bytes).await?,
            StreamEvent::Data(Channel::Stdin | Channel::Stderr | Channel::Console, _) => {}
            StreamEvent::Ended(_) => break,
            StreamEvent::Failed { message: reason, .. } => return Err(CarryError::Machine(reason)),
        }
    }
    Ok(())
}
