//! Finding machines: by their tags in one request, and those that are being made by what their description says.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::answers::{Config, Resource};
use super::size::Wish;
use super::{Proxmox, marks};
use crate::http::Answer;
use crate::{ErrorKind, Listed, ProviderError};

/// How long a machine without our tags is known to be somebody else's: its VMID may be given to one of ours later.
const FOREIGN_MAX: Duration = Duration::from_secs(3600);

/// What was seen of machines, so that it need not be asked for with every list.
#[derive(Default)]
pub(super) struct Memory {
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// Machines that are not being made by us, with their names, and since when.
    foreign: BTreeMap<(u64, String), Instant>,
    /// Names of machines by VMID and key: a node tells a new one's only after some seconds.
    names: BTreeMap<(u64, String), String>,
    /// VMIDs that this process is making machines of.
    making: Vec<u64>,
}

/// A machine is being made with this VMID while it lasts.
pub(super) struct Making<'a>(&'a Memory, u64);

impl Drop for Making<'_> {
    fn drop(&mut self) {
        self.0.seen().making.retain(|vmid| *vmid != self.1);
    }
}

impl Memory {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This VMID for a machine that is to be made, unless another one in this process has it.
    pub fn take(&self, vmid: u64) -> Option<Making<'_>> {
        let mut seen = self.seen();
        if seen.making.contains(&vmid) {
            return None;
        }
        seen.making.push(vmid);
        Some(Making(self, vmid))
    }

    pub fn is_making(&self, vmid: u64) -> bool {
        self.seen().making.contains(&vmid)
    }

    pub fn note_name(&self, vmid: u64, key: &str, name: &str) {
        self.seen().names.insert((vmid, key.to_owned()), name.to_owned());
    }

    fn name(&self, vmid: u64, key: &str) -> Option<String> {
        self.seen().names.get(&(vmid, key.to_owned())).cloned()
    }

    fn is_foreign(&self, vmid: u64, name: &str) -> bool {
        self.seen().foreign.contains_key(&(vmid, name.to_owned()))
    }

    fn note_foreign(&self, vmid: u64, name: &str) {
        self.seen().foreign.insert((vmid, name.to_owned()), Instant::now());
    }

    /// Forgets what is too old, and machines that are not listed any more.
    fn tidy(&self, listed: &[Resource]) {
        let there = |vmid: u64| listed.iter().any(|it| it.vmid == vmid);
        let mut seen = self.seen();
        seen.foreign.retain(|(vmid, _), since| since.elapsed() < FOREIGN_MAX && there(*vmid));
        seen.names.retain(|(vmid, _), _| there(*vmid));
    }
}

/// The id of a machine: its VMID, which is given again to others, and something of its key, by which it is told from them.
pub(super) fn id_of(vmid: u64, tags: &[String]) -> String {
    match marks::key_of(tags) {
        Some(key) => format!("{vmid}-{}", short(key)),
        None => vmid.to_string(),
    }
}

/// The VMID in an id, and what follows it.
pub(super) fn parse_id(id: &str) -> Option<(u64, &str)> {
    let (vmid, short) = id.split_once('-').unwrap_or((id, ""));
    Some((vmid.parse().ok()?, short))
}

/// Eight digits of a key.
pub(super) fn short(key: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, key.as_bytes());
    digest.as_ref()[..4].iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Proxmox {
    /// Every virtual machine of the cluster, templates too.
    pub(super) async fn resources(&self) -> Result<Answer<Vec<Resource>>, ProviderError> {
        let mut answer: Answer<Vec<Resource>> = self.get("cluster/resources?type=vm").await?;
        answer.body.retain(|it| it.r#type == "qemu");
        Ok(answer)
    }

    /// The machines among these that carry a tag.
    pub(super) async fn tagged(
        &self,
        resources: &[Resource],
        tag: &str,
    ) -> Result<Vec<Listed>, ProviderError> {
        self.memory.tidy(resources);
        let mut found = Vec::new();
        for resource in resources.iter().filter(|it| it.template == 0) {
            let tags = marks::of_list(&resource.tags);
            let listed = match marks::key_of(&tags).map(str::to_owned) {
                Some(_) if !tags.iter().any(|it| it == tag) => continue,
                Some(key) => self.with_name(resource, tags, &key).await?,
                None => self.without_key(resource, tags).await?,
            };
            found.extend(listed.filter(|it| it.tags.iter().any(|it| it == tag)));
        }
        Ok(found)
    }

    /// The machine with this VMID, whoever made it.
    pub(super) async fn shown(&self, vmid: u64) -> Result<Option<Listed>, ProviderError> {
        let resources = self.resources().await?.body;
        let Some(resource) = resources.iter().find(|it| it.vmid == vmid) else { return Ok(None) };
        let Some(config) = self.config(&resource.node, vmid).await? else { return Ok(None) };
        if resource.template == 1 {
            let message = format!("VM {vmid} is a template");
            return Err(self.api.error(ErrorKind::Refused, message, None));
        }
        if config.text("protection").is_some_and(|it| it == "1") {
            let message = format!("VM {vmid} is protected against removal");
            return Err(self.api.error(ErrorKind::Refused, message, None));
        }
        let name = config.text("name").or_else(|| resource.name.clone()).unwrap_or_default();
        Ok(Some(listed(resource, name, carried(&config))))
    }

    /// A machine that has its tags.
    async fn with_name(
        &self,
        resource: &Resource,
        tags: Vec<String>,
        key: &str,
    ) -> Result<Option<Listed>, ProviderError> {
        let known = resource.name.clone().or_else(|| self.memory.name(resource.vmid, key));
        let name = match known {
            Some(name) => name,
            // A node that is away cannot be asked, and hides none of the others.
            None => match self.config(&resource.node, resource.vmid).await {
                Ok(None) => return Ok(None),
                Ok(Some(config)) => config.text("name").unwrap_or_default(),
                Err(_) => String::new(),
            },
        };
        if !name.is_empty() {
            self.memory.note_name(resource.vmid, key, &name);
        }
        Ok(Some(listed(resource, name, tags)))
    }

    /// A machine without a key among its tags: one that is being made, or somebody else's. None that runs is being made.
    async fn without_key(
        &self,
        resource: &Resource,
        tags: Vec<String>,
    ) -> Result<Option<Listed>, ProviderError> {
        let name = resource.name.clone().unwrap_or_default();
        if resource.is_running() || self.memory.is_foreign(resource.vmid, &name) {
            return Ok(Some(listed(resource, name, tags)));
        }
        let Ok(Some(config)) = self.config(&resource.node, resource.vmid).await else { return Ok(None) };
        if config.text("template").is_some_and(|it| it == "1") {
            return Ok(None);
        }
        let tags = carried(&config);
        if marks::key_of(&tags).is_none() && resource.lock.is_none() && !name.is_empty() {
            self.memory.note_foreign(resource.vmid, &name);
        }
        Ok(Some(listed(resource, config.text("name").unwrap_or(name), tags)))
    }
}

/// What a machine carries, by its configuration.
pub(super) fn carried(config: &Config) -> Vec<String> {
    marks::carried(&config.text("tags").unwrap_or_default(), &config.text("description").unwrap_or_default())
}

fn listed(resource: &Resource, name: String, tags: Vec<String>) -> Listed {
    let size = resource.maxcpu.zip(resource.maxmem).map(|(cpus, bytes)| {
        let wish = Wish { cpus: cpus as u32, memory_mib: bytes as u64 >> 20, disk_gib: None };
        wish.to_string()
    });
    Listed {
        id: id_of(resource.vmid, &tags),
        name,
        tags,
        region: resource.node.clone(),
        size: size.unwrap_or_default(),
        status: resource.lock.clone().or_else(|| resource.status.clone()).unwrap_or_default(),
        address: None,
        created_at: String::new(),
        dollars_per_hour: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_tells_a_machine_from_others_that_get_its_number() {
        let tags = |n: u32| vec!["calve".to_owned(), format!("calve:machine:{n}:1")];
        assert_ne!(id_of(100, &tags(1)), id_of(100, &tags(2)));
        assert_eq!(parse_id(&id_of(100, &tags(1))), Some((100, &*short("calve:machine:1:1"))));
        assert_eq!(parse_id(&id_of(100, &[])), Some((100, "")));
        assert_eq!(parse_id("x-1"), None);
    }
}
