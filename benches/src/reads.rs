//! Read verbs with as many records as a server keeps, through the binary, as scripts call them.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use calve_core::{DriverName, ExitCause, Kind, MachineId, State as MachineState, StopReason, Timestamp};
use calve_server::dirs::Dirs;
use calve_server::events::EventLog;
use calve_server::logs::{LogOptions, Logs};
use calve_server::state::EmbeddedState;
use calve_wire::event::What;
use calve_wire::frame::{Channel, LogEntry};
use calve_wire::machine::{Exit, MachineSpec, Program, Restart, Source, Workload};
use calve_wire::record::{MachineRecord, Stop};

use crate::Effort;
use crate::home::{Home, megabytes};
use crate::records;
use crate::start::SERVER_RSS_MB;
use crate::table::Table;
use crate::times::{Times, millis};

/// Records that the server holds.
const RECORDS: u128 = 10_000;
/// Most time of a read verb at p99, in milliseconds.
pub const READ_MS: f64 = 50.0;
/// Events of each machine: what happens from a declaration to its end.
const EVENTS_EACH: u32 = 9;
/// Pause after the records were made: nobody's last second has a hundred thousand events.
const SEED_PAST: Duration = Duration::from_secs(3);
/// When a server that was asked for nothing more counts as idle.
const IDLE_AFTER: Duration = Duration::from_secs(25);
/// The machine that has a log.
const LOGGED: &str = "run-5000";

/// All calls of one verb.
#[derive(Default, Clone)]
struct Calls {
    times: Times,
    /// Processor time of the client and, meanwhile, of the server: they say more than the clock does on a busy host.
    client: Duration,
    server: Duration,
}

pub async fn measure(effort: Effort, table: &mut Table) -> anyhow::Result<()> {
    with_living(0, effort, table).await?;
    with_living(RECORDS / 2, effort, table).await
}

async fn with_living(living: u128, effort: Effort, table: &mut Table) -> anyhow::Result<()> {
    let home = Home::new()?;
    seed(&home.dirs(), living).await?;
    tokio::time::sleep(SEED_PAST).await;
    let listed = home.calve(&["ps", "--all", "--json"])?;
    let listed: Vec<serde_json::Value> = serde_json::from_str(&listed)?;
    let running = listed.iter().filter(|machine| machine["state"] == "running").count();
    ensure!(listed.len() as u128 == RECORDS, "{} machines are listed", listed.len());
    ensure!(running as u128 == living, "{running} machines run");
    let verbs: [&[&str]; 7] = [
        &["ps", "--all", "--json"],
        &["ps", "--all"],
        &["ps"],
        &["status", "run-5000"],
        &["logs", "run-5000"],
        &["events"],
        &["events", "--since", "1s"],
    ];
    let server = home.server_pid()?;
    let mut calls = vec![Calls::default(); verbs.len()];
    for _ in 0..effort.reads {
        for (verb, calls) in verbs.iter().zip(&mut calls) {
            let mut command = home.command(verb);
            command.stdout(Stdio::null());
            let (client_before, server_before) = (children_worked(), worked(server)?);
            let begun = Instant::now();
            let status = command.status()?;
            calls.times.push(begun.elapsed());
            calls.client += children_worked().saturating_sub(client_before);
            calls.server += worked(server)?.saturating_sub(server_before);
            ensure!(status.success(), "calve {verb:?}: {status}");
        }
    }
    let records = if living == 0 {
        format!("{RECORDS} ended")
    } else {
        format!("{} ended, {living} unreachable", RECORDS - living)
    };
    for (verb, Calls { times, client, server }) in verbs.iter().zip(&calls) {
        let p99 = times.quantile(99);
        let what = format!("calve {}, p99; {records}", verb.join(" "));
        let each = |time: Duration| millis(time / u32::try_from(effort.reads).unwrap_or(1));
        let worked = format!("processor {} + {}", each(*client), each(*server));
        let ours = format!("{} (p50 {}; {worked})", millis(p99), millis(times.median()));
        table.limit(&what, ours, p99.as_secs_f64() * 1000.0, READ_MS, "ms");
    }
    let rss = megabytes(home.server_rss_kib()?);
    table.note(&format!("server's memory, all listed; {records}"), format!("{rss:.1} MB"));
    if living == 0 {
        // With nothing to do for a while: what was freed is given back by then. One that looks for agents is never idle.
        tokio::time::sleep(IDLE_AFTER).await;
        let rss = megabytes(home.server_rss_kib()?);
        let what = format!("idle server's memory; {records}");
        table.limit(&what, format!("{rss:.1} MB"), rss, SERVER_RSS_MB, "MB");
    }
    // Nothing can be ended whose node does not answer; the server that would wait for it is not needed any more.
    home.calve(&["server", "stop"])?;
    std::fs::remove_dir_all(home.dirs().data)?;
    Ok(())
}

/// Processor time of all children that have ended.
fn children_worked() -> Duration {
    // SAFETY: a usage is plain numbers, for which zeroes are values.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: getrusage(2) writes the structure that it is handed, and nothing else.
    unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage) };
    [usage.ru_utime, usage.ru_stime]
        .map(|time| Duration::from_micros(time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64))
        .iter()
        .sum()
}

/// Processor time of a process, all threads that it has, as the scheduler counts it (proc(5): `schedstat`, nanoseconds).
pub fn worked(pid: i32) -> anyhow::Result<Duration> {
    let mut nanos = 0;
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end meanwhile.
        let Ok(text) = std::fs::read_to_string(thread?.path().join("schedstat")) else { continue };
        nanos += text.split_ascii_whitespace().next().context("a time")?.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanos))
}

/// Writes the records as a server would have. Those that live are on a node that cannot tell what there is, so that the
/// server goes on with them as they are.
async fn seed(dirs: &Dirs, living: u128) -> anyhow::Result<()> {
    dirs.create()?;
    std::fs::create_dir_all(dirs.run.join("m"))?;
    std::fs::write(dirs.run.join("m").join(DriverName::Qemu.as_str()), "no directory")?;
    let state = EmbeddedState::open(&dirs.data)?;
    let events = EventLog::open(&dirs.events())?;
    let now = calve_server::world::now();
    for n in 1..=RECORDS {
        let record = record(n, n <= living, now)?;
        records::write(&state, &record).await?;
        if record.name.as_str() == LOGGED {
            Logs::open(dirs.logs(), LogOptions::default()).append(record.id, &said(now))?;
        }
        for _ in 0..EVENTS_EACH {
            let what = What::State { state: record.state, message: None };
            events.append("loop", record.id, &record.name, what);
        }
    }
    Ok(())
}

/// What a chatty program says: a megabyte in lines.
fn said(now: Timestamp) -> Vec<LogEntry> {
    let bytes = "a line that says what is being done\n".repeat(400).into_bytes();
    let entry = |seq| LogEntry { seq, time_unix_ms: now.0, channel: Channel::Stdout, bytes: bytes.clone() };
    (1..=70).map(entry).collect()
}

fn record(n: u128, lives: bool, now: Timestamp) -> anyhow::Result<MachineRecord> {
    let created = now.0 - 60_000;
    let program = Program {
        path: format!("/nix/store/0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-app-{n}/bin/app"),
        args: vec!["--listen".to_owned(), format!("127.0.0.1:{n}")],
        env: [("LANG", "C.UTF-8"), ("MODE", "bench")].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        cwd: None,
        extra_roots: vec![],
        work_tree: None,
        stdin: false,
    };
    let requested = Stop { since_unix_ms: created, grace_ms: 0, reason: StopReason::Requested };
    let source = Source { given: format!("./app-{n}/bin/app"), revision: None };
    let spec = MachineSpec {
        driver: Some(DriverName::Qemu),
        restart: Restart::Always,
        source,
        ..MachineSpec::new(Kind::Service, Workload::Program(program))
    };
    let id = MachineId::new(Timestamp(created), n);
    let record = records::running(id, &format!("run-{n}"), spec, DriverName::Qemu, created)?;
    if lives {
        return Ok(record);
    }
    let exit = Some(Exit { code: Some(0), signal: None, cause: ExitCause::Normal });
    Ok(MachineRecord { state: MachineState::Gone, stop: Some(requested), exit, ..record })
}
