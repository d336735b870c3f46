//! `cargo run --release -p sim -- --seed N --steps M [--lifecycles K | --worlds W] [--plans | --closures]`: one world, or as many as have K
//! machine lifecycles together, or W of them. Prints what it takes to do the same again; a failure is shrunk, and its trace is
//! printed.

use std::process::ExitCode;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use sim::{Enough, Layer, PULLS, Plant, STEPS, TRIES, Without, run_many, run_one, shrink};

const USAGE: &str = "usage: sim [--seed N] [--steps M] [--lifecycles K | --worlds W] [--plans | --closures] [--trace]
  --seed N        decides everything; a fresh one where none is given
  --steps M       steps of users in one world (60; with --plans 400, with --closures 10)
  --lifecycles K  worlds of this seed, the next one and so on, until there were K machine lifecycles
  --worlds W      so many worlds of this seed and those after it; every seed that fails is named, the first is shrunk
  --plans         the lower layer: the plan and the loop's memory alone, with effects as events
  --closures      pulls from caches that lie; a lifecycle is a pull
  --trace         prints what happened, of one world";

/// Steps of users in a world of the lower layer: enough that making the world costs nothing.
const PLAN_STEPS: u64 = 400;

struct Wanted {
    seed: u64,
    steps: u64,
    enough: Option<Enough>,
    layer: Layer,
    trace: bool,
}

fn parse(args: impl Iterator<Item = String>) -> Result<Wanted, String> {
    let fresh = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.subsec_nanos());
    let (mut seed, mut steps, mut enough) = (u64::from(fresh), None, None);
    let (mut layer, mut trace) = (Layer::Loop, false);
    let mut args = args;
    while let Some(arg) = args.next() {
        let mut number = || {
            let text = args.next().ok_or_else(|| format!("{arg} needs a number"))?;
            text.replace('_', "").parse().map_err(|_| format!("{arg} {text}: that is no number"))
        };
        match arg.as_str() {
            "--seed" => seed = number()?,
            "--steps" => steps = Some(number()?),
            "--lifecycles" => enough = Some(Enough::Lifecycles(number()?)),
            "--worlds" => enough = Some(Enough::Worlds(number()?)),
            "--plans" => layer = Layer::Plans,
            "--closures" => layer = Layer::Closures,
            "--trace" => trace = true,
            _ => return Err(format!("{arg} is not known\n{USAGE}")),
        }
    }
    let usual = match layer {
        Layer::Loop => STEPS,
        Layer::Plans => PLAN_STEPS,
        Layer::Closures => PULLS,
    };
    Ok(Wanted { seed, steps: steps.unwrap_or(usual), enough, layer, trace })
}

fn main() -> ExitCode {
    let wanted = match parse(std::env::args().skip(1)) {
        Ok(wanted) => wanted,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    let Wanted { seed, steps, enough, layer, trace } = wanted;
    println!("layer {layer:?}, seed {seed}, {steps} steps of users a world");
    let began = Instant::now();
    let failed = match enough {
        None => {
            let outcome = run_one(layer, seed, steps, Plant::None, &Without::default(), trace);
            outcome.trace.iter().for_each(|line| println!("{line}"));
            println!(
                "{} lifecycles, {} servers, {} faults; trace {:016x}",
                outcome.lifecycles, outcome.servers, outcome.faults, outcome.digest
            );
            (!outcome.violations.is_empty()).then_some(seed)
        }
        Some(enough) => {
            let sum = run_many(layer, seed, steps, Plant::None, enough);
            let took = began.elapsed().as_secs_f64();
            println!(
                "{} lifecycles in {} worlds, {} servers, {} faults; trace {:016x}",
                sum.lifecycles, sum.worlds, sum.servers, sum.faults, sum.digest
            );
            println!("{took:.1} s, {:.0} lifecycles/s", sum.lifecycles as f64 / took);
            sum.failed.iter().for_each(|seed| println!("failed: seed {seed}"));
            sum.failed.first().copied()
        }
    };
    match failed {
        None => ExitCode::SUCCESS,
        Some(seed) => {
            show(layer, seed, steps);
            ExitCode::FAILURE
        }
    }
}

fn show(layer: Layer, seed: u64, steps: u64) {
    let option = layer.option();
    println!("seed {seed} failed; the same again: sim --seed {seed} --steps {steps}{option}");
    let Some(shrunk) = shrink(layer, seed, steps, Plant::None, TRIES) else {
        return println!("repeated, it did not fail: the simulation is not deterministic");
    };
    println!("shrunk to {} steps of users and {} faults:", shrunk.steps, shrunk.faults);
    shrunk.trace.iter().for_each(|line| println!("{line}"));
    shrunk.violations.iter().for_each(|violation| println!("VIOLATED: {violation}"));
}
