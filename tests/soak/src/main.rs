//! `cargo run --release -p soak -- [--sandboxes N] [--guests N] [--seed N] [--kill-every MS]`: the long soak. CI has a short one.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use soak::{Options, soak};

const USAGE: &str = "usage: soak [--sandboxes N] [--guests N] [--seed N] [--kill-every MS]";

fn main() -> ExitCode {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let kill_every = Duration::from_millis(400);
    let mut options = Options { seed: now, sandboxes: 2000, guests: 20, kill_every };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let Some(number) = args.next().and_then(|text| text.parse().ok()) else {
            eprintln!("{arg} needs a number\n{USAGE}");
            return ExitCode::from(2);
        };
        match arg.as_str() {
            "--sandboxes" => options.sandboxes = number,
            "--guests" => options.guests = number,
            "--seed" => options.seed = number,
            "--kill-every" => options.kill_every = Duration::from_millis(number),
            _ => {
                eprintln!("{arg} is not known\n{USAGE}");
                return ExitCode::from(2);
            }
        }
    }
    println!("{options:?}");
    let report = soak(options);
    let seconds = report.took.as_secs_f64();
    println!("{} machines started, {} requests cut off, in {seconds:.0} s", report.started, report.refused);
    println!("{:?}", report.kills);
    report.left.iter().for_each(|left| println!("LEFT: {left}"));
    if report.left.is_empty() {
        println!("nothing is left");
        return ExitCode::SUCCESS;
    }
    ExitCode::FAILURE
}
