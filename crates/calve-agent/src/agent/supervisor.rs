//! The supervisor: feeds the workload's rules with what happens, and does what they say.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use calve_wire::agent::{Phase, Remaining, Status};
use calve_wire::machine::{Exit, ExitCause, HealthCheck, Program};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::begun::{Begun, Told};
use super::lease::{Due, Lease};
use super::program::{self, Run};
use super::streams::exit;
use super::transport::Transport;
use super::workload::{Action, Input, Workload};
use super::{Agent, Event, health, last_words, stdin};
use crate::enclosure::FilesInMemory;
use crate::init::PATH_DEFAULT;
use crate::init::packet::{End, NotStarted};

/// Time for init to see everything dead at the end: killed processes that a slow disk holds must not hold the machine.
const LAST_KILL_MAX: Duration = Duration::from_secs(5);
/// Time for the last status and output to reach a server that listens.
const LAST_WORDS_MAX: Duration = Duration::from_millis(500);
/// Time between two looks whether the run directory is still there: rare enough for a thousand agents on one host, which
/// are more than a user has inotify instances.
const RUN_DIR_INTERVAL: Duration = Duration::from_secs(2);
/// Most notes of failed starts: the last ones tell enough.
const NOTES_MAX: usize = 4;

/// Why the agent ends.
enum Ending {
    /// By its lease or by the server.
    Ordered,
    /// By a signal, or because its run directory or init is gone.
    Interrupted,
}

/// Owns the workload's state and the lease.
pub struct Supervisor {
    agent: Rc<Agent>,
    told: mpsc::UnboundedReceiver<Event>,
    lease: Lease,
    workload: Workload,
    program: Option<Rc<Program>>,
    health: Option<HealthCheck>,
    prober: Option<AbortHandle>,
    run: Option<Run>,
    /// Whether the lease is what ended the workload.
    expired: bool,
    /// Whether the server has said that everything shall go: it knows what it wants to know.
    dismissed: bool,
    /// What lies behind the last end beyond its cause.
    ended_because: Option<String>,
    /// Why the health check failed last, until it passes.
    unhealthy_because: Option<String>,
    notes: Vec<String>,
    transport: Option<Transport>,
    run_dir: Option<PathBuf>,
}

impl Supervisor {
    /// A supervisor of a workload that was not started.
    pub fn new(
        agent: Rc<Agent>,
        told: mpsc::UnboundedReceiver<Event>,
        remaining: Remaining,
        transport: Transport,
        run_dir: Option<PathBuf>,
    ) -> io::Result<Self> {
        Ok(Self {
            agent,
            told,
            lease: Lease::new(remaining)?,
            workload: Workload::new(),
            program: None,
            health: None,
            prober: None,
            run: None,
            expired: false,
            dismissed: false,
            ended_because: None,
            unhealthy_because: None,
            notes: Vec::new(),
            transport: Some(transport),
            run_dir,
        })
    }

    /// Supervises until the machine has ended; then nothing of it is left.
    pub async fn run(mut self, begun: Option<Begun>) -> io::Result<()> {
        let agent = self.agent.clone();
        if let Some(begun) = begun {
            self.begin(begun)?;
        }
        let transport = self.transport.take().expect("it is served once");
        let mut init = tokio::task::spawn_local(agent.processes.clone().run());
        let mut link = tokio::task::spawn_local(transport.serve(agent.clone()));
        let supervised = tokio::select! {
            supervised = self.supervise() => supervised,
            ended = &mut init => self.lost(ended.map_err(io::Error::other).flatten()),
            ended = &mut link => ended.map_err(io::Error::other).flatten().map(|never: Infallible| match never {}),
        };
        // Whoever tells it to go by a signal ends the machine from outside, and a server knows what it wants to know; otherwise
        // this is the machine's own end.
        let ended = self.workload.starts() > 0 && self.workload.ends() == self.workload.starts();
        let own_end = ended || (matches!(supervised, Ok(Ending::Ordered)) && !self.dismissed);
        let ordered = matches!(supervised, Ok(Ending::Ordered));
        if !ordered && agent.enclosure.outlives_agent() {
            self.kill_all().await;
            return supervised.map(|_| ());
        }
        self.end(own_end).await;
        link.abort();
        if ordered {
            agent.enclosure.on_end()
        } else {
            agent.enclosure.on_interrupt()
        }
        supervised.map(|_| ())
    }

    /// Takes over a program that was begun before.
    fn begin(&mut self, begun: Begun) -> io::Result<()> {
        let Begun { program, restart, health, started, told, log } = begun;
        for entry in log {
            self.agent.log.spool.borrow_mut().add(entry.time_unix_ms, entry.channel, entry.bytes);
        }
        if let Some(Told { status, log_seq }) = told {
            self.agent.status.replace(status);
            self.agent.welcomed.set(Some(log_seq));
        }
        self.order(Some(program), health);
        // Its action is what was done.
        self.workload.take(Input::Start { program: true, restart }, Instant::now());
        let started = match started {
            Ok(running) => Ok(program::adopt(&self.agent, running)?),
            Err(why) => Err(why),
        };
        self.take(Event::Started(started))
    }

    fn order(&mut self, program: Option<Program>, health: Option<HealthCheck>) {
        self.agent.environment.replace(program.as_ref().map(command_environment).unwrap_or_default());
        self.program = program.map(Rc::new);
        self.health = health;
    }

    async fn supervise(&mut self) -> io::Result<Ending> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut look = tokio::time::interval(RUN_DIR_INTERVAL);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let tick = self.workload.next_tick();
            tokio::select! {
                event = self.told.recv() => match event.expect("the agent holds a sender") {
                    Event::PowerOff => {
                        self.dismissed = true;
                        return Ok(Ending::Ordered);
                    }
                    event => self.take(event)?,
                },
                due = self.lease.due() => match due? {
                    Due::Stop(grace) => {
                        self.expire();
                        self.feed(Input::Stop(grace));
                    }
                    Due::Destroy => {
                        self.expire();
                        return Ok(Ending::Ordered);
                    }
                },
                () = sleep_until(tick), if tick.is_some() => self.feed(Input::Tick),
                _ = terminate.recv() => return Ok(Ending::Interrupted),
                _ = interrupt.recv() => return Ok(Ending::Interrupted),
                _ = look.tick(), if self.run_dir.is_some() => if self.run_dir_is_gone() { return Ok(Ending::Interrupted) },
            }
        }
    }

    /// Notes that the lease is what ends the workload, unless something else did before.
    fn expire(&mut self) {
        self.expired |= !matches!(self.workload.phase(), Phase::Stopping | Phase::Ended);
    }

    fn take(&mut self, event: Event) -> io::Result<()> {
        match event {
            Event::Start { program, restart, health } => {
                if self.workload.phase() == Phase::Waiting && self.workload.starts() == 0 {
                    self.order(program, health);
                }
                self.feed(Input::Start { program: self.program.is_some(), restart });
            }
            Event::Lease(remaining) if self.agent.enclosure.ends_with_lease() => self.lease.set(remaining)?,
            Event::Lease(_) => {}
            Event::Stop { grace_ms } => self.feed(Input::Stop(Duration::from_millis(grace_ms))),
            Event::Signal(signal) => self.signal(signal),
            Event::Started(Ok(run)) => {
                self.run = Some(run);
                self.feed(Input::Started);
            }
            Event::Started(Err(NotStarted { message, code })) => {
                self.note(message);
                self.feed(Input::NotStarted(code));
            }
            Event::Exited(end) => {
                // Asked always, as an answer belongs to one end; a program that succeeded has coped with whatever it was.
                let cause = self.agent.enclosure.exit_cause();
                let cause = if end == End::Code(0) { ExitCause::Normal } else { cause };
                self.ended_because = self.files_in_the_way(cause);
                self.feed(Input::Exited(exit(end, cause)));
            }
            Event::Health(verdict) => {
                let healthy = verdict.is_ok();
                self.unhealthy_because = verdict.err();
                self.feed(Input::Health(healthy));
            }
            Event::Input(input) => {
                self.feed(input);
                if input == Input::Drained && self.is_hopeless() {
                    self.feed(Input::Stop(Duration::ZERO));
                }
            }
            Event::PowerOff => {}
        }
        Ok(())
    }

    /// What is to be said of files where the program was killed for want of memory.
    fn files_in_the_way(&self, cause: ExitCause) -> Option<String> {
        let files = self.agent.enclosure.files_in_memory().filter(|_| cause == ExitCause::OutOfMemory)?;
        files.are_many().then(|| files.sentence())
    }

    /// Whether a program that is to be started again cannot be: what it has written still takes its memory.
    fn is_hopeless(&self) -> bool {
        let killed = self.workload.last_exit().is_some_and(|exit| exit.cause == ExitCause::OutOfMemory);
        killed
            && self.workload.phase() == Phase::BackingOff
            && self.agent.enclosure.files_in_memory().is_some_and(FilesInMemory::fill_it)
    }

    /// One step of the workload with all that follows from it.
    fn feed(&mut self, input: Input) {
        for action in self.workload.take(input, Instant::now()) {
            self.perform(action);
        }
        self.agent.takes_commands.set(self.workload.takes_commands());
        self.watch_health();
        self.publish();
    }

    fn perform(&mut self, action: Action) {
        let agent = self.agent.clone();
        match action {
            Action::Start => {
                let program = self.program.clone().expect("only a program is started");
                let first = self.workload.starts() == 1;
                tokio::task::spawn_local(async move {
                    let copied = if first { program::copy_work_tree(&agent, &program).await } else { Ok(()) };
                    let started = match copied {
                        Ok(()) => program::start(&agent, &program).await,
                        Err(why) => Err(why),
                    };
                    agent.tell(Event::Started(started));
                });
            }
            Action::Signal(signal) => self.signal(signal),
            Action::ShutDown => {
                if !agent.enclosure.shut_down() {
                    self.feed(Input::Stop(Duration::ZERO));
                }
            }
            Action::KillAll => {
                agent.enclosure.kill_all();
                tokio::task::spawn_local(async move {
                    agent.processes.kill_all().await;
                    agent.tell(Event::Input(Input::Empty));
                });
            }
            Action::Drain => {
                let run = self.run.take();
                tokio::task::spawn_local(async move {
                    if let Some(run) = run {
                        run.drain().await;
                    }
                    agent.tell(Event::Input(Input::Drained));
                });
            }
        }
    }

    fn signal(&self, signal: i32) {
        if let Some(run) = &self.run {
            run.signal(signal);
        }
    }

    /// Probes go on as long as one run of the program does.
    fn watch_health(&mut self) {
        let running = self.workload.phase() == Phase::Running;
        match (&self.health, &self.prober) {
            (Some(check), None) if running => {
                let watching = health::watch(self.agent.clone(), check.clone());
                self.prober = Some(tokio::task::spawn_local(watching).abort_handle());
            }
            (_, Some(prober)) if !running => {
                prober.abort();
                self.prober = None;
            }
            _ => {}
        }
    }

    fn note(&mut self, message: String) {
        if self.notes.last() != Some(&message) {
            self.notes.push(message);
            self.notes.drain(..self.notes.len().saturating_sub(NOTES_MAX));
        }
    }

    fn publish(&mut self) {
        let before = self.agent.status().phase;
        let phase = self.workload.phase();
        self.agent.set_status(Status {
            phase,
            starts: self.workload.starts(),
            ends: self.workload.ends(),
            last_exit: self.workload.last_exit(),
            ended_because: self.ended_because.clone(),
            healthy: self.workload.healthy(),
            unhealthy_because: self.unhealthy_because.clone(),
            expired: self.expired,
            notes: [self.agent.enclosure.notes(), self.notes.clone()].concat(),
            log_seq: self.agent.status().log_seq,
        });
        if phase == Phase::Ended && before != Phase::Ended {
            // Nobody reads what still comes for the program, and its sender must not wait.
            tokio::task::spawn_local(stdin::feed(self.agent.clone(), None));
        }
    }

    fn run_dir_is_gone(&self) -> bool {
        let is_gone = |dir: &PathBuf| {
            std::fs::symlink_metadata(dir).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        };
        self.run_dir.as_ref().is_some_and(is_gone)
    }

    /// Init is gone, and everything with it.
    fn lost(&mut self, ended: io::Result<()>) -> io::Result<Ending> {
        // The kernel may have killed it with or after the program: then that is how the machine ended.
        let killed_before =
            self.workload.last_exit().is_some_and(|exit| exit.cause == ExitCause::OutOfMemory);
        let memory = killed_before || self.agent.enclosure.exit_cause() == ExitCause::OutOfMemory;
        let cause = if memory { ExitCause::OutOfMemory } else { ExitCause::MachineLost };
        let files = self.files_in_the_way(cause);
        match cause {
            ExitCause::OutOfMemory => self.ended_because = files.or(self.ended_because.take()),
            _ => self.note("the machine's init ended and took everything with it".to_owned()),
        }
        self.feed(Input::Lost(exit(End::Signal(libc::SIGKILL), cause)));
        ended.map(|()| Ending::Interrupted)
    }

    /// Kills everything that was started in the machine.
    async fn kill_all(&self) {
        self.agent.enclosure.kill_all();
        let _ = tokio::time::timeout(LAST_KILL_MAX, self.agent.processes.kill_all()).await;
    }

    /// Kills everything and lets the server know, where it listens.
    async fn end(mut self, own_end: bool) {
        self.kill_all().await;
        self.feed(Input::Stop(Duration::ZERO));
        let last_words = async {
            while self.workload.phase() != Phase::Ended {
                match self.told.recv().await {
                    Some(Event::PowerOff) | None => {}
                    Some(event) => drop(self.take(event)),
                }
                self.feed(Input::Tick);
            }
            while self.agent.outbox.has_listener()
                && !self.agent.outbox.is_drained(&self.agent.log.spool.borrow())
            {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let _ = tokio::time::timeout(LAST_WORDS_MAX, last_words).await;
        if own_end && self.workload.starts() > 0 {
            self.leave_last_words();
        }
    }

    /// Leaves what no server may have heard where the next one finds it; a machine without such a place tells its console.
    fn leave_last_words(&self) {
        let (spool, status) = (self.agent.log.spool.borrow(), self.agent.status());
        match &self.run_dir {
            Some(run_dir) => match last_words::leave(run_dir, &spool, &status) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    eprintln!("calve-agent: what no server has heard cannot be left: {error}");
                }
                _ => {}
            },
            None => {
                let exit = status.last_exit.map_or_else(|| "unknown".to_owned(), said);
                let unheard = spool.after(0).count();
                eprintln!(
                    "calve-agent: the program ended ({exit}); {unheard} runs of its output were not fetched"
                );
            }
        }
    }
}

/// An end in words for people.
fn said(exit: Exit) -> String {
    match (exit.code, exit.signal) {
        (Some(code), _) => format!("exit {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown".to_owned(),
    }
}

/// The environment of commands in the machine: the program's own. Where that says no `PATH`, a bare name is looked up beside
/// the program first, as a closure holds nothing else under names that people know.
fn command_environment(program: &Program) -> BTreeMap<String, String> {
    let mut env = program.env.clone();
    if let Some((dir, _)) = program.path.rsplit_once('/') {
        env.entry("PATH".to_owned()).or_insert_with(|| format!("{dir}:{PATH_DEFAULT}"));
    }
    env
}

async fn sleep_until(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at.into()).await;
    }
}
