//! Every effect that there is fails, is repeated, and is cut off by a crash, before, within and after; at the end the world is
//! clean each time. And a server that dies at every moment at which it can.

use std::sync::atomic::{AtomicU64, Ordering};

use sim::{Aim, Chances, How, Options, Report, When, Which, run};

/// The first world that is tried: nothing goes wrong in it by itself.
const SEED: u64 = 3;
/// How many worlds are tried until the effect that is aimed at takes place.
const WORLDS_MAX: u64 = 20;
/// Users' steps in a world.
const STEPS: u64 = 16;
/// Of each effect the first and the second are aimed at.
const TIMES: u32 = 2;
/// A world for a crash at every moment.
const SMALL_STEPS: u64 = 5;

fn simulate(seed: u64, steps: u64, aim: Option<Aim>, dies_at: Option<u64>) -> Report {
    let chances = Some(Chances::default());
    run(Options { steps, chances, aim, dies_at, ..Options::of(seed) })
}

fn clean(report: &Report, what: &dyn std::fmt::Debug) {
    assert!(report.violations.is_empty(), "{what:?}: {:#?}", report.violations);
}

/// Runs checks on all CPUs.
fn each<T: Sync>(of: &[T], check: impl Fn(&T) + Sync) {
    let next = AtomicU64::new(0);
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cpus {
            scope.spawn(|| {
                while let Some(one) = of.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    check(one);
                }
            });
        }
    });
}

/// Whether something can go wrong in this way: a link is only asked for and forgetting a log has no answer, so that neither
/// fails; a write is one operation of the store, which repeats itself where its answer was lost.
fn can_happen(which: Which, when: When, how: How) -> bool {
    match (which, how) {
        (Which::Link | Which::Forget, How::Fails) => false,
        (Which::Write, How::Repeats) => false,
        (_, How::Repeats) => when == When::Within,
        (Which::Write | Which::Link, _) => when != When::Within,
        (Which::Create | Which::Start | Which::SetLease | Which::Stop, _) => true,
        (Which::Destroy | Which::Forget, _) => true,
    }
}

#[test]
fn every_effect_fails_repeats_and_is_cut_off_and_the_world_is_clean_in_the_end() {
    let mut aims = Vec::new();
    for which in Which::all() {
        for when in [When::Before, When::Within, When::After] {
            for how in [How::Fails, How::Repeats, How::Crashes] {
                let times = if can_happen(which, when, how) { TIMES } else { 0 };
                aims.extend((0..times).map(|skip| Aim { which, when, how, skip }));
            }
        }
    }
    each(&aims, |aim| {
        let mut worlds = (SEED..SEED + WORLDS_MAX).map(|seed| simulate(seed, STEPS, Some(*aim), None));
        let hit = worlds.find(|report| !report.missed);
        let report = hit.unwrap_or_else(|| panic!("{aim:?} did not come to pass"));
        clean(&report, aim);
        assert_eq!(report.servers > 1, aim.how == How::Crashes, "{aim:?}");
    });
}

#[test]
fn a_server_that_dies_at_any_moment_leaves_a_clean_world() {
    let whole = simulate(SEED, SMALL_STEPS, None, None);
    clean(&whole, &"without a crash");
    assert!(
        whole.machines > 0 && whole.moments > 50,
        "{} machines, {} moments",
        whole.machines,
        whole.moments
    );
    let moments: Vec<u64> = (1..=whole.moments).collect();
    each(&moments, |moment| clean(&simulate(SEED, SMALL_STEPS, None, Some(*moment)), moment));
}
