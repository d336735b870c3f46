//! The list of machines as JSON, each machine's part made once a change: listing 10,000 machines costs a copy.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use calve_core::MachineId;
use calve_wire::machine::PortMapping;
use calve_wire::record::MachineRecord;

use super::show;
use crate::reconcile::AgentReport;

/// What was last listed. Cloning gives another handle.
#[derive(Clone, Default)]
pub struct Listing {
    parts: Arc<Mutex<BTreeMap<MachineId, Part>>>,
}

/// One machine's JSON and what it was made from.
struct Part {
    record: Arc<MachineRecord>,
    healthy: Option<bool>,
    published: Vec<PortMapping>,
    json: Vec<u8>,
}

impl Part {
    fn new(record: &Arc<MachineRecord>, report: Option<&AgentReport>, published: Vec<PortMapping>) -> Self {
        let summary = show::summary(record, report, &published);
        let json = serde_json::to_vec(&summary).expect("a summary holds nothing that JSON cannot say");
        Self { record: record.clone(), healthy: healthy(report), published, json }
    }

    fn is_of(
        &self,
        record: &Arc<MachineRecord>,
        report: Option<&AgentReport>,
        published: &[PortMapping],
    ) -> bool {
        Arc::ptr_eq(&self.record, record) && self.healthy == healthy(report) && self.published == published
    }
}

fn healthy(report: Option<&AgentReport>) -> Option<bool> {
    report.and_then(|report| report.status.as_ref()?.healthy)
}

impl Listing {
    /// A JSON array of the summaries of all `records` that are to be `shown`.
    pub fn json(
        &self,
        records: &[Arc<MachineRecord>],
        reports: &BTreeMap<MachineId, AgentReport>,
        published: impl Fn(MachineId) -> Vec<PortMapping>,
        shown: impl Fn(&MachineRecord) -> bool,
    ) -> Vec<u8> {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut old = std::mem::take(&mut *parts);
        let mut json = vec![b'['];
        for record in records {
            let known = old.remove(&record.id);
            if !shown(record) {
                // Kept for a list in which it is.
                parts.extend(known.map(|part| (record.id, part)));
                continue;
            }
            let (report, published) = (reports.get(&record.id), published(record.id));
            let known = known.filter(|part| part.is_of(record, report, &published));
            let part = known.unwrap_or_else(|| Part::new(record, report, published));
            if json.len() > 1 {
                json.push(b',');
            }
            json.extend_from_slice(&part.json);
            parts.insert(record.id, part);
        }
        json.push(b']');
        json
    }
}
