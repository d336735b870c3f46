//! What goes wrong: each kind by a chance of its own, and each time it does under a number, so that a failing run can be
//! repeated with some of it left out.

use std::collections::BTreeSet;

use crate::rng::Rng;

/// What can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The server dies at this moment.
    Crash,
    /// An effect fails before, within or after what it does.
    Effect,
    /// An effect fails for good: trying again is said not to help.
    ForGood,
    /// A list fails.
    List,
    /// A driver is not known yet.
    DriverUnknown,
    /// An operation of the state fails before or after it was done.
    State,
    /// A moment of an effect takes seconds.
    Slow,
    /// A change of the state takes its time.
    StateSlow,
    /// A link breaks.
    LinkBreaks,
    /// A provider is not reached, or refuses for its rate.
    Refused,
    /// A provider's answer is lost, whether or not it was done.
    AnswerLost,
    /// A request comes to a provider twice.
    Repeated,
    /// A provider's list does not show what was just made, or still shows what was just destroyed.
    ListLags,
    /// The host of sandboxes and guests goes down, and with it the server and all of its machines.
    HostDies,
    /// The server stands still for a while.
    ServerPauses,
    /// An agent stands still for a while, its lease with it.
    AgentPauses,
    /// A step of a switch fails on its host.
    SwitchFails,
    /// What carries a switch out on its host is killed.
    SwitchEnds,
    /// A host is restarted, by somebody or for want of power.
    HostRestarts,
    /// Bytes of a closure are others on the way to a host than they were, or end early.
    Spoilt,
}

impl Fault {
    /// Every one.
    pub const ALL: [Self; 20] = [
        Self::Crash,
        Self::Effect,
        Self::ForGood,
        Self::List,
        Self::DriverUnknown,
        Self::State,
        Self::Slow,
        Self::StateSlow,
        Self::LinkBreaks,
        Self::Refused,
        Self::AnswerLost,
        Self::Repeated,
        Self::ListLags,
        Self::HostDies,
        Self::ServerPauses,
        Self::AgentPauses,
        Self::SwitchFails,
        Self::SwitchEnds,
        Self::HostRestarts,
        Self::Spoilt,
    ];
}

/// How often each goes wrong, in thousandths of its occasions.
#[derive(Debug, Clone, Copy, Default)]
pub struct Chances([u64; Fault::ALL.len()]);

impl Chances {
    /// Of every seed its own mixture.
    pub fn seeded(rng: &mut Rng) -> Self {
        let mut chances = Self::default();
        for fault in Fault::ALL {
            chances.0[fault as usize] = match fault {
                Fault::Crash => rng.pick(&[0, 1, 3, 20]),
                Fault::Effect => rng.pick(&[0, 20, 150]),
                Fault::ForGood => rng.pick(&[0, 100]),
                Fault::List => rng.pick(&[0, 50, 300]),
                Fault::DriverUnknown => 100,
                Fault::State => rng.pick(&[0, 0, 10, 50]),
                Fault::Slow => rng.pick(&[0, 50, 200]),
                Fault::StateSlow => rng.pick(&[0, 50, 300]),
                Fault::LinkBreaks => rng.pick(&[0, 100, 500]),
                Fault::Refused => rng.pick(&[0, 30, 200]),
                Fault::AnswerLost => rng.pick(&[0, 30, 150]),
                Fault::Repeated => rng.pick(&[0, 30, 200]),
                Fault::ListLags => rng.pick(&[0, 200, 700]),
                Fault::HostDies => rng.pick(&[0, 0, 0, 20]),
                Fault::ServerPauses => rng.pick(&[0, 0, 2]),
                Fault::AgentPauses => rng.pick(&[0, 0, 100]),
                // No chance is drawn for these: the others of a seed stay what they were before there were any switches.
                Fault::SwitchFails => 30,
                Fault::SwitchEnds => 20,
                Fault::HostRestarts => 100,
                Fault::Spoilt => 150,
            };
        }
        chances
    }

    /// The same with another chance of one.
    #[must_use]
    pub fn with(mut self, fault: Fault, chance: u64) -> Self {
        self.0[fault as usize] = chance;
        self
    }
}

/// What is left out of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Without {
    /// Kinds of faults.
    pub kinds: BTreeSet<Fault>,
    /// Faults by their number.
    pub faults: BTreeSet<u64>,
    /// All faults from this number on.
    pub faults_from: u64,
    /// Steps of users by their number.
    pub steps: BTreeSet<u64>,
}

impl Default for Without {
    fn default() -> Self {
        Self {
            kinds: BTreeSet::new(),
            faults: BTreeSet::new(),
            faults_from: u64::MAX,
            steps: BTreeSet::new(),
        }
    }
}

/// Decides when something goes wrong.
pub struct Faults {
    rng: Rng,
    chances: Chances,
    count: u64,
    pub without: Without,
}

impl Faults {
    pub fn new(seed: u64, chances: Chances, without: Without) -> Self {
        Self { rng: Rng::new(seed ^ 0x6661_756c), chances, count: 0, without }
    }

    /// Whether it happens now.
    pub fn happens(&mut self, fault: Fault) -> bool {
        let chance = self.chances.0[fault as usize];
        if chance == 0 || !self.rng.chance(chance) {
            return false;
        }
        let number = self.count;
        self.count += 1;
        let Without { kinds, faults, faults_from, .. } = &self.without;
        number < *faults_from && !faults.contains(&number) && !kinds.contains(&fault)
    }

    /// The chance of one, for what decides by itself.
    pub fn chance(&self, fault: Fault) -> u64 {
        if self.without.kinds.contains(&fault) { 0 } else { self.chances.0[fault as usize] }
    }

    /// Nothing goes wrong from now on.
    pub fn calm(&mut self) {
        self.chances = Chances::default();
    }

    /// How many were decided on.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// A number for how something goes wrong, from `low` to below `high`.
    pub fn range(&mut self, low: u64, high: u64) -> u64 {
        self.rng.range(low, high)
    }
}
