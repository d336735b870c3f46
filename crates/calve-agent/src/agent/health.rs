//! Health checks: probing, and deciding from what the probes say.

use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use calve_wire::machine::{HealthCheck, Probe};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::processes::Standard;
use super::program::null;
use super::streams::{command_work, connect};
use super::{Agent, Event};
use crate::init::packet::End;

/// Pause between probes before the first success, doubling up to the interval: a service counts as ready soon after it is.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Shortest interval: a check that asks for none must not take the machine for itself.
const INTERVAL_MIN: Duration = Duration::from_millis(10);
/// Most bytes of an HTTP answer up to the end of its status line.
const STATUS_LINE_MAX_BYTES: usize = 1024;

/// Decides from single probes.
///
/// ```text
///  unknown ──success──▶ healthy ──`retries` failures in a row──▶ unhealthy ──success──▶ healthy
///     └──`retries` failures, each an interval after the last counted──▶ unhealthy
/// ```
#[derive(Debug)]
struct Judge {
    retries: u32,
    interval: Duration,
    pause: Duration,
    failures: u32,
    last_counted: Instant,
    verdict: Option<bool>,
}

impl Judge {
    fn new(check: &HealthCheck, now: Instant) -> Self {
        let interval = Duration::from_millis(check.interval_ms).max(INTERVAL_MIN);
        Self {
            retries: check.retries.max(1),
            interval,
            pause: FIRST_PAUSE.min(interval),
            failures: 0,
            last_counted: now,
            verdict: None,
        }
    }

    /// Takes a probe's result: the verdict where it changes, and the pause before the next probe.
    fn take(&mut self, success: bool, now: Instant) -> (Option<bool>, Duration) {
        let before = self.verdict;
        if success {
            (self.failures, self.pause, self.verdict) = (0, self.interval, Some(true));
        } else {
            // The quick probes of the beginning are for finding success early, not for failing early.
            if before.is_some() || now.duration_since(self.last_counted) >= self.interval {
                self.failures += 1;
                self.last_counted = now;
            }
            if self.failures >= self.retries {
                self.verdict = Some(false);
            }
        }
        let pause = self.pause;
        self.pause = (self.pause * 2).min(self.interval);
        (self.verdict.filter(|verdict| Some(*verdict) != before), pause)
    }
}

/// Probes for ever and tells each change of the verdict.
pub async fn watch(agent: Rc<Agent>, check: HealthCheck) {
    let mut judge = Judge::new(&check, Instant::now());
    let timeout = Duration::from_millis(check.timeout_ms);
    loop {
        let probed = tokio::time::timeout(timeout, probe(&agent, &check.probe)).await;
        let probed = probed.unwrap_or_else(|_| Err(silent(&check.probe, timeout)));
        let (verdict, pause) = judge.take(probed.is_ok(), Instant::now());
        if verdict.is_some() {
            agent.tell(Event::Health(probed));
        }
        tokio::time::sleep(pause).await;
    }
}

/// One probe; the error says why it failed.
async fn probe(agent: &Agent, probe: &Probe) -> Result<(), String> {
    match probe {
        Probe::Command { argv } => command(agent, argv).await,
        Probe::Tcp { port } => match connect(agent, *port).await {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("port {port}: {error}")),
        },
        Probe::Http { port, path } => match http_status(agent, *port, path).await {
            Ok(status) if (200..400).contains(&status) => Ok(()),
            Ok(status) => Err(format!("GET {path} on port {port} gave {status}")),
            Err(error) => Err(format!("GET {path} on port {port}: {error}")),
        },
    }
}

/// A probe that was given up.
fn silent(probe: &Probe, timeout: Duration) -> String {
    let ms = timeout.as_millis();
    match probe {
        Probe::Command { argv } => format!("{:?} did not end within {ms} ms", program(argv)),
        Probe::Tcp { port } => format!("port {port} did not answer within {ms} ms"),
        Probe::Http { port, path } => format!("GET {path} on port {port} had no answer within {ms} ms"),
    }
}

fn program(argv: &[String]) -> &str {
    argv.first().map_or("", String::as_str)
}

/// Runs a command; it is killed with this future.
async fn command(agent: &Agent, argv: &[String]) -> Result<(), String> {
    let work = command_work(agent, argv.to_vec(), BTreeMap::new(), None);
    let null = || null().map_err(|error| format!("/dev/null: {error}"));
    let standard = Standard::Descriptors([null()?, null()?, null()?]);
    let mut process = agent.processes.spawn(work, standard, true).await.map_err(|why| why.message)?;
    match process.end().await {
        Some(End::Code(0)) => Ok(()),
        Some(End::Code(code)) => Err(format!("{:?} ended with exit code {code}", program(argv))),
        Some(End::Signal(signal)) => Err(format!("{:?} was ended by signal {signal}", program(argv))),
        None => Err("the machine is ending".to_owned()),
    }
}

/// The status of `GET path` (RFC 9112): only the status line is read.
async fn http_status(agent: &Agent, port: u16, path: &str) -> io::Result<u16> {
    let mut connected = connect(agent, port).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nUser-Agent: calve\r\nConnection: close\r\n\r\n"
    );
    connected.write_all(request.as_bytes()).await?;
    let mut answer = Vec::with_capacity(STATUS_LINE_MAX_BYTES);
    while !answer.contains(&b'\n') && answer.len() < STATUS_LINE_MAX_BYTES {
        if connected.read_buf(&mut answer).await? == 0 {
            break;
        }
    }
    status_of(&answer).ok_or_else(|| io::Error::other("the answer is no HTTP"))
}

fn status_of(answer: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(answer.split(|byte| *byte == b'\n').next()?).ok()?;
    let (version, rest) = line.split_once(' ')?;
    let digits = rest.trim_end().get(..3)?;
    version.starts_with("HTTP/1.").then_some(())?;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(interval_ms: u64, retries: u32, now: Instant) -> Judge {
        let probe = Probe::Tcp { port: 1 };
        Judge::new(&HealthCheck { probe, interval_ms, timeout_ms: 1, retries }, now)
    }

    #[test]
    fn a_slow_start_is_no_failure_and_success_is_seen_soon() {
        let start = Instant::now();
        let mut judge = judge(1000, 2, start);
        let mut now = start;
        let mut pauses = Vec::new();
        while now < start + Duration::from_millis(900) {
            let (verdict, pause) = judge.take(false, now);
            assert_eq!(verdict, None);
            pauses.push(pause.as_millis());
            now += pause;
        }
        assert_eq!(pauses[..4], [50, 100, 200, 400]);
        assert_eq!(judge.take(true, now), (Some(true), Duration::from_secs(1)));
    }

    #[test]
    fn failures_in_a_row_make_unhealthy_and_a_success_heals() {
        let now = Instant::now();
        let mut judge = judge(10, 3, now);
        let verdicts: Vec<_> = [true, false, false, true, false, false, false, false, true]
            .map(|success| judge.take(success, now).0)
            .into();
        let expected = [Some(true), None, None, None, None, None, Some(false), None, Some(true)];
        assert_eq!(verdicts, expected);
    }

    #[test]
    fn status_lines_are_read_and_others_refused() {
        assert_eq!(status_of(b"HTTP/1.1 204 No Content\r\nX: y\r\n"), Some(204));
        assert_eq!(status_of(b"HTTP/1.0 500\r\n"), Some(500));
        for bad in [b"SSH-2.0-x\r\n".as_slice(), b"", b"HTTP/1.1", b"HTTP/1.1 2\xff0 x"] {
            assert_eq!(status_of(bad), None);
        }
    }
}
