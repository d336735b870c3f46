//! All layers over seeds: always the same ones, those that once failed, and a fresh one each time, which is printed.
//! `SIM_SEED=n` runs one seed and prints its trace; `SIM_SEEDS=n` runs that many of the loop.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use sim::{Enough, Layer, Outcome, PULLS, Plant, STEPS, Without, run_many, run_one, shrink};

/// Seeds of the loop that every run of the tests tries.
const SEEDS: u64 = 40;
/// Steps of users in a world of the lower layer.
const PLAN_STEPS: u64 = 100;
/// Seeds that failed, each with what was wrong then: in the server, or in the simulator itself.
const ONCE_FAILED: &[(Layer, u64, &str)] = &[
    (Layer::Loop, 553_945_790, "a slow removal from before it was quiet counted against a satisfied world"),
    (Layer::Loop, 5_000_001, "a server took for gone what its list did not show that the last server made"),
    (Layer::Loop, 5_000_027, "the same"),
    (Layer::Loop, 5_000_009, "a record was closed before a list could show the twin of its machine"),
    (Layer::Loop, 5_000_094, "a twin lost its tags with its machine, and nobody knew it as ours"),
    (
        Layer::Loop,
        40_002_279,
        "a twin lost the lease that it said, as another machine had been given the new one",
    ),
    (
        Layer::Loop,
        40_004_843,
        "a lease was said on an attempt that was gone but listed, which then counted as the machine",
    ),
    (Layer::Loop, 40_000_559, "of twins both joined, which join tokens rule out"),
    (
        Layer::Loop,
        20_149,
        "a list that was older than an adoption taken back had what somebody else made destroyed",
    ),
    (Layer::Loop, 20_299, "nobody drove a switch whose user went away while it was written down"),
    (
        Layer::Loop,
        20_521,
        "a host that was restarted into a third system counted as one with its former system",
    ),
    (
        Layer::Loop,
        900_000_250,
        "a host whose adoption failed for good counted as in use, as its agent was called",
    ),
    (Layer::Loop, 900_001_327, "a host that did not come up again went on with its switch"),
];
/// Machine lifecycles of the lower layer that every run of the tests tries.
const PLAN_LIFECYCLES: u64 = 1_000;
/// The same of the loop.
const LOOP_LIFECYCLES: u64 = 50;
/// Pulls that every run of the tests tries from a fresh seed.
const FRESH_PULLS: u64 = 200;

fn simulate(layer: Layer, seed: u64, plant: Plant, keep_trace: bool) -> Outcome {
    run_one(layer, seed, steps(layer), plant, &Without::default(), keep_trace)
}

fn steps(layer: Layer) -> u64 {
    match layer {
        Layer::Loop => STEPS,
        Layer::Plans => PLAN_STEPS,
        Layer::Closures => PULLS,
    }
}

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// Tries seeds on all CPUs until one fails; gives the smallest known failing one.
fn first_failing(layer: Layer, seeds: u64, plant: Plant) -> Option<u64> {
    let (next, failed) = (AtomicU64::new(0), AtomicU64::new(u64::MAX));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.min(failed.load(Ordering::Relaxed)) {
                return;
            }
            if !simulate(layer, seed, plant, false).violations.is_empty() {
                failed.fetch_min(seed, Ordering::Relaxed);
            }
        }
    };
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..cpus).for_each(|_| drop(scope.spawn(work))));
    Some(failed.into_inner()).filter(|seed| *seed < u64::MAX)
}

/// Fails with what is left of the run once it is shrunk.
fn show(layer: Layer, seed: u64) -> ! {
    let option = layer.option();
    println!("the same again: cargo run -p sim -- --seed {seed} --steps {}{option}", steps(layer));
    match shrink(layer, seed, steps(layer), Plant::None, 200) {
        None => panic!("seed {seed} failed, and did not when it was repeated: it is not deterministic"),
        Some(shrunk) => {
            shrunk.trace.iter().for_each(|line| println!("{line}"));
            let (steps, faults) = (shrunk.steps, shrunk.faults);
            panic!("seed {seed}, shrunk to {steps} steps and {faults} faults: {:#?}", shrunk.violations);
        }
    }
}

#[test]
fn no_seed_breaks_an_invariant() {
    if let Some(seed) = from_env("SIM_SEED") {
        let outcome = simulate(Layer::Loop, seed, Plant::None, true);
        outcome.trace.iter().for_each(|line| println!("{line}"));
        assert!(outcome.violations.is_empty(), "{:#?}", outcome.violations);
        return;
    }
    if let Some(seed) = first_failing(Layer::Loop, from_env("SIM_SEEDS").unwrap_or(SEEDS), Plant::None) {
        show(Layer::Loop, seed);
    }
}

#[test]
fn no_path_counts_that_is_not_signed_or_not_what_was_signed() {
    if let Some(seed) = first_failing(Layer::Closures, SEEDS, Plant::None) {
        show(Layer::Closures, seed);
    }
}

#[test]
fn no_seed_that_once_failed_fails_again() {
    for (layer, seed, was) in ONCE_FAILED {
        println!("seed {seed} once failed: {was}");
        if !simulate(*layer, *seed, Plant::None, false).violations.is_empty() {
            show(*layer, *seed);
        }
    }
}

#[test]
fn no_seed_from_a_fresh_one_on_breaks_an_invariant() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later than 1970");
    let seed = from_env("SIM_SEED").unwrap_or(u64::from(now.subsec_nanos()));
    println!("from seed {seed} on; the same again: SIM_SEED={seed}");
    let all =
        [(Layer::Plans, PLAN_LIFECYCLES), (Layer::Loop, LOOP_LIFECYCLES), (Layer::Closures, FRESH_PULLS)];
    for (layer, lifecycles) in all {
        let sum = run_many(layer, seed, steps(layer), Plant::None, Enough::Lifecycles(lifecycles));
        println!("{layer:?}: {sum:?}");
        if let Some(seed) = sum.failed.first() {
            show(layer, *seed);
        }
        assert!(sum.lifecycles >= lifecycles, "{layer:?}: {} lifecycles", sum.lifecycles);
    }
}

#[test]
fn a_seed_gives_one_trace() {
    const WORLDS: u64 = 4;
    for layer in [Layer::Loop, Layer::Plans, Layer::Closures] {
        let (mut faults, mut servers) = (0, 0);
        for seed in 0..WORLDS {
            let once = simulate(layer, seed, Plant::None, true);
            let again = simulate(layer, seed, Plant::None, true);
            let differs = once.trace.iter().zip(&again.trace).find(|(a, b)| a != b);
            assert_eq!(differs, None, "{layer:?} of seed {seed}");
            assert_eq!(once.digest, again.digest, "{layer:?} of seed {seed}");
            assert!(once.lifecycles > 0, "{layer:?} of seed {seed} had no machine");
            let without_lines = simulate(layer, seed, Plant::None, false);
            assert_eq!(once.digest, without_lines.digest, "{layer:?} of seed {seed}, nobody reading along");
            faults += once.faults;
            servers += once.servers;
        }
        // A single world may come without either by chance.
        assert!(faults > 0, "{layer:?}: nothing fails in its worlds");
        assert!(servers > WORLDS, "{layer:?}: no server crashes in its worlds");
    }
}

#[test]
fn which_worlds_are_counted_does_not_depend_on_who_is_first() {
    let once = run_many(Layer::Plans, 7, PLAN_STEPS, Plant::None, Enough::Lifecycles(1_000));
    let again = run_many(Layer::Plans, 7, PLAN_STEPS, Plant::None, Enough::Lifecycles(1_000));
    assert_eq!((once.digest, once.lifecycles, once.worlds), (again.digest, again.lifecycles, again.worlds));
}

#[test]
fn planted_faults_are_found() {
    // What hides from destruction is destroyed again and again until its lease is long over: in plans, that is quick.
    let plants = [Plant::ListHidesLiving, Plant::NothingUnannounced, Plant::StoppedTwice, Plant::NoLock];
    for plant in plants {
        let found = first_failing(Layer::Loop, SEEDS, plant);
        println!("{plant:?} in the loop: {found:?}");
        assert!(found.is_some(), "{plant:?} was not found");
    }
    for plant in [Plant::DestroyHides, Plant::ListHidesLiving] {
        assert!(first_failing(Layer::Plans, SEEDS, plant).is_some(), "{plant:?} was not found in plans");
    }
    let strangers = first_failing(Layer::Closures, SEEDS, Plant::StrangersTrusted);
    assert!(strangers.is_some(), "that strangers are trusted was not found");
}

#[test]
fn a_failing_run_is_shrunk_to_less_that_fails() {
    const FEW: u64 = 16;
    let (layer, plant, all) = (Layer::Plans, Plant::DestroyHides, Without::default());
    let mut worlds = (0..SEEDS).map(|seed| (seed, run_one(layer, seed, FEW, plant, &all, true)));
    let (seed, whole) = worlds.find(|(_, world)| !world.violations.is_empty()).expect("it is found");
    let shrunk = shrink(layer, seed, FEW, plant, 60).expect("it fails");
    assert!(!shrunk.violations.is_empty());
    let (lines, before) = (shrunk.trace.len(), whole.trace.len());
    assert!(lines < before && shrunk.steps < FEW, "{lines} of {before} lines, {} steps", shrunk.steps);
}
