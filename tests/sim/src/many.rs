//! Many worlds: seed after seed on every CPU, until there were enough machine lifecycles.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::closures;
use crate::faults::Without;
use crate::plans;
use crate::simulation::{Options, Plant, run};

/// Which layer is simulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    /// The server's real loop over its real records, with a provider behind the server's real driver for it.
    Loop,
    /// The real plan and what the loop remembers, with effects as events: many times as fast.
    Plans,
    /// The real pull, from caches that lie. Its lifecycles are pulls.
    Closures,
}

impl Layer {
    /// The option by which the command is told of it.
    pub fn option(self) -> &'static str {
        match self {
            Self::Loop => "",
            Self::Plans => " --plans",
            Self::Closures => " --closures",
        }
    }
}

/// How one world went, in any layer.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// What must not be, and was.
    pub violations: Vec<String>,
    /// Machines that were declared, and have ended.
    pub lifecycles: u64,
    /// Servers that there were.
    pub servers: u64,
    /// Faults that took place.
    pub faults: u64,
    /// Stands for everything that happened.
    pub digest: u64,
    /// What happened, where it was to be kept.
    pub trace: Vec<String>,
}

/// Simulates one world.
pub fn run_one(layer: Layer, seed: u64, steps: u64, plant: Plant, without: &Without, keep: bool) -> Outcome {
    match layer {
        Layer::Loop => {
            let without = without.clone();
            let report = run(Options { steps, plant, keep_trace: keep, without, ..Options::of(seed) });
            Outcome {
                violations: report.violations,
                lifecycles: report.machines as u64,
                servers: u64::from(report.servers),
                faults: report.faults,
                digest: report.trace_hash,
                trace: report.trace,
            }
        }
        Layer::Closures => closures::run(seed, steps, plant, without, keep),
        Layer::Plans => {
            let lives = plans::run(seed, steps, plant, without, keep);
            Outcome {
                violations: lives.violations,
                lifecycles: lives.lifecycles,
                servers: lives.crashes + 1,
                faults: lives.faults,
                digest: lives.digest,
                trace: lives.trace,
            }
        }
    }
}

/// How many worlds are enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enough {
    /// As many as have so many machine lifecycles together, or until one fails.
    Lifecycles(u64),
    /// So many, whether or not some fail: to see what all goes wrong.
    Worlds(u64),
}

impl Enough {
    fn reached(self, sum: &Sum) -> bool {
        match self {
            Self::Lifecycles(lifecycles) => sum.lifecycles >= lifecycles || !sum.failed.is_empty(),
            Self::Worlds(worlds) => sum.worlds >= worlds,
        }
    }
}

/// How many worlds went together.
#[derive(Debug, Clone, Default)]
pub struct Sum {
    /// Worlds.
    pub worlds: u64,
    /// Machines that were declared, and have ended.
    pub lifecycles: u64,
    /// Servers.
    pub servers: u64,
    /// Faults.
    pub faults: u64,
    /// Stands for everything that happened in all of them.
    pub digest: u64,
    /// The seeds that failed.
    pub failed: Vec<u64>,
}

/// Simulates the worlds of `seed`, the seed after it and so on, until it is enough. Which worlds count does not depend on how
/// many CPUs there are.
pub fn run_many(layer: Layer, seed: u64, steps: u64, plant: Plant, enough: Enough) -> Sum {
    let (next, reached) = (AtomicU64::new(0), AtomicBool::new(false));
    let results: Mutex<(Sum, BTreeMap<u64, Outcome>)> = Mutex::default();
    let work = || {
        while !reached.load(Ordering::Relaxed) {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let outcome = run_one(layer, seed.wrapping_add(at), steps, plant, &Without::default(), false);
            let (sum, waiting) = &mut *results.lock().expect("no holder panics");
            waiting.insert(at, outcome);
            // In the order of their seeds, so that the digest is the same each time.
            while !enough.reached(sum)
                && let Some(outcome) = waiting.remove(&sum.worlds)
            {
                sum.failed.extend((!outcome.violations.is_empty()).then(|| seed.wrapping_add(sum.worlds)));
                sum.worlds += 1;
                sum.lifecycles += outcome.lifecycles;
                sum.servers += outcome.servers;
                sum.faults += outcome.faults;
                sum.digest = sum.digest.rotate_left(7) ^ outcome.digest;
            }
            if enough.reached(sum) {
                reached.store(true, Ordering::Relaxed);
            }
        }
    };
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..cpus).for_each(|_| drop(scope.spawn(work))));
    results.into_inner().expect("no holder panicked").0
}
