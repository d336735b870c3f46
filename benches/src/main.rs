//! Measures what calve promises about speed and size (`benches/run`). Each number stands beside a peer or a floor that was
//! measured in turn with it, so that a busy host is equally bad for both, and the ratio says more than the milliseconds.

mod closure;
mod guest;
mod hold;
mod home;
mod lazy;
mod leases;
mod load;
mod peers;
mod providers;
mod reads;
mod records;
mod size;
mod start;
mod store;
#[path = "../../crates/calve-node/tests/support/mod.rs"]
mod support;
mod table;
mod times;

use table::Table;

/// How often things are done.
#[derive(Clone, Copy)]
pub struct Effort {
    /// Starts of each peer.
    pub starts: usize,
    /// Boots of a guest.
    pub boots: u32,
    /// Calls of each read verb.
    pub reads: usize,
    /// Machines at once.
    pub machines: usize,
    /// Closures that are pushed and pulled.
    pub closures: closure::Size,
}

const FULL: Effort = Effort { starts: 100, boots: 11, reads: 100, machines: 1000, closures: closure::FULL };
const QUICK: Effort = Effort { starts: 15, boots: 5, reads: 50, machines: 100, closures: closure::QUICK };

const PARTS: [&str; 11] =
    ["start", "guest", "reads", "load", "hold", "leases", "providers", "closure", "lazy", "size", NEAR];
/// The part of `closure` that needs no far line and no filled cache; only where it is named.
const NEAR: &str = "near";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let Some((closure::engine::WORD, rest)) = words.split_first().map(|(word, rest)| (word.as_str(), rest))
    {
        return closure::engine::run(rest).await;
    }
    let effort = if words.iter().any(|word| word == "quick") { QUICK } else { FULL };
    let named: Vec<&str> = words.iter().map(String::as_str).filter(|word| *word != "quick").collect();
    if let Some(unknown) = named.iter().find(|word| !PARTS.contains(word)) {
        anyhow::bail!("there is no part {unknown}; there are {}", PARTS.join(", "));
    }
    let wanted = |part: &str| if named.is_empty() { part != NEAR } else { named.contains(&part) };
    let mut table = Table::default();
    let measured = measure(effort, PARTS.into_iter().filter(|part| wanted(part)), &mut table).await;
    // What was measured before a failure is worth as much.
    table.print();
    measured
}

async fn measure(
    effort: Effort,
    parts: impl Iterator<Item = &'static str>,
    table: &mut Table,
) -> anyhow::Result<()> {
    for part in parts {
        eprintln!("measuring: {part}");
        match part {
            "start" => start::measure(effort, table).await?,
            "guest" => guest::measure(effort, table).await?,
            "reads" => reads::measure(effort, table).await?,
            "load" => load::measure(effort, table)?,
            "hold" => hold::measure(effort, table)?,
            "leases" => leases::measure(effort, table).await?,
            "providers" => providers::measure(effort, table).await?,
            "closure" => closure::measure(effort.closures, false, table).await?,
            NEAR => closure::measure(effort.closures, true, table).await?,
            "lazy" => lazy::measure(effort.closures, table).await?,
            _ => size::measure(table)?,
        }
    }
    Ok(())
}
