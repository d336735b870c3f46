//! What a machine is asked to be: shared by the API and the stored record.

use std::collections::BTreeMap;

pub use calve_core::ExitCause;
use calve_core::{DriverName, Kind, Runs};
use calve_nix::StorePath;
use serde::{Deserialize, Serialize};

/// What runs in the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Workload {
    /// A program out of a closure.
    Program(Program),
    /// A system: the store path holds `init`, `kernel`, `initrd` and `kernel-params`.
    System {
        /// The toplevel's store path.
        #[serde(with = "crate::text")]
        #[cfg_attr(feature = "openapi", schema(value_type = String))]
        toplevel: StorePath,
    },
    /// Nothing but the agent, to exec into.
    Base,
    /// Whatever ran on it before: somebody else made the machine and it was adopted, by `POST /v1/adoptions` alone. There is no
    /// agent in one at a provider; with the driver `ssh` there is while the server speaks with it.
    Adopted {
        /// The provider's id of it, or the host: `ssh://root@pi`.
        machine: String,
    },
}

/// A program with everything that it is started with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// Absolute path inside the store, e.g. `/nix/store/…-hello-2.12/bin/hello`.
    pub path: String,
    /// Arguments without the program's own name.
    #[serde(default)]
    pub args: Vec<String>,
    /// Environment; nothing is inherited.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Working directory; `/` where none is said.
    #[serde(default)]
    pub cwd: Option<String>,
    /// Further store paths whose closures the machine holds besides the program's own.
    #[serde(default, with = "store_paths")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub extra_roots: Vec<StorePath>,
    /// A store path whose tree is copied, writable, to `cwd` before the start.
    #[serde(default, with = "crate::text::option")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub work_tree: Option<StorePath>,
    /// Whether standard input stays open for a client; otherwise the program reads an empty one.
    #[serde(default)]
    pub stdin: bool,
}

impl Program {
    /// What a program is called that is a store path by itself: its name without the hash, which nobody typed, and which a
    /// program that is several by its name would not know. None for any other: it is called as it is found.
    pub fn own_name(&self) -> Option<String> {
        let store_path: StorePath = self.path.parse().ok()?;
        Some(store_path.name().to_owned())
    }
}

mod store_paths {
    use super::{Deserialize, StorePath};
    use serde::{Deserializer, Serializer, de};

    pub fn serialize<S: Serializer>(paths: &[StorePath], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(paths.iter().map(ToString::to_string))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<StorePath>, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        texts.iter().map(|text| text.parse().map_err(de::Error::custom)).collect()
    }
}

/// When an ended program is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// Never: what jobs do.
    Never,
    /// After an exit code other than 0, or a signal.
    OnFailure,
    /// Always: what services do.
    Always,
}

/// What a health check does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Probe {
    /// A command in the machine; healthy where it exits with 0.
    Command {
        /// The program and its arguments.
        argv: Vec<String>,
    },
    /// Something accepts connections on this port of the machine.
    Tcp {
        /// Port number.
        port: u16,
    },
    /// `GET` answers with a status of 200 to 399.
    Http {
        /// Port number.
        port: u16,
        /// Path, beginning with a slash.
        path: String,
    },
}

/// A health check: a probe with its times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct HealthCheck {
    /// What is done.
    pub probe: Probe,
    /// Time from one probe to the next.
    pub interval_ms: u64,
    /// Time after which a probe counts as failed.
    pub timeout_ms: u64,
    /// Failures in a row after which the machine counts as unhealthy (and a service is restarted).
    pub retries: u32,
}

/// What a machine may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Thousandths of a CPU: 1500 is one and a half; a guest has that many CPUs, rounded up, and together this time of the host.
    #[serde(default)]
    pub cpus_milli: Option<u32>,
    /// Memory in bytes.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// Processes and threads at once.
    #[serde(default)]
    pub pids: Option<u32>,
}

/// How a machine sees the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// A loopback of its own and nothing else; published ports still reach it.
    None,
    /// The host's: a sandbox shares it, a guest reaches out through it.
    Host,
}

/// How a machine gets the store paths of its closure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum StoreDelivery {
    /// As one image, made once for each closure and kept; guests only, a sandbox has the host's own paths.
    Image,
    /// Live out of the host's store (virtiofs), read-only and nothing beside the closure; nothing is made. Guests only.
    Live,
    /// Out of a cache while it runs: the host has mounted the closure, blocks come as they are touched, each verified. A
    /// process on the host serves it; `calve run` starts that.
    Lazy,
}

/// Where a provider makes the machine, and from what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// The provider's name for the region.
    pub region: String,
    /// The provider's name for the size; empty where there are none, as on a host that is there already.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub size: String,
    /// The provider's name or number for the image; the account's own base image where none is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The key by which a host is known, as `TYPE BASE64` or `SHA256:FINGERPRINT`, where the user has said it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_key: Option<String>,
}

/// A port of the machine published on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PortMapping {
    /// Address on the node; 127.0.0.1 where none was said.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub host_addr: std::net::IpAddr,
    /// Port on the node; 0 lets the node choose.
    pub host_port: u16,
    /// TCP port in the machine.
    pub machine_port: u16,
}

/// Where a closure came from, as the user wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// The argument of `calve run`: a path, a flake reference, `-A attr file`.
    pub given: String,
    /// The Git revision that was built, where there was one.
    #[serde(default)]
    pub revision: Option<String>,
}

/// Everything that a machine is asked to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct MachineSpec {
    /// What it does.
    #[serde(with = "crate::text")]
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub kind: Kind,
    /// What runs in it.
    pub workload: Workload,
    /// The driver, where the user chose one.
    #[serde(default, with = "crate::text::option")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub driver: Option<DriverName>,
    /// When an ended program is started again.
    pub restart: Restart,
    /// How its health is told.
    #[serde(default)]
    pub health: Option<HealthCheck>,
    /// What it may use.
    #[serde(default)]
    pub limits: Limits,
    /// How it sees the network.
    pub network: Network,
    /// How it gets its store paths, where the user chose; `image` and `live` only with the driver `qemu`, which takes an
    /// image otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<StoreDelivery>,
    /// Where a provider makes it; only with a driver that is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
    /// Its published ports.
    #[serde(default)]
    pub ports: Vec<PortMapping>,
    /// Where its closure came from.
    #[serde(default)]
    pub source: Source,
}

impl MachineSpec {
    /// A machine of which nothing more is asked: any driver, no limits, no network, never started again.
    pub fn new(kind: Kind, workload: Workload) -> Self {
        Self {
            kind,
            workload,
            driver: None,
            restart: Restart::Never,
            health: None,
            limits: Limits::default(),
            network: Network::None,
            store: None,
            place: None,
            ports: Vec::new(),
            source: Source::default(),
        }
    }

    /// What is handed to it, as decisions see it.
    pub fn runs(&self) -> Runs {
        match self.workload {
            Workload::Program(_) => Runs::Program,
            Workload::System { .. } => Runs::System,
            Workload::Base => Runs::Base,
            Workload::Adopted { .. } if self.driver == Some(DriverName::Ssh) => Runs::Host,
            Workload::Adopted { .. } => Runs::Adopted,
        }
    }
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Exit {
    /// The exit code, where it ended by itself.
    #[serde(default)]
    pub code: Option<i32>,
    /// The signal, where one ended it.
    #[serde(default)]
    pub signal: Option<i32>,
    /// What was behind it.
    #[serde(with = "crate::text")]
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub cause: ExitCause,
}

impl From<Exit> for calve_core::Exit {
    fn from(exit: Exit) -> Self {
        Self { code: exit.code, signal: exit.signal, cause: exit.cause }
    }
}

impl From<calve_core::Exit> for Exit {
    fn from(exit: calve_core::Exit) -> Self {
        Self { code: exit.code, signal: exit.signal, cause: exit.cause }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_store_path_by_itself_is_called_otherwise_than_it_is_found() {
        let own_name = |path: &str| {
            let text = format!("{{\"path\":{path:?}}}");
            serde_json::from_str::<Program>(&text).expect("a program").own_name()
        };
        let file = "/nix/store/0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-busybox-1.36";
        assert_eq!(own_name(file).as_deref(), Some("busybox-1.36"));
        for path in [&format!("{file}/bin/busybox"), "/bin/busybox", "busybox"] {
            assert_eq!(own_name(path), None, "{path}");
        }
    }
}
