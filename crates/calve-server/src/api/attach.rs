//! `/v1/machines/{name}/attach`: a machine's output from its beginning on, its input, and its end.

use axum::extract::State;
use axum::extract::ws::{WebSocket, WebSocketUpgrade};
use axum::response::Response;
use bytes::Bytes;
use calve_core::{MachineId, StopReason};
use calve_wire::agent::{Phase, Status, ToAgent};
use calve_wire::api::{Problem, StreamControl};
use calve_wire::frame::LogEntry;
use calve_wire::machine::Workload;
use calve_wire::record::MachineRecord;
use futures_util::StreamExt;
use tokio::sync::{mpsc, watch};

use super::Api;
use super::extract::Named;
use super::holds::Hold;
use super::problem::{ApiError, ApiResult};
use super::socket::{self, Client, FromClient, Gone, ToClient};
use super::watches::Watched;
use crate::agents::{LinkError, Stdin};
use crate::daemon::Connection;
use crate::logs::{LogStream, Query};

/// Messages of standard input that wait for the program: beyond them the client has to wait, and so do its signals.
const STDIN_WAITING_MAX: usize = 64;

/// A WebSocket: the log from its first entry, then live; standard input and signals the other way. Ends with
/// `StreamControl::Exit` once the program has ended for good and all of its output was sent.
#[utoipa::path(get, path = "/v1/machines/{name}/attach",
    params(("name" = String, Path, description = "Name or id"),
        ("hold" = Option<bool>, Query, description = "The machine ends when this connection does")), responses(
    (status = 101, description = "A WebSocket"), (status = "default", body = Problem)))]
pub async fn attach(
    State(api): State<Api>,
    Named(name): Named,
    axum::extract::Query(options): axum::extract::Query<Options>,
    connection: Connection,
    upgrade: WebSocketUpgrade,
) -> ApiResult<Response> {
    let id = api.find(&name).await?.id;
    Ok(socket::limited(upgrade).on_upgrade(async move |socket| {
        let _connection = connection;
        let _hold = options.hold.then(|| Hold::on(&api, id));
        let shutdown = api.shutdown.clone();
        shutdown.run_until_cancelled(serve(&api, id, socket)).await;
    }))
}

/// What stands behind the question mark.
#[derive(Debug, serde::Deserialize)]
pub struct Options {
    #[serde(default)]
    hold: bool,
}

async fn serve(api: &Api, id: MachineId, socket: WebSocket) {
    let (mut to_client, client) = socket::split(socket);
    let output = async {
        match send_output(api, id, &mut to_client).await {
            Ok(Ok(end)) => Some(end),
            Ok(Err(error)) => Some(StreamControl::Error { problem: error.0 }),
            Err(Gone) => None,
        }
    };
    let end = tokio::select! {
        end = output => end,
        refused = take_input(api, id, client) => refused.map(|error| StreamControl::Error { problem: error.0 }),
    };
    if let Some(end) = end {
        to_client.end(end).await;
    }
}

async fn send_output(
    api: &Api,
    id: MachineId,
    to_client: &mut ToClient,
) -> Result<ApiResult<StreamControl>, Gone> {
    let mut entries = match followed(api, id, Query::default()).await {
        Ok(entries) => entries,
        Err(error) => return Ok(Err(error)),
    };
    let mut watched = api.watches.watch(id);
    let mut last = watched.borrow().clone();
    // What a system says, it says on its console; beside a program's output the boot is noise.
    if let Some(record) = last.as_ref().filter(|record| !matches!(record.spec.workload, Workload::Program(_)))
    {
        entries = api.world.console(record).follow(&Query::default(), entries).await;
    }
    while let Some(entry) = entries.next().await {
        to_client.data(entry.channel, &entry.bytes).await?;
    }
    // The output has ended; how the program did, is in what the agent said or, later, in the record.
    loop {
        let record = watched.borrow_and_update().clone();
        let Some(record) = record else {
            let exit = last.as_ref().and_then(|record| record.exit);
            return Ok(Ok(StreamControl::Exit { exit, state: Some("gone".to_owned()), message: None }));
        };
        let said = ended(api, id);
        if said.is_some() || record.state.is_terminal() {
            return Ok(Ok(exit_of(&record, said.as_ref())));
        }
        last = Some(record);
        if watched.changed().await.is_err() {
            return Err(Gone);
        }
    }
}

fn exit_of(record: &MachineRecord, said: Option<&Status>) -> StreamControl {
    let stopped = record.stop.and_then(|stop| match stop.reason {
        StopReason::Expired => Some("its lease ended"),
        StopReason::Requested => Some("it was told to end"),
        StopReason::Exited | StopReason::Failed => None,
    });
    StreamControl::Exit {
        exit: record.exit.or(said.and_then(|status| status.last_exit)),
        state: Some(record.state.to_string()),
        message: record.message.clone().or_else(|| said?.why_ended()).or(stopped.map(str::to_owned)),
    }
}

/// What the agent said last, once the program ended for good and all of its output is in the log.
fn ended(api: &Api, id: MachineId) -> Option<Status> {
    let report = api.world.agents().report(id)?;
    report.status.filter(|status| status.phase == Phase::Ended && report.log_complete)
}

/// The log as it comes. Ends with the last entry once the program has ended for good, also where the machine never came
/// to be and nobody closes its log.
pub(super) async fn followed(api: &Api, id: MachineId, query: Query) -> ApiResult<LogStream> {
    let follower = Follower {
        live: api.logs.follow(id, query.clone()).await?,
        rest: None,
        watched: api.watches.watch(id),
        changes: api.world.changes(),
        api: api.clone(),
        id,
        query,
    };
    Ok(futures_util::stream::unfold(follower, async |mut follower| {
        follower.next().await.map(|entry| (entry, follower))
    })
    .boxed())
}

struct Follower {
    api: Api,
    id: MachineId,
    /// What is still to be given.
    query: Query,
    live: LogStream,
    /// What is left once nothing will be added any more.
    rest: Option<LogStream>,
    watched: Watched,
    changes: watch::Receiver<u64>,
}

impl Follower {
    async fn next(&mut self) -> Option<LogEntry> {
        while self.rest.is_none() {
            self.changes.mark_unchanged();
            if self.is_over() {
                match self.api.logs.read(self.id, self.query.clone()).await {
                    Ok(rest) => self.rest = Some(rest),
                    Err(error) => {
                        tracing::warn!(machine = %self.id, error = crate::chain(&error), "a log broke off");
                        return None;
                    }
                }
                break;
            }
            tokio::select! {
                biased;
                entry = self.live.next() => {
                    let entry = entry?;
                    self.query.from_seq = entry.seq + 1;
                    self.query.tail_lines = None;
                    return Some(entry);
                }
                _ = self.watched.changed() => {}
                _ = self.changes.changed() => {}
            }
        }
        self.rest.as_mut()?.next().await
    }

    /// Whether all that the program said is in the log.
    fn is_over(&mut self) -> bool {
        let record = self.watched.borrow_and_update();
        let over = record.as_ref().is_none_or(|record| record.state.is_terminal());
        over || ended(&self.api, self.id).is_some()
    }
}

/// Takes what the client sends until it goes away, or sends what makes no sense.
async fn take_input(api: &Api, id: MachineId, mut client: Client) -> Option<ApiError> {
    let (stdin, waiting) = mpsc::channel(STDIN_WAITING_MAX);
    let reading = async {
        loop {
            match client.next().await? {
                Ok(FromClient::Stdin(bytes)) => drop(stdin.send(bytes).await),
                Ok(FromClient::Control(StreamControl::Signal { signal })) => {
                    if let Err(error) = api.world.agents().send(id, ToAgent::Signal { signal }) {
                        tracing::debug!(machine = %id, %error, "a signal was not delivered");
                    }
                }
                Ok(FromClient::Control(_)) => {}
                Err(error) => return Some(error),
            }
        }
    };
    tokio::select! {
        error = reading => error,
        refused = feed(api, id, waiting) => Some(refused),
    }
}

/// Hands standard input on as the program takes it. Gives why it cannot be; what comes after the program closed its
/// input is dropped, as a pipe's writer would not be told either before it writes again.
async fn feed(api: &Api, id: MachineId, mut waiting: mpsc::Receiver<Bytes>) -> ApiError {
    let mut stdin = None;
    while let Some(bytes) = waiting.recv().await {
        let stdin = match &stdin {
            Some(stdin) => stdin,
            None => match take_stdin(api, id).await {
                Ok(taken) => stdin.insert(taken),
                Err(error) => return error.into(),
            },
        };
        let sent = if bytes.is_empty() { stdin.close().await } else { stdin.send(&bytes).await };
        if let Err(error) = sent {
            tracing::debug!(machine = %id, %error, "input was dropped");
        }
    }
    std::future::pending().await
}

/// The program's standard input, once it has been started.
async fn take_stdin(api: &Api, id: MachineId) -> Result<Stdin, LinkError> {
    let mut changes = api.world.changes();
    loop {
        changes.mark_unchanged();
        let status = api.world.agents().report(id).and_then(|report| report.status);
        if status.is_some_and(|status| status.phase != Phase::Waiting) {
            match api.world.agents().stdin(id) {
                Err(LinkError::NotLinked | LinkError::Unknown) => {}
                result => return result,
            }
        }
        if changes.changed().await.is_err() {
            return Err(LinkError::Unknown);
        }
    }
}
