//! Hosts as switches need them, and how they are spoken with: `calve-switch`, over the link of the agent.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use calve_core::MachineId;
use calve_nix::StorePath;
use calve_store::{Closure, ClosurePath, Store, StoreError, registration};
use calve_wire::agent::Target;
use calve_wire::frame::Channel;
use calve_wire::system::{
    HostAnswer, HostFacts, HostOrder, HostRoom, HostSwitch, REGISTRATION, SWITCH_DIR, SWITCH_PROGRAM,
};
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::records::SystemsError;
use crate::agents::{Agents, LinkError, StreamEvent};
use crate::chain;
use crate::world::World;
use crate::world::seed::{self, SeedError, Watched};

/// Time for a verb: a host that is being switched is slow, and a dry activation runs in one.
const VERB_MAX: Duration = Duration::from_secs(90);
/// Most bytes of an answer: the history has hundreds of lines.
const ANSWER_MAX_BYTES: usize = 4 * 1024 * 1024;
/// Bytes of a piece of an archive.
const PIECE_BYTES: usize = 64 * 1024;
/// The exit code for a program that is not there.
const NOT_FOUND_CODE: i32 = 127;
/// Pause between two looks whether an agent was heard anew.
const HEARD_PAUSE: Duration = Duration::from_millis(20);

/// Why a host did not answer.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// It is not heard at the moment.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// It did not answer in time.
    #[error("the host did not answer within {} s", VERB_MAX.as_secs())]
    Silent,
    /// It has no `calve-switch`.
    #[error("the host has no calve-switch")]
    Missing,
    /// It says why not.
    #[error("{0}")]
    Said(String),
    /// The closure or `calve-switch` did not arrive.
    #[error(transparent)]
    Send(#[from] SeedError),
    /// What is about to be done could not be written down.
    #[error("the server's own record cannot be kept")]
    Unkept(#[source] SystemsError),
    /// `calve-switch` is not where it should be here.
    #[error("{path} cannot be read: it belongs beside calve and calve-agent")]
    Program {
        /// Where it should be.
        path: String,
        /// Why.
        #[source]
        error: io::Error,
    },
}

impl HostError {
    /// Whether waiting helps, while the machine is there: the link may come back.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Link(error) | Self::Send(SeedError::Link(error)) => *error != LinkError::BadToken,
            Self::Silent | Self::Unkept(_) => true,
            Self::Missing | Self::Said(_) | Self::Send(_) | Self::Program { .. } => false,
        }
    }
}

/// What a switch needs of hosts. Two implementations: over the links of agents, and the simulator's.
///
/// Every call may be repeated: a switch that has begun is not begun again, a word that was given is given again.
#[async_trait]
pub trait Hosts: Send + Sync {
    /// Brings `calve-switch` to the host, and what it lacks of a system's closure into a directory beside its store, for
    /// this switch; gives the directory, where there was any.
    async fn bring(
        &self,
        id: MachineId,
        toplevel: &StorePath,
        switch: &str,
    ) -> Result<Option<String>, HostError>;

    /// Has a switch begin.
    async fn begin(&self, id: MachineId, order: &HostOrder) -> Result<HostAnswer, HostError>;

    /// The switch under way, or the last one.
    async fn status(&self, id: MachineId) -> Result<Option<HostSwitch>, HostError>;

    /// Waits for a connection of the host's agent that is made from now on: that the old one stands says nothing.
    async fn hear_anew(&self, id: MachineId, patience: Duration) -> Result<(), HostError>;

    /// Gives the server's word.
    async fn confirm(&self, id: MachineId, switch: &str) -> Result<HostAnswer, HostError>;

    /// What the host's system is like.
    async fn facts(&self, id: MachineId) -> Result<HostFacts, HostError>;
}

async fn closure_of(store: &Arc<Store>, path: &StorePath) -> Result<Closure, StoreError> {
    let (store, path) = (store.clone(), path.clone());
    let closure = tokio::task::spawn_blocking(move || store.closure(&[path])).await;
    closure.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

#[async_trait]
impl Hosts for World {
    async fn bring(
        &self,
        id: MachineId,
        toplevel: &StorePath,
        switch: &str,
    ) -> Result<Option<String>, HostError> {
        let host = Host::new(self.agents(), id);
        host.equip().await?;
        match closure_of(self.store(), toplevel).await {
            Ok(closure) => host.bring(self.store(), &self.seeds().watch(id), &closure, switch).await,
            // A former generation may be on the host alone; the host says where it is not.
            Err(error) => {
                tracing::debug!(error = chain(&error), "a system is not here, so the host has to have it");
                Ok(None)
            }
        }
    }

    async fn begin(&self, id: MachineId, order: &HostOrder) -> Result<HostAnswer, HostError> {
        let order = serde_json::to_string(order).expect("plain data");
        Host::new(self.agents(), id).ask(&["begin"], Some(order)).await
    }

    async fn status(&self, id: MachineId) -> Result<Option<HostSwitch>, HostError> {
        Host::new(self.agents(), id).ask(&["status"], None).await
    }

    async fn hear_anew(&self, id: MachineId, patience: Duration) -> Result<(), HostError> {
        let before = self.agents().heard(id);
        self.agents().hear_anew(id)?;
        let until = Instant::now() + patience;
        while self.agents().heard(id).is_none_or(|heard| Some(heard) == before) {
            if Instant::now() > until {
                return Err(HostError::Silent);
            }
            tokio::time::sleep(HEARD_PAUSE).await;
        }
        Ok(())
    }

    async fn confirm(&self, id: MachineId, switch: &str) -> Result<HostAnswer, HostError> {
        Host::new(self.agents(), id).ask(&["confirm", switch], None).await
    }

    async fn facts(&self, id: MachineId) -> Result<HostFacts, HostError> {
        let host = Host::new(self.agents(), id);
        host.equip().await?;
        host.ask(&["facts"], None).await
    }
}

/// A host, by its agent's link.
struct Host<'a> {
    agents: &'a Agents,
    id: MachineId,
}

impl<'a> Host<'a> {
    /// The machine's.
    fn new(agents: &'a Agents, id: MachineId) -> Self {
        Self { agents, id }
    }

    /// Brings `calve-switch`, where the host lacks this server's.
    async fn equip(&self) -> Result<(), HostError> {
        let path = program();
        let read = tokio::fs::read(&path).await;
        let bytes = read.map_err(|error| HostError::Program { path: path.display().to_string(), error })?;
        let sum: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        match self.ask::<String>(&["version"], None).await {
            Ok(found) if found == sum => return Ok(()),
            Ok(_) | Err(HostError::Missing | HostError::Said(_)) => {}
            Err(error) => return Err(error),
        }
        // Of a name of its own: two who ask at once bring it twice, and neither disturbs the other.
        let brought = format!("{SWITCH_DIR}/{SWITCH_PROGRAM}.{:016x}", crate::random::u128() >> 64);
        let name = brought.trim_start_matches('/').to_owned();
        let archive = packed(&name, &bytes).expect("an archive in memory");
        self.write("/", &archive).await?;
        self.run(vec![brought, "install".to_owned(), sum], None).await.map(drop)
    }

    /// Brings what the host lacks of a closure, and what its Nix is to know of that; the directory where there was any.
    async fn bring(
        &self,
        store: &Arc<Store>,
        watched: &Watched,
        closure: &Closure,
        switch: &str,
    ) -> Result<Option<String>, HostError> {
        let names: Vec<String> = closure.paths.iter().map(|path| path.path.base_name().to_string()).collect();
        let room: HostRoom = self.ask(&["room", switch], Some(names.join("\n"))).await?;
        if room.missing.is_empty() {
            return Ok(None);
        }
        let missing: HashSet<&str> = room.missing.iter().map(String::as_str).collect();
        let lacks = |path: &&ClosurePath| missing.contains(path.path.base_name());
        let closure = Closure::new(closure.paths.iter().filter(lacks).cloned().collect());
        let current = room.current.and_then(|path| StorePath::parse(&path).ok());
        let current = match &current {
            Some(current) => closure_of(store, current).await.unwrap_or_default(),
            None => Closure::default(),
        };
        seed::bring(self.agents, store, watched, &closure, current, &room.dir).await?;
        if room.registers {
            let store = store.clone();
            let infos = tokio::task::spawn_blocking(move || store.path_infos(&closure)).await;
            let infos = infos.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
            let text = registration(&infos.map_err(SeedError::Store)?);
            let name = format!("{}/{REGISTRATION}", room.dir.trim_start_matches('/'));
            self.write("/", &packed(&name, text.as_bytes()).expect("an archive in memory")).await?;
        }
        Ok(Some(room.dir))
    }

    /// Unpacks a tar archive in a directory of the host.
    async fn write(&self, dir: &str, archive: &[u8]) -> Result<(), HostError> {
        let (sender, mut receiver) =
            self.agents.open(self.id, Target::Write { path: dir.to_owned() })?.split();
        let sending = async {
            for piece in archive.chunks(PIECE_BYTES) {
                sender.send(piece).await?;
            }
            sender.close_stdin().await
        };
        let ended = async {
            loop {
                match receiver.recv().await {
                    Some(StreamEvent::Data(..)) => {}
                    Some(StreamEvent::Ended(_)) => return Ok(()),
                    Some(StreamEvent::Failed { message, .. }) => return Err(HostError::Said(message)),
                    None => return Err(LinkError::Broken.into()),
                }
            }
        };
        // The end counts, not the sending: the host may refuse the archive before all of it was sent.
        let (sent, ended) = futures_util::future::join(sending, ended).await;
        ended?;
        Ok(sent?)
    }

    async fn ask<T: DeserializeOwned>(&self, verb: &[&str], input: Option<String>) -> Result<T, HostError> {
        let program = format!("{SWITCH_DIR}/{SWITCH_PROGRAM}");
        let argv = [program.as_str()].iter().chain(verb).map(|word| (*word).to_owned()).collect();
        let answer = self.run(argv, input).await?;
        serde_json::from_slice(&answer).map_err(|error| {
            let said = String::from_utf8_lossy(&answer).chars().take(200).collect::<String>();
            HostError::Said(format!(
                "the host's calve-switch answers what this server does not know: {error}: {said}"
            ))
        })
    }

    /// Runs a command on the host to its end: its standard output.
    async fn run(&self, argv: Vec<String>, input: Option<String>) -> Result<Vec<u8>, HostError> {
        let running = self.run_unbounded(argv, input);
        tokio::time::timeout(VERB_MAX, running).await.unwrap_or(Err(HostError::Silent))
    }

    async fn run_unbounded(&self, argv: Vec<String>, input: Option<String>) -> Result<Vec<u8>, HostError> {
        let target =
            Target::Command { argv, env: BTreeMap::new(), cwd: None, stdin: input.is_some(), tty: None };
        let (sender, mut receiver) = self.agents.open(self.id, target)?.split();
        if let Some(input) = input {
            // A program that ends without reading says why on its other streams.
            let sent = async {
                sender.send(input.as_bytes()).await?;
                sender.close_stdin().await
            };
            match sent.await {
                Ok(()) | Err(LinkError::StreamClosed) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let (mut said, mut complaints) = (Vec::new(), Vec::new());
        loop {
            match receiver.recv().await {
                Some(StreamEvent::Data(channel, bytes)) => {
                    let into = if channel == Channel::Stdout { &mut said } else { &mut complaints };
                    if into.len() + bytes.len() > ANSWER_MAX_BYTES {
                        return Err(HostError::Said("the host's answer is too long".to_owned()));
                    }
                    into.extend_from_slice(&bytes);
                }
                Some(StreamEvent::Ended(Some(exit))) if exit.code == Some(0) => return Ok(said),
                Some(StreamEvent::Ended(_)) => {
                    return Err(HostError::Said(String::from_utf8_lossy(&complaints).trim().to_owned()));
                }
                Some(StreamEvent::Failed { exit: Some(exit), .. }) if exit.code == Some(NOT_FOUND_CODE) => {
                    return Err(HostError::Missing);
                }
                Some(StreamEvent::Failed { message, exit: Some(_) }) => return Err(HostError::Said(message)),
                Some(StreamEvent::Failed { exit: None, .. }) | None => return Err(LinkError::Broken.into()),
            }
        }
    }
}

/// An archive of one file.
fn packed(name: &str, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o755);
    archive.append_data(&mut header, name, bytes)?;
    archive.into_inner()
}

/// Where this server has it: named, or beside the agent, or beside this program.
fn program() -> PathBuf {
    let named =
        |name: &str| std::env::var_os(name).filter(|value: &OsString| !value.is_empty()).map(PathBuf::from);
    named("CALVE_SWITCH").unwrap_or_else(|| {
        let beside = named("CALVE_AGENT").or_else(|| std::env::current_exe().ok()).unwrap_or_default();
        beside.with_file_name(SWITCH_PROGRAM)
    })
}
