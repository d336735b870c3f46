//! What the cluster shows: its version, nodes, machines, tasks.

use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::response::Response;
use serde_json::{Value, json};

use super::{Parameters, Refusal, answer, page};
use crate::cluster::STORAGES;
use crate::state::CONTAINER;
use crate::{NODES, Shared};

pub(super) async fn version() -> Response {
    answer(json!({"version": "9.1.2", "release": "9.1", "repoid": "emulated"}))
}

pub(super) async fn nodes() -> Response {
    let node = |name: &&str| json!({"node": name, "type": "node", "id": format!("node/{name}"), "status": "online", "maxcpu": 16});
    answer(NODES.iter().map(node).collect())
}

/// Refuses a node that there is not.
pub(super) fn checked(node: &str) -> Result<(), Refusal> {
    match NODES.contains(&node) {
        true => Ok(()),
        false => {
            let message = format!(
                "hostname lookup '{node}' failed - failed to get address info for: {node}: Name or service not known"
            );
            Err(Refusal::died(message))
        }
    }
}

pub(super) async fn next_id(
    State(shared): State<Arc<Shared>>,
    Query(parameters): Query<Parameters>,
) -> Result<Response, Refusal> {
    let state = shared.state();
    if let Some(text) = parameters.get("vmid") {
        let vmid = text.parse().map_err(|_| Refusal::parameter("vmid", "type check ('integer') failed"))?;
        if state.is_taken(vmid) {
            return Err(Refusal::parameter("vmid", format!("VM {vmid} already exists")));
        }
        return Ok(answer(json!(text)));
    }
    let free = state
        .next_id()
        .ok_or_else(|| Refusal::died("unable to get any free VMID in range [100, 1000000]"))?;
    // As text, which is how it comes.
    Ok(answer(json!(free.to_string())))
}

pub(super) async fn resources(
    State(shared): State<Arc<Shared>>,
    Query(parameters): Query<Parameters>,
) -> Result<Response, Refusal> {
    let wanted = |kind: &str| parameters.get("type").is_none_or(|it| it == kind);
    let mut shown: Vec<Value> = Vec::new();
    if wanted("vm") {
        let mut state = shared.state();
        if let Some(backing) = &shared.options.backing {
            for vm in state.vms.values_mut().filter(|vm| vm.running) {
                vm.running = backing.is_running(vm.vmid);
            }
        }
        let lag = shared.options.report_lag;
        shown.extend(
            state
                .vms
                .values()
                .map(|vm| vm.resource_json(if vm.is_clone { lag } else { std::time::Duration::ZERO })),
        );
        shown.push(json!({"id": format!("lxc/{CONTAINER}"), "vmid": CONTAINER, "node": "pve1", "type": "lxc", "status": "running",
            "name": "container", "tags": "calve"}));
    }
    if wanted("node") {
        shown.extend(NODES.iter().map(
            |node| json!({"id": format!("node/{node}"), "node": node, "type": "node", "status": "online"}),
        ));
    }
    if wanted("storage") {
        for node in NODES {
            shown.extend(STORAGES.iter().map(|it| {
                json!({"id": format!("storage/{node}/{}", it.name), "node": node, "storage": it.name, "type": "storage",
                    "status": "available", "plugintype": it.kind, "content": it.content, "shared": u8::from(it.shared)})
            }));
        }
    }
    Ok(answer(Value::Array(shown)))
}

pub(super) async fn tasks(
    State(shared): State<Arc<Shared>>,
    Path(node): Path<String>,
    Query(parameters): Query<Parameters>,
) -> Result<Response, Refusal> {
    checked(&node)?;
    let fits = |name: &str, value: &str| parameters.get(name).is_none_or(|wanted| wanted == value);
    let tasks = shared.tasks.list(Some(&node)).into_iter();
    let shown =
        tasks.filter(|it| fits("typefilter", it.kind) && fits("vmid", &it.id)).map(|it| it.entry()).collect();
    Ok(page(shown, &parameters))
}

pub(super) async fn task_status(
    State(shared): State<Arc<Shared>>,
    Path((node, upid)): Path<(String, String)>,
) -> Result<Response, Refusal> {
    checked(&node)?;
    let task =
        shared.tasks.find(&upid).ok_or_else(|| Refusal::parameter("upid", "unable to parse worker upid"))?;
    Ok(answer(task.status()))
}

pub(super) async fn task_log(
    State(shared): State<Arc<Shared>>,
    Path((node, upid)): Path<(String, String)>,
    Query(parameters): Query<Parameters>,
) -> Result<Response, Refusal> {
    checked(&node)?;
    let task =
        shared.tasks.find(&upid).ok_or_else(|| Refusal::parameter("upid", "unable to parse worker upid"))?;
    let lines = task.log().into_iter().enumerate().map(|(n, line)| json!({"n": n + 1, "t": line})).collect();
    Ok(page(lines, &parameters))
}
