//! The WebSockets of `attach` and `exec`: bytes with a channel, and control messages.

use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use bytes::{BufMut, Bytes, BytesMut};
use calve_wire::api::StreamControl;
use calve_wire::frame::Channel;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};

use super::problem::ApiError;

/// Largest message that a client may send, in bytes: many times what a client reads from a terminal or pipe at once.
pub const MESSAGE_MAX_BYTES: usize = 1024 * 1024;

/// What a client sent.
#[derive(Debug)]
pub enum FromClient {
    /// Bytes for the program; none closes its input.
    Stdin(Bytes),
    /// A control message.
    Control(StreamControl),
}

/// The half towards the client.
pub struct ToClient {
    sink: SplitSink<WebSocket, Message>,
}

/// The half from the client.
pub struct Client {
    stream: SplitStream<WebSocket>,
}

/// The client went away.
#[derive(Debug)]
pub struct Gone;

/// An upgrade with this API's limits.
pub fn limited(upgrade: WebSocketUpgrade) -> WebSocketUpgrade {
    upgrade.max_message_size(MESSAGE_MAX_BYTES).max_frame_size(MESSAGE_MAX_BYTES)
}

/// Both halves of a socket.
pub fn split(socket: WebSocket) -> (ToClient, Client) {
    let (sink, stream) = socket.split();
    (ToClient { sink }, Client { stream })
}

impl ToClient {
    /// Sends bytes of a channel.
    pub async fn data(&mut self, channel: Channel, bytes: &[u8]) -> Result<(), Gone> {
        let mut message = BytesMut::with_capacity(1 + bytes.len());
        message.put_u8(channel as u8);
        message.put_slice(bytes);
        self.send(Message::Binary(message.freeze())).await
    }

    /// Sends the last message and says goodbye.
    pub async fn end(mut self, last: StreamControl) {
        let json =
            serde_json::to_string(&last).expect("a control message holds nothing that JSON cannot say");
        if self.send(Message::text(json)).await.is_ok() {
            let _ = self.send(Message::Close(None)).await;
        }
    }

    /// Sends a problem as the last message.
    pub async fn fail(self, error: ApiError) {
        self.end(StreamControl::Error { problem: error.0 }).await;
    }

    async fn send(&mut self, message: Message) -> Result<(), Gone> {
        self.sink.send(message).await.map_err(|_| Gone)
    }
}

impl Client {
    /// The next message; none once the client is gone.
    pub async fn next(&mut self) -> Option<Result<FromClient, ApiError>> {
        loop {
            return match self.stream.next().await?.ok()? {
                Message::Binary(bytes) if bytes.first() == Some(&(Channel::Stdin as u8)) => {
                    Some(Ok(FromClient::Stdin(bytes.slice(1..))))
                }
                Message::Binary(_) => Some(Err(ApiError::bad_request(
                    "a binary message must begin with the channel 0, standard input",
                ))),
                Message::Text(text) => Some(parse(&text)),
                Message::Ping(_) | Message::Pong(_) => continue,
                Message::Close(_) => None,
            };
        }
    }

    /// The first message, where it is JSON of another type; none where the client is gone.
    pub async fn first<T: serde::de::DeserializeOwned>(&mut self) -> Option<Result<T, ApiError>> {
        loop {
            return match self.stream.next().await?.ok()? {
                Message::Text(text) => Some(serde_json::from_str(&text).map_err(|error| {
                    ApiError::bad_request(format!("the first message does not parse: {error}"))
                })),
                Message::Binary(_) => {
                    Some(Err(ApiError::bad_request("the first message must be a text message")))
                }
                Message::Ping(_) | Message::Pong(_) => continue,
                Message::Close(_) => None,
            };
        }
    }
}

fn parse(text: &str) -> Result<FromClient, ApiError> {
    let control = serde_json::from_str(text);
    control
        .map(FromClient::Control)
        .map_err(|error| ApiError::bad_request(format!("a control message does not parse: {error}")))
}
