//! What the preflight finds.

use serde::{Deserialize, Serialize};

/// One need that was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Check {
    /// What needs it: `sandbox`, `qemu`, `nix`, `server` or a provider.
    pub area: String,
    /// What was checked, e.g. `user namespaces`.
    pub name: String,
    /// What was found.
    pub status: CheckStatus,
    /// What was found, for people.
    pub found: String,
    /// What is lost without it; empty where all is well.
    #[serde(default)]
    pub cost: String,
    /// The command that mends it, where one does.
    #[serde(default)]
    pub mend: Option<String>,
}

/// What a check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum CheckStatus {
    /// All is well.
    Ok,
    /// It works, but slower or with less.
    Degraded,
    /// The area cannot be used without it.
    Missing,
    /// Nobody has set the area up, and nobody needs to who does not want it.
    Unset,
}
