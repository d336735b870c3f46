//! What the cluster has when it is set up: storages and templates.

use std::collections::BTreeMap;

/// A storage.
pub(crate) struct Storage {
    pub name: &'static str,
    pub kind: &'static str,
    pub content: &'static str,
    pub shared: bool,
    /// Whether what is on it can be cloned without a copy.
    pub links: bool,
}

/// Storages, the same ones at every node.
pub(crate) const STORAGES: [Storage; 4] = [
    Storage { name: "ceph", kind: "rbd", content: "images,rootdir", shared: true, links: true },
    Storage { name: "local", kind: "dir", content: "iso,vztmpl,backup,import", shared: false, links: false },
    Storage { name: "local-lvm", kind: "lvmthin", content: "images,rootdir", shared: false, links: true },
    Storage { name: "thick", kind: "lvm", content: "images", shared: false, links: false },
];

pub(crate) fn storage(name: &str) -> Option<&'static Storage> {
    STORAGES.iter().find(|storage| storage.name == name)
}

/// A template's VMID, node, name, and what it has besides the usual.
pub(crate) type Template = (u64, &'static str, &'static str, &'static [(&'static str, &'static str)]);

/// Templates.
pub(crate) const TEMPLATES: [Template; 5] = [
    (9000, "pve1", "calve-base", &[("scsi0", "local-lvm:base-9000-disk-0,size=2252M")]),
    (9001, "pve2", "calve-base", &[("scsi0", "local-lvm:base-9001-disk-0,size=2252M")]),
    (9002, "pve1", "shared-base", &[("scsi0", "ceph:base-9002-disk-0,size=2252M")]),
    (
        9003,
        "pve1",
        "debian-13",
        &[
            ("scsi0", "local-lvm:base-9003-disk-0,size=3G"),
            ("ide2", "local-lvm:vm-9003-cloudinit,media=cdrom,size=4M"),
            ("balloon", "512"),
            ("protection", "1"),
            ("tags", "debian;template"),
        ],
    ),
    (9004, "pve1", "thick-base", &[("scsi0", "thick:base-9004-disk-0,size=2G")]),
];

/// The configuration of a template.
pub(crate) fn template_config(template: &Template) -> BTreeMap<String, String> {
    let usual = [
        ("name", template.2),
        ("template", "1"),
        ("boot", "order=scsi0"),
        ("scsihw", "virtio-scsi-single"),
        ("cores", "1"),
        ("sockets", "1"),
        ("memory", "1024"),
        ("net0", "virtio=BC:24:11:00:00:01,bridge=vmbr0"),
        ("serial0", "socket"),
        ("ostype", "l26"),
    ];
    usual.iter().chain(template.3).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}
