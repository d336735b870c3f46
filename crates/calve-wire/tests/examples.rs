//! Each serialised type is a promise: its example files are read, and written again say the same.
//!
//! `examples/<type>.<version>.json` holds what a release wrote. Files of old versions stay; a new field needs a default.

use calve_wire::agent::{FromAgent, SandboxSpec, ToAgent};
use calve_wire::api::{
    CreateMachine, ExecRequest, MachineSummary, MachineView, Problem, Pruned, ServerInfo, StreamControl,
};
use calve_wire::doctor::Check;
use calve_wire::event::Event;
use calve_wire::join::UserData;
use calve_wire::record::{MachineRecord, RECORD_VERSION, RecordError};
use calve_wire::system::{HostAnswer, HostFacts, HostOrder, SwitchRequest, SystemRecord};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

fn example(file: &str) -> Value {
    let path = format!("{}/examples/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Everything in `old` is in `new`; `new` may have more.
fn assert_kept(file: &str, old: &Value, new: &Value) {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            for (key, value) in old {
                let kept = new.get(key).unwrap_or_else(|| panic!("{file}: {key} is lost"));
                assert_kept(file, value, kept);
            }
        }
        (Value::Array(old), Value::Array(new)) => {
            assert_eq!(old.len(), new.len(), "{file}");
            old.iter().zip(new).for_each(|(old, new)| assert_kept(file, old, new));
        }
        _ => assert_eq!(old, new, "{file}"),
    }
}

/// The file holds an array of examples of `T`.
fn check<T: Serialize + DeserializeOwned>(file: &str) {
    let examples = example(file);
    let examples = examples.as_array().unwrap_or_else(|| panic!("{file} holds an array"));
    assert!(!examples.is_empty());
    for old in examples {
        let value: T =
            serde_json::from_value(old.clone()).unwrap_or_else(|error| panic!("{file}: {error}: {old}"));
        assert_kept(file, old, &serde_json::to_value(value).unwrap());
    }
}

#[test]
fn examples_of_every_version_are_read_and_nothing_of_them_is_lost() {
    check::<MachineRecord>("machine-record.1.json");
    check::<CreateMachine>("create-machine.1.json");
    check::<MachineSummary>("machine-summary.1.json");
    check::<MachineView>("machine-view.1.json");
    check::<Event>("event.1.json");
    check::<Check>("check.1.json");
    check::<ServerInfo>("server-info.1.json");
    check::<Pruned>("pruned.1.json");
    check::<ExecRequest>("exec-request.1.json");
    check::<StreamControl>("stream-control.1.json");
    check::<Problem>("problem.1.json");
    check::<ToAgent>("to-agent.1.json");
    check::<UserData>("user-data.1.json");
    check::<UserData>("user-data.2.json");
    check::<FromAgent>("from-agent.1.json");
    check::<SandboxSpec>("sandbox-spec.1.json");
    check::<HostOrder>("host-order.1.json");
    check::<HostAnswer>("host-answer.1.json");
    check::<HostFacts>("host-facts.1.json");
    check::<SwitchRequest>("switch-request.1.json");
    check::<SystemRecord>("system-record.1.json");
}

#[test]
fn a_record_of_a_newer_version_is_refused_by_its_number() {
    let mut record = example("machine-record.1.json")[0].clone();
    record["version"] = Value::from(RECORD_VERSION + 1);
    record["something_new"] = Value::from(1);
    let error = MachineRecord::from_json(&serde_json::to_vec(&record).unwrap()).unwrap_err();
    assert!(matches!(error, RecordError::Newer { found } if found == RECORD_VERSION + 1));
}
