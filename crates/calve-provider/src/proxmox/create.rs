//! Making a machine, in steps that can each be done again: whoever finds one half made goes on with it.
//!
//! ```text
//!  by key ─┬─ none ─▶ next VMID ─▶ clone ─▶ task ─┐   the description says the tags from the clone on
//!          └─ found ──────────────────────────────┴▶ volume uploaded ─▶ size, tags, volume ─▶ disk grown ─▶ start
//! ```
//! Of one template one linked clone is made at a time: they all wait for the lock of its storage, which is given up on after
//! ten seconds. Who is refused for a lock, or for a VMID that somebody else took in the meantime, asks again.

use std::time::Instant;

use reqwest::Method;

use super::answers::{Config, Current, Resource, Storage};
use super::calls::is_taken;
use super::find::{Making, id_of, parse_id, short};
use super::settings::{CloneKind, is_name};
use super::size::{AS_TEMPLATE, Wish};
use super::{Proxmox, USER_DATA_MAX_BYTES, marks, volume};
use crate::http::{Body, Repeat};
use crate::{ErrorKind, Listed, Order, ProviderError};

/// How often a clone is asked for whose request had no answer and which does not appear.
const UNCERTAIN_MAX: u32 = 3;
/// How often a VMID is chosen that somebody else takes first.
const TAKEN_MAX: u32 = 50;
/// Separates the parts of an upload; in no volume, which is JSON and zeros.
const BOUNDARY: &str = "calve-4e1c4b6f8d2a97503c";

/// What machines are copied from.
struct Template {
    node: String,
    vmid: u64,
}

/// A machine that is there, made or not.
struct Place {
    node: String,
    vmid: u64,
}

/// How asking for a clone went.
enum Cloned {
    Done,
    /// The VMID was taken, or a lock: to be asked for again.
    Again(ProviderError),
    /// Its storage makes no linked clones.
    NotLinked(ProviderError),
    /// It may be there.
    Uncertain(ProviderError),
}

impl Proxmox {
    pub(super) async fn make(&self, order: &Order) -> Result<Listed, ProviderError> {
        let wish = self.checked(order)?;
        let place = match self.by_key(&order.key).await? {
            Some(found) => found,
            None => self.clone_template(order).await?,
        };
        self.complete(&place, order, wish).await
    }

    fn refused(&self, message: String) -> ProviderError {
        self.api.error(ErrorKind::Refused, message, None)
    }

    /// What can be known to be wrong before anything is made.
    fn checked(&self, order: &Order) -> Result<Option<Wish>, ProviderError> {
        let bytes = order.user_data.len();
        if bytes > USER_DATA_MAX_BYTES {
            return Err(self
                .refused(format!("the user data has {bytes} bytes, and {USER_DATA_MAX_BYTES} are allowed")));
        }
        if let Some(tag) = order.tags.iter().find(|tag| !marks::is_tag(tag)) {
            return Err(self.refused(format!("{tag:?} is no tag: lower-case letters, digits, - and _ are")));
        }
        if !is_name(&order.region) {
            return Err(self.refused(format!("{:?} is no name of a node", order.region)));
        }
        if order.size == AS_TEMPLATE {
            return Ok(None);
        }
        let wish = order.size.parse().map_err(|()| {
            self.refused(format!(
                "{:?} is no size: it looks like 2vcpu-4gb, 2vcpu-4gb-20gb or template",
                order.size
            ))
        })?;
        Ok(Some(wish))
    }

    /// The machine with this key, also one that is being made. Where an answer was lost there may be two: the first stays.
    async fn by_key(&self, key: &str) -> Result<Option<Place>, ProviderError> {
        let mut resources = self.resources().await?.body;
        if self.wait_for_clones(&resources).await? {
            resources = self.resources().await?.body;
        }
        let mut found = self.tagged(&resources, key).await?;
        found.sort_by_key(|machine| parse_id(&machine.id).map(|(vmid, _)| vmid));
        let mut found = found.into_iter();
        let first = found.next();
        for double in found {
            self.remove(&double.id).await?;
        }
        Ok(first.and_then(|machine| Some(Place { vmid: parse_id(&machine.id)?.0, node: machine.region })))
    }

    /// Clones that are under way and do not yet say what they are: one of them may be ours, asked for by a process that died.
    /// Whether there were any.
    async fn wait_for_clones(&self, resources: &[Resource]) -> Result<bool, ProviderError> {
        let is_clone =
            |it: &&Resource| it.lock.as_deref() == Some("clone") && !self.memory.is_making(it.vmid);
        let until = Instant::now() + self.api.pace().settle;
        let mut any = false;
        for clone in resources.iter().filter(is_clone) {
            any = true;
            let mut pause = self.api.pace().backoff;
            while let Some(config) = self.config(&clone.node, clone.vmid).await?
                && !config.has("name")
                && Instant::now() < until
            {
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
        }
        Ok(any)
    }

    async fn template(&self, order: &Order) -> Result<Template, ProviderError> {
        let resources = self.resources().await?.body;
        let named = |it: &&Resource| {
            it.template == 1
                && (it.name.as_deref() == Some(&*order.image) || it.vmid.to_string() == order.image)
        };
        // One on the node itself needs no shared storage; of several the last is the newest.
        let found = resources.iter().filter(named).max_by_key(|it| (it.node == order.region, it.vmid));
        found.map(|it| Template { node: it.node.clone(), vmid: it.vmid }).ok_or_else(|| {
            self.refused(format!(
                "there is no template {:?}; `calve provider images proxmox` lists them",
                order.image
            ))
        })
    }

    /// A VMID that is free, and that nobody in this process uses.
    async fn next_id(&self) -> Result<(u64, Making<'_>), ProviderError> {
        let number = |value: serde_json::Value| match value {
            serde_json::Value::String(text) => text.parse().ok(),
            other => other.as_u64(),
        };
        let mut vmid = number(self.get("cluster/nextid").await?.body).unwrap_or(0);
        loop {
            if let Some(making) = self.memory.take(vmid) {
                return Ok((vmid, making));
            }
            vmid += 1;
            while let Err(error) = self.get::<serde_json::Value>(&format!("cluster/nextid?vmid={vmid}")).await
            {
                if error.kind != ErrorKind::Refused {
                    return Err(error);
                }
                vmid += 1;
            }
        }
    }

    /// A clone of the template, which says in its description what it shall be.
    async fn clone_template(&self, order: &Order) -> Result<Place, ProviderError> {
        let template = self.template(order).await?;
        let mut kind = self.settings.clone;
        let (mut uncertain, mut taken) = (0, 0);
        let locked_until = Instant::now() + self.api.pace().rate;
        loop {
            let full = kind == CloneKind::Full;
            let turn = if full { &self.full_clones } else { &self.storage };
            let _turn = turn.acquire().await.expect("it is never closed");
            let (vmid, _making) = self.next_id().await?;
            let place = Place { node: order.region.clone(), vmid };
            match self.clone_once(order, &template, vmid, full).await? {
                Cloned::Done => return Ok(place),
                Cloned::NotLinked(error) if kind == CloneKind::Linked => return Err(error),
                Cloned::NotLinked(_) => kind = CloneKind::Full,
                Cloned::Again(error) => {
                    taken += u32::from(is_taken(&error));
                    if taken > TAKEN_MAX || Instant::now() > locked_until {
                        return Err(error);
                    }
                    tokio::time::sleep(self.api.pace().backoff).await;
                }
                Cloned::Uncertain(error) => {
                    if self.appears(&template, &place, &order.key).await? {
                        return Ok(place);
                    }
                    uncertain += 1;
                    if uncertain == UNCERTAIN_MAX {
                        return Err(error);
                    }
                }
            }
        }
    }

    async fn clone_once(
        &self,
        order: &Order,
        template: &Template,
        vmid: u64,
        full: bool,
    ) -> Result<Cloned, ProviderError> {
        let (newid, description) = (vmid.to_string(), marks::description(&order.tags, &order.key));
        let mut fields = vec![("newid", &*newid), ("name", &*order.name), ("description", &*description)];
        fields.push(("full", if full { "1" } else { "0" }));
        let storage = self.settings.storage.as_deref().filter(|_| full);
        fields.extend(storage.map(|storage| ("storage", storage)));
        fields.extend(self.settings.pool.as_deref().map(|pool| ("pool", pool)));
        if template.node != order.region {
            fields.push(("target", &order.region));
        }
        let path = format!("nodes/{}/qemu/{}/clone", template.node, template.vmid);
        let asked = self.ask::<String>(Method::POST, &path, &fields, Repeat::OnlyIfRefused).await;
        let error = match asked {
            Ok(upid) => match self.finished(&upid).await {
                Ok(()) => return Ok(Cloned::Done),
                Err(error) => error,
            },
            Err(error) => error,
        };
        let of_task = error.request.as_ref().is_some_and(|request| request.starts_with("UPID:"));
        match error.kind {
            ErrorKind::Locked => Ok(Cloned::Again(error)),
            _ if is_taken(&error) => Ok(Cloned::Again(error)),
            _ if error.message.contains("Linked clone feature") => Ok(Cloned::NotLinked(error)),
            // A task that failed has removed what it made.
            _ if error.is_uncertain() && !of_task => Ok(Cloned::Uncertain(error)),
            _ => Err(error),
        }
    }

    /// Whether the clone with this key comes to be there: looked for until the cluster has settled, and for as long as it says
    /// that something is being cloned under its VMID.
    async fn appears(&self, template: &Template, place: &Place, key: &str) -> Result<bool, ProviderError> {
        let until = Instant::now() + self.api.pace().settle;
        let mut pause = self.api.pace().backoff;
        loop {
            let mut config = self.config(&place.node, place.vmid).await?;
            if config.is_none() && template.node != place.node {
                config = self.config(&template.node, place.vmid).await?;
            }
            match config {
                Some(config) if config.has("name") => {
                    let description = config.text("description").unwrap_or_default();
                    return Ok(marks::of_description(&description).iter().any(|line| line == key));
                }
                None if Instant::now() >= until => return Ok(false),
                Some(_) | None => {}
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(std::time::Duration::from_secs(1));
        }
    }

    /// Everything after the clone, as far as it is not done yet.
    async fn complete(
        &self,
        place: &Place,
        order: &Order,
        wish: Option<Wish>,
    ) -> Result<Listed, ProviderError> {
        let Place { node, vmid } = place;
        let path = format!("nodes/{node}/qemu/{vmid}");
        let config = self.unlocked(node, *vmid).await?;
        let Some(config) = config else {
            let message = format!("VM {vmid} went away while it was made");
            return Err(self.api.error(ErrorKind::Failed, message, None));
        };
        let is_told = marks::of_list(&config.text("tags").unwrap_or_default()).contains(&order.key);
        if !is_told {
            self.tell(place, &config, order, wish).await?;
        }
        self.grow(&path, &config, wish).await?;
        let current: Current = self.get(&format!("{path}/status/current")).await?.body;
        if current.status != "running" {
            match self.act(Method::POST, &format!("{path}/status/start"), &[]).await {
                Err(error) if error.message.contains("already running") => {}
                started => started?,
            }
        }
        self.memory.note_name(*vmid, &order.key, &order.name);
        Ok(Listed {
            id: id_of(*vmid, std::slice::from_ref(&order.key)),
            name: order.name.clone(),
            tags: order.tags.clone(),
            region: node.clone(),
            size: order.size.clone(),
            status: "running".to_owned(),
            address: None,
            created_at: String::new(),
            dollars_per_hour: None,
        })
    }

    /// A machine's configuration once nothing works on it any more.
    pub(super) async fn unlocked(&self, node: &str, vmid: u64) -> Result<Option<Config>, ProviderError> {
        self.while_locked(|| async move {
            let config = self.config(node, vmid).await?;
            match config.as_ref().and_then(|config| config.text("lock")) {
                None => Ok(config),
                Some(lock) => {
                    let message = format!("VM {vmid} is locked ({lock})");
                    Err(self.api.error(ErrorKind::Locked, message, None))
                }
            }
        })
        .await
    }

    /// Gives a machine its volume, its size and its tags, in one change.
    async fn tell(
        &self,
        place: &Place,
        config: &Config,
        order: &Order,
        wish: Option<Wish>,
    ) -> Result<(), ProviderError> {
        let Place { node, vmid } = place;
        let image = volume::cidata(&order.key, &order.name, &order.user_data);
        let storage = self.iso_storage(node).await?;
        let file = iso_name(*vmid, &short(&order.key));
        self.upload(node, &storage, &file, &image).await?;
        let drive = format!("{storage}:iso/{file},media=cdrom");
        let tags = marks::to_list(&order.tags);
        let slot = slot_for(config);
        let mut fields =
            vec![(&*slot, &*drive), ("tags", &*tags), ("description", marks::MADE), ("onboot", "0")];
        let (cpus, memory) = wish.map(|wish| (wish.cpus.to_string(), wish.memory_mib.to_string())).unzip();
        if let (Some(cpus), Some(memory)) = (&cpus, &memory) {
            fields.extend([("cores", &**cpus), ("sockets", "1"), ("memory", &**memory)]);
            // What it may be shrunk to must not be more than all of it.
            if config.has("balloon") {
                fields.push(("delete", "balloon"));
            }
        }
        // A template is protected from being destroyed; what is made of it is not.
        if config.has("protection") {
            fields.push(("protection", "0"));
        }
        self.act(Method::POST, &format!("nodes/{node}/qemu/{vmid}/config"), &fields).await
    }

    /// Makes the disk as large as it shall be; what is larger already stays.
    async fn grow(&self, path: &str, config: &Config, wish: Option<Wish>) -> Result<(), ProviderError> {
        let Some(gib) = wish.and_then(|wish| wish.disk_gib) else { return Ok(()) };
        let disk = config
            .boot_disk()
            .ok_or_else(|| self.refused("the template has no disk that could grow".to_owned()))?;
        if config.drive_bytes(&disk).is_some_and(|bytes| bytes >= gib << 30) {
            return Ok(());
        }
        let size = format!("{gib}G");
        self.act(Method::PUT, &format!("{path}/resize"), &[("disk", &disk), ("size", &size)]).await
    }

    /// Where ISO images are put on a node.
    async fn iso_storage(&self, node: &str) -> Result<String, ProviderError> {
        if let Some(storage) = &self.settings.iso_storage {
            return Ok(storage.clone());
        }
        let storages: Vec<Storage> =
            self.get(&format!("nodes/{node}/storage?content=iso&enabled=1")).await?.body;
        let takes = |it: &&Storage| it.active == 1 && it.content.split(',').any(|content| content == "iso");
        let found =
            storages.iter().filter(takes).min_by_key(|it| (it.storage != "local", it.shared, &it.storage));
        found.map(|it| it.storage.clone()).ok_or_else(|| {
            self.refused(format!(
                "no storage of the node {node} takes ISO images; name one by PROXMOX_ISO_STORAGE"
            ))
        })
    }

    /// Puts a file into a storage; what is there under its name is replaced.
    async fn upload(&self, node: &str, storage: &str, file: &str, bytes: &[u8]) -> Result<(), ProviderError> {
        let mut parts = format!(
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"content\"\r\n\r\niso\r\n--{BOUNDARY}\r\n\
             Content-Disposition: form-data; name=\"filename\"; filename=\"{file}\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        )
        .into_bytes();
        parts.extend(bytes);
        parts.extend(format!("\r\n--{BOUNDARY}--\r\n").as_bytes());
        let body = Body::Parts { boundary: BOUNDARY.to_owned(), bytes: parts };
        let (path, body) = (format!("nodes/{node}/storage/{storage}/upload"), &body);
        let path = &path;
        self.while_locked(|| async move {
            let upid: String = self.send(Method::POST, path, Some(body), Repeat::Freely).await?.body;
            self.finished(&upid).await
        })
        .await
    }
}

/// The file of a machine's volume.
pub(super) fn iso_name(vmid: u64, short: &str) -> String {
    format!("calve-{vmid}-{short}.iso")
}

/// Where the volume is put in: in place of the template's own cloud-init drive, as a machine that found two would have to choose;
/// else beside the disk, whose bus the image has a driver for; else where the web interface puts a CD.
fn slot_for(config: &Config) -> String {
    if let Some((slot, _)) = config.drives().find(|(_, value)| value.contains("cloudinit")) {
        return slot;
    }
    let disk = config.boot_disk().unwrap_or_default();
    let scsi =
        disk.starts_with("scsi") && config.text("scsihw").is_some_and(|it| it.starts_with("virtio-scsi"));
    let slots: Vec<String> = match &disk {
        _ if scsi => (1..30).map(|n| format!("scsi{n}")).collect(),
        disk if disk.starts_with("sata") => (1..6).map(|n| format!("sata{n}")).collect(),
        _ => Vec::new(),
    };
    let ide = ["ide2", "ide0", "ide3", "ide1"].map(str::to_owned);
    let is_free = |slot: &String| config.text(slot).is_none_or(|value| value.starts_with("none"));
    slots.into_iter().chain(ide).find(is_free).unwrap_or_else(|| "ide2".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_volume_takes_the_place_of_a_cloud_init_drive_or_a_free_one() {
        let slot = |text: &str| slot_for(&serde_json::from_str(text).unwrap());
        assert_eq!(slot(r#"{"scsi0":"l:b","sata1":"l:vm-9-cloudinit,media=cdrom"}"#), "sata1");
        assert_eq!(slot(r#"{"scsi0":"l:b","scsi1":"l:c","scsihw":"virtio-scsi-single"}"#), "scsi2");
        assert_eq!(slot(r#"{"scsi0":"l:b","scsihw":"lsi"}"#), "ide2");
        assert_eq!(slot(r#"{"virtio0":"l:b","ide2":"none,media=cdrom"}"#), "ide2");
        assert_eq!(slot(r#"{"ide0":"l:b","ide2":"l:iso/x.iso,media=cdrom"}"#), "ide3");
        assert_eq!(slot(r#"{"sata0":"l:b"}"#), "sata1");
    }
}
