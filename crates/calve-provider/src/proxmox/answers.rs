//! What Proxmox VE's API answers, as far as it is used. Field names are its own; numbers come as text from some versions.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// What every answer is wrapped in.
#[derive(Deserialize)]
pub(super) struct Data<T> {
    pub data: T,
}

/// A machine in the cluster's list of everything. What its node reported a moment ago is not there at once: name, state, size.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Resource {
    #[serde(deserialize_with = "number")]
    pub vmid: u64,
    pub node: String,
    pub r#type: String,
    #[serde(default)]
    pub name: Option<String>,
    #[serde(default)]
    pub status: Option<String>,
    #[serde(default)]
    pub tags: String,
    /// What works on it at this moment.
    #[serde(default)]
    pub lock: Option<String>,
    #[serde(default, deserialize_with = "number")]
    pub template: u64,
    #[serde(default)]
    pub maxcpu: Option<f64>,
    #[serde(default)]
    pub maxmem: Option<f64>,
}

impl Resource {
    pub fn is_running(&self) -> bool {
        self.status.as_deref() == Some("running")
    }
}

/// A storage of a node.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Storage {
    pub storage: String,
    #[serde(default)]
    pub content: String,
    #[serde(default, deserialize_with = "number")]
    pub active: u64,
    #[serde(default, deserialize_with = "number")]
    pub shared: u64,
}

/// A node of the cluster.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Node {
    pub node: String,
    #[serde(default)]
    pub status: String,
}

/// How a task stands.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Task {
    pub status: String,
    #[serde(default)]
    pub exitstatus: Option<String>,
}

/// Whether a machine runs.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Current {
    pub status: String,
}

/// The version of a node.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Version {
    pub version: String,
}

/// Path → right → whether it goes on below.
pub(super) type Rights = BTreeMap<String, BTreeMap<String, Value>>;

/// A machine's configuration.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Config(BTreeMap<String, Value>);

impl Config {
    /// An option as text.
    pub fn text(&self, name: &str) -> Option<String> {
        match self.0.get(name)? {
            Value::String(text) => Some(text.clone()),
            Value::Null => None,
            other => Some(other.to_string()),
        }
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Its drives: slots such as `scsi0` and what is in them.
    pub fn drives(&self) -> impl Iterator<Item = (String, String)> {
        let is_drive = |slot: &str| {
            let number = ["ide", "sata", "scsi", "virtio"].iter().find_map(|bus| slot.strip_prefix(bus));
            number.is_some_and(|number| !number.is_empty() && number.bytes().all(|c| c.is_ascii_digit()))
        };
        self.0
            .keys()
            .filter(move |slot| is_drive(slot))
            .filter_map(|slot| Some((slot.clone(), self.text(slot)?)))
    }

    /// The slot of the disk that it boots from: the first of its order that is a disk, else its first disk.
    pub fn boot_disk(&self) -> Option<String> {
        let is_disk = |value: &str| {
            !value.contains("media=cdrom") && !value.contains("cloudinit") && value.contains(':')
        };
        let disks: BTreeMap<String, String> = self.drives().filter(|(_, value)| is_disk(value)).collect();
        let boot = self.text("boot").unwrap_or_default();
        let order = boot.split(',').find_map(|part| part.strip_prefix("order=").map(str::to_owned));
        let ordered = order.iter().flat_map(|order| order.split(';')).map(str::to_owned);
        let named = ordered.chain(self.text("bootdisk")).find(|slot| disks.contains_key(slot));
        named.or_else(|| disks.into_keys().next())
    }

    /// The size of a drive in bytes, where it says one.
    pub fn drive_bytes(&self, slot: &str) -> Option<u64> {
        let value = self.text(slot)?;
        let text = value.split(',').find_map(|part| part.strip_prefix("size="))?.to_owned();
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let shift = match &text[digits.len()..] {
            "" => 0,
            "K" => 10,
            "M" => 20,
            "G" => 30,
            "T" => 40,
            _ => return None,
        };
        digits.parse::<u64>().ok()?.checked_mul(1 << shift)
    }
}

/// A number, or text that is one.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let value = Value::deserialize(deserializer)?;
    let number = match &value {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => text.parse().ok(),
        Value::Bool(flag) => Some(u64::from(*flag)),
        Value::Null => Some(0),
        _ => None,
    };
    number.ok_or_else(|| serde::de::Error::custom(format!("{value} is no number")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_says_which_disk_boots_and_how_large_it_is() {
        let read = |text: &str| serde_json::from_str::<Config>(text).unwrap();
        let config = read(
            r#"{"boot":"order=ide2;scsi0;net0","ide2":"none,media=cdrom","scsi0":"local:9/base.qcow2,size=2252M","scsi1":"local:9/x,size=1G",
            "scsihw":"virtio-scsi-single","cores":2,"sata0":"local:9/vm-9-cloudinit.qcow2,media=cdrom"}"#,
        );
        assert_eq!((config.boot_disk().as_deref(), config.drives().count()), (Some("scsi0"), 4));
        assert_eq!((config.drive_bytes("scsi0"), config.drive_bytes("ide2")), (Some(2252 << 20), None));
        assert_eq!(config.text("cores").as_deref(), Some("2"));
        assert_eq!(read(r#"{"virtio0":"local-lvm:vm-9-disk-0"}"#).boot_disk().as_deref(), Some("virtio0"));
        let resource: Resource =
            serde_json::from_str(r#"{"vmid":"100","node":"a","type":"qemu","template":"1","id":"qemu/100"}"#)
                .unwrap();
        assert_eq!((resource.vmid, resource.template), (100, 1));
    }
}
