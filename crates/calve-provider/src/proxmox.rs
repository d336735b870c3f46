//! Proxmox VE: machines are virtual machines of a cluster, cloned from a template. Sources: its API viewer
//! (pve.proxmox.com/pve-docs/api-viewer), chapter 10 of its administration guide.
//!
//! A machine learns what it shall be from a volume of its own, an ISO image that is uploaded and put in as a CD. Proxmox VE's
//! own cloud-init drive holds user data of ours only by `cicustom`, whose file no request can upload; QEMU's arguments are
//! root's alone; the description stays outside the machine; the fields of SMBIOS have 512 bytes together. An upload takes a
//! token with rights upon one storage.
//!
//! What is known of a machine stands in its tags (`marks`); where it is made and where it ends, in `create` and `destroy`.

mod answers;
mod calls;
mod create;
mod destroy;
mod find;
mod marks;
mod settings;
mod size;
mod volume;

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use calve_pin::Fingerprint;
use reqwest::Method;
use tokio::sync::Semaphore;

use crate::http::{Access, Api};
use crate::{
    Account, Description, ErrorKind, Image, Listed, Listing, Order, Pace, Provider, ProviderError, Region,
    Size,
};
use answers::{Node, Resource, Rights, Storage, Version};
pub use settings::{CloneKind, Settings};
pub use size::AS_TEMPLATE;

/// Its name as users type it.
pub const NAME: &str = "proxmox";
/// Most bytes of user data: more than ours have, and little to upload.
const USER_DATA_MAX_BYTES: usize = 64 << 10;
/// Most requests at once: a node has three workers by default, and a few more may wait.
const REQUESTS_MAX: usize = 8;
/// Most full clones at once: each reads and writes a whole disk.
const FULL_CLONES_MAX: usize = 3;
/// A connection that was idle for longer is not used again: nodes hang up after five seconds.
const IDLE_MAX: Duration = Duration::from_secs(3);
/// How often tags are written that somebody else changes at the same time.
const RETAG_MAX: u32 = 10;
/// What a token must be allowed to do.
const RIGHTS: [&str; 11] = [
    "Datastore.Allocate",
    "Datastore.AllocateSpace",
    "Datastore.AllocateTemplate",
    "VM.Allocate",
    "VM.Audit",
    "VM.Clone",
    "VM.Config.CDROM",
    "VM.Config.CPU",
    "VM.Config.Memory",
    "VM.Config.Options",
    "VM.PowerMgmt",
];

/// The provider; see [`Provider`].
pub struct Proxmox {
    api: Api,
    settings: Settings,
    /// Turns of requests.
    requests: Semaphore,
    /// The turn of whoever holds the storages' locks: linked clones and removals.
    storage: Semaphore,
    /// Turns of full clones, which hold those locks for moments only.
    full_clones: Semaphore,
    memory: find::Memory,
}

impl Proxmox {
    /// Connects with the first request.
    pub fn new(settings: Settings, pace: Pace) -> Result<Self, ProviderError> {
        let access = Access {
            authorization: settings.credentials.authorization("PVEAPIToken="),
            tls: settings.fingerprint.map(Fingerprint::trusted),
            idle: Some(IDLE_MAX),
            kind: calls::kind_of,
        };
        Ok(Self {
            api: Api::with(NAME, &settings.api, access, pace)?,
            settings,
            requests: Semaphore::new(REQUESTS_MAX),
            storage: Semaphore::new(1),
            full_clones: Semaphore::new(FULL_CLONES_MAX),
            memory: find::Memory::default(),
        })
    }

    /// Changes the tags of a machine, and nothing that somebody else changed in the meantime.
    async fn retag(
        &self,
        node: &str,
        vmid: u64,
        change: impl Fn(&mut Vec<String>),
    ) -> Result<(), ProviderError> {
        let path = format!("nodes/{node}/qemu/{vmid}/config");
        let mut attempt = 1;
        loop {
            let Some(config) = self.unlocked(node, vmid).await? else { return Ok(()) };
            let before = find::carried(&config);
            let mut tags = before.clone();
            change(&mut tags);
            if tags == before {
                return Ok(());
            }
            let (list, digest) = (marks::to_list(&tags), config.text("digest").unwrap_or_default());
            let what = if list.is_empty() { ("delete", "tags") } else { ("tags", &*list) };
            let mut fields = vec![what];
            if !digest.is_empty() {
                fields.push(("digest", &digest));
            }
            match self.act(Method::PUT, &path, &fields).await {
                Err(error) if error.message.contains("modified configuration") && attempt < RETAG_MAX => {
                    attempt += 1
                }
                done => return done,
            }
        }
    }

    async fn nodes(&self) -> Result<Vec<Node>, ProviderError> {
        let mut nodes: Vec<Node> = self.get("nodes").await?.body;
        nodes.sort_by(|a, b| a.node.cmp(&b.node));
        Ok(nodes)
    }

    /// The nodes on which a template can be cloned: its own; all of them where its disks are on shared storage.
    async fn nodes_of(&self, template: &Resource, nodes: &[Node]) -> Result<Vec<String>, ProviderError> {
        let own = || vec![template.node.clone()];
        let Some(config) = self.config(&template.node, template.vmid).await? else { return Ok(own()) };
        let storages: Vec<Storage> = self.get(&format!("nodes/{}/storage", template.node)).await?.body;
        let is_shared = |name: &str| storages.iter().any(|it| it.storage == name && it.shared == 1);
        let used = config.drives().filter_map(|(_, drive)| Some(drive.split_once(':')?.0.to_owned()));
        match used.collect::<Vec<_>>() {
            used if !used.is_empty() && used.iter().all(|name| is_shared(name)) => {
                Ok(nodes.iter().map(|it| it.node.clone()).collect())
            }
            _ => Ok(own()),
        }
    }
}

#[async_trait]
impl Provider for Proxmox {
    fn describe(&self) -> Description {
        Description {
            name: NAME,
            api: self.api.base().to_string(),
            user_data_max_bytes: USER_DATA_MAX_BYTES,
            lists_lag: self.api.pace().settle,
            credentials_from: "PROXMOX_API_URL, and PROXMOX_TOKEN or the file that PROXMOX_TOKEN_FILE names",
        }
    }

    async fn check(&self) -> Result<Account, ProviderError> {
        let version: Version = self.get("version").await?.body;
        let rights: Rights = self.get("access/permissions").await?.body;
        let has: BTreeSet<&str> = rights.values().flat_map(|it| it.keys().map(String::as_str)).collect();
        let lacks: Vec<&str> = RIGHTS.into_iter().filter(|right| !has.contains(right)).collect();
        if !lacks.is_empty() {
            let message = format!("the token {} lacks {}", self.settings.token_id(), lacks.join(", "));
            return Err(self.api.error(ErrorKind::Denied, message, None));
        }
        let status = format!("active, Proxmox VE {}", version.version);
        Ok(Account { name: self.settings.token_id(), status, machines_max: None })
    }

    async fn create(&self, order: &Order) -> Result<Listed, ProviderError> {
        self.make(order).await
    }

    async fn machine(&self, id: &str) -> Result<Option<Listed>, ProviderError> {
        let Some((vmid, _)) = find::parse_id(id) else {
            let message = format!("{id:?} is not a virtual machine's number");
            return Err(self.api.error(ErrorKind::Refused, message, None));
        };
        self.shown(vmid).await
    }

    async fn list(&self, tag: &str) -> Result<Listing, ProviderError> {
        let resources = self.resources().await?;
        let machines = self.tagged(&resources.body, tag).await?;
        Ok(Listing { machines, unix_s: resources.unix_s })
    }

    async fn destroy(&self, id: &str) -> Result<(), ProviderError> {
        self.remove(id).await
    }

    async fn destroy_tagged(&self, tag: &str) -> Result<(), ProviderError> {
        for machine in self.list(tag).await?.machines {
            self.remove(&machine.id).await?;
        }
        Ok(())
    }

    async fn add_tag(&self, id: &str, tag: &str) -> Result<(), ProviderError> {
        let resources = self.resources().await?.body;
        let place = find::parse_id(id)
            .and_then(|(vmid, _)| resources.iter().find(|it| it.vmid == vmid && it.template == 0));
        let Some(place) = place else {
            return Err(self.api.error(ErrorKind::NotFound, format!("there is no machine {id}"), None));
        };
        self.retag(&place.node, place.vmid, |tags| {
            if find::id_of(place.vmid, tags) == id && !tags.iter().any(|it| it == tag) {
                tags.push(tag.to_owned());
            }
        })
        .await
    }

    async fn remove_tag(&self, tag: &str) -> Result<(), ProviderError> {
        for machine in self.list(tag).await?.machines {
            let Some((vmid, _)) = find::parse_id(&machine.id) else { continue };
            self.retag(&machine.region, vmid, |tags| tags.retain(|it| it != tag)).await?;
        }
        Ok(())
    }

    async fn sizes(&self) -> Result<Vec<Size>, ProviderError> {
        let nodes: Vec<String> = self.nodes().await?.into_iter().map(|it| it.node).collect();
        Ok(size::offered(&nodes))
    }

    async fn regions(&self) -> Result<Vec<Region>, ProviderError> {
        let nodes = self.nodes().await?.into_iter();
        let region = |it: Node| Region {
            name: it.node.clone(),
            slug: it.node,
            area: None,
            available: it.status == "online",
        };
        Ok(nodes.map(region).collect())
    }

    async fn images(&self) -> Result<Vec<Image>, ProviderError> {
        let (nodes, resources) = (self.nodes().await?, self.resources().await?.body);
        let mut images = Vec::new();
        for template in resources.iter().filter(|it| it.template == 1) {
            images.push(Image {
                id: template.vmid.to_string(),
                slug: None,
                name: template.name.clone().unwrap_or_default(),
                regions: self.nodes_of(template, &nodes).await?,
                status: "available".to_owned(),
            });
        }
        Ok(images)
    }
}
