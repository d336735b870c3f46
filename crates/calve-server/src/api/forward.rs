//! `/v1/machines/{name}/forward`: a TCP connection to a port of a machine.

use axum::extract::State;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use calve_wire::agent::Target;
use calve_wire::api::{Problem, ProblemKind, StreamControl};
use calve_wire::frame::Channel;
use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use utoipa::IntoParams;

use super::Api;
use super::extract::{Named, Params};
use super::problem::{ApiError, ApiResult};
use super::socket;
use crate::agents::{AgentStream, StreamEvent};
use crate::daemon::Connection;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct ForwardParams {
    /// TCP port on the machine's loopback.
    port: u16,
}

/// A WebSocket of plain binary messages: bytes to and from the port. An empty message closes that direction; a text
/// message is `StreamControl::Error`, the last.
#[utoipa::path(get, path = "/v1/machines/{name}/forward",
    params(("name" = String, Path, description = "Name or id"), ForwardParams), responses(
    (status = 101, description = "A WebSocket"), (status = "default", body = Problem)))]
pub async fn forward(
    State(api): State<Api>,
    Named(name): Named,
    Params(params): Params<ForwardParams>,
    connection: Connection,
    upgrade: WebSocketUpgrade,
) -> ApiResult<Response> {
    if params.port == 0 {
        return Err(ApiError::bad_request("port 0 of a machine cannot be reached"));
    }
    let record = api.reach(&name).await?;
    let stream = api.world.agents().open(record.id, Target::Tcp { port: params.port })?;
    Ok(socket::limited(upgrade).on_upgrade(async move |socket| {
        let _connection = connection;
        api.shutdown.run_until_cancelled(carry(socket, stream)).await;
    }))
}

async fn carry(socket: WebSocket, stream: AgentStream) {
    let (mut to_client, mut client) = socket.split();
    let (sender, mut receiver) = stream.split();
    let out = async {
        while let Some(event) = receiver.recv().await {
            let message = match event {
                StreamEvent::Data(Channel::Stdout, bytes) => Message::Binary(bytes),
                StreamEvent::Data(..) => continue,
                StreamEvent::Ended(_) => break,
                StreamEvent::Failed { message, .. } => failure(message),
            };
            to_client.send(message).await?;
        }
        to_client.send(Message::Close(None)).await
    };
    let into = async {
        while let Some(Ok(message)) = client.next().await {
            let sent = match message {
                Message::Binary(bytes) if bytes.is_empty() => sender.close_stdin().await,
                Message::Binary(bytes) => sender.send(&bytes).await,
                Message::Close(_) => break,
                Message::Text(_) | Message::Ping(_) | Message::Pong(_) => Ok(()),
            };
            if sent.is_err() {
                // The machine's end takes no more; what it still sends is passed on.
                return std::future::pending().await;
            }
        }
    };
    tokio::select! {
        result = out => drop::<Result<(), axum::Error>>(result),
        () = into => {}
    }
}

fn failure(message: String) -> Message {
    let problem = Problem::new(ProblemKind::BadRequest, message);
    let control = StreamControl::Error { problem };
    Message::text(serde_json::to_string(&control).expect("a problem holds nothing that JSON cannot say"))
}
