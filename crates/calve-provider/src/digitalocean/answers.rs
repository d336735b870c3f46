//! What DigitalOcean's API v2 answers, as far as it is used. Field names are its own.

use serde::Deserialize;

use crate::{Image, Listed, Region, Size};

/// One page of a list; the list has its own name in each answer.
pub(super) trait Page {
    /// What is listed.
    type Item;
    /// The items, whether another page follows, and how many there are on all pages.
    fn parts(self) -> (Vec<Self::Item>, bool, Option<usize>);
}

macro_rules! page {
    ($name:ident, $field:ident, $item:ty) => {
        #[derive(Deserialize)]
        pub(super) struct $name {
            $field: Vec<$item>,
            #[serde(default)]
            links: Links,
            #[serde(default)]
            meta: Meta,
        }
        impl Page for $name {
            type Item = $item;
            fn parts(self) -> (Vec<$item>, bool, Option<usize>) {
                let more = self.links.pages.is_some_and(|pages| pages.next.is_some());
                (self.$field, more, self.meta.total)
            }
        }
    };
}

page!(Droplets, droplets, Droplet);
page!(Sizes, sizes, SizeSeen);
page!(Regions, regions, RegionSeen);
page!(Images, images, ImageSeen);

#[derive(Default, Deserialize)]
struct Links {
    pages: Option<Pages>,
}

#[derive(Deserialize)]
struct Pages {
    next: Option<String>,
}

#[derive(Default, Deserialize)]
struct Meta {
    total: Option<usize>,
}

/// One droplet, made or shown.
#[derive(Deserialize)]
pub(super) struct One {
    pub droplet: Droplet,
}

#[derive(Deserialize)]
pub(super) struct Droplet {
    pub id: u64,
    name: String,
    status: String,
    created_at: String,
    #[serde(default)]
    tags: Vec<String>,
    region: Slug,
    size_slug: String,
    #[serde(default)]
    size: Option<Price>,
    #[serde(default)]
    networks: Networks,
}

#[derive(Deserialize)]
struct Slug {
    slug: String,
}

#[derive(Deserialize)]
struct Price {
    price_hourly: f64,
}

#[derive(Default, Deserialize)]
struct Networks {
    #[serde(default)]
    v4: Vec<Network>,
}

#[derive(Deserialize)]
struct Network {
    ip_address: String,
    r#type: String,
}

impl From<Droplet> for Listed {
    fn from(droplet: Droplet) -> Self {
        let public = droplet.networks.v4.into_iter().find(|network| network.r#type == "public");
        Self {
            id: droplet.id.to_string(),
            name: droplet.name,
            tags: droplet.tags,
            region: droplet.region.slug,
            size: droplet.size_slug,
            status: droplet.status,
            address: public.map(|network| network.ip_address),
            created_at: droplet.created_at,
            dollars_per_hour: droplet.size.map(|size| size.price_hourly),
        }
    }
}

#[derive(Deserialize)]
pub(super) struct SizeSeen {
    pub slug: String,
    memory: u64,
    vcpus: u32,
    disk: u64,
    price_hourly: f64,
    regions: Vec<String>,
    available: bool,
}

impl From<SizeSeen> for Size {
    fn from(size: SizeSeen) -> Self {
        Self {
            slug: size.slug,
            cpus: size.vcpus,
            memory_mib: size.memory,
            disk_gib: size.disk,
            dollars_per_hour: size.price_hourly,
            regions: size.regions,
            available: size.available,
        }
    }
}

#[derive(Deserialize)]
pub(super) struct RegionSeen {
    pub slug: String,
    name: String,
    available: bool,
}

impl From<RegionSeen> for Region {
    fn from(region: RegionSeen) -> Self {
        Self { area: area(&region.slug), slug: region.slug, name: region.name, available: region.available }
    }
}

/// The part of the world of a region, whose slug is a city's and a number (<https://docs.digitalocean.com/platform/regional-availability/>).
fn area(slug: &str) -> Option<&'static str> {
    match slug.trim_end_matches(|c: char| c.is_ascii_digit()) {
        "ams" | "fra" | "lon" => Some("eu"),
        "nyc" | "sfo" | "atl" | "ric" => Some("us"),
        "tor" => Some("ca"),
        "sgp" | "blr" => Some("asia"),
        "syd" => Some("au"),
        _ => None,
    }
}

#[derive(Deserialize)]
pub(super) struct ImageSeen {
    pub id: u64,
    slug: Option<String>,
    name: String,
    #[serde(default)]
    distribution: Option<String>,
    #[serde(default)]
    regions: Vec<String>,
    #[serde(default)]
    status: Option<String>,
}

impl From<ImageSeen> for Image {
    fn from(image: ImageSeen) -> Self {
        let distribution = image.distribution.map(|name| format!("{name} ")).unwrap_or_default();
        Self {
            id: image.id.to_string(),
            slug: image.slug,
            name: format!("{distribution}{}", image.name),
            regions: image.regions,
            status: image.status.unwrap_or_else(|| "available".to_owned()),
        }
    }
}

#[derive(Deserialize)]
pub(super) struct ImageAnswer {
    pub image: ImageSeen,
}

#[derive(Deserialize)]
pub(super) struct AccountAnswer {
    pub account: AccountSeen,
}

#[derive(Deserialize)]
pub(super) struct AccountSeen {
    pub droplet_limit: Option<u64>,
    pub email: Option<String>,
    pub uuid: String,
    pub status: String,
    pub team: Option<Team>,
}

#[derive(Deserialize)]
pub(super) struct Team {
    pub name: String,
}
