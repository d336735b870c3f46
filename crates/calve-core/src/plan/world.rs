//! What a round sees.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::{DriverName, Exit, Lease, Machine, MachineId, NodeName, Timestamp};

/// Position in the order in which the loop begins and ends things; tells whether a list was taken after an effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Tick(pub u64);

/// Everything that a round sees.
#[derive(Debug, Clone, Copy)]
pub struct World<'a> {
    /// The node that machines are placed on.
    pub node: &'a NodeName,
    /// When this loop began to look: nobody was missed before that.
    pub since: Timestamp,
    /// Every record.
    pub machines: &'a BTreeMap<MachineId, Machine>,
    /// Whether every record could be read; otherwise an unknown machine may be somebody's.
    pub complete: bool,
    /// What is known of machines beyond their records, also of machines without one.
    pub sights: &'a BTreeMap<MachineId, Sight>,
    /// What is known of the drivers.
    pub drivers: &'a Drivers,
    /// What each driver listed, and when the list was asked for; a driver without one is unknown now.
    pub lists: &'a BTreeMap<DriverName, List>,
}

/// What a driver listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List {
    /// When it was asked for.
    pub asked: Tick,
    /// Whether it shows every machine. Otherwise one that an earlier server made may exist though it is not shown: a provider's
    /// list lags, and who knew better has died.
    pub whole: bool,
    /// The machines.
    pub machines: BTreeMap<MachineId, Listed>,
}

/// What is known of the drivers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Drivers {
    /// When they were last asked, if ever.
    pub as_of: Option<Timestamp>,
    /// For each known driver, that it can be used or why not.
    pub usable: BTreeMap<DriverName, Result<(), String>>,
}

/// A machine in a driver's list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed {
    /// Which creation of it.
    pub attempt: u32,
    /// Whether it lives; otherwise only something to clean up is left.
    pub alive: bool,
    /// How it ended, where it does not live and its driver knows.
    pub ended: Option<Ended>,
}

/// How a machine ended that nobody ordered to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// By its own hand: what runs in it powered it off.
    ByItself,
    /// Under what runs in it: it was killed from outside, or broke.
    Killed,
}

/// What a machine's driver says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// No list was taken since the last effect on it, or only one that may not show it yet.
    Unknown,
    /// Its driver does not have it.
    Absent,
    /// Its driver has it.
    Listed(Listed),
}

/// What the loop knows of a machine beyond its record; lost with the server, and safely so.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sight {
    /// Whether something is being done to it: nothing else is until that has ended.
    pub busy: bool,
    /// When the last effect on it ended.
    pub settled: Tick,
    /// Effects on it wait until then, as the last one failed.
    pub pause_until: Option<Timestamp>,
    /// Its record is not written until then, as the last writing failed; nor is done what would follow.
    pub unwritten_until: Option<Timestamp>,
    /// Whether every creation of it was this loop's: a list that does not show what earlier servers made tells all about it.
    pub ours: bool,
    /// How the last creation by this loop ended.
    pub created: Option<Created>,
    /// Whether its agent is being linked.
    pub link_asked: bool,
    /// What its agent said last.
    pub agent: Option<Agent>,
    /// When its agent was first heard saying that the workload has ended.
    pub ended_at: Option<Timestamp>,
    /// How the last handing over of the workload ended.
    pub started: Option<Result<(), Fault>>,
    /// The lease that the machine was last told.
    pub lease_told: Option<Lease>,
    /// The stop that the agent was last told: when it was decided, and its grace.
    pub stop_told: Option<(Timestamp, Duration)>,
    /// Whether it was destroyed by this loop.
    pub destroyed: bool,
}

/// How a creation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    /// Which.
    pub attempt: u32,
    /// How; an error says nothing about what exists.
    pub result: Result<(), Fault>,
}

/// Why an effect failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// One sentence for people.
    pub message: String,
    /// Whether a later try may succeed.
    pub retry: bool,
}

/// An agent's last report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agent {
    /// Whether it is heard now.
    pub linked: bool,
    /// Where the workload stands; none before it first spoke.
    pub phase: Option<Phase>,
    /// How often the program was started.
    pub starts: u32,
    /// How often the program ended.
    pub ends: u32,
    /// How the program ended last.
    pub last_exit: Option<Exit>,
    /// Whether the health check passes, where it is known.
    pub healthy: Option<bool>,
    /// Whether the agent ended it for its lease, before this loop did: its clock was ahead, or the server away.
    pub expired: bool,
    /// Whether everything that the program wrote so far is kept.
    pub log_complete: bool,
}

/// The phases of a workload, as its agent tells them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Not handed over yet.
    Waiting,
    /// The program runs, or the system is up.
    Running,
    /// The program ended and will be started again after a pause.
    BackingOff,
    /// Told to end; something is still alive.
    Stopping,
    /// Ended for good; nothing of it is alive.
    Ended,
}

impl World<'_> {
    /// What `driver`'s list says of a machine of which this is known, and which was made this often. Where the list may not
    /// show the last of them yet, an earlier one that it shows says nothing about the last.
    pub fn seen(&self, id: MachineId, driver: DriverName, sight: &Sight, attempt: u32) -> Seen {
        let Some(list) = self.lists.get(&driver).filter(|list| list.asked > sight.settled) else {
            return Seen::Unknown;
        };
        let tells_all = list.whole || sight.ours;
        match list.machines.get(&id) {
            Some(listed) if tells_all || listed.attempt >= attempt => Seen::Listed(*listed),
            None if tells_all => Seen::Absent,
            Some(_) | None => Seen::Unknown,
        }
    }
}
