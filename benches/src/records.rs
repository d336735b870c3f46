//! Records of machines as a server would have written them.

use calve_core::{DriverName, MachineId, State as MachineState};
use calve_wire::machine::MachineSpec;
use calve_wire::record::{MachineRecord, RECORD_VERSION};

/// How long machines of a measurement live at most, in milliseconds.
pub const HOURS_MS: u64 = 24 * 3_600_000;

/// The record of a machine that runs since `since_unix_ms`, for some hours, on this driver of the server's own node.
pub fn running(
    id: MachineId,
    name: &str,
    spec: MachineSpec,
    driver: DriverName,
    since_unix_ms: u64,
) -> anyhow::Result<MachineRecord> {
    Ok(MachineRecord {
        version: RECORD_VERSION,
        id,
        name: name.parse().map_err(|error| anyhow::anyhow!("{name}: {error:?}"))?,
        spec,
        state: MachineState::Running,
        stop: None,
        deadline_unix_ms: Some(since_unix_ms + HOURS_MS),
        grace_ms: 0,
        node: Some("local".parse().map_err(|error| anyhow::anyhow!("a node: {error:?}"))?),
        driver: Some(driver),
        attempt: 1,
        agent_token: "0".repeat(32),
        joined: None,
        exit: None,
        message: None,
        created_unix_ms: since_unix_ms,
        state_since_unix_ms: since_unix_ms,
        remove: false,
        held: false,
    })
}
