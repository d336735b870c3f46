//! `SIM_SEED=n` reproduces one seed with its trace; `SIM_SEEDS=n` runs that many.

use std::sync::atomic::{AtomicU64, Ordering};

use sim::{Options, Plant, Report, run};

/// Seeds that every run of the tests tries.
const SEEDS: u64 = 150;
/// Lines of the trace that a failure shows.
const TRACE_LINES: usize = 400;

fn simulate(seed: u64, plant: Plant) -> Report {
    run(Options { seed, plant, keep_trace: false })
}

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// Tries seeds on all CPUs until one fails; gives the smallest known failing one.
fn first_failing(seeds: u64, plant: Plant) -> Option<u64> {
    let (next, failed) = (AtomicU64::new(0), AtomicU64::new(u64::MAX));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.min(failed.load(Ordering::Relaxed)) {
                return;
            }
            if !simulate(seed, plant).violations.is_empty() {
                failed.fetch_min(seed, Ordering::Relaxed);
            }
        }
    };
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..cpus).for_each(|_| drop(scope.spawn(work))));
    Some(failed.into_inner()).filter(|seed| *seed < u64::MAX)
}

fn show(seed: u64) {
    let report = run(Options { seed, plant: Plant::None, keep_trace: true });
    let skip = report.trace.len().saturating_sub(TRACE_LINES);
    report
        .trace
        .iter()
        .skip(if from_env("SIM_SEED").is_some() { 0 } else { skip })
        .for_each(|line| println!("{line}"));
    println!("{} machines, {} servers", report.machines, report.servers);
    assert!(
        report.violations.is_empty(),
        "seed {seed}: {:#?}\nreproduce: SIM_SEED={seed} cargo test -p sim",
        report.violations
    );
}

#[test]
fn no_seed_breaks_an_invariant() {
    if let Some(seed) = from_env("SIM_SEED") {
        return show(seed);
    }
    if let Some(seed) = first_failing(from_env("SIM_SEEDS").unwrap_or(SEEDS), Plant::None) {
        show(seed);
        panic!("seed {seed} failed, and did not when it was repeated: the simulation is not deterministic");
    }
}

#[test]
fn a_seed_gives_one_trace() {
    for seed in 0..20 {
        let once = run(Options { seed, plant: Plant::None, keep_trace: true });
        let again = run(Options { seed, plant: Plant::None, keep_trace: true });
        let differs = once.trace.iter().zip(&again.trace).find(|(a, b)| a != b);
        assert_eq!(differs, None, "seed {seed}");
        assert_eq!(once.trace_hash, again.trace_hash, "seed {seed}");
        assert!(once.machines > 0, "seed {seed} made {} machines", once.machines);
    }
}

#[test]
fn planted_faults_are_found() {
    let plants =
        [Plant::DestroyHides, Plant::ListHidesLiving, Plant::NothingUnannounced, Plant::StoppedTwice];
    for plant in plants {
        assert!(first_failing(SEEDS, plant).is_some(), "{plant:?} was not found");
    }
}
