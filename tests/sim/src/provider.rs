//! A provider: keeps the guarantees of [`Provider`], and no more. Requests get lost on the way or their answers on the way
//! back, come twice, are refused for their rate; lists lag. It also has machines that somebody else made.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use calve_core::MachineId;
use calve_provider::mark::Mark;
use calve_provider::{
    Account as Owner, Description, ErrorKind, Image, Listed, Listing, Order, Provider, ProviderError, Region,
    Size,
};
use calve_wire::join::UserData;

use crate::faults::Fault;
use crate::host::{Ms, Vm};
use crate::world::World;

const NAME: &str = "simulated";
/// The region and image that orders name.
pub const REGION: &str = "ams3";
/// The number of the first machine that somebody else made.
const STRANGERS: u64 = 1_000_000;
/// How long a list may show what was before.
const LAG_MAX: Ms = 25_000;

/// What the provider has.
#[derive(Default)]
pub struct Account {
    machines: BTreeMap<u64, Machine>,
    last: u64,
    /// By their numbers, those that somebody else made.
    strangers: BTreeMap<u64, Stranger>,
    /// By its key, the machine that joined: its join token is used up, and a twin stays outside.
    joined: BTreeMap<String, u64>,
}

struct Machine {
    id: MachineId,
    key: String,
    name: String,
    tags: Vec<String>,
    /// From when on lists show it.
    listed_from: Ms,
    /// Destroyed; until then lists show it all the same.
    gone_until: Option<Ms>,
    vm: Vm,
}

/// A machine that somebody else made, and that users adopt.
struct Stranger {
    name: String,
    tags: Vec<String>,
    /// From when on lists show it by the tags that it was given.
    listed_from: Ms,
    gone: bool,
}

impl Stranger {
    /// Which machine it is, where it is there and ours.
    fn adopted(&self) -> Option<MachineId> {
        let mark = Mark::read(&self.name, &self.tags).ok()?;
        (!self.gone).then_some(mark.subject.id)
    }
}

impl Account {
    /// Machines with the numbers from [`STRANGERS`] on that nobody has adopted yet.
    pub fn with_strangers(many: u64) -> Self {
        let stranger = |n| Stranger {
            name: format!("stranger-{n}"),
            tags: vec!["web".to_owned()],
            listed_from: 0,
            gone: false,
        };
        Self {
            strangers: (STRANGERS..STRANGERS + many).map(|n| (n, stranger(n))).collect(),
            ..Self::default()
        }
    }

    /// The numbers of those that somebody else made, gone or not.
    pub fn strangers(&self) -> impl Iterator<Item = u64> {
        self.strangers.keys().copied()
    }

    /// The machines that were adopted and are there.
    pub fn adopted(&self) -> impl Iterator<Item = MachineId> {
        self.strangers.values().filter_map(Stranger::adopted)
    }

    /// The machines that are there.
    pub fn present(&self) -> impl Iterator<Item = (MachineId, &Vm)> {
        self.machines.values().filter(|machine| machine.gone_until.is_none()).map(|it| (it.id, &it.vm))
    }

    pub fn vms_mut(&mut self) -> impl Iterator<Item = &mut Vm> {
        self.machines.values_mut().filter(|machine| machine.gone_until.is_none()).map(|it| &mut it.vm)
    }

    /// The machine with this id whose agent is heard, of the newest attempt: of twins the one that was there first.
    pub fn speaking(&mut self, id: MachineId, now: Ms) -> Option<&mut Vm> {
        let there = |it: &&Machine| it.id == id && it.gone_until.is_none();
        let newest = self.machines.values().filter(there).map(|it| it.vm.attempt).max()?;
        let heard = |it: &Machine| there(&it) && it.vm.attempt == newest && it.vm.speaks(now);
        let first = self.machines.iter().filter(|(_, it)| heard(it)).min_by_key(|(_, it)| it.vm.boots_at)?;
        let joined = *self.joined.entry(first.1.key.clone()).or_insert(*first.0);
        self.machines.get_mut(&joined).filter(|it| heard(it)).map(|it| &mut it.vm)
    }

    fn shown(&self, now: Ms) -> impl Iterator<Item = (&u64, &Machine)> {
        let shown =
            move |it: &Machine| it.listed_from <= now && it.gone_until.is_none_or(|until| now < until);
        self.machines.iter().filter(move |(_, machine)| shown(machine))
    }
}

fn listed(number: u64, machine: &Machine) -> Listed {
    let status = if machine.vm.alive { "active" } else { "off" };
    listed_as(number, &machine.name, &machine.tags, status)
}

fn listed_stranger(number: u64, stranger: &Stranger) -> Listed {
    listed_as(number, &stranger.name, &stranger.tags, "active")
}

fn listed_as(number: u64, name: &str, tags: &[String], status: &str) -> Listed {
    Listed {
        id: number.to_string(),
        name: name.to_owned(),
        tags: tags.to_vec(),
        region: REGION.to_owned(),
        size: String::new(),
        status: status.to_owned(),
        address: None,
        created_at: String::new(),
        dollars_per_hour: None,
    }
}

/// Without most of its signature.
fn shortened(tag: &str) -> &str {
    tag.get(..60).unwrap_or(tag)
}

fn number_of(id: &str) -> u64 {
    id.parse().expect("the provider's own number")
}

/// The provider as one server reaches it.
pub struct SimProvider {
    pub world: Arc<World>,
    pub generation: u32,
}

impl SimProvider {
    /// A request on its way: it may be refused, or come too late for a server that has died.
    async fn ask(&self) -> Result<(), ProviderError> {
        self.world.point(self.generation).await;
        let pause = {
            let mut inner = self.world.inner();
            if inner.faults.happens(Fault::Slow) {
                inner.rng.range(100, 4_000)
            } else {
                inner.rng.range(1, 50)
            }
        };
        tokio::time::sleep(Duration::from_millis(pause)).await;
        self.world.point(self.generation).await;
        if !self.world.happens(Fault::Refused) {
            return Ok(());
        }
        let kind = match self.world.inner().faults.range(0, 3) {
            0 => ErrorKind::Unreachable,
            1 => ErrorKind::Quota,
            _ => ErrorKind::RateLimited(Duration::from_secs(5)),
        };
        Err(ProviderError::new(NAME, kind, "seeded"))
    }

    /// The answer on its way.
    async fn answer(&self) -> Result<(), ProviderError> {
        self.world.point(self.generation).await;
        if self.world.happens(Fault::AnswerLost) {
            return Err(ProviderError::new(NAME, ErrorKind::NoAnswer, "seeded"));
        }
        Ok(())
    }

    fn lag(&self) -> Ms {
        let mut inner = self.world.inner();
        if inner.faults.happens(Fault::ListLags) { inner.faults.range(1, LAG_MAX) } else { 0 }
    }

    fn make(&self, order: &Order) -> u64 {
        let (now, lag) = (self.world.now(), self.lag());
        let data = UserData::parse(&order.user_data).expect("the server wrote it");
        let deadline = self.world.in_world_time(data.deadline_unix_ms);
        let id = order.key.split(':').nth(2).and_then(|id| id.parse().ok()).expect("the server's own key");
        let attempt = order.key.rsplit(':').next().and_then(|n| n.parse().ok()).expect("as above");
        let mut inner = self.world.inner();
        let vm = Vm::new(attempt, false, (deadline, data.grace_ms), now, &mut inner.rng);
        let (key, name, tags) = (order.key.clone(), order.name.clone(), order.tags.clone());
        inner.account.last += 1;
        let number = inner.account.last;
        let machine = Machine { id, key, name, tags, listed_from: now + lag, gone_until: None, vm };
        inner.account.machines.insert(number, machine);
        number
    }

    /// Whether the program of the machine with this number works there, and no other machine has its key.
    fn works_alone(&self, number: u64) -> Option<MachineId> {
        let inner = self.world.inner();
        let machine =
            inner.account.machines.get(&number).filter(|it| it.gone_until.is_none() && it.vm.works())?;
        let present = inner.account.machines.values().filter(|it| it.gone_until.is_none());
        (present.filter(|it| it.key == machine.key).count() == 1).then_some(machine.id)
    }
}

#[async_trait]
impl Provider for SimProvider {
    fn describe(&self) -> Description {
        let api = String::new();
        let lists_lag = Duration::from_millis(LAG_MAX);
        Description { name: NAME, api, user_data_max_bytes: 65_536, lists_lag, credentials_from: "nowhere" }
    }

    async fn check(&self) -> Result<Owner, ProviderError> {
        Ok(Owner { name: NAME.to_owned(), status: String::new(), machines_max: None })
    }

    async fn create(&self, order: &Order) -> Result<Listed, ProviderError> {
        self.ask().await?;
        let now = self.world.now();
        let known = {
            let inner = self.world.inner();
            inner.account.shown(now).find(|(_, it)| it.key == order.key).map(|(number, _)| *number)
        };
        let number = known.unwrap_or_else(|| {
            self.world.say(|| format!("provider makes {}", order.key));
            if self.world.happens(Fault::Repeated) {
                self.make(order);
            }
            self.make(order)
        });
        self.world.touched.notify_one();
        if let Err(lost) = self.answer().await {
            // Whoever implements `Provider` watches the list after that until it has settled, before it gives up.
            tokio::time::sleep(Duration::from_millis(LAG_MAX)).await;
            return Err(lost);
        }
        let inner = self.world.inner();
        let gone = || ProviderError::new(NAME, ErrorKind::Failed, "it is gone again");
        inner.account.machines.get(&number).map(|machine| listed(number, machine)).ok_or_else(gone)
    }

    async fn machine(&self, id: &str) -> Result<Option<Listed>, ProviderError> {
        self.ask().await?;
        let found = {
            let inner = self.world.inner();
            let found = inner.account.strangers.get(&number_of(id)).filter(|it| !it.gone);
            found.map(|stranger| listed_stranger(number_of(id), stranger))
        };
        self.answer().await?;
        Ok(found)
    }

    async fn list(&self, tag: &str) -> Result<Listing, ProviderError> {
        self.ask().await?;
        let now = self.world.now();
        let machines = {
            let mut inner = self.world.inner();
            inner.account.machines.retain(|_, it| it.gone_until.is_none_or(|until| now < until));
            let carries = |tags: &[String]| tags.iter().any(|known| known == tag);
            let made = inner.account.shown(now).filter(|(_, it)| carries(&it.tags));
            let made = made.map(|(number, machine)| listed(*number, machine));
            let strangers = inner.account.strangers.iter();
            let strangers =
                strangers.filter(|(_, it)| !it.gone && it.listed_from <= now && carries(&it.tags));
            made.chain(strangers.map(|(number, stranger)| listed_stranger(*number, stranger))).collect()
        };
        self.answer().await?;
        Ok(Listing { machines, unix_s: Some(now / 1000) })
    }

    async fn destroy(&self, id: &str) -> Result<(), ProviderError> {
        self.ask().await?;
        let number = number_of(id);
        if let Some(machine) = self.works_alone(number) {
            self.world.check_may_end(machine, "destroyed at its provider");
        }
        let stranger =
            self.world.inner().account.strangers.get(&number).filter(|it| !it.gone).map(Stranger::adopted);
        match stranger {
            Some(Some(machine)) => self.world.check_may_end(machine, "destroyed, adopted as it was,"),
            Some(None) => {
                self.world.violation(format!("the provider's {number} was destroyed, and is not ours"))
            }
            None => {}
        }
        let (now, lag) = (self.world.now(), self.lag());
        self.world.say(|| format!("provider destroys {number}"));
        if let Some(machine) = self.world.inner().account.machines.get_mut(&number) {
            machine.gone_until.get_or_insert(now + lag);
        }
        if let Some(stranger) = self.world.inner().account.strangers.get_mut(&number) {
            stranger.gone = true;
        }
        self.world.touched.notify_one();
        self.answer().await
    }

    async fn destroy_tagged(&self, _: &str) -> Result<(), ProviderError> {
        unreachable!("the server destroys machines by their number")
    }

    async fn add_tag(&self, id: &str, tag: &str) -> Result<(), ProviderError> {
        self.ask().await?;
        self.world.say(|| format!("provider tags {id} with {}", shortened(tag)));
        if let Some(machine) = self.world.inner().account.machines.get_mut(&number_of(id)) {
            machine.tags.push(tag.to_owned());
        }
        let (now, number) = (self.world.now(), number_of(id));
        if self.world.inner().account.strangers.contains_key(&number) {
            let lag = self.lag();
            let mut inner = self.world.inner();
            let stranger = inner.account.strangers.get_mut(&number).expect("it is there");
            stranger.tags.push(tag.to_owned());
            if stranger.listed_from == 0 {
                stranger.listed_from = now + lag;
            }
        }
        self.answer().await
    }

    async fn remove_tag(&self, tag: &str) -> Result<(), ProviderError> {
        self.ask().await?;
        self.world.say(|| format!("provider removes the tag {}", shortened(tag)));
        for machine in self.world.inner().account.machines.values_mut() {
            machine.tags.retain(|known| known != tag);
        }
        for stranger in self.world.inner().account.strangers.values_mut() {
            stranger.tags.retain(|known| known != tag);
        }
        self.answer().await
    }

    async fn sizes(&self) -> Result<Vec<Size>, ProviderError> {
        Ok(Vec::new())
    }

    async fn regions(&self) -> Result<Vec<Region>, ProviderError> {
        Ok(Vec::new())
    }

    async fn images(&self) -> Result<Vec<Image>, ProviderError> {
        self.ask().await?;
        let name = "calve-base".to_owned();
        let regions = vec![REGION.to_owned()];
        Ok(vec![Image { id: "1".to_owned(), slug: None, name, regions, status: String::new() }])
    }
}
