//! A provider and what stands behind it, for tests that are the same for all of them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use calve_core::{MachineId, Timestamp};
use calve_provider::mark::{OwnerKey, Subject, Until};
use calve_provider::reap::Judged;
use calve_provider::{Order, Pace, Provider};
use digitalocean_emulator::faults::FaultKind;

/// What a provider is asked for.
#[derive(Clone, Copy)]
pub enum Call {
    Create,
    Destroy,
    Tag,
}

/// A machine, whatever lists show.
#[derive(Debug)]
pub struct There {
    pub name: String,
    /// What it is told, in whatever form.
    pub told: Vec<u8>,
}

/// An emulator of some provider, or a plugin.
pub trait Behind: Send + Sync {
    fn provider(&self, pace: Pace) -> Arc<dyn Provider>;
    /// With a token that is not known, which has `wrong` in it.
    fn with_wrong_token(&self, pace: Pace) -> Arc<dyn Provider>;
    /// How many machines were ever made.
    fn created(&self) -> usize;
    /// Every machine, the first that was made first.
    fn machines(&self) -> Vec<There>;
    /// Every tag, as we write them.
    fn tags(&self) -> BTreeSet<String>;
    /// The next calls of this kind meet a fault.
    fn fault(&self, call: Call, kind: FaultKind, times: u32);
    /// Where, how large and from what machines are made.
    fn place(&self) -> [&'static str; 3];
    /// What such a machine costs.
    fn dollars_per_hour(&self) -> Option<f64>;
    /// How many machines make a long list.
    fn many(&self) -> usize;
    /// Statuses or exit codes of requests that were done all the same.
    fn failures(&self) -> &'static [u16];
    /// Part of every error of a request that reached the provider.
    fn request(&self) -> &'static str;
}

/// A provider and what stands behind it.
pub struct Stage {
    pub behind: Box<dyn Behind>,
    pub provider: Arc<dyn Provider>,
    pub ours: OwnerKey,
}

/// Quick, and patient enough for a loaded host.
pub fn pace() -> Pace {
    Pace {
        attempts: 5,
        backoff: Duration::from_millis(5),
        answer: Duration::from_secs(60),
        rate: Duration::from_secs(120),
        settle: Duration::from_secs(3),
    }
}

/// One of each provider.
pub async fn every(pace: Pace) -> Vec<Stage> {
    vec![
        Stage::of(super::digitalocean::DigitalOceanBehind::start(Default::default()).await, pace.clone()),
        Stage::of(super::proxmox::ProxmoxBehind::start(Default::default()).await, pace.clone()),
        Stage::of(super::exec::ExecBehind::start(), pace),
    ]
}

impl Stage {
    pub fn of(behind: impl Behind + 'static, pace: Pace) -> Self {
        let provider = behind.provider(pace);
        Self { behind: Box::new(behind), provider, ours: OwnerKey::from_seed(&[1; 32]) }
    }

    pub fn order(&self, number: u128, until: Until) -> Order {
        self.order_of(&self.ours, number, until)
    }

    /// An order of somebody.
    pub fn order_of(&self, owner: &OwnerKey, number: u128, until: Until) -> Order {
        let subject =
            Subject { id: MachineId::new(Timestamp(1), number), attempt: 1, name: format!("run-{number}") };
        let [region, size, image] = self.behind.place().map(str::to_owned);
        let user_data = format!("#!calve {number}");
        let (key, tags) = (subject.key(), owner.tags(&subject, until));
        Order { key, tags, name: subject.name, region, size, image, user_data }
    }

    /// A machine in the account that calve has nothing to do with.
    pub fn stranger(&self, number: u128, tags: &[&str]) -> Order {
        let plain = OwnerKey::from_seed(&[9; 32]);
        let name = format!("stranger-{number}");
        let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
        Order { name, tags, key: format!("stranger:{number}"), ..self.order_of(&plain, number, Until::Never) }
    }

    /// What there is, by name.
    pub fn names(&self) -> BTreeSet<String> {
        self.behind.machines().into_iter().map(|machine| machine.name).collect()
    }
}

/// The names of those that are to be destroyed.
pub fn names(judged: &[Judged]) -> Vec<&str> {
    let ending = judged.iter().filter(|judged| judged.verdict.is_destroyed());
    ending.map(|judged| judged.machine.name.as_str()).collect()
}
