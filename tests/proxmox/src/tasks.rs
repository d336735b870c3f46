//! Tasks: work that goes on after its request was answered with its UPID.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};

use crate::Shared;

/// A task.
#[derive(Debug, Clone)]
pub(crate) struct Task {
    pub upid: String,
    pub node: String,
    pub kind: &'static str,
    pub id: String,
    pub user: String,
    pid: u64,
    started: i64,
    ended: Option<(i64, String)>,
}

/// Every task, by its number.
#[derive(Default)]
pub(crate) struct Tasks {
    all: Mutex<BTreeMap<u64, Task>>,
    next: AtomicU64,
}

impl Tasks {
    pub fn find(&self, upid: &str) -> Option<Task> {
        self.all
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .find(|task| task.upid == upid)
            .cloned()
    }

    /// The newest first.
    pub fn list(&self, node: Option<&str>) -> Vec<Task> {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.values().rev().filter(|task| node.is_none_or(|node| task.node == node)).cloned().collect()
    }

    fn begin(&self, node: &str, kind: &'static str, id: &str, user: &str) -> (u64, String) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (pid, started) = (number + 1000, jiff::Timestamp::now().as_second());
        let upid = format!("UPID:{node}:{pid:08X}:{number:08X}:{started:08X}:{kind}:{id}:{user}:");
        let task = Task {
            upid: upid.clone(),
            node: node.to_owned(),
            kind,
            id: id.to_owned(),
            user: user.to_owned(),
            pid,
            started,
            ended: None,
        };
        self.all.lock().unwrap_or_else(PoisonError::into_inner).insert(number, task);
        (number, upid)
    }

    fn end(&self, number: u64, said: Result<(), String>) {
        let said = said.err().unwrap_or_else(|| "OK".to_owned());
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(task) = all.get_mut(&number) {
            task.ended = Some((jiff::Timestamp::now().as_second(), said));
        }
    }
}

impl Task {
    pub fn status(&self) -> Value {
        let (user, token) =
            self.user.split_once('!').map_or((&*self.user, None), |(user, token)| (user, Some(token)));
        let mut shown = json!({
            "upid": self.upid, "node": self.node, "pid": self.pid, "pstart": self.pid, "starttime": self.started,
            "type": self.kind, "id": self.id, "user": user,
            "status": if self.ended.is_some() { "stopped" } else { "running" },
        });
        if let Some(token) = token {
            shown["tokenid"] = json!(token);
        }
        if let Some((_, said)) = &self.ended {
            shown["exitstatus"] = json!(said);
        }
        shown
    }

    /// As a list shows it.
    pub fn entry(&self) -> Value {
        let mut shown = self.status();
        shown["status"] = json!("RUNNING");
        if let (Some((ended, said)), Some(fields)) = (&self.ended, shown.as_object_mut()) {
            fields.remove("exitstatus");
            fields.insert("endtime".to_owned(), json!(ended));
            fields.insert("status".to_owned(), json!(said));
        }
        shown
    }

    pub fn log(&self) -> Vec<String> {
        let mut lines = vec![format!("{} {} begins", self.kind, self.id)];
        lines.extend(self.ended.as_ref().map(|(_, said)| {
            if said == "OK" { "TASK OK".to_owned() } else { format!("TASK ERROR: {said}") }
        }));
        lines
    }
}

/// Begins a task; its UPID.
pub(crate) fn fork<F>(
    shared: &Arc<Shared>,
    node: &str,
    kind: &'static str,
    id: &str,
    user: &str,
    work: F,
) -> String
where
    F: Future<Output = Result<(), String>> + Send + 'static,
{
    let (number, upid) = shared.tasks.begin(node, kind, id, user);
    let shared = shared.clone();
    tokio::spawn(async move {
        // Its locks are let go of before it is said to have ended.
        let said = work.await;
        shared.tasks.end(number, said);
    });
    upid
}
