//! Requests to Proxmox VE: forms, tasks that are waited for by their UPID, locks that are waited out.
//!
//! ```text
//!  request ─┬─ answer ──────────────────────────────▶ done
//!           ├─ UPID ─▶ status, until stopped ─┬─ OK ─▶ done
//!           │                                 └─ why it failed ─┐
//!           └─ refusal ─────────────────────────────────────────┴─ a lock: again after a pause; else an error
//! ```

use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode, Url};
use serde::de::DeserializeOwned;

use super::Proxmox;
use super::answers::{Config, Data, Task};
use crate::http::{Answer, Body, Repeat};
use crate::{ErrorKind, ProviderError};

/// Pauses between two looks at a task: the first, and the longest, to which it grows.
const LOOK_FIRST: Duration = Duration::from_millis(15);
const LOOK_MAX: Duration = Duration::from_secs(1);
/// Longest wait for a task: a full clone of a large disk takes minutes.
const TASK_MAX: Duration = Duration::from_secs(1800);
/// Longest pause before something locked is asked for again.
const LOCK_PAUSE_MAX: Duration = Duration::from_secs(2);

/// Fields of a request.
pub(super) type Fields<'a> = &'a [(&'a str, &'a str)];

/// What Proxmox VE means by a refusal: it answers nearly everything with 500, and says in words what is wrong.
pub(super) fn kind_of(status: StatusCode, words: &str) -> Option<ErrorKind> {
    let has = |parts: &[&str]| parts.iter().any(|part| words.contains(part));
    match status.as_u16() {
        500 => {}
        // Between its proxy and the node: it may have been done.
        595..=599 => return Some(ErrorKind::Failed),
        _ => return None,
    }
    if has(&["can't lock file", "is locked (", "got lock request timeout", "got lock timeout"]) {
        Some(ErrorKind::Locked)
    } else if has(&["already exists", "modified configuration", "no such cluster node"]) {
        Some(ErrorKind::Refused)
    } else if has(&["does not exist", "unable to find configuration file", "no such "]) {
        Some(ErrorKind::NotFound)
    } else if has(&[
        "feature is not supported",
        "lookup '",
        "not supported",
        "does not support",
        "can't clone",
    ]) {
        Some(ErrorKind::Refused)
    } else if has(&["not enough", "No space left", "no free", "any free VMID", "out of space"]) {
        Some(ErrorKind::Quota)
    } else {
        None
    }
}

/// Whether the VMID was taken by somebody else.
pub(super) fn is_taken(error: &ProviderError) -> bool {
    error.kind == ErrorKind::Refused && error.message.contains("already exists")
}

fn encoded(fields: Fields<'_>) -> String {
    let url = Url::parse_with_params("http://form.invalid", fields).expect("an address of ours");
    url.query().unwrap_or_default().to_owned()
}

impl Proxmox {
    /// Reads.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<Answer<T>, ProviderError> {
        self.send(Method::GET, path, None, Repeat::Freely).await
    }

    /// Asks for something, once unless that cannot double it.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        fields: Fields<'_>,
        repeat: Repeat,
    ) -> Result<T, ProviderError> {
        if method == Method::DELETE {
            let query = encoded(fields);
            let path = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
            return Ok(self.send(method, &path, None, repeat).await?.body);
        }
        Ok(self.send(method, path, Some(&Body::Form(encoded(fields))), repeat).await?.body)
    }

    pub(super) async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&Body>,
        repeat: Repeat,
    ) -> Result<Answer<T>, ProviderError> {
        // A node has few workers; who waits for one for too long is told that nobody answers.
        let _turn = self.requests.acquire().await.expect("it is never closed");
        let answer: Answer<Data<T>> =
            self.api.send(method, &format!("api2/json/{path}"), body, repeat).await?;
        Ok(Answer { body: answer.body.data, unix_s: answer.unix_s })
    }

    /// Does something that may be done twice, to its end, and waits while it is locked.
    pub(super) async fn act(
        &self,
        method: Method,
        path: &str,
        fields: Fields<'_>,
    ) -> Result<(), ProviderError> {
        let method = &method;
        self.while_locked(|| async move {
            let upid: Option<String> = self.ask(method.clone(), path, fields, Repeat::Freely).await?;
            match upid {
                Some(upid) if upid.starts_with("UPID:") => self.finished(&upid).await,
                _ => Ok(()),
            }
        })
        .await
    }

    /// Again after a pause, for as long as somebody else holds what it needs.
    pub(super) async fn while_locked<T, F: Future<Output = Result<T, ProviderError>>>(
        &self,
        attempt: impl Fn() -> F,
    ) -> Result<T, ProviderError> {
        let until = Instant::now() + self.api.pace().rate;
        let mut pause = self.api.pace().backoff;
        loop {
            match attempt().await {
                Err(error) if error.kind == ErrorKind::Locked && Instant::now() < until => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LOCK_PAUSE_MAX);
                }
                other => return other,
            }
        }
    }

    /// Waits for a task's end.
    pub(super) async fn finished(&self, upid: &str) -> Result<(), ProviderError> {
        let node = upid.split(':').nth(1).filter(|node| super::settings::is_name(node));
        let Some(node) = node else {
            return Err(self.api.error(ErrorKind::Failed, format!("{upid:?} is no task"), None));
        };
        let until = Instant::now() + TASK_MAX;
        let mut pause = LOOK_FIRST;
        loop {
            let task: Task = self.get(&format!("nodes/{node}/tasks/{upid}/status")).await?.body;
            if task.status == "stopped" {
                return self.outcome(upid, task.exitstatus.as_deref().unwrap_or("it ended without a word"));
            }
            if Instant::now() >= until {
                let message = format!("its task takes more than {} s", TASK_MAX.as_secs());
                return Err(self.api.error(ErrorKind::NoAnswer, message, Some(upid.to_owned())));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 4 / 3).min(LOOK_MAX);
        }
    }

    fn outcome(&self, upid: &str, said: &str) -> Result<(), ProviderError> {
        if said == "OK" || said.starts_with("WARNINGS") {
            return Ok(());
        }
        // What a task says, a refused request would have said with 500; it is done with, so nothing is uncertain.
        let kind = kind_of(StatusCode::INTERNAL_SERVER_ERROR, said).unwrap_or(ErrorKind::Failed);
        Err(self.api.error(kind, said.trim().to_owned(), Some(upid.to_owned())))
    }

    /// A machine's configuration; none where it is gone.
    pub(super) async fn config(&self, node: &str, vmid: u64) -> Result<Option<Config>, ProviderError> {
        match self.get(&format!("nodes/{node}/qemu/{vmid}/config")).await {
            Ok(answer) => Ok(Some(answer.body)),
            Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}
