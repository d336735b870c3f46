//! The beginning of a switch, and going on with one.

use anyhow::Context;
use calve_wire::system::{
    CONFIRM_MAX_MS, CONFIRM_MIN_MS, HEALTH_MAX_BYTES, HostAnswer, HostOrder, HostSwitch, SWITCH_VERSION,
    SwitchAction,
};
use std::time::{Duration, Instant};

use crate::disk::{self, Disk, Held};
use crate::host::{Host, boottime_ms, unix_ms};
use crate::loader::Loader;
use crate::program::{self, Program};
use crate::record::{Deadline, Record};
use crate::socket::Request;
use crate::supervise::Start;
use crate::{daemon, facts, profile, refused, socket, store};
use calve_agent::course::{Course, Step};

/// How long the process that carries the switch out may take until it listens, or until it is gone.
const LISTENS_MAX: Duration = Duration::from_secs(10);

/// Begins a switch as `order` says, in JSON.
pub fn begin(host: &Host, order: &str) -> anyhow::Result<HostAnswer> {
    let order: HostOrder = serde_json::from_str(order).context("the order does not parse")?;
    if let Err(why) = check(host, &order) {
        return Ok(refused(why));
    }
    // Asked for again, as the answer was lost.
    if let Some(switch) = begun(host, &order.id)? {
        return Ok(HostAnswer::Done { switch });
    }
    let disk = match disk::hold(host) {
        Ok(disk) => disk,
        Err(Held::Locked) => return Ok(busy(host)),
        Err(Held::Broken(error)) => return Ok(refused(format!("{error:#}"))),
    };
    if let Some(record) = disk.read()
        && record.course.outcome().is_none()
    {
        // Whoever carried it out is gone; another one goes on with it.
        let switch = record.to_switch();
        daemon::leave_behind(host, disk, Start::Resume)?;
        return Ok(HostAnswer::Busy { switch });
    }
    let taken = store::take_in(host, &order)
        .map_err(|error| format!("the closure cannot be put into the host's store: {error:#}"));
    if let Err(why) = taken.and_then(|()| profile::check(host, &order.toplevel)) {
        store::unroot(host);
        return Ok(refused(why));
    }
    if order.action == SwitchAction::DryActivate {
        let said = dry(host, &order);
        store::unroot(host);
        return said;
    }
    match prepare(host, order, disk) {
        Ok((record, disk)) => start(host, record, disk),
        Err(why) => {
            disk::free_ballast(host);
            profile::tidy(host);
            store::unroot(host);
            Ok(refused(why))
        }
    }
}

/// The switch of this name, where it was ever begun here. One that nobody carries out is gone on with.
fn begun(host: &Host, id: &str) -> anyhow::Result<Option<HostSwitch>> {
    match status(host)?.filter(|switch| switch.id == id) {
        Some(switch) => Ok(Some(switch)),
        None => Ok(facts::history(host).into_iter().rev().find(|switch| switch.id == id)),
    }
}

/// The switch under way, or the last one. One that nobody carries out any more is gone on with.
pub fn status(host: &Host) -> anyhow::Result<Option<HostSwitch>> {
    resume(host)?;
    Ok(disk::read(host).map(|record| record.to_switch()))
}

/// Goes on with a switch that has not ended, or was ended and not tidied up behind, where nobody does.
pub fn resume(host: &Host) -> anyhow::Result<()> {
    match disk::read(host) {
        Some(record) if record.ended_unix_ms.is_none() => {}
        _ => return Ok(()),
    }
    // A boot that is waited for needs nobody to wait.
    let waits =
        |record: &Record| record.course.step == Step::AwaitBoot && record.deadline.boot_id == host.boot_id();
    let Ok(disk) = disk::hold(host) else { return Ok(()) };
    match disk.read() {
        Some(record) if record.ended_unix_ms.is_none() && !waits(&record) => {
            daemon::leave_behind(host, disk, Start::Resume)
        }
        _ => Ok(()),
    }
}

/// Has the former system brought back.
pub fn back(host: &Host, id: &str, why: &str) -> anyhow::Result<HostAnswer> {
    let until = Instant::now() + LISTENS_MAX;
    loop {
        if let Ok(disk) = disk::hold(host) {
            return match disk.read() {
                Some(record) if record.order.id == id && record.course.outcome().is_none() => {
                    let switch = record.to_switch();
                    daemon::leave_behind(host, disk, Start::Recall(why.to_owned()))?;
                    Ok(HostAnswer::Done { switch })
                }
                Some(record) if record.order.id == id => Ok(HostAnswer::Done { switch: record.to_switch() }),
                _ => Ok(refused("the host knows of no such switch")),
            };
        }
        let request = Request::Back { id: id.to_owned(), why: why.to_owned() };
        if let Some(answer) = socket::ask(host, &request)? {
            return Ok(answer);
        }
        // Whoever carries it out just begins or ends.
        if Instant::now() >= until {
            return Ok(refused("nobody on the host takes the order to go back: ask again"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn busy(host: &Host) -> HostAnswer {
    match disk::read(host) {
        Some(record) => HostAnswer::Busy { switch: record.to_switch() },
        None => refused("another switch is just being begun on the host"),
    }
}

fn check(host: &Host, order: &HostOrder) -> Result<(), String> {
    if order.version != SWITCH_VERSION {
        return Err(format!("the order has version {}, this program reads {SWITCH_VERSION}", order.version));
    }
    if !(CONFIRM_MIN_MS..=CONFIRM_MAX_MS).contains(&order.confirm_ms) {
        return Err(format!(
            "the time to confirm is {} ms, and may be {CONFIRM_MIN_MS} to {CONFIRM_MAX_MS}",
            order.confirm_ms
        ));
    }
    if order.health.as_ref().is_some_and(|health| health.len() > HEALTH_MAX_BYTES) {
        return Err(format!("the health check has more than {HEALTH_MAX_BYTES} bytes: call a script"));
    }
    let is_plain = |path: &str| path.starts_with("/nix/store/") && !path.contains("/../");
    if !is_plain(&order.toplevel) || order.incoming.as_ref().is_some_and(|dir| !dir.starts_with("/nix/")) {
        return Err(format!("{} is no store path", order.toplevel));
    }
    if order.action == SwitchAction::Boot && Loader::of(host).is_none() {
        return Err(
            "the host has no boot loader that calve knows (systemd-boot), so a system cannot be tried once"
                .to_owned(),
        );
    }
    Ok(())
}

fn dry(host: &Host, order: &HostOrder) -> anyhow::Result<HostAnswer> {
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    let program = Program::start(program::switch_command(host, &order.toplevel, order.action.as_str()))?;
    Ok(match program.finish(Duration::from_millis(order.confirm_ms))? {
        (Some(ended), output) => HostAnswer::Dry { output, code: ended.code().unwrap_or(128) },
        (None, _) => refused(format!("the dry activation did not end within {} s", order.confirm_ms / 1000)),
    })
}

/// Everything that can fail before anything is changed.
fn prepare(host: &Host, order: HostOrder, disk: Disk) -> Result<(Record, Disk), String> {
    let former =
        host.current().ok_or("the host has no /run/current-system: it is none that can be switched")?;
    profile::check(host, &former).map_err(|why| format!("the host could not go back: {why}"))?;
    disk.prepare(host).map_err(|error| format!("the host's disk has no room for the way back: {error}"))?;
    let planned = profile::prepare(host, &former, &order.toplevel, order.generation);
    let planned = planned.map_err(|error| format!("the host's profile cannot be changed: {error}"))?;
    let same = former == order.toplevel;
    let record = Record {
        course: Course::new(order.action, same),
        generation: (order.action != SwitchAction::Test).then_some(planned.generation),
        former,
        former_link: planned.former_link,
        deadline: Deadline { boot_id: host.boot_id(), boottime_ms: boottime_ms() + order.confirm_ms },
        healthy: order.health.is_none(),
        begun_unix_ms: unix_ms(),
        ended_unix_ms: None,
        panic_was: None,
        order,
    };
    Ok((record, disk))
}

fn start(host: &Host, record: Record, mut disk: Disk) -> anyhow::Result<HostAnswer> {
    if let Err(error) = disk.write(&record) {
        return Ok(refused(format!("the host's disk does not take the record: {error}")));
    }
    let listens = host.kept("socket");
    let _ = crate::host::remove(&listens);
    daemon::leave_behind(host, disk, Start::Fresh)?;
    let until = Instant::now() + LISTENS_MAX;
    while !listens.exists() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(HostAnswer::Done { switch: record.to_switch() })
}
