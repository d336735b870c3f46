//! The soak as CI has it.

use std::time::Duration;

use soak::{Options, soak};

#[test]
fn machines_that_are_killed_at_random_leave_nothing() {
    let kill_every = Duration::from_millis(150);
    let report = soak(Options { seed: 1, sandboxes: 40, guests: 0, kill_every });
    println!("{report:?}");
    assert!(report.left.is_empty(), "{:#?}", report.left);
    assert!(report.kills.servers > 0, "{:?}", report.kills);
}
