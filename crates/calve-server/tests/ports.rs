//! Published ports, with a test in place of the machine's agent.

mod fake_agent;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use calve_server::ports::{CONNECTIONS_MAX, Ports, PortsError};
use calve_wire::agent::{FromAgent, Target, ToAgent};
use calve_wire::frame::{Channel, Frame, Incoming};
use calve_wire::machine::PortMapping;
use fake_agent::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn any_port() -> PortMapping {
    PortMapping { host_addr: IpAddr::V4(Ipv4Addr::LOCALHOST), host_port: 0, machine_port: 80 }
}

async fn client(mapping: &PortMapping) -> TcpStream {
    TcpStream::connect(SocketAddr::new(mapping.host_addr, mapping.host_port)).await.unwrap()
}

fn opened(stream: u32) -> ToAgent {
    ToAgent::Open { stream, target: Target::Tcp { port: 80 } }
}

#[tokio::test]
async fn a_connection_is_carried_both_ways_with_its_half_closes() {
    let world = World::new();
    let id = machine(1);
    let agent = world.link(id);
    let (mut conversation, _) = agent.accept_linked(0).await;
    world.until_linked(id).await;
    let ports = Ports::default();
    let published = ports.publish(id, &[any_port()], &world.agents).unwrap();
    assert_ne!(published[0].host_port, 0);
    assert_eq!(ports.publish(id, &[any_port()], &world.agents).unwrap(), published, "repeated");
    assert_eq!(ports.published(id), published);

    let mut client = client(&published[0]).await;
    client.write_all(b"request").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(conversation.message().await, opened(1));
    for expected in [b"request".as_slice(), b""] {
        let frame = Frame::Data { stream: 1, channel: Channel::Stdin, bytes: expected.to_vec() };
        assert_eq!(conversation.next().await, Some(Incoming::Frame(frame)));
    }
    conversation.data(1, b"answer").await;
    conversation.data(1, b"").await;
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"answer");
    conversation.say(FromAgent::StreamEnded { stream: 1, exit: None }).await;

    ports.unpublish(id);
    world
        .until("the port to close", || {
            std::net::TcpStream::connect((published[0].host_addr, published[0].host_port)).is_err()
        })
        .await;
    assert_eq!(ports.published(id), []);
}

#[tokio::test]
async fn what_fails_in_the_machine_is_reset_towards_the_client() {
    let world = World::new();
    let id = machine(1);
    let ports = Ports::default();
    let published = ports.publish(id, &[any_port()], &world.agents).unwrap();
    // Not linked at all.
    let error = client(&published[0]).await.read(&mut [0]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    // Nobody listens in the machine.
    let agent = world.link(id);
    let (mut conversation, _) = agent.accept_linked(0).await;
    world.until_linked(id).await;
    let mut refused = client(&published[0]).await;
    assert_eq!(conversation.message().await, opened(1));
    conversation.say(FromAgent::StreamFailed { stream: 1, message: "refused".into(), exit: None }).await;
    let error = refused.read(&mut [0]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    // The client goes away: the machine's side is told.
    let gone = client(&published[0]).await;
    assert_eq!(conversation.message().await, opened(2));
    gone.set_zero_linger().unwrap();
    drop(gone);
    assert_eq!(conversation.message().await, ToAgent::Reset { stream: 2 });
}

#[tokio::test]
async fn a_port_in_use_is_named_and_nothing_is_half_published() {
    let world = World::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let ports = Ports::default();
    let wanted = [any_port(), PortMapping { host_port: port, ..any_port() }];
    let error = ports.publish(machine(1), &wanted, &world.agents).unwrap_err();
    assert!(matches!(error, PortsError::InUse { .. }));
    assert!(error.to_string().contains(&format!("port {port} on 127.0.0.1 is in use")), "{error}");
    assert_eq!(ports.published(machine(1)), []);
    let elsewhere = PortMapping { host_addr: "192.0.2.1".parse().unwrap(), ..any_port() };
    let error = ports.publish(machine(1), &[elsewhere], &world.agents).unwrap_err();
    assert_eq!(error.to_string(), "this host has no address 192.0.2.1");
    drop(taken);
    ports.publish(machine(1), &wanted, &world.agents).unwrap();
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_their_turn() {
    let world = World::new();
    let id = machine(1);
    let agent = world.link(id);
    let (mut conversation, _) = agent.accept_linked(0).await;
    world.until_linked(id).await;
    let ports = Ports::default();
    let published = ports.publish(id, &[any_port()], &world.agents).unwrap();
    let mut clients = Vec::new();
    for n in 1..=CONNECTIONS_MAX as u32 {
        clients.push(client(&published[0]).await);
        assert_eq!(conversation.message().await, opened(n));
    }
    let _waiting = client(&published[0]).await;
    world.agents.send(id, ToAgent::Signal { signal: 1 }).unwrap();
    assert_eq!(conversation.message().await, ToAgent::Signal { signal: 1 }, "nothing is opened yet");
    conversation.say(FromAgent::StreamEnded { stream: 1, exit: None }).await;
    assert_eq!(conversation.message().await, opened(CONNECTIONS_MAX as u32 + 1));
}
