//! The agent's size: it is copied into every guest.

use crate::home::beside;
use crate::table::Table;

/// Most bytes of the agent's binary, in MB.
const AGENT_MB: f64 = 4.0;

pub fn measure(table: &mut Table) -> anyhow::Result<()> {
    let bytes = std::fs::metadata(beside("calve-agent"))?.len();
    let megabytes = bytes as f64 / 1e6;
    table.limit("the agent's binary", format!("{megabytes:.2} MB"), megabytes, AGENT_MB, "MB");
    Ok(())
}
