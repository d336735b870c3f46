//! Destroying a machine: stopped, its volume removed, then itself with all that is said of it elsewhere.

use reqwest::Method;

use super::Proxmox;
use super::answers::{Config, Current};
use super::create::iso_name;
use super::find::{carried, parse_id, short};
use super::marks;
use crate::{ErrorKind, ProviderError};

/// How often a machine is stopped that runs again before it is destroyed.
const STOPS_MAX: u32 = 3;

impl Proxmox {
    /// Destroys the machine with this id; where its VMID belongs to another by now, there is nothing to do.
    pub(super) async fn remove(&self, id: &str) -> Result<(), ProviderError> {
        let Some((vmid, mark)) = parse_id(id) else {
            return Err(self.api.error(ErrorKind::Refused, format!("{id:?} is no id of a machine"), None));
        };
        let resources = self.resources().await?.body;
        let Some(resource) = resources.iter().find(|it| it.vmid == vmid && it.template == 0) else {
            return Ok(());
        };
        let node = &resource.node;
        let Some(config) = self.unlocked(node, vmid).await? else { return Ok(()) };
        let tags = carried(&config);
        match marks::key_of(&tags) {
            Some(key) if short(key) == mark => {}
            None if mark.is_empty() => {
                let message = format!("VM {vmid} carries no mark of calve, and is left alone");
                return Err(self.api.error(ErrorKind::Refused, message, None));
            }
            Some(_) | None => return Ok(()),
        }
        self.remove_at(node, vmid, mark, &config).await
    }

    async fn remove_at(
        &self,
        node: &str,
        vmid: u64,
        mark: &str,
        config: &Config,
    ) -> Result<(), ProviderError> {
        let path = format!("nodes/{node}/qemu/{vmid}");
        // Copied from a template that is protected, by a process that got no further.
        if config.text("protection").is_some_and(|it| it == "1") {
            self.act(Method::PUT, &format!("{path}/config"), &[("protection", "0")]).await?;
        }
        let mut stops = 0;
        loop {
            match self.stop(&path).await {
                Err(error) if error.kind == ErrorKind::NotFound => return Ok(()),
                stopped => stopped?,
            }
            // What is removed from a storage has its lock, as clones have.
            let _turn = self.storage.acquire().await.expect("it is never closed");
            // Before the machine, so that it stays known for as long as something of it is there.
            self.remove_volume(node, vmid, mark, config).await?;
            match self.act(Method::DELETE, &path, &[("purge", "1")]).await {
                Err(error) if error.kind == ErrorKind::NotFound => return Ok(()),
                Err(error) if error.message.contains("is running") && stops < STOPS_MAX => stops += 1,
                removed => return removed,
            }
        }
    }

    async fn stop(&self, path: &str) -> Result<(), ProviderError> {
        let current: Current = self.get(&format!("{path}/status/current")).await?.body;
        if current.status == "stopped" {
            return Ok(());
        }
        self.act(Method::POST, &format!("{path}/status/stop"), &[]).await
    }

    /// Removes the machine's own volume from its storage, and nobody else's.
    async fn remove_volume(
        &self,
        node: &str,
        vmid: u64,
        mark: &str,
        config: &Config,
    ) -> Result<(), ProviderError> {
        let file = format!("iso/{}", iso_name(vmid, mark));
        for (_, drive) in config.drives() {
            let volume = drive.split(',').next().unwrap_or_default();
            let Some((storage, name)) = volume.split_once(':') else { continue };
            if name != file {
                continue;
            }
            let path = format!("nodes/{node}/storage/{storage}/content/{volume}");
            match self.act(Method::DELETE, &path, &[]).await {
                Err(error) if error.kind == ErrorKind::NotFound => {}
                removed => removed?,
            }
        }
        Ok(())
    }
}
