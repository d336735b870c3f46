mod anywhere;
mod health;
mod report;
mod spec;

use std::time::Duration;

use bytes::Bytes;
use calve_core::ExitCause;
use calve_wire::api::{CreateMachine, MachineView, StreamControl};
use calve_wire::machine::{Exit, Limits, MachineSpec, Workload};
use hyper::Method;
use tokio_util::task::AbortOnDropHandle;

use super::{names, stop};
use crate::client::{Client, Socket};
use crate::failure::{ExitStatus, Failure, Outcome};
use crate::resolve;
use crate::session::signals::{LETTING_GO, PASSED_ON, Signals};
use crate::session::{Ending, Reaction, Session, stdin};
use crate::ship;
use crate::ui::{self, OutputStream};
pub use spec::Args;

/// How long a session goes on without its server: the next one adopts its machines within moments.
const RECONNECT_DEADLINE: Duration = Duration::from_secs(30);
/// Pause between two tries to reach the next server.
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);

pub async fn run(mut args: Args) -> Outcome {
    args.settle().await?;
    let worth_reading = !args.detach && stdin::is_worth_reading();
    let request = args.to_request(worth_reading)?;
    let client = Client::connect().await?;
    if args.detach {
        return detached(&client, &request, args.json).await;
    }
    // Before the machine exists: an interrupt that comes while it is made lets go of it too.
    let mut signals = Signals::hear(&[&LETTING_GO[..], &PASSED_ON[..]].concat())?;
    let answer = match first_try(&client, &request).await? {
        Tried::Created(answer) => answer,
        Tried::Lacking(refusal) => {
            // There is no machine yet that could be let go of.
            tokio::select! {
                shipped = ship::ship(&client, &request, refusal) => shipped?,
                signal = signals.next() => return Ok(ExitStatus::Program(128 + signal)),
            }
            create(&client, &request).await.map_err(|failure| refused(failure, &request))?
        }
    };
    let machine: MachineView = client.parse(&answer)?;
    let attached = Attached::new(client, machine);
    attached.follow(signals).await
}

async fn detached(client: &Client, request: &CreateMachine, json: bool) -> Outcome {
    let answer = match first_try(client, request).await? {
        Tried::Created(answer) => answer,
        Tried::Lacking(refusal) => {
            ship::ship(client, request, refusal).await?;
            create(client, request).await.map_err(|failure| refused(failure, request))?
        }
    };
    if json {
        ui::json(&answer)?;
        return Ok(ExitStatus::Success);
    }
    let machine: MachineView = serde_json::from_slice(&answer)
        .map_err(|error| Failure::failed("the server's answer does not parse").caused_by(error))?;
    ui::line(machine.summary.name.as_str())?;
    Ok(ExitStatus::Success)
}

/// What came of asking for a machine.
enum Tried {
    /// The machine, as the server described it.
    Created(Bytes),
    /// The server lacks the closure, and what it said, where it was asked.
    Lacking(Option<Failure>),
}

/// Asks for the machine, unless the closure is to be shipped in any case: a server that has it needs nothing more.
async fn first_try(client: &Client, request: &CreateMachine) -> Outcome<Tried> {
    if ship::is_forced() {
        return Ok(Tried::Lacking(None));
    }
    match create(client, request).await {
        Ok(answer) => Ok(Tried::Created(answer)),
        Err(failure) if ship::may_help(&failure, request) => Ok(Tried::Lacking(Some(failure))),
        Err(failure) => Err(refused(failure, request)),
    }
}

async fn create(client: &Client, request: &CreateMachine) -> Outcome<Bytes> {
    client.submit_again("/v1/machines", request).await
}

/// Why the server refused the machine. A program that cannot be started has exit codes of its own.
fn refused(failure: Failure, request: &CreateMachine) -> Failure {
    match &request.spec.workload {
        Workload::Program(program) if failure.status == ExitStatus::Usage => {
            resolve::unstartable(program).unwrap_or(failure)
        }
        _ => failure,
    }
}

/// A machine whose life hangs on this process.
struct Attached {
    client: Client,
    machine: MachineView,
}

impl Attached {
    fn new(client: Client, machine: MachineView) -> Self {
        Self { client, machine }
    }

    /// Shows its output, passes input and signals, and ends as its program does.
    async fn follow(self, mut signals: Signals) -> Outcome {
        let spec = &self.machine.spec;
        // What a system says, it says on its console; beside a program's output the boot is noise.
        let (reads, console) = match &spec.workload {
            Workload::Program(program) => (program.stdin, None),
            _ => (false, Some(OutputStream::Stdout)),
        };
        if console.is_some() {
            let name = &self.machine.summary.name;
            ui::note(&format!(
                "{name} is being started; Ctrl-C lets go of it; calve exec -it {name} -- sh looks inside"
            ));
        }
        let wanted = report::is_wanted(&self.machine);
        let report = wanted.then(|| report::report(self.client.clone(), self.machine.clone()));
        let _reporting = report.map(|report| AbortOnDropHandle::new(tokio::spawn(report)));
        let mut letting_go = LettingGo::new(&self);
        while let Some(early) = signals.pending() {
            let _ = letting_go.on_signal(early);
        }
        let mut session = Session::new(signals, reads, console)?;
        let ending = self.drive(&mut session, &mut letting_go).await;
        match ending {
            Ok(Ending::Ended { exit, message }) => {
                session.finish().await?;
                self.say_unenforced().await;
                self.conclude(exit, message, letting_go.first)
            }
            Ok(Ending::Left(status)) => Ok(status),
            Ok(Ending::OutputBroken(failure)) => {
                self.stop(None).await?;
                Err(failure)
            }
            Ok(Ending::Lost(failure)) | Err(failure) => {
                // Nothing is known of the machine: let go of it if that is still possible.
                let _ = self.stop(None).await;
                Err(failure)
            }
        }
    }

    /// Drives the session over as many connections as it takes: the machine outlives its server.
    async fn drive(&self, session: &mut Session, letting_go: &mut LettingGo) -> Outcome<Ending> {
        let mut socket = self.attach(&self.client).await?;
        loop {
            let ending = session.drive(socket, &mut |signal| letting_go.on_signal(signal)).await?;
            let Ending::Lost(failure) = ending else { return Ok(ending) };
            socket = tokio::select! {
                again = self.attach_again(failure) => again?,
                signal = session.signal() => {
                    let status = ExitStatus::Program(128 + signal);
                    let _ = self.stop(None).await;
                    return Ok(Ending::Left(status));
                }
            };
            letting_go.repeat();
        }
    }

    async fn attach(&self, client: &Client) -> Outcome<Socket> {
        // `hold`: when this connection breaks, for whatever reason, the server lets go of the machine.
        client.websocket(&names::path(&self.machine.summary.name, "/attach?hold=true")).await
    }

    async fn attach_again(&self, lost: Failure) -> Outcome<Socket> {
        let deadline = tokio::time::Instant::now() + RECONNECT_DEADLINE;
        loop {
            let attached = match Client::connect().await {
                Ok(client) => self.attach(&client).await,
                Err(failure) => Err(failure),
            };
            match attached {
                Ok(socket) => return Ok(socket),
                Err(failure) if failure.status == ExitStatus::NotFound => return Err(failure),
                Err(_) if tokio::time::Instant::now() < deadline => tokio::time::sleep(RECONNECT_PAUSE).await,
                Err(_) => return Err(lost),
            }
        }
    }

    /// Says which of the limits that were asked for did not hold: the machine's messages name them.
    async fn say_unenforced(&self) {
        if self.machine.spec.limits == Limits::default() {
            return;
        }
        let path = format!("/v1/machines/{}", self.machine.summary.id);
        let now: Outcome<MachineView> = self.client.get(&path).await;
        // A record that is gone has nothing to say, and the program's end matters more.
        for message in now.map(|machine| machine.messages).unwrap_or_default() {
            ui::note(&format!("note: {message}"));
        }
    }

    async fn stop(&self, grace: Option<Duration>) -> Outcome<()> {
        let path = names::path(&self.machine.summary.name, "/stop");
        self.client.submit(Method::POST, &path, &stop::stop_body(grace)).await.map(drop)
    }

    /// The status of a machine that has ended. `interrupt` is the signal that let go of it, if one did.
    fn conclude(&self, exit: Option<Exit>, message: Option<String>, interrupt: Option<i32>) -> Outcome {
        match (interrupt, exit) {
            // A program that ended by itself had the last word; otherwise the interrupt has.
            (Some(_), Some(Exit { code: Some(code), .. })) => return Ok(ExitStatus::Program(code)),
            (Some(signal), _) => return Ok(ExitStatus::Program(128 + signal)),
            (None, _) => {}
        }
        conclude_with(exit, message, &self.machine.spec)
    }
}

/// Ends as the command did, and says what a bare number does not.
pub fn conclude(exit: Option<Exit>, message: Option<String>) -> Outcome {
    let Some(exit) = exit else {
        return match message {
            Some(message) => Err(Failure::failed(message)),
            None => Ok(ExitStatus::Success),
        };
    };
    match exit.cause {
        ExitCause::Normal => {}
        ExitCause::OutOfMemory => ui::note("the program was killed for want of memory"),
        ExitCause::Limit => ui::note("the program was ended by a limit"),
        ExitCause::MachineLost => ui::note("the machine went away under the program"),
        ExitCause::NotStarted => {
            let failure =
                Failure::failed(message.unwrap_or_else(|| "the program could not be started".to_owned()));
            let status = match exit.code {
                Some(126) => ExitStatus::NotExecutable,
                Some(127) => ExitStatus::NotFound,
                _ => ExitStatus::Failed,
            };
            return Err(Failure { status, ..failure });
        }
    }
    if let Some(message) = message {
        ui::note(&message);
    }
    Ok(ExitStatus::Program(calve_core::Exit::from(exit).shell_code()))
}

fn conclude_with(exit: Option<Exit>, message: Option<String>, spec: &MachineSpec) -> Outcome {
    let memory = spec.limits.memory_bytes.map(crate::args::show_size);
    if let (Some(Exit { cause: ExitCause::OutOfMemory, .. }), Some(memory)) = (&exit, memory) {
        ui::note(&format!("its limit is {memory} (--memory)"));
    }
    conclude(exit, message)
}

/// What interrupts do: the first lets go of the machine with its grace, the second kills, the third leaves.
struct LettingGo {
    client: Client,
    path: String,
    interrupts: u32,
    /// The first of them.
    first: Option<i32>,
}

impl LettingGo {
    fn new(attached: &Attached) -> Self {
        let path = names::path(&attached.machine.summary.name, "/stop");
        Self { client: attached.client.clone(), path, interrupts: 0, first: None }
    }

    fn on_signal(&mut self, signal: i32) -> Reaction {
        if !LETTING_GO.contains(&signal) {
            return Reaction::Send(StreamControl::Signal { signal });
        }
        self.interrupts += 1;
        self.first.get_or_insert(signal);
        match self.interrupts {
            1 | 2 => self.send(),
            _ => return Reaction::Leave(ExitStatus::Program(128 + signal)),
        }
        if self.interrupts == 1 && signal == libc::SIGINT && ui::talks_to_people() {
            ui::note("letting go of the machine; Ctrl-C again kills it");
        }
        Reaction::Stay
    }

    /// Says it again: the server that was told may be dead.
    fn repeat(&self) {
        if self.interrupts > 0 {
            self.send();
        }
    }

    /// Beside the session, whose output must go on being read meanwhile.
    fn send(&self) {
        let grace = (self.interrupts > 1).then_some(Duration::ZERO);
        let (client, path) = (self.client.clone(), self.path.clone());
        tokio::spawn(async move {
            if let Err(failure) = client.submit(Method::POST, &path, &stop::stop_body(grace)).await
                // Gone already: then the session hears of its end.
                && failure.status != ExitStatus::NotFound
            {
                ui::failure(&failure);
            }
        });
    }
}
