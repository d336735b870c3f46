//! What something took: time, and the processor time of all who worked for it, which a busy host changes less.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::server::Server;
use crate::times::Times;

pub struct Spent {
    time: Times,
    cpu: Times,
}

impl Spent {
    pub const fn new() -> Self {
        Self { time: Times::new(), cpu: Times::new() }
    }

    /// Takes in what was measured elsewhere: time and processor time.
    pub fn by(&mut self, (time, cpu): (Duration, Duration)) {
        self.time.push(time);
        self.cpu.push(cpu);
    }

    /// Measures `work`, which runs programs to their ends and perhaps has a server work for them.
    pub fn on<T>(
        &mut self,
        server: Option<&Server>,
        work: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        settle();
        let of_server = || server.map_or(Ok(Duration::ZERO), Server::cpu);
        let (before, serving) = (of_programs(), of_server()?);
        let begun = Instant::now();
        let result = work()?;
        self.by((begun.elapsed(), (of_programs() - before) + (of_server()? - serving)));
        Ok(result)
    }

    pub fn seconds(&self) -> f64 {
        self.time.median().as_secs_f64()
    }
}

impl std::fmt::Display for Spent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} s (cpu {:.2} s)", self.seconds(), self.cpu.median().as_secs_f64())
    }
}

/// Has all processors work at once, each on the next of these jobs, by what `begin` gives a thread: a function of a job and its
/// number.
pub fn on_all_processors<J: Sync, W>(
    jobs: &[J],
    begin: impl Fn() -> anyhow::Result<W> + Sync,
) -> anyhow::Result<()>
where
    W: FnMut(usize, &J) -> anyhow::Result<()>,
{
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    std::thread::scope(|scope| {
        let work = || -> anyhow::Result<()> {
            let mut work = begin()?;
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                let Some(job) = jobs.get(n) else { return Ok(()) };
                work(n, job)?;
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("no panics"))
    })
}

/// Time and processor time of what this process does itself.
pub fn of_this_process(work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<(Duration, Duration)> {
    settle();
    let (begun, before) = (Instant::now(), cpu_of(libc::RUSAGE_SELF));
    work()?;
    Ok((begun.elapsed(), cpu_of(libc::RUSAGE_SELF) - before))
}

/// Has the disk take what was written before: else that is measured with what comes next.
fn settle() {
    rustix::fs::sync();
}

/// Processor time of the programs that were run here and have ended.
fn of_programs() -> Duration {
    cpu_of(libc::RUSAGE_CHILDREN)
}

/// Processor time of whom (`getrusage(2)`).
fn cpu_of(whom: libc::c_int) -> Duration {
    // SAFETY: all zeros is a value of this struct, and the call writes nothing but it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(whom, &raw mut usage);
        usage
    };
    let time = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec.cast_unsigned()) + Duration::from_micros(time.tv_usec.cast_unsigned())
    };
    time(usage.ru_utime) + time(usage.ru_stime)
}
