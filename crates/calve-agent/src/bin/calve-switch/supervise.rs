//! Carrying a switch out: does what the course says, step by step, and tells it what came of it.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context;
use calve_wire::system::{HostAnswer, SwitchAction};
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::disk::{self, Disk};
use crate::host::{Host, boottime_ms, unix_ms};
use crate::loader::Loader;
use crate::program::{Program, environment, shell_command, switch_command};
use crate::record::{Deadline, Record};
use crate::socket::{self, Request};
use crate::{profile, refused, store, watch};
use calve_agent::course::{Event, Found, Step};

/// Longest wait between two looks at what runs.
const LOOK: Duration = Duration::from_millis(50);
/// Time for one run of the health check: one that hangs is one that fails.
const HEALTH_MAX: Duration = Duration::from_secs(10);
/// Pause between two runs of the health check.
const HEALTH_PAUSE: Duration = Duration::from_millis(500);
/// Time for the former system to write its boot entry: with the next, the way back takes half a minute at most.
const BACK_INSTALL_MAX: Duration = Duration::from_secs(8);
/// Time for the former system to be activated: in emulation on a busy host that takes ten.
const BACK_ACTIVATE_MAX: Duration = Duration::from_secs(20);
/// Time for a confirmed system to be made the one that boots.
const KEEP_MAX: Duration = Duration::from_secs(20);
/// Time for the host to restart in order, before it is restarted anyhow.
const RESTART_MAX: Duration = Duration::from_secs(10);
/// Time for what is not on the disk yet to come there before that: a disk that hangs is one more reason to restart.
const SYNC_MAX: Duration = Duration::from_secs(10);
/// Seconds after which a kernel that has panicked restarts the host, where it would stand still for ever.
const PANIC_SECONDS: &str = "5";
/// The kernel's setting for that (sysctl `kernel.panic`).
const PANIC: &str = "/proc/sys/kernel/panic";
/// Bytes of a program's output in a note.
const SAID_MAX_CHARS: usize = 200;

/// Why a supervisor is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// The switch was just begun.
    Fresh,
    /// The former supervisor has ended before its time, or the host was restarted.
    Resume,
    /// As before, and the former system is wanted back.
    Recall(String),
}

/// Carries the switch of the record out until it has ended, or waits for the next boot.
pub fn run(host: &Host, disk: &mut Disk, why: &Start) -> anyhow::Result<()> {
    let record = disk.read().context("there is no record")?;
    // Without a socket the time to confirm runs out, and the former system comes back.
    let listener = socket::listen(host).ok();
    let recall = match why {
        Start::Recall(why) => Some(why.clone()),
        Start::Fresh | Start::Resume => None,
    };
    let mut supervisor = Supervisor { host, disk, record, listener, confirming: None, recall };
    if *why != Start::Fresh {
        supervisor.found();
    }
    supervisor.carry_out()
}

struct Supervisor<'a> {
    host: &'a Host,
    disk: &'a mut Disk,
    record: Record,
    listener: Option<UnixListener>,
    /// Who said that the system is confirmed, and waits for the end.
    confirming: Option<UnixStream>,
    /// Why the former system is wanted back.
    recall: Option<String>,
}

impl Supervisor<'_> {
    /// Tells the course what the host is like.
    fn found(&mut self) {
        let boot_id = self.host.boot_id();
        if boot_id == self.record.deadline.boot_id {
            return self.record.course.take(Event::Resumed(Found::SameBoot));
        }
        let booted = self.host.booted().or_else(|| self.host.current());
        let found = match booted.as_deref() {
            Some(booted) if booted == self.record.former => Found::BootedFormer,
            Some(booted) if booted == self.record.order.toplevel => Found::BootedNew,
            _ => Found::BootedOther,
        };
        // Of this boot the whole time is there: who waits for it cannot have confirmed before.
        let boottime_ms = boottime_ms() + self.record.order.confirm_ms;
        self.record.deadline = Deadline { boot_id, boottime_ms };
        self.record.healthy = self.record.order.health.is_none();
        self.record.panic_was = None;
        self.record.course.take(Event::Resumed(found));
    }

    fn carry_out(&mut self) -> anyhow::Result<()> {
        loop {
            if let Err(error) = self.disk.write(&self.record)
                && self.record.course.is_forward()
            {
                self.record.course.take(Event::Failed(format!("the record cannot be written: {error}")));
            }
            if let Some(why) = self.recall.take() {
                self.record.course.take(Event::Recalled(why));
                continue;
            }
            let event = match self.record.course.step {
                Step::AwaitBoot => return Ok(()),
                Step::Ended(_) => {
                    self.finish();
                    return Ok(());
                }
                step => self.perform(step),
            };
            let confirmed = !self.record.course.is_forward() || self.record.course.step == Step::Keep;
            self.record.course.take(match event {
                // Behind the confirmation it is not the time to confirm that is over.
                Event::Late(why) if confirmed => Event::Failed(why),
                event => event,
            });
        }
    }

    fn perform(&mut self, step: Step) -> Event {
        let (host, new, former) = (self.host, self.record.order.toplevel.clone(), self.record.former.clone());
        let by_deadline = self.left();
        let done = match step {
            Step::Begun => {
                self.restart_after_panic();
                Ok(())
            }
            Step::Profile => profile::set(host, &new, self.record.generation.unwrap_or(1))
                .map_err(|error| format!("the profile cannot be changed: {error}")),
            Step::Install => {
                return self.run(
                    switch_command(host, &new, "boot"),
                    by_deadline,
                    "switch-to-configuration boot",
                );
            }
            Step::Guard => {
                self.guard().map_err(|error| format!("the boot loader cannot be guarded: {error}"))
            }
            Step::Activate => {
                return self.run(switch_command(host, &new, "test"), by_deadline, "switch-to-configuration");
            }
            Step::Confirm => return self.confirm(),
            Step::Arm => return self.arm(),
            Step::Keep => return self.keep(),
            Step::BackProfile => {
                disk::free_ballast(host);
                profile::restore(host, &self.record.former_link)
                    .map_err(|error| format!("the profile cannot be moved back: {error}"))
            }
            Step::BackInstall => {
                if self.record.course.action == SwitchAction::Boot && !self.record.course.booted_new {
                    // None is tried any more; where it was tried already, this changes nothing.
                    let _ = self.set_oneshot("");
                }
                let command = switch_command(host, &former, "boot");
                let installed =
                    self.run(command, BACK_INSTALL_MAX, "the former system's switch-to-configuration boot");
                // Its default is the former entry either way, where the loader is known.
                return if self.guard().is_ok() && self.record.course.guarded {
                    Event::Done
                } else {
                    installed
                };
            }
            Step::BackActivate => return self.back_activate(&former),
            Step::Restart => return self.restart(),
            Step::AwaitBoot | Step::Ended(_) => Ok(()),
        };
        done.map_or_else(Event::Failed, |()| Event::Done)
    }

    /// Has the former entry boot by default.
    fn guard(&mut self) -> io::Result<()> {
        watch::place(self.host)?;
        let Some(loader) = Loader::of(self.host) else { return Ok(()) };
        if let Some(entry) = loader.entry(&self.record.former) {
            loader.set_default(&entry)?;
            self.record.course.guarded = true;
        }
        Ok(())
    }

    /// Has the new entry boot once.
    fn arm(&mut self) -> Event {
        let new = self.record.order.toplevel.clone();
        let entry = Loader::of(self.host).and_then(|loader| loader.entry(&new));
        let (Some(entry), true) = (entry, self.record.course.guarded) else {
            return Event::Failed("the boot loader has no entry of the new or the former system".to_owned());
        };
        self.set_oneshot(&entry)
    }

    fn set_oneshot(&mut self, entry: &str) -> Event {
        let (new, former) = (self.record.order.toplevel.clone(), self.record.former.clone());
        let Some(bootctl) = self.host.program(&[&new, &former], "bootctl") else {
            return Event::Failed("the host has no bootctl, by which an entry is tried once".to_owned());
        };
        let mut command = Command::new(bootctl);
        environment(self.host, &[&new], &mut command);
        command.args(["set-oneshot", entry]);
        self.run(command, BACK_INSTALL_MAX, "bootctl set-oneshot")
    }

    /// Makes the new system the one that boots.
    fn keep(&mut self) -> Event {
        let Some(loader) = Loader::of(self.host).filter(|_| self.record.course.guarded) else {
            return Event::Done;
        };
        let new = self.record.order.toplevel.clone();
        if loader.entry(&new).is_none() {
            // Its own installation is asked again: the entry was there before.
            let command = switch_command(self.host, &new, "boot");
            if let failed @ Event::Failed(_) = self.run(command, KEEP_MAX, "switch-to-configuration boot") {
                return failed;
            }
        }
        let Some(entry) = loader.entry(&new) else {
            return Event::Failed("the boot loader has no entry of the new system any more".to_owned());
        };
        match loader.set_default(&entry) {
            Ok(()) => Event::Done,
            Err(error) => Event::Failed(format!("the new system cannot be made the one that boots: {error}")),
        }
    }

    fn back_activate(&mut self, former: &str) -> Event {
        let event =
            self.run(switch_command(self.host, former, "test"), BACK_ACTIVATE_MAX, "the former system");
        match event {
            // Some of its units may have failed before as well: what counts is that it is the one that runs.
            Event::Failed(why)
                if why.contains("ended with") && self.host.current().as_deref() == Some(former) =>
            {
                self.record.course.notes.push(why);
                Event::Done
            }
            event => event,
        }
    }

    /// Waits for health and for the server's word.
    fn confirm(&mut self) -> Event {
        let Some(health) = self.record.order.health.clone() else {
            return loop {
                match self.wait(LOOK * 4) {
                    Some(event) => break event,
                    None if self.left().is_zero() => break self.late(),
                    None => {}
                }
            };
        };
        loop {
            let command = shell_command(self.host, &self.record.order.toplevel, &health);
            let probed = self.run(command, HEALTH_MAX.min(self.left()), "the health check");
            if self.confirming.is_some() {
                return Event::Done;
            }
            match probed {
                Event::Done => self.set_healthy(true),
                Event::Failed(why) => {
                    self.set_healthy(false);
                    if self.left().is_zero() {
                        return Event::Late(why);
                    }
                }
                // Its own time being over is the health check's failure, and the deadline's.
                Event::Late(why) if self.left().is_zero() => return Event::Late(why),
                Event::Late(_) => self.set_healthy(false),
                other => return other,
            }
            let until = Instant::now() + HEALTH_PAUSE;
            while Instant::now() < until {
                if let Some(event) = self.wait(LOOK) {
                    return event;
                }
            }
            if self.left().is_zero() {
                return self.late();
            }
        }
    }

    fn late(&self) -> Event {
        let what = if self.record.healthy {
            "the server did not hear the host's agent"
        } else {
            "it was not healthy"
        };
        Event::Late(format!("not confirmed within {} s: {what}", self.record.order.confirm_ms / 1000))
    }

    fn set_healthy(&mut self, healthy: bool) {
        if self.record.healthy != healthy {
            self.record.healthy = healthy;
            let _ = self.disk.write(&self.record);
        }
    }

    /// Runs a program; what is asked meanwhile is answered.
    fn run(&mut self, command: Command, limit: Duration, what: &str) -> Event {
        let until = Instant::now() + limit;
        let mut program = match Program::start(command) {
            Ok(program) => program,
            Err(error) => return Event::Failed(format!("{what} cannot be started: {error}")),
        };
        loop {
            match program.ended() {
                Ok(Some(status)) if status.success() => return Event::Done,
                Ok(Some(status)) => {
                    return Event::Failed(format!("{what} ended with {}{}", code(status), said(&program)));
                }
                Ok(None) => {}
                Err(error) => return Event::Failed(format!("{what}: {error}")),
            }
            if Instant::now() >= until {
                program.end();
                return Event::Late(format!(
                    "{what} did not end within {} s{}",
                    limit.as_secs(),
                    said(&program)
                ));
            }
            if let Some(event) = self.wait_or(LOOK, program.output()) {
                program.end();
                return event;
            }
        }
    }

    /// Waits a while, answering what is asked; an event where that changes the course.
    fn wait(&mut self, limit: Duration) -> Option<Event> {
        self.wait_or(limit, None::<std::os::fd::BorrowedFd<'_>>)
    }

    fn wait_or(&mut self, limit: Duration, output: Option<impl AsFd>) -> Option<Event> {
        let mut watched = Vec::new();
        watched.extend(self.listener.as_ref().map(|listener| PollFd::new(listener, PollFlags::IN)));
        watched.extend(output.as_ref().map(|output| PollFd::new(output, PollFlags::IN)));
        let nanoseconds = i64::from(limit.subsec_nanos());
        let limit = Timespec { tv_sec: limit.as_secs().cast_signed(), tv_nsec: nanoseconds };
        if watched.is_empty() {
            std::thread::sleep(LOOK);
        } else {
            let _ = rustix::event::poll(&mut watched, Some(&limit));
        }
        let (stream, request) = socket::accept(self.listener.as_ref()?)?;
        self.asked(stream, request)
    }

    fn asked(&mut self, stream: UnixStream, request: Request) -> Option<Event> {
        let (Request::Confirm { id } | Request::Back { id, .. }) = &request;
        if *id != self.record.order.id {
            socket::answer(&stream, &refused("the host knows of no such switch"));
            return None;
        }
        match request {
            Request::Confirm { .. } if self.record.course.step == Step::Confirm && self.record.healthy => {
                self.confirming = Some(stream);
                Some(Event::Done)
            }
            Request::Confirm { .. } => {
                socket::answer(&stream, &HostAnswer::Done { switch: self.record.to_switch() });
                None
            }
            Request::Back { why, .. } => {
                socket::answer(&stream, &HostAnswer::Done { switch: self.record.to_switch() });
                self.record.course.is_forward().then_some(Event::Recalled(why))
            }
        }
    }

    /// Time until it has to be confirmed.
    fn left(&self) -> Duration {
        Duration::from_millis(self.record.deadline.boottime_ms.saturating_sub(boottime_ms()))
    }

    /// Has a panic of the kernel lead to a restart while the new system is not confirmed.
    fn restart_after_panic(&mut self) {
        let was = std::fs::read_to_string(PANIC).unwrap_or_default().trim().to_owned();
        if self.host.is_real() && was == "0" && std::fs::write(PANIC, PANIC_SECONDS).is_ok() {
            self.record.panic_was = Some(was);
        }
    }

    fn restart(&mut self) -> Event {
        // Every restart is on the disk before it is made: one that leads nowhere is not repeated for ever.
        if !self.host.is_real() {
            let asked = std::fs::write(self.host.path("/run/restart-asked"), "");
            std::thread::sleep(LOOK);
            return asked.map_or_else(|error| Event::Failed(error.to_string()), |()| Event::Done);
        }
        if let Some(systemctl) = self.host.program(&[&self.record.former.clone()], "systemctl") {
            let mut command = Command::new(systemctl);
            environment(self.host, &[], &mut command);
            command.args(["--no-block", "reboot"]);
            let _ = self.run(command, RESTART_MAX, "systemctl reboot");
        }
        std::thread::sleep(RESTART_MAX);
        sync_briefly();
        let restarted = rustix::system::reboot(rustix::system::RebootCommand::Restart);
        Event::Failed(format!("the host cannot be restarted: {restarted:?}"))
    }

    fn finish(&mut self) {
        self.record.ended_unix_ms = Some(unix_ms());
        disk::free_ballast(self.host);
        profile::tidy(self.host);
        store::unroot(self.host);
        watch::take_away(self.host);
        if let Some(was) = self.record.panic_was.take() {
            let _ = std::fs::write(PANIC, was);
        }
        let switch = self.record.to_switch();
        let line = serde_json::to_string(&switch).expect("plain data");
        let _ = disk::remember(self.host, &line);
        let _ = self.disk.write(&self.record);
        if let Some(stream) = self.confirming.take() {
            socket::answer(&stream, &HostAnswer::Done { switch });
        }
        let _ = crate::host::remove(&self.host.kept("socket"));
    }
}

fn sync_briefly() {
    let (done, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        rustix::fs::sync();
        let _ = done.send(());
    });
    let _ = ended.recv_timeout(SYNC_MAX);
}

fn code(status: std::process::ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, signal) => format!("signal {}", signal.unwrap_or_default()),
    }
}

/// The end of what a program said, for a note.
fn said(program: &Program) -> String {
    let said = program.said().replace('\n', " / ");
    let skipped = said.chars().count().saturating_sub(SAID_MAX_CHARS);
    let said: String = said.chars().skip(skipped).collect();
    if said.is_empty() { said } else { format!(": {said}") }
}
