use std::net::{IpAddr, Ipv4Addr};

use bytes::Bytes;
use calve_core::MachineName;
use clap_complete::ArgValueCompleter;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::names;
use crate::args::{Forward, parse_forward, parse_name};
use crate::client::Client;
use crate::failure::{Failure, Outcome};
use crate::ui;

/// Most bytes of one message.
const CHUNK_BYTES: usize = 64 * 1024;

/// Forwards a port of this host to a TCP port of a machine, until interrupted.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The machine.
    #[arg(value_parser = parse_name, add = ArgValueCompleter::new(names::complete))]
    name: MachineName,
    /// The port here (0 takes a free one; the same where none is given) and in the machine.
    #[arg(value_name = "[LOCAL:]REMOTE", value_parser = parse_forward)]
    ports: Forward,
    /// The address here.
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    address: IpAddr,
}

pub async fn run(args: Args) -> Outcome {
    let client = Client::connect().await?;
    // An unknown machine is said now and not at the first connection.
    client.get_bytes(&names::path(&args.name, "")).await?;
    let listener = TcpListener::bind((args.address, args.ports.local)).await.map_err(|error| {
        Failure::failed(format!("port {} of {} cannot be used", args.ports.local, args.address))
            .hint("0 takes a free port: calve forward NAME 0:REMOTE")
            .caused_by(error)
    })?;
    let here =
        listener.local_addr().map_err(|error| Failure::failed("the port has no address").caused_by(error))?;
    ui::line(&here.to_string())?;
    ui::note(&format!("{here} leads to port {} of {}; Ctrl-C ends it", args.ports.remote, args.name));
    let path = names::path(&args.name, &format!("/forward?port={}", args.ports.remote));
    loop {
        let connection = match listener.accept().await {
            Ok((connection, _)) => connection,
            Err(error) => {
                // Out of descriptors, or the peer has gone already: others may still be served.
                ui::note(&format!("a connection could not be accepted: {error}"));
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let (client, path) = (client.clone(), path.clone());
        tokio::spawn(async move {
            if let Err(failure) = carry(&client, &path, connection).await {
                ui::failure(&failure);
            }
        });
    }
}

/// Carries one connection until both sides have said all.
async fn carry(client: &Client, path: &str, connection: TcpStream) -> Outcome<()> {
    let (mut to_machine, mut from_machine) = client.websocket(path).await?;
    let (mut reader, mut writer) = connection.into_split();
    let up = async {
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let length = reader.read(&mut buffer).await.unwrap_or(0);
            // No bytes: this side has said all, the other may go on.
            to_machine.raw(Bytes::copy_from_slice(&buffer[..length])).await?;
            if length == 0 {
                return std::future::pending::<Outcome<()>>().await;
            }
        }
    };
    let down = async {
        while let Some(bytes) = from_machine.next_raw().await? {
            if bytes.is_empty() {
                let _ = writer.shutdown().await;
            } else if writer.write_all(&bytes).await.is_err() {
                break;
            }
        }
        Ok(())
    };
    let result = tokio::select! {
        result = up => result,
        result = down => result,
    };
    to_machine.close().await;
    result
}
