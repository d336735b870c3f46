//! The lines that calve and a plugin exchange, version 1. Unknown members are skipped, so that plugins may say more.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Image, Listed, Region, Size};

/// The version that this program speaks.
pub(super) const VERSION: u32 = 1;
/// Most bytes of a text that a plugin gives: ids, names, tags.
const TEXT_MAX_BYTES: usize = 512;

/// A request.
#[derive(Serialize)]
pub(super) struct Request<'a> {
    /// [`VERSION`].
    pub calve: u32,
    /// Comes back in the answer.
    pub id: u64,
    /// What is to be done.
    #[serde(rename = "do")]
    pub what: &'a str,
    /// With what.
    pub with: &'a Value,
}

/// An answer: either `ok` or `error`.
#[derive(Deserialize)]
pub(super) struct Answer {
    pub calve: u32,
    pub id: u64,
    pub ok: Option<Value>,
    pub error: Option<Refusal>,
}

/// Why a plugin did not do it.
#[derive(Deserialize)]
pub(super) struct Refusal {
    #[serde(default)]
    pub kind: String,
    pub message: String,
    /// The name of a request at whatever stands behind the plugin.
    #[serde(default)]
    pub request: Option<String>,
    /// With the kind `rate`: how long to wait.
    #[serde(default)]
    pub wait_ms: u64,
}

/// What a plugin is.
#[derive(Deserialize)]
pub(super) struct Described {
    /// In a few words.
    pub about: String,
    /// What it can do besides `describe`, `list`, `create` and `destroy`.
    #[serde(default)]
    does: Vec<String>,
}

impl Described {
    pub fn does(&self, what: &str) -> bool {
        self.does.iter().any(|done| done == what)
    }
}

#[derive(Deserialize)]
pub(super) struct Made {
    pub machine: Seen,
}

/// A list of one kind of things.
#[derive(Deserialize)]
pub(super) struct Things<T> {
    #[serde(default = "Vec::new")]
    pub machines: Vec<T>,
    #[serde(default = "Vec::new")]
    pub sizes: Vec<T>,
    #[serde(default = "Vec::new")]
    pub regions: Vec<T>,
    #[serde(default = "Vec::new")]
    pub images: Vec<T>,
    /// The clock by which leases are to be judged.
    pub unix_s: Option<u64>,
}

impl<T> Default for Things<T> {
    fn default() -> Self {
        Self {
            machines: Vec::new(),
            sizes: Vec::new(),
            regions: Vec::new(),
            images: Vec::new(),
            unix_s: None,
        }
    }
}

/// A machine as a plugin shows it.
#[derive(Deserialize)]
pub(super) struct Seen {
    pub id: String,
    name: String,
    tags: Vec<String>,
    #[serde(default)]
    region: String,
    #[serde(default)]
    size: String,
    #[serde(default)]
    status: String,
    #[serde(default)]
    address: Option<String>,
    #[serde(default)]
    created_at: String,
    #[serde(default)]
    dollars_per_hour: Option<f64>,
}

impl Seen {
    /// Whether it can be what was asked for: it has an id, and carries these tags.
    pub fn check(&self, tags: &[String]) -> Result<(), String> {
        let plain = |text: &str| text.len() <= TEXT_MAX_BYTES && !text.chars().any(char::is_control);
        if self.id.is_empty()
            || !plain(&self.id)
            || !plain(&self.name)
            || !self.tags.iter().all(|tag| plain(tag))
        {
            return Err("it shows a machine whose id, name or tags are none".to_owned());
        }
        match tags.iter().find(|tag| !self.tags.contains(tag)) {
            Some(missing) => Err(format!("its machine {:?} does not carry the tag {missing}", self.id)),
            None => Ok(()),
        }
    }

    pub fn listed(self, plugin: &str) -> Listed {
        let region =
            if self.region.is_empty() { plugin.to_owned() } else { format!("{plugin}/{}", self.region) };
        Listed {
            id: format!("{plugin}/{}", self.id),
            name: self.name,
            tags: self.tags,
            region,
            size: self.size,
            status: if self.status.is_empty() { "active".to_owned() } else { self.status },
            address: self.address,
            created_at: self.created_at,
            dollars_per_hour: self.dollars_per_hour,
        }
    }
}

#[derive(Deserialize)]
pub(super) struct SeenSize {
    slug: String,
    #[serde(default)]
    cpus: u32,
    #[serde(default)]
    memory_mib: u64,
    #[serde(default)]
    disk_gib: u64,
    #[serde(default)]
    dollars_per_hour: f64,
}

impl From<SeenSize> for Size {
    fn from(seen: SeenSize) -> Self {
        Self {
            slug: seen.slug,
            cpus: seen.cpus,
            memory_mib: seen.memory_mib,
            disk_gib: seen.disk_gib,
            dollars_per_hour: seen.dollars_per_hour,
            regions: Vec::new(),
            available: true,
        }
    }
}

#[derive(Deserialize)]
pub(super) struct SeenRegion {
    slug: String,
    #[serde(default)]
    name: String,
}

impl SeenRegion {
    pub fn region(self, plugin: &str) -> Region {
        Region { slug: format!("{plugin}/{}", self.slug), name: self.name, area: None, available: true }
    }
}

#[derive(Deserialize)]
pub(super) struct SeenImage {
    slug: String,
    #[serde(default)]
    name: String,
}

impl SeenImage {
    pub fn image(self, plugin: &str) -> Image {
        Image {
            id: self.slug.clone(),
            slug: Some(self.slug),
            name: self.name,
            regions: vec![plugin.to_owned()],
            status: "available".to_owned(),
        }
    }
}
