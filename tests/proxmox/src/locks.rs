//! Locks as Proxmox VE has them: files that are waited for and given up on, of machines and of storages.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};
use tokio::time::timeout;

/// Every lock, and how often somebody was refused for one.
#[derive(Default)]
pub(crate) struct Locks {
    all: Mutex<HashMap<String, Arc<RwLock<()>>>>,
    refused: AtomicUsize,
}

impl Locks {
    fn named(&self, name: &str) -> Arc<RwLock<()>> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(name.to_owned()).or_default().clone()
    }

    /// A machine's, alone.
    pub async fn vm(&self, vmid: u64, wait: Duration) -> Result<OwnedRwLockWriteGuard<()>, String> {
        let file = format!("/var/lock/qemu-server/lock-{vmid}.conf");
        let taken = timeout(wait, self.named(&file).write_owned()).await;
        taken.map_err(|_| self.given_up(&file))
    }

    /// A machine's, together with others that only read it.
    pub async fn vm_shared(&self, vmid: u64, wait: Duration) -> Result<OwnedRwLockReadGuard<()>, String> {
        let file = format!("/var/lock/qemu-server/lock-{vmid}.conf");
        let taken = timeout(wait, self.named(&file).read_owned()).await;
        taken.map_err(|_| self.given_up(&file))
    }

    /// A storage's.
    pub async fn storage(&self, storage: &str, wait: Duration) -> Result<OwnedRwLockWriteGuard<()>, String> {
        let file = format!("/var/lock/pve-manager/pve-storage-{storage}");
        let taken = timeout(wait, self.named(&file).write_owned()).await;
        taken.map_err(|_| self.given_up(&file))
    }

    fn given_up(&self, file: &str) -> String {
        self.count();
        format!("can't lock file '{file}' - got timeout")
    }

    /// Somebody was refused for a lock.
    pub fn count(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub fn refused(&self) -> usize {
        self.refused.load(Ordering::Relaxed)
    }
}
