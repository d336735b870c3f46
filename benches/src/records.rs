//! Records of machines as a server would have written them.

use bytes::Bytes;
use calve_core::{DriverName, MachineId, State as MachineState};
use calve_server::reconcile::records::{NAMES, machine_key};
use calve_server::state::{Durability, Expect, State};
use calve_wire::machine::MachineSpec;
use calve_wire::record::{MachineRecord, NameRecord, RECORD_VERSION};

/// How long machines of a measurement live at most, in milliseconds.
const HOURS_MS: u64 = 24 * 3_600_000;

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

/// Writes a record, and that its name is taken.
pub async fn write(state: &dyn State, record: &MachineRecord) -> anyhow::Result<()> {
    let name = NameRecord { version: RECORD_VERSION, id: record.id, claimed_unix_ms: record.created_unix_ms };
    let name_key = format!("{NAMES}{}", record.name);
    for (key, value) in [(name_key, serde_json::to_vec(&name)?), (machine_key(record.id), record.to_json())] {
        state.put(&key, Bytes::from(value), Expect::Absent, Durability::Soon).await?;
    }
    Ok(())
}
