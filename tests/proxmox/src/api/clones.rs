//! Clones. The request only looks and begins a task; that takes the template's lock together with other clones, the new VMID's
//! alone, and for each disk its storage's. Until the first disk is done, the new machine says nothing but that it is locked.

use std::sync::Arc;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::Response;
use serde_json::json;

use super::access::allowed;
use super::vms::find;
use super::{Parameters, Refusal, User, answer, form};
use crate::cluster::storage;
use crate::state::Vm;
use crate::tasks::fork;
use crate::{NODES, Shared};

/// What a clone is to be.
struct Wish {
    source: u64,
    newid: u64,
    node: String,
    full: bool,
    fields: Parameters,
}

pub(super) async fn clone(
    State(shared): State<Arc<Shared>>,
    Extension(User(user)): Extension<User>,
    Path((node, vmid)): Path<(String, u64)>,
    body: Bytes,
) -> Result<Response, Refusal> {
    let fields = form(&body)?;
    let known = ["newid", "name", "description", "full", "storage", "pool", "target", "format"];
    if let Some(odd) = fields.keys().find(|name| !known.contains(&&***name)) {
        return Err(Refusal::parameter(
            odd,
            "property is not defined in schema and the schema does not allow additional properties",
        ));
    }
    allowed(&shared, &format!("/vms/{vmid}"), "VM.Clone")?;
    let newid = fields.get("newid").and_then(|it| it.parse().ok()).filter(|it| *it >= 100);
    let newid: u64 =
        newid.ok_or_else(|| Refusal::parameter("newid", "property is missing and it is not optional"))?;
    if fields.get("name").is_some_and(|name| !is_dns_name(name)) {
        return Err(Refusal::parameter("name", "invalid format - value does not look like a valid DNS name"));
    }
    let target = fields.get("target").unwrap_or(&node).clone();
    if !NODES.contains(&&*target) {
        return Err(Refusal::died(format!("no such cluster node '{target}'")));
    }
    let is_template = find(&shared, &node, vmid)?.is_template();
    let full = fields.get("full").map_or(!is_template, |it| it == "1");
    let wish = Wish { source: vmid, newid, node: target, full, fields };
    look(&shared, &wish).map_err(|said| shared_refusal(&shared, said))?;
    let doing = shared.clone();
    let upid =
        fork(&shared, &node, "qmclone", &vmid.to_string(), &user, async move { work(&doing, wish).await });
    Ok(answer(json!(upid)))
}

fn shared_refusal(shared: &Shared, said: String) -> Refusal {
    if said.contains("is locked") {
        shared.locks.count();
    }
    Refusal::died(said)
}

/// What is looked at before the task, and again within it; the source as it is.
fn look(shared: &Shared, wish: &Wish) -> Result<Vm, String> {
    let state = shared.state();
    let source = state.vms.get(&wish.source).cloned();
    let source = source
        .ok_or_else(|| format!("Configuration file 'qemu-server/{}.conf' does not exist", wish.source))?;
    if source.config.contains_key("lock") {
        return Err(format!("VM is locked ({})", source.option("lock")));
    }
    if !wish.full && wish.fields.contains_key("storage") {
        return Err("parameter 'storage' not allowed for linked clones".to_owned());
    }
    for (slot, drive) in source.drives().filter(|(_, drive)| !drive.contains("media=cdrom")) {
        let volume = drive.split(',').next().unwrap_or_default();
        let on = storage(volume.split(':').next().unwrap_or_default());
        if !wish.full && !on.is_some_and(|it| it.links) {
            return Err(format!("Linked clone feature is not supported for '{volume}' ({slot})"));
        }
        if wish.node != source.node && !on.is_some_and(|it| it.shared) {
            return Err(format!("can't clone VM to node '{}' (VM uses local storage)", wish.node));
        }
    }
    if state.is_taken(wish.newid) {
        return Err(format!("unable to create VM {}: config file already exists", wish.newid));
    }
    if state.machines().count() >= shared.options.room {
        return Err("not enough free space in thin pool".to_owned());
    }
    Ok(source)
}

async fn work(shared: &Arc<Shared>, wish: Wish) -> Result<(), String> {
    let options = &shared.options;
    let _source = shared.locks.vm_shared(wish.source, options.clone_lock_wait).await?;
    let _target = shared.locks.vm(wish.newid, options.clone_lock_wait).await?;
    let source = look(shared, &wish)?;
    {
        let mut state = shared.state();
        if state.is_taken(wish.newid) {
            return Err(format!("unable to create VM {}: config file already exists", wish.newid));
        }
        state.vms.insert(wish.newid, Vm::being_cloned(wish.newid, &source.node));
        state.created += 1;
    }
    let copied = copy(shared, &wish, &source).await;
    let mut state = shared.state();
    match copied {
        Ok(config) => {
            if let Some(vm) = state.vms.get_mut(&wish.newid) {
                (vm.config, vm.node) = (config, wish.node);
            }
            Ok(())
        }
        Err(said) => {
            state.vms.remove(&wish.newid);
            state.created -= 1;
            Err(format!("clone failed: {said}"))
        }
    }
}

/// Copies the disks; the new configuration.
async fn copy(
    shared: &Arc<Shared>,
    wish: &Wish,
    source: &Vm,
) -> Result<std::collections::BTreeMap<String, String>, String> {
    let options = &shared.options;
    let mut config = source.config.clone();
    config.retain(|name, _| name != "template" && name != "lock");
    for (slot, drive) in source.drives() {
        let (volume, rest) = drive.split_once(',').unwrap_or((drive, ""));
        let is_cloudinit = volume.contains("cloudinit");
        if drive.contains("media=cdrom") && !is_cloudinit {
            continue;
        }
        let from = volume.split(':').next().unwrap_or_default();
        let to = wish.fields.get("storage").map_or(from, String::as_str);
        {
            let _storage = shared.locks.storage(to, options.lock_wait).await?;
            tokio::time::sleep(options.clone).await;
        }
        if wish.full {
            tokio::time::sleep(options.clone).await;
        }
        let newid = wish.newid;
        let name = match is_cloudinit {
            true => format!("{to}:vm-{newid}-cloudinit"),
            false if wish.full => format!("{to}:vm-{newid}-disk-0"),
            false => format!("{volume}/vm-{newid}-disk-0"),
        };
        config.insert(slot.to_owned(), format!("{name},{rest}"));
    }
    let own = format!("Copy-of-VM-{}", source.name());
    config.insert("name".to_owned(), wish.fields.get("name").cloned().unwrap_or(own));
    if let Some(description) = wish.fields.get("description").filter(|it| !it.is_empty()) {
        config.insert("description".to_owned(), description.clone());
    }
    Ok(config)
}

/// Whether it is a name as DNS has them.
pub(super) fn is_dns_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.split('.').all(label)
}
