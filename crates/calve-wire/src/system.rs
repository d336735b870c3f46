//! Systems that are switched: what the server and `calve-switch` on the host say to each other, what is kept of it, and
//! what clients see.
//!
//! `calve-switch` is a program of its own on the host. The server runs it over the agent's link (`calve-switch VERB`, an
//! order on standard input where there is one); it answers with one JSON document on standard output.

use serde::{Deserialize, Serialize};

/// The version of what `calve-switch` reads and writes.
pub const SWITCH_VERSION: u32 = 1;
/// Where `calve-switch` keeps its record, history, socket and itself on the host.
pub const SWITCH_DIR: &str = "/var/lib/calve/switch";
/// Its name in [`SWITCH_DIR`], by which the agent finds it at its start.
pub const SWITCH_PROGRAM: &str = "calve-switch";
/// A file beside the paths that were brought to a host with Nix's database: what that is to know of them, in the words of
/// `nix-store --load-db`.
pub const REGISTRATION: &str = ".registration";
/// Longest health check in bytes: the record on the host's disk has a fixed size.
pub const HEALTH_MAX_BYTES: usize = 2048;
/// Time to confirm where nobody says one: with the way back it stays below 90 seconds.
pub const CONFIRM_DEFAULT_MS: u64 = 60_000;
/// Shortest time to confirm: the new system has to be activated in it.
pub const CONFIRM_MIN_MS: u64 = 1000;
/// Longest time to confirm: so long a host may stay cut off.
pub const CONFIRM_MAX_MS: u64 = 3_600_000;

/// What is done with the new system: the verbs of `switch-to-configuration`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum SwitchAction {
    /// Activate it now, and boot it from now on.
    Switch,
    /// Boot it at the next boot, once; from then on where that boot was confirmed.
    Boot,
    /// Activate it now; the next boot is of the former system.
    Test,
    /// Show what activating it would do.
    DryActivate,
}

impl SwitchAction {
    /// Its word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Switch => "switch",
            Self::Boot => "boot",
            Self::Test => "test",
            Self::DryActivate => "dry-activate",
        }
    }
}

/// Names the switch to the system that a machine at a provider is made for, by the attempt at making it.
pub fn first_switch(attempt: u32) -> String {
    format!("made-{attempt}")
}

/// How a switch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum SwitchOutcome {
    /// The host has the new system, and it was confirmed.
    Applied,
    /// The host has its former system.
    RolledBack,
    /// Neither is sure: somebody has to look.
    Failed,
    /// Nothing was begun.
    Refused,
}

/// Where a switch stands, for people and for the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum SwitchStage {
    /// The closure is brought to the host; nothing has been changed.
    Bringing,
    /// The new system is being set up.
    Applying,
    /// The new system runs; its health and the server's word are waited for.
    Confirming,
    /// The new system is tried at the next boot.
    AwaitingBoot,
    /// Confirmed; it is made the one that boots.
    Keeping,
    /// The former system is being brought back.
    GoingBack,
    /// It has ended.
    Ended,
}

impl SwitchStage {
    /// Its word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bringing => "bringing",
            Self::Applying => "applying",
            Self::Confirming => "confirming",
            Self::AwaitingBoot => "awaiting-boot",
            Self::Keeping => "keeping",
            Self::GoingBack => "going-back",
            Self::Ended => "ended",
        }
    }
}

/// The order of `calve-switch begin`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostOrder {
    /// [`SWITCH_VERSION`] of the writer.
    pub version: u32,
    /// Names the switch; unique for the host.
    pub id: String,
    /// The new system's store path.
    pub toplevel: String,
    /// What is done with it.
    pub action: SwitchAction,
    /// A command of a shell that exits with 0 where the new system is well.
    #[serde(default)]
    pub health: Option<String>,
    /// Time from the beginning until the new system has to be confirmed.
    pub confirm_ms: u64,
    /// The generation that it is already, where an earlier one is wanted back.
    #[serde(default)]
    pub generation: Option<u64>,
    /// Who wants it.
    pub by: String,
    /// A directory beside the store whose entries are to be moved into it first.
    #[serde(default)]
    pub incoming: Option<String>,
}

/// The answer of `calve-switch room`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRoom {
    /// Base names of the store paths that the host lacks.
    pub missing: Vec<String>,
    /// The directory into which they are to be brought; in the order of the switch as [`HostOrder::incoming`].
    pub dir: String,
    /// Whether the host has Nix's database, and [`REGISTRATION`] is to be brought along.
    pub registers: bool,
    /// The system that runs: its paths may have parts of those that are missing.
    #[serde(default)]
    pub current: Option<String>,
}

/// A switch as the host knows it: the answer of `calve-switch status`, and a line of its history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HostSwitch {
    /// Names the switch.
    pub id: String,
    /// The new system.
    pub toplevel: String,
    /// The system before it.
    pub former: String,
    /// What is done with the new system.
    pub action: SwitchAction,
    /// The profile's generation of the new system, where it has one.
    #[serde(default)]
    pub generation: Option<u64>,
    /// Who wanted it.
    pub by: String,
    /// When it was begun, by the host's clock.
    pub begun_unix_ms: u64,
    /// When it ended, by the host's clock.
    #[serde(default)]
    pub ended_unix_ms: Option<u64>,
    /// Where it stands.
    pub stage: SwitchStage,
    /// Whether the health check passed at its last run; also where there is none to pass.
    pub healthy: bool,
    /// How it ended.
    #[serde(default)]
    pub outcome: Option<SwitchOutcome>,
    /// What went wrong, for people.
    #[serde(default)]
    pub message: Option<String>,
}

/// The answer to `calve-switch begin` and to `confirm` and `back`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum HostAnswer {
    /// It has begun, or was changed as asked.
    Done {
        /// As it stands now.
        switch: HostSwitch,
    },
    /// Another one is under way.
    Busy {
        /// That one.
        switch: HostSwitch,
    },
    /// What a dry activation said.
    Dry {
        /// Its output.
        output: String,
        /// Its exit code.
        code: i32,
    },
    /// It cannot be done, and nothing was changed.
    Refused {
        /// Why, in one sentence.
        message: String,
    },
}

/// One generation of the host's profile, with what is known of how it came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Generation {
    /// Its number.
    pub number: u64,
    /// Its system.
    pub toplevel: String,
    /// When it was made.
    pub made_unix_ms: u64,
    /// Whether the profile leads to it.
    pub current: bool,
}

/// What a host's system is like: the answer of `calve-switch facts`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HostFacts {
    /// Where `/run/current-system` leads.
    #[serde(default)]
    pub current: Option<String>,
    /// Where `/run/booted-system` leads.
    #[serde(default)]
    pub booted: Option<String>,
    /// Where the profile leads.
    #[serde(default)]
    pub profile: Option<String>,
    /// Units of systemd that have failed; none where there is no systemd to be asked.
    #[serde(default)]
    pub failed_units: Option<Vec<String>>,
    /// The profile's generations, the oldest first.
    #[serde(default)]
    pub generations: Vec<Generation>,
    /// Past switches, the oldest first.
    #[serde(default)]
    pub history: Vec<HostSwitch>,
    /// The switch under way, or the last one.
    #[serde(default)]
    pub switch: Option<HostSwitch>,
}

/// `POST /v1/machines/{name}/switch`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct SwitchRequest {
    /// The new system's store path; the host's former generation where none is said.
    #[serde(default, with = "crate::text::option")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub toplevel: Option<calve_nix::StorePath>,
    /// What is done with it.
    pub action: SwitchAction,
    /// A command of a shell on the host that exits with 0 where the new system is well.
    #[serde(default)]
    pub health: Option<String>,
    /// Time from the beginning of the activation until it has to be confirmed; a minute where none is said.
    #[serde(default)]
    pub confirm_ms: Option<u64>,
}

/// A switch as clients see it: `GET /v1/machines/{name}/switches/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SwitchView {
    /// Names it.
    pub id: String,
    /// The machine's name.
    pub machine: String,
    /// The new system.
    pub toplevel: String,
    /// What is done with it.
    pub action: SwitchAction,
    /// Who wanted it.
    pub by: String,
    /// When it was asked for.
    pub begun_unix_ms: u64,
    /// Where it stands, as far as the server has heard.
    pub stage: SwitchStage,
    /// How it ended.
    #[serde(default)]
    pub outcome: Option<SwitchOutcome>,
    /// What is special about it, or went wrong.
    #[serde(default)]
    pub message: Option<String>,
}

/// What a machine's system shall be, and the switches that were asked for: stored by the server, one document a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemRecord {
    /// [`SWITCH_VERSION`] of the writer.
    pub version: u32,
    /// The system that the machine shall have: of the last switch that was applied.
    #[serde(default)]
    pub desired: Option<String>,
    /// The switch under way.
    #[serde(default)]
    pub pending: Option<PendingSwitch>,
    /// The ends of the last switches, the newest last.
    #[serde(default)]
    pub ended: Vec<SwitchView>,
}

/// A switch that has not ended, with all that the next server needs to go on with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingSwitch {
    /// As clients see it.
    pub view: SwitchView,
    /// The health check.
    #[serde(default)]
    pub health: Option<String>,
    /// Time to confirm.
    pub confirm_ms: u64,
    /// The generation that the system is already, where an earlier one is wanted back.
    #[serde(default)]
    pub generation: Option<u64>,
    /// Whether the host may have been told to begin: written before it is.
    pub ordered: bool,
    /// Whether it may have been given the server's word, by which it stays where it is: written before it is.
    #[serde(default)]
    pub confirmed: bool,
}

impl PendingSwitch {
    /// A switch of which nothing has been done, with the usual time to confirm and no health check.
    pub fn new(
        id: String,
        machine: String,
        toplevel: String,
        action: SwitchAction,
        by: String,
        begun_unix_ms: u64,
    ) -> Self {
        Self {
            view: SwitchView {
                id,
                machine,
                toplevel,
                action,
                by,
                begun_unix_ms,
                stage: SwitchStage::Bringing,
                outcome: None,
                message: None,
            },
            health: None,
            confirm_ms: CONFIRM_DEFAULT_MS,
            generation: None,
            ordered: false,
            confirmed: false,
        }
    }
}

/// `GET /v1/machines/{name}/system`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SystemView {
    /// The system that the machine shall have.
    pub desired: String,
    /// What it has.
    pub facts: HostFacts,
    /// How the two differ, each in a sentence; none where they do not.
    pub drift: Vec<String>,
    /// The ends of the last switches as the server has seen them, the newest last.
    pub ended: Vec<SwitchView>,
}
