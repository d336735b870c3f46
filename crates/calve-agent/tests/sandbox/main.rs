//! What a program finds in a sandbox, and what it cannot do there. One static program in three roles: it runs the tests,
//! launches sandboxes as the agent does, and is the program in them.

mod inside;
mod launcher;
mod tests;

use launcher::{begin_with_programs, settle};

fn main() {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some("launch") => launcher::launch(args.collect(), begin_with_programs),
        Some("launch-settled") => launcher::launch(args.collect(), settle),
        Some("launch-as-on-5.10") => {
            launcher::forget_mount_setattr();
            launcher::launch(args.collect(), begin_with_programs);
        }
        Some("standby") => launcher::stand_by(args.collect(), begin_with_programs),
        Some("standby-settled") => launcher::stand_by(args.collect(), settle),
        Some("standby-as-on-5.10") => {
            launcher::forget_mount_setattr();
            launcher::stand_by(args.collect(), begin_with_programs);
        }
        Some("inside") => inside::run(args.collect()),
        _ => tests::run_all(std::env::args().skip(1).find(|arg| !arg.starts_with('-'))),
    }
}
