//! Agents that dial in over TCP and TLS.

mod fake_agent;

use std::net::SocketAddr;
use std::sync::Arc;

use calve_server::agents::{HANDSHAKES_MAX, LinkError, Listener};
use calve_wire::agent::ToAgent;
use fake_agent::door::{Records, connect, listen};
use fake_agent::*;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

async fn door(world: &World) -> (Listener, String) {
    listen(world, Records::new(world).joins()).await
}

async fn dial(addr: SocketAddr, fingerprint: &str) -> Conversation<TlsStream<TcpStream>> {
    Conversation::new(connect(addr, fingerprint).await)
}

#[tokio::test]
async fn a_dialled_agent_is_known_by_its_token_and_its_newest_connection_counts() {
    let world = World::new();
    let id = machine(1);
    let other = "f".repeat(32);
    world.agents.expect(machine(2), other, Arc::new(remaining)).unwrap();
    world.agents.expect(id, TOKEN.to_owned(), Arc::new(remaining)).unwrap();
    let (listener, fingerprint) = door(&world).await;

    let mut first = dial(listener.local_addr(), &fingerprint).await;
    first.raw(&token().preamble()).await;
    assert_eq!(first.hello().await, 0);
    first.welcome(1).await;
    first.log(1..=1).await;
    first.kept(1).await;
    assert!(world.agents.reports()[&id].linked);
    assert!(!world.agents.reports()[&machine(2)].linked);

    let mut second = dial(listener.local_addr(), &fingerprint).await;
    second.raw(&token().preamble()).await;
    assert_eq!(second.hello().await, 1);
    first.hung_up().await;
    second.welcome(1).await;
    world.until_linked(id).await;
    world.agents.send(id, ToAgent::PowerOff).unwrap();
    assert_eq!(second.message().await, ToAgent::PowerOff);

    // A link outlives the listener, and ends when it is told to.
    drop(listener);
    world.agents.send(id, ToAgent::Signal { signal: 1 }).unwrap();
    assert_eq!(second.message().await, ToAgent::Signal { signal: 1 });
    world.agents.unlink(id);
    second.hung_up().await;
    assert_eq!(world.agents.send(id, ToAgent::PowerOff), Err(LinkError::Unknown));
}

#[tokio::test]
async fn who_shows_no_expected_token_is_dropped_without_an_answer() {
    let world = World::new();
    // Linked over its socket, so not expected to dial.
    let _agent = world.link(machine(1));
    let (listener, fingerprint) = door(&world).await;
    let mut stranger = dial(listener.local_addr(), &fingerprint).await;
    stranger.raw(&token().preamble()).await;
    let mut rest = Vec::new();
    let _ = stranger.connection.read_to_end(&mut rest).await;
    assert_eq!(rest, b"");
}

#[tokio::test]
async fn silent_strangers_are_dropped_in_the_end_and_do_not_keep_agents_out() {
    let world = World::new();
    let id = machine(1);
    world.agents.expect(id, TOKEN.to_owned(), Arc::new(remaining)).unwrap();
    let (listener, fingerprint) = door(&world).await;
    let mut strangers = Vec::new();
    for _ in 0..HANDSHAKES_MAX {
        strangers.push(TcpStream::connect(listener.local_addr()).await.unwrap());
    }
    let mut agent = dial(listener.local_addr(), &fingerprint).await;
    agent.raw(&token().preamble()).await;
    agent.hello().await;
    for mut stranger in strangers {
        assert!(matches!(stranger.read(&mut [0]).await, Ok(0) | Err(_)), "it was dropped");
    }
}
