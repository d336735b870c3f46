//! `/v1/machines/{name}/exec`: a command in a running machine.

use axum::extract::State;
use axum::extract::ws::{WebSocket, WebSocketUpgrade};
use axum::response::Response;
use calve_core::limits::{ARG_MAX_BYTES, ENV_MAX_BYTES};
use calve_wire::agent::Target;
use calve_wire::api::{ExecRequest, Problem, ProblemKind, StreamControl};
use calve_wire::event::What;
use tokio::sync::mpsc;

use super::extract::Named;
use super::problem::{ApiError, ApiResult};
use super::socket::{self, Client, FromClient, Gone, ToClient};
use super::{Api, Principal};
use crate::agents::{StreamEvent, StreamReceiver, StreamSender};
use crate::daemon::Connection;

/// Messages of standard input that wait for the command: beyond them the client has to wait, and so do its signals.
const STDIN_WAITING_MAX: usize = 64;
/// Most bytes of a command that its event shows: an event tells what was done, not with which data.
const EVENT_ARGV_BYTES: usize = 1024;

/// A WebSocket: the client's first message is an `ExecRequest`; then output one way, standard input, signals and sizes
/// the other. Ends with `StreamControl::Exit` behind all output, or with `StreamControl::Error`.
#[utoipa::path(get, path = "/v1/machines/{name}/exec",
    params(("name" = String, Path, description = "Name or id")), responses(
    (status = 101, description = "A WebSocket"), (status = "default", body = Problem)))]
pub async fn exec(
    State(api): State<Api>,
    by: Principal,
    Named(name): Named,
    connection: Connection,
    upgrade: WebSocketUpgrade,
) -> ApiResult<Response> {
    api.find(&name).await?;
    Ok(socket::limited(upgrade).on_upgrade(async move |socket| {
        let _connection = connection;
        let shutdown = api.shutdown.clone();
        shutdown.run_until_cancelled(serve(&api, &by, &name, socket)).await;
    }))
}

async fn serve(api: &Api, by: &Principal, name: &str, socket: WebSocket) {
    let (mut to_client, mut client) = socket::split(socket);
    let opened = match client.first::<ExecRequest>().await {
        Some(Ok(request)) => open(api, by, name, request).await,
        Some(Err(error)) => Err(error),
        None => return,
    };
    let (sender, receiver) = match opened {
        Ok(stream) => stream,
        Err(error) => return to_client.fail(error).await,
    };
    let end = tokio::select! {
        end = send_output(receiver, &mut to_client) => end,
        refused = take_input(client, sender) => match refused {
            Some(error) => Ok(StreamControl::Error { problem: error.0 }),
            None => Err(Gone),
        },
    };
    if let Ok(end) = end {
        to_client.end(end).await;
    }
}

async fn open(
    api: &Api,
    by: &Principal,
    name: &str,
    request: ExecRequest,
) -> ApiResult<(StreamSender, StreamReceiver)> {
    check(&request)?;
    let record = api.reach(name).await?;
    let ExecRequest { argv, env, cwd, stdin, tty } = request;
    let what = What::Exec { argv: shown(&argv) };
    let stream = api.world.agents().open(record.id, Target::Command { argv, env, cwd, stdin, tty })?;
    api.audit(by, &record, what);
    Ok(stream.split())
}

fn check(request: &ExecRequest) -> ApiResult<()> {
    if request.argv.first().is_none_or(String::is_empty) {
        return Err(ApiError::bad_request("no command was given").hint("name one behind `--`"));
    }
    let variables = request.env.iter().flat_map(|(name, value)| [name, value]);
    let texts: Vec<&String> = request.argv.iter().chain(variables).chain(&request.cwd).collect();
    if texts.iter().any(|text| text.contains('\0')) {
        return Err(ApiError::bad_request("the command holds a zero byte, which no program can be given"));
    }
    let total: usize = texts.iter().map(|text| text.len() + 1).sum();
    if total > ENV_MAX_BYTES || texts.iter().any(|text| text.len() > ARG_MAX_BYTES) {
        return Err(ApiError::bad_request(format!(
            "the command is too long: {total} bytes, where one argument may have {ARG_MAX_BYTES} and all {ENV_MAX_BYTES}"
        ))
        .hint("send the data on its standard input"));
    }
    if request.env.keys().any(|name| name.is_empty() || name.contains('=')) {
        return Err(ApiError::bad_request("an environment variable has a name that cannot be"));
    }
    Ok(())
}

/// The beginning of the command.
fn shown(argv: &[String]) -> Vec<String> {
    let mut room = EVENT_ARGV_BYTES;
    let mut shown = Vec::new();
    for arg in argv {
        if arg.len() > room {
            shown.push("…".to_owned());
            break;
        }
        room -= arg.len();
        shown.push(arg.clone());
    }
    shown
}

async fn send_output(mut receiver: StreamReceiver, to_client: &mut ToClient) -> Result<StreamControl, Gone> {
    while let Some(event) = receiver.recv().await {
        match event {
            StreamEvent::Data(channel, bytes) => to_client.data(channel, &bytes).await?,
            StreamEvent::Ended(exit) => {
                return Ok(StreamControl::Exit { exit, state: None, message: None });
            }
            StreamEvent::Failed { message, exit: Some(exit) } => {
                return Ok(StreamControl::Exit { exit: Some(exit), state: None, message: Some(message) });
            }
            StreamEvent::Failed { message, exit: None } => {
                return Ok(StreamControl::Error { problem: Problem::new(ProblemKind::BadRequest, message) });
            }
        }
    }
    Err(Gone)
}

/// Takes what the client sends until it goes away, or sends what makes no sense.
async fn take_input(mut client: Client, sender: StreamSender) -> Option<ApiError> {
    let (stdin, mut waiting) = mpsc::channel::<bytes::Bytes>(STDIN_WAITING_MAX);
    let feeding = async {
        while let Some(bytes) = waiting.recv().await {
            let sent = if bytes.is_empty() { sender.close_stdin().await } else { sender.send(&bytes).await };
            if let Err(error) = sent {
                // The command has closed its input, or ended, which the other direction tells.
                tracing::debug!(%error, "input was dropped");
            }
        }
    };
    let reading = async {
        loop {
            let told = match client.next().await? {
                Ok(FromClient::Stdin(bytes)) => {
                    let _ = stdin.send(bytes).await;
                    Ok(())
                }
                Ok(FromClient::Control(StreamControl::Signal { signal })) => sender.signal(signal),
                Ok(FromClient::Control(StreamControl::Resize { size })) => sender.resize(size),
                Ok(FromClient::Control(StreamControl::Exit { .. } | StreamControl::Error { .. })) => {
                    return Some(ApiError::bad_request("only the server says how a command ended"));
                }
                Err(error) => return Some(error),
            };
            if let Err(error) = told {
                tracing::debug!(%error, "a control message was dropped");
            }
        }
    };
    tokio::select! {
        error = reading => error,
        () = feeding => None,
    }
}
