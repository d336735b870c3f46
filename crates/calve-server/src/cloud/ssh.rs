//! Machines on hosts that are borrowed over SSH, as a driver of this server.
//!
//! ```text
//!  create ─▶ book ─▶ connection ─▶ agent brought where it is not there ─▶ `calve-agent lend`: closure, sandbox, keeper
//!  link   ─▶ a socket here; who connects is passed on to `calve-agent lend --connect` over the same connection
//!  destroy ▶ `calve-agent lend --give-back`: nothing of the machine is left, and nothing of calve with the last one
//!  adopt ──▶ book ─▶ agent brought ─▶ each link: a connection of its own ─▶ `calve-agent lend --host`: the host is the machine
//! ```
//! Its memory is the book: a file for each machine that a host may have, written before the host hears of it and removed once
//! the host has said that nothing is left. A machine that ended by itself is found out by the passing on: the host says so.
//!
//! *Invariant*: a host is never powered off, nothing of it is changed outside of one directory but by whom it is adopted for, and
//! no credentials go there.

mod adopted;
mod book;
mod lend;
mod pass;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use calve_core::{DriverName, MachineId};
use calve_node::run_dir::RunDirs;
use calve_node::{Driver, DriverError, DriverErrorKind, Found, Order};
use calve_provider::ssh::{Client, HostKey, Settings, Target};
use calve_provider::{ErrorKind, ProviderError};
use calve_store::Store;
use calve_wire::agent::Remaining;
use calve_wire::doctor::{Check, CheckStatus};
use calve_wire::machine::{Place, Workload};
use tokio_util::task::AbortOnDropHandle;

use crate::world::now;
use book::{Book, Entry};
use lend::Lender;

/// So long after the end of its lease a machine on a host that cannot be reached counts as gone: its own supervisor and keeper
/// have ended it.
const GONE_AFTER: Duration = Duration::from_secs(60);
/// Names the client in place of `ssh`.
const PROGRAM_VARIABLE: &str = "CALVE_SSH";

/// The driver; see [`Driver`]. Cloning gives another handle.
#[derive(Clone)]
pub struct SshDriver(Arc<Inner>);

struct Inner {
    client: Client,
    lender: Lender,
    book: Book,
    dirs: RunDirs,
    passing: Mutex<BTreeMap<MachineId, AbortOnDropHandle<()>>>,
    /// Why the agents of machines are not reached at the moment.
    away: Mutex<BTreeMap<MachineId, String>>,
    /// Of two who want the same host the second sees that it is taken.
    claiming: Mutex<()>,
}

impl SshDriver {
    /// A driver that keeps its book and host keys in `data_dir`, sockets in `run_dir`, and brings `agent_binary` and the paths of
    /// `store` to hosts.
    pub fn new(data_dir: PathBuf, run_dir: PathBuf, store: Arc<Store>, agent_binary: PathBuf) -> Self {
        let program = std::env::var_os(PROGRAM_VARIABLE).filter(|program| !program.is_empty());
        let client = Client::new(Settings {
            program: program.map_or_else(|| PathBuf::from("ssh"), PathBuf::from),
            run_dir: run_dir.join("ssh"),
            pins_dir: data_dir.join("ssh/hosts"),
        });
        Self(Arc::new(Inner {
            lender: Lender::new(client.clone(), store, agent_binary),
            client,
            book: Book::new(data_dir.join("ssh/machines")),
            dirs: RunDirs::new(&run_dir, DriverName::Ssh),
            passing: Mutex::default(),
            away: Mutex::default(),
            claiming: Mutex::default(),
        }))
    }
}

impl Inner {
    fn passing(&self) -> MutexGuard<'_, BTreeMap<MachineId, AbortOnDropHandle<()>>> {
        self.passing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn away(&self) -> MutexGuard<'_, BTreeMap<MachineId, String>> {
        self.away.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The machine is gone from its host: nothing of it stays here either.
    fn forget(&self, id: MachineId, entry: &Entry) -> Result<(), DriverError> {
        self.passing().remove(&id);
        self.away().remove(&id);
        self.dirs.remove(id).map_err(|e| failed("the machine's directory cannot be removed").caused_by(e))?;
        self.book.remove(id)?;
        let others = self.book.all().unwrap_or_default();
        // Where the host is a machine itself, that has connections of its own and looks for the agent each time.
        let same = |other: &Entry| other.target == entry.target && other.adopted.is_none();
        if !others.values().any(same) {
            // The agent there has gone with its last machine.
            if let Ok(target) = entry.target.parse() {
                self.client.close(&target);
                self.lender.forget(&target);
            }
        }
        Ok(())
    }

    async fn give_back(&self, id: MachineId, entry: &Entry) -> Result<(), DriverError> {
        let target: Target =
            entry.target.parse().map_err(|error| failed("the book is wrong").caused_by(error))?;
        let given_back = match entry.adopted {
            Some(_) => self.lender.move_out(&target, id).await,
            None => self.lender.give_back(&target, id).await,
        };
        // Of an adopted host nothing is left there but the agent's file.
        let hopeless =
            |error: &ProviderError| error.kind == ErrorKind::Unreachable || entry.adopted.is_some();
        match given_back {
            Ok(()) => self.forget(id, entry),
            Err(error) if hopeless(&error) && entry.is_over(now(), GONE_AFTER) => {
                tracing::warn!(machine = %id, %error, "its lease is long over and the host away: taken for gone");
                self.forget(id, entry)
            }
            // Tried again whatever it was: the machine may still be there, and who is not let in today may be tomorrow.
            Err(error) => Err(failed(&error.to_string())),
        }
    }

    /// Writes an adoption down; one of a host that another machine is already is refused.
    fn claim(&self, id: MachineId, entry: &Entry) -> Result<(), DriverError> {
        let _turn = self.claiming.lock().unwrap_or_else(PoisonError::into_inner);
        self.unclaimed(&entry.target, Some(id))?;
        self.book.write(id, entry)
    }

    /// Refuses a host that a machine is, but for this one.
    fn unclaimed(&self, target: &str, id: Option<MachineId>) -> Result<(), DriverError> {
        let all = self.book.all()?;
        let mut others = all.iter().filter(|(other, entry)| Some(**other) != id && entry.target == target);
        match others.find_map(|(_, entry)| entry.adopted.as_ref()) {
            Some(name) => Err(unusable(&format!("{target} is adopted already, as {name}"))
                .hint(format!("see `calve status {name}`"))),
            None => Ok(()),
        }
    }

    /// Makes the host itself a machine.
    async fn adopt(&self, order: &Order, target: &Target, key: Option<&HostKey>) -> Result<(), DriverError> {
        let entry = Entry {
            adopted: Some(order.name.to_string()),
            ..Entry::new(target, order.attempt, order.remaining, now())
        };
        self.claim(order.id, &entry)?;
        let moved_in = self.lender.move_in(target, key).await;
        if moved_in.is_err() {
            // What made it fail is what the caller must know; the next list shows what may be left.
            let _ = self.give_back(order.id, &entry).await;
        }
        moved_in
    }
}

/// The host and its key that a place names.
fn host(place: &Place) -> Result<(Target, Option<HostKey>), DriverError> {
    let target = place.region.parse().map_err(|error| unusable(&format!("{error}")))?;
    let key = place.host_key.as_deref().map(str::parse).transpose();
    Ok((target, key.map_err(|error| unusable(&format!("{error}")))?))
}

#[async_trait]
impl Driver for SshDriver {
    fn name(&self) -> DriverName {
        DriverName::Ssh
    }

    async fn preflight(&self) -> Vec<Check> {
        let check = |name: &str, found: Result<String, String>, mend: &str| {
            let (status, found, cost, mend) = match found {
                Ok(found) => (CheckStatus::Ok, found, String::new(), None),
                Err(found) => (
                    CheckStatus::Missing,
                    found,
                    "no hosts can be borrowed".to_owned(),
                    Some(mend.to_owned()),
                ),
            };
            Check { area: "ssh".to_owned(), name: name.to_owned(), status, found, cost, mend }
        };
        let version = self.0.client.version().await.map_err(|error| format!("ssh cannot be run: {error}"));
        let agent = self.0.lender.agent_binary();
        let agent = match agent.is_file() {
            true => Ok(agent.display().to_string()),
            false => Err(format!("{} is not there", agent.display())),
        };
        vec![
            check("client", version, "install OpenSSH's client"),
            check("agent", agent, "put calve-agent beside calve, or name it by CALVE_AGENT"),
        ]
    }

    async fn create(&self, order: &Order) -> Result<(), DriverError> {
        let wish =
            order.spec.place.as_ref().ok_or_else(|| unusable("the order does not say on which host"))?;
        let (target, key) = host(wish)?;
        if let Workload::Adopted { .. } = order.spec.workload {
            return self.0.adopt(order, &target, key.as_ref()).await;
        }
        let entry = Entry::new(&target, order.attempt, order.remaining, now());
        if let Some(former) = self.0.book.get(order.id)
            && former.target != entry.target
        {
            self.0.give_back(order.id, &former).await?;
        }
        self.0.book.write(order.id, &entry)?;
        let error = match self.0.lender.lend(&target, key.as_ref(), order).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        // What made it fail is what the caller must know; the next list shows what may be left.
        if error.left_nothing || self.0.lender.give_back(&target, order.id).await.is_ok() {
            let _ = self.0.forget(order.id, &entry);
        }
        Err(error.error)
    }

    async fn adoptable(&self, machine: &str, host_key: Option<&str>) -> Result<Place, DriverError> {
        let place = Place {
            region: machine.to_owned(),
            size: String::new(),
            image: None,
            host_key: host_key.map(str::to_owned),
        };
        let (target, key) = host(&place)?;
        let place = Place { region: target.to_string(), ..place };
        self.0.unclaimed(&place.region, None)?;
        self.0.lender.visit(&target, key.as_ref()).await?;
        Ok(place)
    }

    async fn list(&self) -> Result<Vec<Found>, DriverError> {
        let all = self.0.book.all()?;
        Ok(all.into_iter().map(|(id, entry)| Found { id, attempt: entry.attempt }).collect())
    }

    async fn set_lease(&self, id: MachineId, remaining: Remaining) -> Result<(), DriverError> {
        // The supervisor is the agent, which the server tells; the book is for hosts that stay away.
        match self.0.book.get(id) {
            Some(entry) => self.0.book.write(id, &entry.with_lease(remaining, now())),
            None => Ok(()),
        }
    }

    async fn destroy(&self, id: MachineId) -> Result<(), DriverError> {
        match self.0.book.get(id) {
            Some(entry) if entry.adopted.is_some() => {
                // Nobody speaks there any more, and its time is over: the host may never be reached again.
                self.0.passing().remove(&id);
                let entry = entry.ended(now());
                self.0.book.write(id, &entry)?;
                self.0.give_back(id, &entry).await
            }
            Some(entry) => self.0.give_back(id, &entry).await,
            None => Ok(()),
        }
    }

    fn agent_socket(&self, id: MachineId) -> PathBuf {
        let socket = self.0.dirs.path(id).join("agent.sock");
        let mut passing = self.0.passing();
        if !passing.contains_key(&id) && self.0.book.get(id).is_some() {
            let passing_on = pass::run(self.clone(), id);
            passing.insert(id, AbortOnDropHandle::new(tokio::spawn(passing_on)));
        }
        socket
    }

    fn away(&self, id: MachineId) -> Option<String> {
        self.0.away().get(&id).cloned()
    }

    fn console_log(&self, _: MachineId) -> Option<PathBuf> {
        None
    }
}

fn failed(message: &str) -> DriverError {
    DriverError::new(DriverErrorKind::Failed, message)
}

fn unusable(message: &str) -> DriverError {
    DriverError::new(DriverErrorKind::Unusable, message)
}
