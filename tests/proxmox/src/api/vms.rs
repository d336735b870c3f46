//! Machines: their configuration, their disks' sizes, their starts and stops, their end.

use std::sync::Arc;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use serde_json::{Value, json};

use super::access::allowed;
use super::clones::is_dns_name;
use super::lists::checked;
use super::{Parameters, Refusal, User, answer, form};
use crate::Shared;
use crate::state::Vm;
use crate::tasks::fork;

/// Most characters of a description.
const DESCRIPTION_MAX: usize = 8192;

fn gone(node: &str, vmid: u64) -> String {
    format!("Configuration file 'nodes/{node}/qemu-server/{vmid}.conf' does not exist")
}

/// The machine as it is.
pub(super) fn find(shared: &Shared, node: &str, vmid: u64) -> Result<Vm, Refusal> {
    checked(node)?;
    let mut state = shared.state();
    let vm = state.vms.get_mut(&vmid).filter(|vm| vm.node == node);
    let vm = vm.ok_or_else(|| Refusal::died(gone(node, vmid)))?;
    if let Some(backing) = shared.options.backing.as_ref().filter(|_| vm.running) {
        vm.running = backing.is_running(vmid);
    }
    Ok(vm.clone())
}

/// Refuses what something else works on.
fn unlocked(shared: &Shared, vm: &Vm) -> Result<(), String> {
    if vm.config.contains_key("lock") {
        shared.locks.count();
        return Err(format!("VM is locked ({})", vm.option("lock")));
    }
    Ok(())
}

pub(super) async fn list(
    State(shared): State<Arc<Shared>>,
    Path(node): Path<String>,
) -> Result<Response, Refusal> {
    checked(&node)?;
    let state = shared.state();
    Ok(answer(state.vms.values().filter(|vm| vm.node == node).map(Vm::status_json).collect()))
}

pub(super) async fn config(
    State(shared): State<Arc<Shared>>,
    Path((node, vmid)): Path<(String, u64)>,
) -> Result<Response, Refusal> {
    Ok(answer(find(&shared, &node, vmid)?.config_json()))
}

pub(super) async fn current(
    State(shared): State<Arc<Shared>>,
    Path((node, vmid)): Path<(String, u64)>,
) -> Result<Response, Refusal> {
    let vm = find(&shared, &node, vmid)?;
    let mut shown = vm.status_json();
    shown["qmpstatus"] = shown["status"].clone();
    shown["ha"] = json!({"managed": 0});
    Ok(answer(shown))
}

pub(super) async fn change(
    State(shared): State<Arc<Shared>>,
    Path((node, vmid)): Path<(String, u64)>,
    body: Bytes,
) -> Result<Response, Refusal> {
    let fields = form(&body)?;
    valid(&shared, &fields)?;
    find(&shared, &node, vmid)?;
    apply(&shared, &node, vmid, fields).await.map_err(Refusal::died)?;
    Ok(answer(Value::Null))
}

pub(super) async fn change_later(
    State(shared): State<Arc<Shared>>,
    Extension(User(user)): Extension<User>,
    Path((node, vmid)): Path<(String, u64)>,
    body: Bytes,
) -> Result<Response, Refusal> {
    let fields = form(&body)?;
    valid(&shared, &fields)?;
    find(&shared, &node, vmid)?;
    let (doing, at) = (shared.clone(), node.clone());
    let upid = fork(&shared, &node, "qmconfig", &vmid.to_string(), &user, async move {
        apply(&doing, &at, vmid, fields).await
    });
    Ok(answer(json!(upid)))
}

/// Checks what the parameters are by themselves.
fn valid(shared: &Shared, fields: &Parameters) -> Result<(), Refusal> {
    for (name, value) in fields {
        let number = || match value.parse::<u64>() {
            Ok(_) => Ok(()),
            Err(_) => Err(Refusal::parameter(name, format!("type check ('integer') failed - got '{value}'"))),
        };
        match name.as_str() {
            "digest" | "delete" | "boot" | "ciuser" | "scsihw" => {}
            "cores" | "sockets" => {
                allowed(shared, "/vms", "VM.Config.CPU")?;
                number()?;
            }
            "memory" | "balloon" => number()?,
            "onboot" | "protection" if value == "0" || value == "1" => {}
            "name" if is_dns_name(value) => {}
            "description" if value.len() <= DESCRIPTION_MAX => {}
            "tags" => {
                let plain = |c: u8| c.is_ascii_alphanumeric() || b"_-+.".contains(&c);
                let good = |tag: &str| {
                    tag.bytes().all(plain)
                        && tag.bytes().next().is_some_and(|c| c.is_ascii_alphanumeric() || c == b'_')
                };
                if !value.split([';', ',', ' ']).filter(|tag| !tag.is_empty()).all(good) {
                    return Err(Refusal::parameter("tags", "invalid format - invalid characters in tag"));
                }
            }
            drive if ["ide", "sata", "scsi", "virtio"].iter().any(|bus| drive.starts_with(bus)) => {
                if !value.contains("media=cdrom") {
                    return Err(Refusal::parameter(name, "the emulator knows CDs only"));
                }
                allowed(shared, "/vms", "VM.Config.CDROM")?;
            }
            _ => {
                let why =
                    "property is not defined in schema and the schema does not allow additional properties";
                return Err(Refusal::parameter(name, why));
            }
        }
    }
    Ok(())
}

async fn apply(shared: &Arc<Shared>, node: &str, vmid: u64, fields: Parameters) -> Result<(), String> {
    let _lock = shared.locks.vm(vmid, shared.options.lock_wait).await?;
    tokio::time::sleep(shared.options.task).await;
    let mut state = shared.state();
    let vm = state.vms.get_mut(&vmid).ok_or_else(|| gone(node, vmid))?;
    unlocked(shared, vm)?;
    if fields.get("digest").is_some_and(|digest| *digest != vm.digest()) {
        return Err("detected modified configuration - file changed by other user? Try again.".to_owned());
    }
    let mut config = vm.config.clone();
    for name in fields.get("delete").into_iter().flat_map(|list| list.split(',')) {
        config.remove(name);
    }
    for (name, value) in fields {
        match name.as_str() {
            "digest" | "delete" => {}
            "tags" => {
                // Once each, sorted, in lower case.
                let mut tags: Vec<String> = value
                    .split([';', ',', ' '])
                    .filter(|tag| !tag.is_empty())
                    .map(str::to_lowercase)
                    .collect();
                tags.sort();
                tags.dedup();
                config.insert(name, tags.join(";"));
            }
            _ => drop(config.insert(name, value)),
        }
    }
    let number = |name: &str| config.get(name).and_then(|it| it.parse::<u64>().ok());
    if number("balloon") > number("memory") {
        return Err("balloon value too large (must be smaller than assigned memory)".to_owned());
    }
    vm.config = config;
    Ok(())
}

pub(super) async fn resize(
    State(shared): State<Arc<Shared>>,
    Extension(User(user)): Extension<User>,
    Path((node, vmid)): Path<(String, u64)>,
    body: Bytes,
) -> Result<Response, Refusal> {
    let fields = form(&body)?;
    find(&shared, &node, vmid)?;
    let size = fields.get("size").and_then(|it| it.strip_suffix('G')).and_then(|it| it.parse::<u64>().ok());
    let size = size.ok_or_else(|| Refusal::parameter("size", "value does not match the regex pattern"))?;
    let disk =
        fields.get("disk").cloned().ok_or_else(|| Refusal::parameter("disk", "property is missing"))?;
    let (doing, at) = (shared.clone(), node.clone());
    let upid = fork(&shared, &node, "resize", &vmid.to_string(), &user, async move {
        let _lock = doing.locks.vm(vmid, doing.options.lock_wait).await?;
        tokio::time::sleep(doing.options.task).await;
        let mut state = doing.state();
        let vm = state.vms.get_mut(&vmid).ok_or_else(|| gone(&at, vmid))?;
        unlocked(&doing, vm)?;
        let drive = vm.config.get(&disk).ok_or_else(|| format!("disk '{disk}' does not exist"))?;
        let old = drive.rsplit_once("size=").map_or("", |(_, size)| size);
        let mib = |text: &str| match text.strip_suffix('G') {
            Some(gib) => gib.parse().unwrap_or(0) * 1024,
            None => text.trim_end_matches('M').parse::<u64>().unwrap_or(0),
        };
        if mib(old) > size * 1024 {
            return Err("shrinking disks is not supported".to_owned());
        }
        let grown = drive.replace(&format!("size={old}"), &format!("size={size}G"));
        vm.config.insert(disk, grown);
        Ok(())
    });
    Ok(answer(json!(upid)))
}

pub(super) async fn start(
    State(shared): State<Arc<Shared>>,
    Extension(User(user)): Extension<User>,
    Path((node, vmid)): Path<(String, u64)>,
) -> Result<Response, Refusal> {
    find(&shared, &node, vmid)?;
    allowed(&shared, &format!("/vms/{vmid}"), "VM.PowerMgmt")?;
    let (doing, at) = (shared.clone(), node.clone());
    let upid = fork(&shared, &node, "qmstart", &vmid.to_string(), &user, async move {
        let _lock = doing.locks.vm(vmid, doing.options.lock_wait).await?;
        tokio::time::sleep(doing.options.task).await;
        let vm = find(&doing, &at, vmid).map_err(|_| gone(&at, vmid))?;
        unlocked(&doing, &vm)?;
        if vm.is_template() {
            return Err("you can't start a vm if it's a template".to_owned());
        }
        if vm.running {
            return Err(format!("VM {vmid} already running"));
        }
        let mut volumes = Vec::new();
        {
            let mut state = doing.state();
            for (slot, drive) in vm.drives() {
                let volume = drive.split(',').next().unwrap_or_default();
                if !volume.contains(":iso/") {
                    continue;
                }
                let bytes = state.files.get(&(at.clone(), volume.to_owned()));
                let bytes = bytes.ok_or_else(|| format!("volume '{volume}' does not exist"))?;
                volumes.push((slot.to_owned(), bytes.clone()));
            }
            state.vms.get_mut(&vmid).ok_or_else(|| gone(&at, vmid))?.running = true;
        }
        if let Some(backing) = &doing.options.backing {
            backing.started(&vm, &volumes);
        }
        Ok(())
    });
    Ok(answer(json!(upid)))
}

pub(super) async fn stop(
    State(shared): State<Arc<Shared>>,
    Extension(User(user)): Extension<User>,
    Path((node, vmid)): Path<(String, u64)>,
) -> Result<Response, Refusal> {
    find(&shared, &node, vmid)?;
    allowed(&shared, &format!("/vms/{vmid}"), "VM.PowerMgmt")?;
    let (doing, at) = (shared.clone(), node.clone());
    let upid = fork(&shared, &node, "qmstop", &vmid.to_string(), &user, async move {
        let _lock = doing.locks.vm(vmid, doing.options.lock_wait).await?;
        tokio::time::sleep(doing.options.task).await;
        {
            let mut state = doing.state();
            let vm = state.vms.get_mut(&vmid).ok_or_else(|| gone(&at, vmid))?;
            unlocked(&doing, vm)?;
            vm.running = false;
        }
        if let Some(backing) = &doing.options.backing {
            backing.stopped(vmid);
        }
        Ok(())
    });
    Ok(answer(json!(upid)))
}

pub(super) async fn destroy(
    State(shared): State<Arc<Shared>>,
    Extension(User(user)): Extension<User>,
    Path((node, vmid)): Path<(String, u64)>,
    Query(parameters): Query<Parameters>,
) -> Result<Response, Refusal> {
    if let Some(odd) =
        parameters.keys().find(|name| !["purge", "destroy-unreferenced-disks"].contains(&&***name))
    {
        return Err(Refusal::parameter(odd, "property is not defined in schema"));
    }
    allowed(&shared, &format!("/vms/{vmid}"), "VM.Allocate")?;
    if find(&shared, &node, vmid)?.running {
        return Err(Refusal::died(format!("VM {vmid} is running - destroy failed")));
    }
    let (doing, at) = (shared.clone(), node.clone());
    let upid = fork(&shared, &node, "qmdestroy", &vmid.to_string(), &user, async move {
        let _lock = doing.locks.vm(vmid, doing.options.lock_wait).await?;
        let vm = find(&doing, &at, vmid).map_err(|_| gone(&at, vmid))?;
        unlocked(&doing, &vm)?;
        if vm.running {
            return Err(format!("VM {vmid} is running - destroy failed"));
        }
        if vm.option("protection") == "1" {
            return Err(format!("can't remove VM {vmid} - protection mode enabled"));
        }
        for (_, drive) in vm.drives().filter(|(_, drive)| !drive.contains(":iso/")) {
            let storage = drive.split(':').next().unwrap_or_default();
            let _storage = doing.locks.storage(storage, doing.options.lock_wait).await?;
            tokio::time::sleep(doing.options.task).await;
        }
        doing.state().vms.remove(&vmid);
        Ok(())
    });
    Ok(answer(json!(upid)))
}
