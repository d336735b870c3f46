//! WebSockets: binary frames whose first byte is the channel, and control messages in text frames.

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Message, handshake};

use calve_wire::api::StreamControl;
use calve_wire::frame::Channel;

use crate::client::{Body, Endpoint, empty};
use crate::failure::{Failure, Outcome};

/// An open WebSocket.
pub type Socket = (SocketWriter, SocketReader);

/// The request that turns a connection into a WebSocket (RFC 6455, 4.1).
pub fn upgrade_request(path: &str, endpoint: &Endpoint) -> Request<Body> {
    endpoint
        .request(path)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, handshake::client::generate_key())
        .body(empty())
        .expect("paths are escaped where they are made")
}

/// The WebSocket on an upgraded connection.
pub async fn open(upgraded: Upgraded) -> Socket {
    let stream = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await;
    let (sink, stream) = stream.split();
    (SocketWriter { sink }, SocketReader { stream })
}

/// The sending half.
pub struct SocketWriter {
    sink: SplitSink<WebSocketStream<TokioIo<Upgraded>>, Message>,
}

/// The receiving half.
pub struct SocketReader {
    stream: SplitStream<WebSocketStream<TokioIo<Upgraded>>>,
}

/// What came.
#[derive(Debug)]
pub enum Received {
    /// Bytes of a channel; none closes it.
    Data(Channel, Bytes),
    /// A control message.
    Control(StreamControl),
}

impl SocketWriter {
    /// Sends bytes on a channel; none closes it. Fails once the other side is gone.
    pub async fn data(&mut self, channel: Channel, bytes: &[u8]) -> Outcome<()> {
        let mut framed = BytesMut::with_capacity(1 + bytes.len());
        framed.put_u8(channel as u8);
        framed.put_slice(bytes);
        self.send(Message::Binary(framed.freeze())).await
    }

    /// Sends bytes as they are, for sockets without channels.
    pub async fn raw(&mut self, bytes: Bytes) -> Outcome<()> {
        self.send(Message::Binary(bytes)).await
    }

    /// Sends a message as JSON.
    pub async fn text(&mut self, message: &impl serde::Serialize) -> Outcome<()> {
        let json = serde_json::to_string(message).expect("messages hold nothing that JSON cannot say");
        self.send(Message::text(json)).await
    }

    /// Says goodbye; an error means that the other side is gone already.
    pub async fn close(&mut self) {
        let _ = self.sink.send(Message::Close(None)).await;
    }

    async fn send(&mut self, message: Message) -> Outcome<()> {
        self.sink.send(message).await.map_err(broken)
    }
}

impl SocketReader {
    /// The next message with a channel; none at the end.
    pub async fn next(&mut self) -> Outcome<Option<Received>> {
        while let Some(message) = self.stream.next().await {
            match message.map_err(broken)? {
                Message::Binary(bytes) => {
                    let channel = bytes.first().copied().and_then(Channel::from_u8);
                    let channel =
                        channel.ok_or_else(|| Failure::failed("the server sent bytes of no channel"))?;
                    return Ok(Some(Received::Data(channel, bytes.slice(1..))));
                }
                Message::Text(text) => {
                    let control = serde_json::from_str(&text).map_err(|error| {
                        Failure::failed("the server sent a control message that this calve does not know")
                            .caused_by(error)
                    })?;
                    return Ok(Some(Received::Control(control)));
                }
                Message::Close(_) => return Ok(None),
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
        Ok(None)
    }

    /// The next bytes of a socket without channels; none at the end, a failure where the server says one.
    pub async fn next_raw(&mut self) -> Outcome<Option<Bytes>> {
        while let Some(message) = self.stream.next().await {
            match message.map_err(broken)? {
                Message::Binary(bytes) => return Ok(Some(bytes)),
                Message::Text(text) => {
                    if let Ok(StreamControl::Error { problem }) = serde_json::from_str(&text) {
                        return Err(problem.into());
                    }
                }
                Message::Close(_) => return Ok(None),
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
        Ok(None)
    }
}

fn broken(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Failure {
    Failure::failed("the connection to the server broke off").caused_by(error)
}
