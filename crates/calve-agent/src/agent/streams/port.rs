//! Streams to TCP ports of the machine.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use calve_wire::frame::{CHUNK_MAX_BYTES, Channel};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpSocket, TcpStream};

use super::{Inputs, Stream};
use crate::agent::Agent;

/// Time that a connection within one machine has: it takes microseconds, or nobody accepts.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Connects to a port of the machine's loopback, from inside of its network.
pub async fn connect(agent: &Agent, port: u16) -> io::Result<TcpStream> {
    let socket = agent.processes.socket().await?;
    let socket = TcpSocket::from_std_stream(socket.into());
    let connecting = socket.connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await??;
    connected.set_nodelay(true)?;
    Ok(connected)
}

/// Carries bytes both ways until both directions have ended.
pub async fn serve(stream: &Stream, port: u16, inputs: &mut Inputs) -> Result<(), String> {
    let connected = connect(&stream.agent, port).await;
    let connected =
        connected.map_err(|error| format!("port {port} of the machine cannot be reached: {error}"))?;
    stream.opened();
    let (reader, writer) = connected.into_split();
    tokio::join!(send(stream, reader), receive(inputs, writer));
    Ok(())
}

async fn send(stream: &Stream, mut reader: OwnedReadHalf) {
    loop {
        let mut bytes = Vec::with_capacity(CHUNK_MAX_BYTES);
        match reader.read_buf(&mut bytes).await {
            Ok(0) | Err(_) => break,
            Ok(_) => stream.send(Channel::Stdout, bytes).await,
        }
    }
    stream.close(Channel::Stdout);
}

/// What comes after the port has closed vanishes, as it would on the network.
async fn receive(inputs: &mut Inputs, mut writer: OwnedWriteHalf) {
    let mut broken = false;
    while let Some(bytes) = inputs.next().await {
        broken = broken || writer.write_all(&bytes).await.is_err();
        inputs.used(bytes.len());
    }
    let _ = writer.shutdown().await;
}
