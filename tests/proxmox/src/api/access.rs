//! Tickets and rights.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::{Refusal, answer, form};
use crate::{PASSWORD, Shared, USER};

/// What a token may be allowed to do, as far as it matters here.
const RIGHTS: [&str; 16] = [
    "Datastore.Allocate",
    "Datastore.AllocateSpace",
    "Datastore.AllocateTemplate",
    "Datastore.Audit",
    "Pool.Allocate",
    "SDN.Use",
    "Sys.Audit",
    "VM.Allocate",
    "VM.Audit",
    "VM.Clone",
    "VM.Config.CDROM",
    "VM.Config.CPU",
    "VM.Config.Disk",
    "VM.Config.Memory",
    "VM.Config.Options",
    "VM.PowerMgmt",
];

pub(super) async fn ticket(State(shared): State<Arc<Shared>>, body: Bytes) -> Result<Response, Refusal> {
    let fields = form(&body)?;
    let field = |name: &str| fields.get(name).map_or("", String::as_str);
    let mut state = shared.state();
    // A ticket serves as a password while it is valid.
    let good = field("password") == PASSWORD || state.tickets.contains_key(field("password"));
    if field("username") != USER || !good {
        return Err(Refusal::new(401, "authentication failure"));
    }
    let number = state.tickets.len();
    let ticket = format!("PVE:{USER}:{number:08X}::c2lnbmVk");
    let forged = format!("{number:08X}:Zm9yZ2Vk");
    state.tickets.insert(ticket.clone(), forged.clone());
    Ok(answer(json!({"username": USER, "ticket": ticket, "CSRFPreventionToken": forged, "cap": {}})))
}

pub(super) async fn permissions(State(shared): State<Arc<Shared>>) -> Response {
    let has = |right: &&&str| !shared.options.lacks.contains(*right);
    let rights: Map<String, Value> =
        RIGHTS.iter().filter(has).map(|right| ((*right).to_owned(), json!(1))).collect();
    answer(json!({"/": rights, "/vms": rights, "/storage": rights}))
}

/// Refuses what the token may not do.
pub(super) fn allowed(shared: &Shared, path: &str, right: &'static str) -> Result<(), Refusal> {
    match shared.options.lacks.contains(&right) {
        true => Err(Refusal::forbidden(path, right)),
        false => Ok(()),
    }
}
