//! What exists: droplets, tags, actions.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::catalog;

/// The first droplet's number.
const FIRST_ID: u64 = 500_000_001;

/// A droplet.
#[derive(Debug, Clone)]
pub struct Droplet {
    /// Its number.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Slug of its region.
    pub region: String,
    /// Slug of its size.
    pub size: String,
    /// Number of its image.
    pub image: u64,
    /// What it is given.
    pub user_data: String,
    /// Whether it was powered off.
    pub off: bool,
    made: Instant,
    made_at: jiff::Timestamp,
    gone: Option<Instant>,
}

impl Droplet {
    /// Memory in MiB.
    pub fn memory_mib(&self) -> u64 {
        catalog::size(&self.size).expect("a size of ours").memory_mib
    }
}

/// An action upon a droplet.
#[derive(Debug, Clone)]
pub struct Action {
    pub id: u64,
    pub kind: String,
    pub droplet: u64,
    pub region: String,
    begun: Instant,
    begun_at: jiff::Timestamp,
}

/// An image that an account has had fetched.
#[derive(Debug, Clone)]
pub(crate) struct CustomImage {
    pub id: u64,
    pub name: String,
    pub region: String,
    made: Instant,
    made_at: jiff::Timestamp,
}

impl CustomImage {
    /// Whether it has been fetched, which takes as long as a droplet's boot here.
    fn is_there(&self, boot: Duration) -> bool {
        self.made.elapsed() >= boot
    }

    /// As the API shows it: it is in its region once it is there.
    pub fn json(&self, boot: Duration) -> Value {
        let there = self.is_there(boot);
        let regions: &[&str] = if there { &[&self.region] } else { &[] };
        json!({
            "id": self.id, "slug": null, "distribution": "Unknown OS", "name": self.name, "regions": regions, "public": false,
            "type": "custom", "status": if there { "available" } else { "NEW" }, "min_disk_size": 1,
            "size_gigabytes": 0.07, "created_at": seconds(self.made_at), "tags": [], "description": "", "error_message": "",
        })
    }
}

/// Everything that exists.
pub(crate) struct State {
    pub url: String,
    all: BTreeMap<u64, Droplet>,
    /// Name → the droplets that carry it.
    pub tags: BTreeMap<String, BTreeSet<u64>>,
    pub actions: BTreeMap<u64, Action>,
    pub images: BTreeMap<u64, CustomImage>,
    next: u64,
}

impl State {
    pub fn new(url: String) -> Self {
        Self {
            url,
            all: BTreeMap::new(),
            tags: BTreeMap::new(),
            actions: BTreeMap::new(),
            images: BTreeMap::new(),
            next: FIRST_ID,
        }
    }

    /// Droplets that exist.
    pub fn droplets(&self) -> impl Iterator<Item = &Droplet> {
        self.all.values().filter(|droplet| droplet.gone.is_none())
    }

    pub fn created(&self) -> usize {
        self.all.len()
    }

    pub fn droplet(&mut self, id: u64) -> Option<&mut Droplet> {
        self.all.get_mut(&id).filter(|droplet| droplet.gone.is_none())
    }

    /// Droplets as a list shows them that tells what was `lag` ago, newest first as the real one.
    pub fn listed(&self, lag: Duration, tag: Option<&str>, name: Option<&str>) -> Vec<Droplet> {
        let then = |moment: Instant| moment.elapsed() >= lag;
        let shown = |droplet: &&Droplet| {
            then(droplet.made)
                && !droplet.gone.is_some_and(then)
                && tag.is_none_or(|tag| self.tags.get(tag).is_some_and(|ids| ids.contains(&droplet.id)))
                && name.is_none_or(|name| droplet.name == name)
        };
        self.all.values().rev().filter(shown).cloned().collect()
    }

    pub fn create(&mut self, request: New) -> Droplet {
        let id = self.take_number();
        let New { name, region, size, image, user_data, tags } = request;
        let (made, made_at) = (Instant::now(), jiff::Timestamp::now());
        let droplet =
            Droplet { id, name, region, size, image, user_data, off: false, made, made_at, gone: None };
        for tag in tags {
            self.tags.entry(tag).or_default().insert(id);
        }
        self.all.insert(id, droplet.clone());
        droplet
    }

    /// Whether there was one.
    pub fn destroy(&mut self, id: u64) -> bool {
        let Some(droplet) = self.droplet(id) else { return false };
        droplet.gone = Some(Instant::now());
        true
    }

    pub fn act(&mut self, droplet: u64, kind: &str) -> Action {
        let region = self.all[&droplet].region.clone();
        let id = self.take_number();
        let (begun, begun_at) = (Instant::now(), jiff::Timestamp::now());
        let action = Action { id, kind: kind.to_owned(), droplet, region, begun, begun_at };
        self.actions.insert(id, action.clone());
        action
    }

    pub fn add_image(&mut self, name: String, region: String) -> CustomImage {
        let id = self.take_number();
        let image = CustomImage { id, name, region, made: Instant::now(), made_at: jiff::Timestamp::now() };
        self.images.insert(id, image.clone());
        image
    }

    /// The image that a request names by number or slug: its number, and where it can be used.
    pub fn image(&self, named: &Value, boot: Duration) -> Option<(u64, Vec<String>)> {
        let image = self.image_json(named, boot)?;
        let regions =
            image["regions"].as_array()?.iter().filter_map(|region| region.as_str().map(str::to_owned));
        Some((image["id"].as_u64()?, regions.collect()))
    }

    pub fn image_json(&self, named: &Value, boot: Duration) -> Option<Value> {
        if let Some(image) = catalog::image(named) {
            return Some(catalog::image_json(image.id));
        }
        let number = named.as_u64().or_else(|| named.as_str()?.parse().ok())?;
        Some(self.images.get(&number)?.json(boot))
    }

    fn take_number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    pub fn droplet_json(&self, droplet: &Droplet, boot: Duration) -> Value {
        let size = catalog::size(&droplet.size).expect("a size of ours");
        let status = match (droplet.off, droplet.made.elapsed() < boot) {
            (_, true) => "new",
            (true, _) => "off",
            (false, _) => "active",
        };
        let tags: Vec<_> =
            self.tags.iter().filter(|(_, ids)| ids.contains(&droplet.id)).map(|(tag, _)| tag).collect();
        let low = droplet.id % 250 + 2;
        let v4 = match status {
            "new" => json!([]),
            _ => {
                json!([{"ip_address": format!("203.0.113.{low}"), "netmask": "255.255.255.0", "gateway": "203.0.113.1", "type": "public"}])
            }
        };
        json!({
            "id": droplet.id, "name": droplet.name, "memory": size.memory_mib, "vcpus": size.vcpus, "disk": size.disk_gib,
            "locked": status == "new", "status": status, "kernel": null, "created_at": seconds(droplet.made_at),
            "features": [], "backup_ids": [], "snapshot_ids": [], "volume_ids": [], "vpc_uuid": null,
            "image": self.image_json(&droplet.image.into(), boot), "size": catalog::size_json(size), "size_slug": size.slug,
            "networks": {"v4": v4, "v6": []}, "region": catalog::region_json(&droplet.region), "tags": tags,
        })
    }

    pub fn tag_json(&self, name: &str) -> Value {
        let ids = &self.tags[name];
        let last = ids.last().map(|id| format!("{}/v2/droplets/{id}", self.url));
        let counts = json!({"count": ids.len(), "last_tagged_uri": last});
        let none = json!({"count": 0});
        json!({"name": name, "resources": {
            "count": ids.len(), "last_tagged_uri": last, "droplets": counts, "images": none, "volumes": none,
            "volume_snapshots": none, "databases": none,
        }})
    }
}

impl Action {
    pub fn json(&self, boot: Duration) -> Value {
        let done = self.begun.elapsed() >= boot;
        let completed_at = done.then(|| seconds(self.begun_at));
        json!({
            "id": self.id, "status": if done { "completed" } else { "in-progress" }, "type": self.kind,
            "started_at": seconds(self.begun_at), "completed_at": completed_at, "resource_id": self.droplet,
            "resource_type": "droplet", "region": catalog::region_json(&self.region), "region_slug": self.region,
        })
    }
}

/// A droplet that is asked for, checked.
pub(crate) struct New {
    pub name: String,
    pub region: String,
    pub size: String,
    pub image: u64,
    pub user_data: String,
    pub tags: Vec<String>,
}

fn seconds(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
