//! The fuzz targets of what providers say, on a stable Rust: over their corpora, over changed corpora, and over arbitrary bytes.
#![allow(missing_docs)]

#[path = "../../../fuzz/src/changes.rs"]
mod changes;
#[path = "../../../fuzz/src/providers.rs"]
mod providers;

use calve_core::{MachineId, Timestamp};
use calve_provider::mark::{OwnerKey, Subject, Until};
use changes::{check, check_arbitrary, check_changed, write_corpus};
use providers::TARGETS;

#[test]
fn every_target_has_a_corpus_and_a_program() {
    let subject = Subject { id: MachineId::new(Timestamp(1), 1), attempt: 1, name: "calve".to_owned() };
    let tags = OwnerKey::from_seed(&[1; 32]).tags(&subject, Until::Unix(1000)).join("\n");
    let machine = r#"{"id":"1","name":"n","tags":["calve"],"region":"r","size":"s","dollars_per_hour":0.1}"#;
    let answer = |ok: &str| format!("{{\"calve\":1,\"id\":1,\"ok\":{ok}}}\n").into_bytes();
    let error = br#"{"calve":1,"id":1,"error":{"kind":"rate","message":"m","wait_ms":1}}"#;
    write_corpus(&[
        ("plugin_line", "describe", answer(r#"{"about":"a","does":["sizes"]}"#)),
        ("plugin_line", "create", answer(&format!("{{\"machine\":{machine}}}"))),
        ("plugin_line", "list", answer(&format!("{{\"machines\":[{machine}],\"unix_s\":1}}"))),
        ("plugin_line", "error", error.to_vec()),
        ("tags", "one", tags.into_bytes()),
    ]);
    check(TARGETS);
}

#[test]
fn changed_corpora_do_no_harm() {
    check_changed(TARGETS, 2000);
}

#[test]
fn arbitrary_bytes_do_no_harm() {
    check_arbitrary(TARGETS, 2000);
}
