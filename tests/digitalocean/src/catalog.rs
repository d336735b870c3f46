//! What can be had: an excerpt of the real lists, with prices of 2026.

use serde_json::{Value, json};

/// Slug, name, whether it is available.
pub const REGIONS: [(&str, &str, bool); 5] = [
    ("ams3", "Amsterdam 3", true),
    ("fra1", "Frankfurt 1", true),
    ("nyc3", "New York 3", true),
    ("sgp1", "Singapore 1", true),
    ("nyc2", "New York 2", false),
];

/// A size.
pub struct Size {
    pub slug: &'static str,
    pub memory_mib: u64,
    pub vcpus: u64,
    pub disk_gib: u64,
    pub monthly: f64,
    pub hourly: f64,
    pub regions: &'static [&'static str],
}

const EVERYWHERE: &[&str] = &["ams3", "fra1", "nyc3", "sgp1"];

pub const SIZES: [Size; 4] = [
    Size {
        slug: "s-1vcpu-512mb-10gb",
        memory_mib: 512,
        vcpus: 1,
        disk_gib: 10,
        monthly: 4.0,
        hourly: 0.00595,
        regions: &["ams3", "fra1"],
    },
    Size {
        slug: "s-1vcpu-1gb",
        memory_mib: 1024,
        vcpus: 1,
        disk_gib: 25,
        monthly: 6.0,
        hourly: 0.00893,
        regions: EVERYWHERE,
    },
    Size {
        slug: "s-1vcpu-2gb",
        memory_mib: 2048,
        vcpus: 1,
        disk_gib: 50,
        monthly: 12.0,
        hourly: 0.01786,
        regions: EVERYWHERE,
    },
    Size {
        slug: "s-2vcpu-4gb",
        memory_mib: 4096,
        vcpus: 2,
        disk_gib: 80,
        monthly: 24.0,
        hourly: 0.03571,
        regions: EVERYWHERE,
    },
];

/// An image; custom ones have no slug.
pub struct Image {
    pub id: u64,
    pub slug: Option<&'static str>,
    pub distribution: &'static str,
    pub name: &'static str,
    pub regions: &'static [&'static str],
}

pub const IMAGES: [Image; 3] = [
    Image {
        id: 185_000_001,
        slug: Some("debian-13-x64"),
        distribution: "Debian",
        name: "13 x64",
        regions: EVERYWHERE,
    },
    Image {
        id: 185_000_002,
        slug: Some("ubuntu-24-04-x64"),
        distribution: "Ubuntu",
        name: "24.04 (LTS) x64",
        regions: EVERYWHERE,
    },
    Image {
        id: 190_000_001,
        slug: None,
        distribution: "Unknown OS",
        name: "calve-base",
        regions: &["ams3", "fra1"],
    },
];

pub fn size(slug: &str) -> Option<&'static Size> {
    SIZES.iter().find(|size| size.slug == slug)
}

pub fn size_json(size: &Size) -> Value {
    json!({
        "slug": size.slug, "memory": size.memory_mib, "vcpus": size.vcpus, "disk": size.disk_gib, "transfer": 1.0,
        "price_monthly": size.monthly, "price_hourly": size.hourly, "regions": size.regions, "available": true,
        "description": "Basic",
    })
}

pub fn region_json(slug: &str) -> Value {
    let (_, name, available) = REGIONS.iter().find(|region| region.0 == slug).expect("a region of ours");
    let sizes: Vec<_> =
        SIZES.iter().filter(|size| size.regions.contains(&slug)).map(|size| size.slug).collect();
    json!({"slug": slug, "name": name, "available": available, "sizes": sizes, "features": ["metadata", "image_transfer"]})
}

/// The image that a request names by number or slug.
pub fn image(named: &Value) -> Option<&'static Image> {
    let text = named.as_str().map(str::to_owned).unwrap_or_else(|| named.to_string());
    IMAGES.iter().find(|image| image.slug == Some(text.as_str()) || image.id.to_string() == text)
}

pub fn image_json(number: u64) -> Value {
    let image = IMAGES.iter().find(|image| image.id == number).expect("an image of ours");
    json!({
        "id": image.id, "slug": image.slug, "distribution": image.distribution, "name": image.name,
        "regions": image.regions, "public": image.slug.is_some(),
        "type": if image.slug.is_some() { "base" } else { "custom" }, "status": "available", "min_disk_size": 7,
        "size_gigabytes": 0.5, "created_at": "2026-01-05T00:00:00Z", "tags": [], "description": "",
        "error_message": "",
    })
}
