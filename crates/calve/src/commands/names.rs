//! Machines by name: paths of the API, completion in shells, and one request for each of several.

use std::ffi::OsStr;

use calve_core::MachineName;
use calve_wire::api::MachineSummary;
use clap_complete::CompletionCandidate;
use futures_util::StreamExt;

use crate::client::Client;
use crate::failure::{ExitStatus, Failure, Outcome};
use crate::ui;

/// Requests under way at once when many machines are meant: keeps the server busy without a connection for each.
const AT_ONCE: usize = 64;

/// `/v1/machines/{name}{rest}`. A name needs no escaping.
pub fn path(name: &MachineName, rest: &str) -> String {
    format!("/v1/machines/{name}{rest}")
}

/// Waits until nothing of a machine is left alive that was told to end. `told` is the server's answer to that; it names the
/// machine's id, because the name may be another machine's by then.
pub async fn wait_for_end(client: &Client, told: &[u8]) -> Outcome<()> {
    let machine: MachineSummary = serde_json::from_slice(told)
        .map_err(|error| Failure::failed("the server's answer does not parse").caused_by(error))?;
    match client.get_bytes(&format!("/v1/machines/{}/wait", machine.id)).await {
        // Its record is gone, which happens to ended machines only.
        Err(failure) if failure.status != ExitStatus::NotFound => Err(failure),
        Err(_) | Ok(_) => Ok(()),
    }
}

/// Does one thing for each machine, several at once; the results come in the order of the names.
pub async fn each<T, F>(
    names: Vec<MachineName>,
    act: impl Fn(MachineName) -> F,
) -> Vec<(MachineName, Outcome<T>)>
where
    F: Future<Output = Outcome<T>>,
{
    let act = &act;
    let acts = names.into_iter().map(|name| async move { (name.clone(), act(name).await) });
    futures_util::stream::iter(acts).buffered(AT_ONCE).collect().await
}

/// Prints the names of those that succeeded and the failures of the others, which set the status.
pub fn report<T>(results: Vec<(MachineName, Outcome<T>)>) -> Outcome {
    let mut status = ExitStatus::Success;
    let mut done = String::new();
    for (name, result) in results {
        match result {
            Ok(_) => done.push_str(&format!("{name}\n")),
            Err(failure) => status = ui::failure(&failure),
        }
    }
    ui::data(done.as_bytes())?;
    Ok(status)
}

/// The names of all machines for a shell's completion; none where no server runs: completing starts nothing.
pub fn complete(typed: &OsStr) -> Vec<CompletionCandidate> {
    let Some(typed) = typed.to_str() else { return Vec::new() };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return Vec::new();
    };
    let listed: Outcome<Vec<MachineSummary>> = runtime.block_on(async {
        let none = || Failure::failed("no server runs");
        Client::connect_running().await?.ok_or_else(none)?.get("/v1/machines?all=true").await
    });
    let machines = listed.unwrap_or_default();
    let begins = machines.into_iter().filter(|machine| machine.name.as_str().starts_with(typed));
    begins.map(|m| CompletionCandidate::new(m.name.to_string()).help(Some(m.state.as_str().into()))).collect()
}
