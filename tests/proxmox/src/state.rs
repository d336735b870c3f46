//! What there is: machines, files, tickets.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::cluster::{TEMPLATES, template_config};

/// Options of a machine that are numbers.
const NUMBERS: [&str; 6] = ["cores", "sockets", "onboot", "template", "balloon", "protection"];

/// A virtual machine.
#[derive(Debug, Clone)]
pub struct Vm {
    /// Its number.
    pub vmid: u64,
    /// The node that it is on.
    pub node: String,
    /// Its configuration.
    pub config: BTreeMap<String, String>,
    /// Whether it was started.
    pub running: bool,
    /// Whether it was made of a template.
    pub is_clone: bool,
    made: Instant,
}

impl Vm {
    /// One that is not yet anything but locked.
    pub(crate) fn being_cloned(vmid: u64, node: &str) -> Self {
        let config = BTreeMap::from([("lock".to_owned(), "clone".to_owned())]);
        Self { vmid, node: node.to_owned(), config, running: false, is_clone: true, made: Instant::now() }
    }

    /// Somebody else's.
    pub(crate) fn foreign(vmid: u64) -> Self {
        let config = [("name", "notes"), ("description", "Not to be touched"), ("memory", "512")];
        let config = config.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let (config, node) = (BTreeMap::from(config), "pve1".to_owned());
        Self { vmid, node, config, running: false, is_clone: false, made: Instant::now() }
    }

    /// An option's value.
    pub fn option(&self, name: &str) -> &str {
        self.config.get(name).map_or("", String::as_str)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.option("name")
    }

    /// Its tags.
    pub fn tags(&self) -> Vec<String> {
        self.option("tags").split(';').filter(|tag| !tag.is_empty()).map(str::to_owned).collect()
    }

    /// Memory in MiB.
    pub fn memory_mib(&self) -> u64 {
        self.option("memory").parse().unwrap_or(512)
    }

    pub(crate) fn is_template(&self) -> bool {
        self.option("template") == "1"
    }

    pub(crate) fn lock(&mut self, lock: Option<&str>) {
        match lock {
            Some(lock) => self.config.insert("lock".to_owned(), lock.to_owned()),
            None => self.config.remove("lock"),
        };
    }

    /// Its drives by slot.
    pub(crate) fn drives(&self) -> impl Iterator<Item = (&str, &str)> {
        let is_drive = |name: &str| {
            let rest = ["ide", "sata", "scsi", "virtio"].iter().find_map(|bus| name.strip_prefix(bus));
            rest.is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|c| c.is_ascii_digit()))
        };
        self.config.iter().filter(move |(name, _)| is_drive(name)).map(|(name, value)| (&**name, &**value))
    }

    fn processors(&self) -> u64 {
        let number = |name: &str| self.option(name).parse().unwrap_or(1);
        number("cores") * number("sockets")
    }

    pub(crate) fn digest(&self) -> String {
        let text: Vec<String> = self.config.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        Sha256::digest(text.join("\n")).iter().take(20).map(|byte| format!("{byte:02x}")).collect()
    }

    pub(crate) fn config_json(&self) -> Value {
        let mut shown = Map::new();
        for (name, value) in &self.config {
            let value = match value.parse::<u64>() {
                Ok(number) if NUMBERS.contains(&&**name) => json!(number),
                // It is kept as comments, each with its line's end.
                _ if name == "description" => json!(format!("{value}\n")),
                _ => json!(value),
            };
            shown.insert(name.clone(), value);
        }
        shown.insert("digest".to_owned(), json!(self.digest()));
        Value::Object(shown)
    }

    pub(crate) fn status_json(&self) -> Value {
        let mut shown = json!({
            "vmid": self.vmid, "name": self.option("name"), "status": if self.running { "running" } else { "stopped" },
            "cpus": self.processors(), "maxmem": self.memory_mib() << 20, "uptime": 0, "tags": self.option("tags"),
        });
        if self.is_template() {
            shown["template"] = json!(1);
        }
        if self.config.contains_key("lock") {
            shown["lock"] = json!(self.option("lock"));
        }
        shown
    }

    /// As the cluster's list shows it, which knows tags and locks at once, and what nodes report only after a while.
    pub(crate) fn resource_json(&self, report_lag: Duration) -> Value {
        let mut shown = json!({
            "id": format!("qemu/{}", self.vmid), "vmid": self.vmid, "node": self.node, "type": "qemu", "status": "unknown",
        });
        for name in ["tags", "lock"] {
            if self.config.contains_key(name) {
                shown[name] = json!(self.option(name));
            }
        }
        if self.made.elapsed() >= report_lag && self.config.contains_key("name") {
            shown["name"] = json!(self.name());
            shown["status"] = json!(if self.running { "running" } else { "stopped" });
            shown["template"] = json!(u8::from(self.is_template()));
            shown["maxcpu"] = json!(self.processors());
            shown["maxmem"] = json!(self.memory_mib() << 20);
            shown["uptime"] = json!(0);
        }
        shown
    }
}

/// Everything that there is.
pub(crate) struct State {
    pub vms: BTreeMap<u64, Vm>,
    /// Node and volume → contents.
    pub files: BTreeMap<(String, String), Vec<u8>>,
    /// Ticket → the token against forged requests.
    pub tickets: BTreeMap<String, String>,
    /// How many machines were made of templates.
    pub created: usize,
}

impl State {
    pub fn new() -> Self {
        let mut vms = BTreeMap::new();
        for template in &TEMPLATES {
            let vm = Vm {
                vmid: template.0,
                node: template.1.to_owned(),
                config: template_config(template),
                running: false,
                is_clone: false,
                made: Instant::now().checked_sub(Duration::from_secs(3600)).unwrap_or_else(Instant::now),
            };
            vms.insert(vm.vmid, vm);
        }
        vms.insert(101, Vm::foreign(101));
        Self { vms, files: BTreeMap::new(), tickets: BTreeMap::new(), created: 0 }
    }

    pub fn machines(&self) -> impl Iterator<Item = &Vm> {
        self.vms.values().filter(|vm| vm.is_clone)
    }

    /// The least VMID that is free.
    pub fn next_id(&self) -> Option<u64> {
        (100..1_000_000).find(|vmid| !self.is_taken(*vmid))
    }

    /// Whether a machine or a container has this VMID.
    pub fn is_taken(&self, vmid: u64) -> bool {
        self.vms.contains_key(&vmid) || vmid == CONTAINER
    }
}

/// The VMID of a container, which lists show among machines.
pub(crate) const CONTAINER: u64 = 103;
