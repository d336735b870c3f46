//! Reads with ten thousand records. Shows numbers; a bench holds them to a promise.

mod support;

use std::time::Instant;

use bytes::Bytes;
use calve_core::{MachineId, State as MachineState, Timestamp};
use calve_server::state::{Durability, EmbeddedState, Expect, State};
use calve_wire::record::{MachineRecord, RECORD_VERSION};
use support::Home;

/// Records of the issue's promise for read verbs.
const RECORDS: u64 = 10_000;

fn record(n: u64, spec: calve_wire::machine::MachineSpec) -> MachineRecord {
    MachineRecord {
        version: RECORD_VERSION,
        id: MachineId::new(Timestamp(n), 1),
        name: format!("old-{n}").parse().unwrap(),
        spec,
        state: MachineState::Gone,
        stop: None,
        deadline_unix_ms: None,
        grace_ms: 1000,
        node: None,
        driver: None,
        attempt: 1,
        agent_token: "0".repeat(32),
        joined: None,
        exit: None,
        message: None,
        created_unix_ms: n,
        state_since_unix_ms: u64::MAX / 2,
        remove: false,
        held: false,
    }
}

#[tokio::test]
async fn reads_stay_quick_with_ten_thousand_records() {
    let home = Home::new();
    {
        let state = EmbeddedState::open(&home.dirs.data).unwrap();
        let spec: calve_wire::machine::MachineSpec =
            serde_json::from_value(home.job(&["exit:0"])["spec"].clone()).unwrap();
        for n in 1..=RECORDS {
            let record = record(n, spec.clone());
            let key = format!("machine/{}", record.id);
            state.put(&key, Bytes::from(record.to_json()), Expect::Absent, Durability::Soon).await.unwrap();
            let name = format!(r#"{{"version":1,"id":"{}","claimed_unix_ms":{n}}}"#, record.id);
            state.put(&format!("name/old-{n}"), name.into(), Expect::Absent, Durability::Soon).await.unwrap();
        }
    }
    let server = home.serve().await;
    for path in ["/v1/machines", "/v1/machines?all=true", "/v1/machines/old-77", "/v1/server"] {
        let mut times: Vec<_> = Vec::new();
        for _ in 0..20 {
            let began = Instant::now();
            let (status, _) = server.ask_raw("GET", path, Vec::new()).await;
            assert_eq!(status, 200);
            times.push(began.elapsed());
        }
        times.sort_unstable();
        println!("{path}: median {:?}, worst {:?}", times[10], times[19]);
    }
    assert_eq!(server.get("/v1/machines?all=true").await.as_array().unwrap().len() as u64, RECORDS);
    server.create(home.job(&["exit:0"])).await;
    assert_eq!(server.get("/v1/machines/run-1/wait").await["state"], "gone");
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    println!("{}", status.lines().find(|line| line.starts_with("VmRSS")).unwrap());
    server.stop().await;
}
