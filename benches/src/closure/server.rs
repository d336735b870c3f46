//! `calve cache serve` in a directory of its own.

use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use calve_server::cache::tokens::{Right, Tokens};

use crate::home::Home;

/// How long it may take until it listens.
const START_MAX: Duration = Duration::from_secs(60);
/// How often it is looked whether it listens: a start takes little more than 2 ms.
const LOOK_EVERY: Duration = Duration::from_micros(50);

/// Caches that were started so far.
static STARTED: AtomicUsize = AtomicUsize::new(0);

/// A cache that everybody may pull from; told to stop, and gone, when it is dropped.
pub struct Server {
    child: Child,
    pub url: String,
    pub token: String,
    pub key: String,
    /// How long it took until it listened.
    pub started: Duration,
    home: Arc<Home>,
}

impl Server {
    pub fn start() -> anyhow::Result<Self> {
        Self::start_in(Arc::new(Home::new()?))
    }

    /// Of the cache that lies in this home already, or of a new one.
    pub fn start_in(home: Arc<Home>) -> anyhow::Result<Self> {
        let dir = home.path().join("cache");
        // A cache may be started again, and keeps the tokens of before.
        let name = format!("bench-{}", STARTED.fetch_add(1, Ordering::Relaxed));
        let token = Tokens::new(&dir).add(&name, &Right::Push)?;
        let (dir, file) = (dir.display().to_string(), home.path().join("address"));
        let mut command =
            home.command(&["cache", "serve", "--public", "--listen", "127.0.0.1:0", "--dir", &dir]);
        command.arg("--address-file").arg(&file).stdout(Stdio::null()).stderr(Stdio::null());
        let _ = std::fs::remove_file(&file);
        let begun = Instant::now();
        let child = command.spawn().context("calve starts")?;
        let (url, key, started) = (String::new(), String::new(), Duration::ZERO);
        let mut server = Self { child, url, token, key, started, home };
        server.url = server.wait_for(&file)?;
        server.started = begun.elapsed();
        server.key = server.home.calve(&["cache", "key", "--dir", &dir])?.trim().to_owned();
        Ok(server)
    }

    fn wait_for(&mut self, file: &Path) -> anyhow::Result<String> {
        let begun = Instant::now();
        loop {
            match std::fs::read_to_string(file) {
                Ok(address) if !address.is_empty() => return Ok(address.trim().to_owned()),
                _ => {}
            }
            ensure!(self.child.try_wait()?.is_none(), "calve cache serve ended");
            ensure!(begun.elapsed() < START_MAX, "calve cache serve does not listen");
            std::thread::sleep(LOOK_EVERY);
        }
    }

    pub fn port(&self) -> u16 {
        self.url.rsplit(':').next().and_then(|port| port.parse().ok()).expect("an address has a port")
    }

    /// Processor time that it took so far (`proc_pid_stat(5)`).
    pub fn cpu(&self) -> anyhow::Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // Behind the name, which may hold anything: user and system time are fields 14 and 15, in ticks of 10 ms.
        let (_, fields) = stat.rsplit_once(')').context("a name in parentheses")?;
        let ticks =
            |n: usize| fields.split_ascii_whitespace().nth(n).and_then(|ticks| ticks.parse::<u64>().ok());
        let ticks = ticks(11).zip(ticks(12)).context("two times")?;
        Ok(Duration::from_millis((ticks.0 + ticks.1) * 10))
    }

    /// The most memory that it ever had, in KiB.
    pub fn peak_kib(&self) -> anyhow::Result<u64> {
        peak_kib(&self.child.id().to_string())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id().cast_signed()) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
    }
}

/// The most memory that a process ever had, in KiB (`proc_pid_status(5)`).
pub fn peak_kib(process: &str) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmHWM")).context("a peak")?;
    Ok(line.split_ascii_whitespace().nth(1).context("a number")?.parse()?)
}
