//! Makes a failing run smaller: leaves out kinds of faults, then all that comes after some number of them, then single faults
//! and users' steps, as long as it goes on failing.

use crate::faults::{Fault, Without};
use crate::many::{Layer, run_one};
use crate::simulation::Plant;

/// Runs that shrinking takes for people, who wait for it.
pub const TRIES: u32 = 600;

/// A failing run, as small as it got.
#[derive(Debug)]
pub struct Shrunk {
    /// What is left out of it.
    pub without: Without,
    /// What went wrong in it.
    pub violations: Vec<String>,
    /// What happened.
    pub trace: Vec<String>,
    /// How many of the users' steps are left.
    pub steps: u64,
    /// How many of the faults are left.
    pub faults: u64,
}

struct Search {
    layer: Layer,
    seed: u64,
    steps: u64,
    plant: Plant,
    tries_left: u32,
    best: Without,
    faults: u64,
}

/// Shrinks the run of this seed in at most so many tries; none where it does not fail.
pub fn shrink(layer: Layer, seed: u64, steps: u64, plant: Plant, tries_max: u32) -> Option<Shrunk> {
    let whole = run_one(layer, seed, steps, plant, &Without::default(), false);
    if whole.violations.is_empty() {
        return None;
    }
    let (best, faults) = (Without::default(), whole.faults);
    let mut search = Search { layer, seed, steps, plant, tries_left: tries_max, best, faults };
    search.kinds();
    search.last_fault();
    search.steps();
    search.single_faults();
    search.steps();
    let Search { best, .. } = search;
    let smallest = run_one(layer, seed, steps, plant, &best, true);
    let left_out = best.faults.iter().filter(|number| **number < best.faults_from).count() as u64;
    let faults = smallest.faults.min(best.faults_from).saturating_sub(left_out);
    Some(Shrunk {
        steps: steps - best.steps.len() as u64,
        faults,
        violations: smallest.violations,
        trace: smallest.trace,
        without: best,
    })
}

impl Search {
    /// Whether it still fails without this; then that is the best so far.
    fn fails(&mut self, without: Without) -> bool {
        if self.tries_left == 0 || without == self.best {
            return false;
        }
        self.tries_left -= 1;
        let outcome = run_one(self.layer, self.seed, self.steps, self.plant, &without, false);
        let fails = !outcome.violations.is_empty();
        if fails {
            (self.best, self.faults) = (without, outcome.faults);
        }
        fails
    }

    fn kinds(&mut self) {
        for fault in Fault::ALL {
            let mut without = self.best.clone();
            without.kinds.insert(fault);
            self.fails(without);
        }
    }

    /// What comes before the last fault that matters does not depend on those after it: halving finds it.
    fn last_fault(&mut self) {
        let (mut low, mut high) = (0, self.faults.min(self.best.faults_from));
        while low < high {
            let middle = low + (high - low) / 2;
            if self.fails(Without { faults_from: middle, ..self.best.clone() }) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
    }

    /// Users' steps: by halves, quarters and so on down to single ones.
    fn steps(&mut self) {
        let mut size = self.steps.div_ceil(2);
        while size > 0 {
            for from in (0..self.steps).step_by(size as usize) {
                let mut without = self.best.clone();
                without.steps.extend(from..(from + size).min(self.steps));
                self.fails(without);
            }
            size = if size == 1 { 0 } else { size.div_ceil(2) };
        }
    }

    /// The last first: leaving one out changes nothing of what was before it.
    fn single_faults(&mut self) {
        for number in (0..self.faults.min(self.best.faults_from)).rev() {
            let mut without = self.best.clone();
            without.faults.insert(number);
            self.fails(without);
        }
    }
}
