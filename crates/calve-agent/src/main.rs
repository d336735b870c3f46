//! The machine's side.

mod guard;
mod guest;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    if std::process::id() == 1 {
        return guest::run();
    }
    match arguments.next() {
        Some(word) if word == "guard" => guard::run(arguments),
        _ => anyhow::bail!("usage: calve-agent guard --run-dir DIR -- PROGRAM [ARGUMENT]…"),
    }
}
