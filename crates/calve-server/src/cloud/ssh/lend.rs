//! The server's side of `calve-agent lend`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use calve_core::MachineId;
use calve_node::{DriverError, DriverErrorKind, Order};
use calve_provider::ssh::{Client, Host, HostKey, Session, Target};
use calve_provider::{ErrorKind, ProviderError};
use calve_store::delta::Held;
use calve_store::progress::Progress;
use calve_store::{Closure, ClosurePath, Store};
use calve_wire::agent::{
    AGENT_PROTOCOL_VERSION, SandboxFailure, SandboxFailureKind, SandboxSpec, StoreMount,
};
use calve_wire::lend::{LEND_VERSION, LendOrder, Lent};
use calve_wire::machine::Workload;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

use super::super::driver_error;
use crate::world::now;
use crate::world::seed::{self, SeedError};

/// Where a host keeps lent machines, for root.
const BASE_OF_ROOT: &str = "/var/lib/calve-lent";
/// The same below the home of a user who may not become root.
const BASE_OF_USER: &str = ".calve-lent";
/// How long a host may take to say what it is.
pub(super) const FACTS_MAX: Duration = Duration::from_secs(60);
/// How long the agent may take to get there: 4 MB over 10 KB a second.
const BRING_MAX: Duration = Duration::from_secs(600);
/// How long a host may take to end a machine: longer than its agent waits for what does not die.
const GIVE_BACK_MAX: Duration = Duration::from_secs(90);
/// The code with which shells say that a program is not there.
const NOT_FOUND_CODE: i32 = 127;
/// Pieces of an archive between the disk and the connection.
const PIECES_MAX: usize = 16;

/// Says what the host is: machine, user, whether it can become root, whether the agent is there, and the directory, which may
/// hold spaces. $1 is the agent's name, $2 the directory of root, $3 that of a user.
const FACTS: &str = r#"
    u=$(id -u); w=none; b=$2; s=
    if [ "$u" != 0 ]; then
        if sudo -n true >/dev/null 2>&1; then w=sudo; s="sudo -n"; else b=$HOME/$3; fi
    fi
    h=no; if $s test -x "$b/$1"; then h=yes; fi
    echo "calve-host $(uname -m) $u $w $h $b"
"#;
/// Takes the agent from standard input, whole or not at all: $1 is the directory, which goes as well where nothing else is in it;
/// $2 is the agent's name, $3 its bytes.
const BRING: &str = r#"
    umask 077; set -e; mkdir -p "$1"; n="$1/.new-$$"
    trap 'rm -f "$n"; rmdir "$1" 2>/dev/null || :' EXIT
    cat >"$n"
    if [ "$(($(wc -c <"$n")))" != "$3" ]; then echo "it did not arrive whole" >&2; exit 1; fi
    chmod 700 "$n"; mv "$n" "$1/$2"
"#;

/// Lends hosts.
pub(super) struct Lender {
    pub(super) client: Client,
    store: Arc<Store>,
    agent_binary: PathBuf,
    /// What is known of hosts, by target.
    facts: Mutex<BTreeMap<Target, Arc<Facts>>>,
}

/// What a host is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    /// Of the processor, as `uname -m` says it.
    machine: String,
    /// Whether the user is root there, or may become so.
    pub rooted: bool,
    sudo: bool,
    pub has_agent: bool,
    base: String,
    /// The agent's name there.
    agent: String,
}

/// Why a host was not lent.
pub(super) struct NotLent {
    pub error: DriverError,
    /// Whether it is sure that nothing is left there.
    pub left_nothing: bool,
}

impl Lender {
    pub fn new(client: Client, store: Arc<Store>, agent_binary: PathBuf) -> Self {
        Self { client, store, agent_binary, facts: Mutex::default() }
    }

    /// The agent for hosts like this one.
    pub fn agent_binary(&self) -> &Path {
        &self.agent_binary
    }

    /// Nothing is known of the host any more.
    pub fn forget(&self, target: &Target) {
        self.facts().remove(target);
    }

    fn facts(&self) -> MutexGuard<'_, BTreeMap<Target, Arc<Facts>>> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the machine.
    pub async fn lend(&self, target: &Target, key: Option<&HostKey>, order: &Order) -> Result<(), NotLent> {
        let nothing = |error: DriverError| NotLent { error, left_nothing: true };
        let lend = lend_order(order).map_err(nothing)?;
        let host = self.client.open(target, key).await.map_err(|error| nothing(driver_error(error)))?;
        let facts = self.prepare(&host).await.map_err(nothing)?;
        let unsure = |error: DriverError| NotLent { error, left_nothing: false };
        let mut session = host.session(&facts.words(&[])).map_err(|error| nothing(driver_error(error)))?;
        let talked = talk(&self.store, &host, &mut session, &lend, &order.closure).await;
        match talked {
            Ok(Lent::Ready) => Ok(()),
            Ok(Lent::Failed(failure)) => Err(nothing(refused(&host, failure))),
            Ok(other) => Err(unsure(strange(&host, &other))),
            Err(Talk::Read(error)) => {
                let message = format!("{target}: the closure cannot be read");
                Err(unsure(DriverError::new(DriverErrorKind::Failed, message).caused_by(error)))
            }
            Err(Talk::Broken) => {
                let ended = session.end().await;
                if ended.code == Some(NOT_FOUND_CODE) {
                    // The last machine there has just gone, and the agent with it.
                    self.forget(target);
                }
                Err(unsure(driver_error(host.failure(&ended))))
            }
        }
    }

    /// Ends the machine; absence is success.
    pub async fn give_back(&self, target: &Target, id: MachineId) -> Result<(), ProviderError> {
        let host = self.client.open(target, None).await?;
        let facts = self.look(&host).await?;
        let given_back = end(&host, &facts, id).await;
        if given_back.is_err() {
            // It may be that the agent has gone meanwhile: the next try looks.
            self.forget(target);
        }
        given_back
    }

    /// A session that passes on to the machine's agent; none where the host has no such machine.
    pub async fn connect(&self, target: &Target, id: MachineId) -> Result<Option<Session>, ProviderError> {
        let host = self.client.open(target, None).await?;
        let facts = self.look(&host).await?;
        if !facts.has_agent {
            return Ok(None);
        }
        let mut session = host.session(&facts.words(&["--connect", &id.to_string()]))?;
        while let Ok(Some(line)) = session.line().await {
            match Lent::parse_line(&line) {
                Some(Lent::Connected) => return Ok(Some(session)),
                Some(Lent::Gone) => return Ok(None),
                _ => {}
            }
        }
        let ended = session.end().await;
        self.forget(target);
        Err(host.failure(&ended))
    }

    /// What the host is.
    async fn look(&self, host: &Host) -> Result<Arc<Facts>, ProviderError> {
        let known = self.facts().get(host.target()).cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        let asked = Arc::new(self.ask(host).await?);
        // Who asked meanwhile may have brought the agent since.
        Ok(self.facts().entry(host.target().clone()).or_insert(asked).clone())
    }

    /// What the host is, asked now.
    pub(super) async fn ask(&self, host: &Host) -> Result<Facts, ProviderError> {
        let unreadable = |error: io::Error| ssh_error(ErrorKind::Refused, error.to_string());
        let (name, _) = self.agent_for(std::env::consts::ARCH).await.map_err(unreadable)?;
        let facts = ask(host, &name).await?;
        if facts.machine != std::env::consts::ARCH
            && let Ok((name, _)) = self.agent_for(&facts.machine).await
        {
            return ask(host, &name).await;
        }
        Ok(facts)
    }

    /// Sees to it that the agent is there.
    async fn prepare(&self, host: &Host) -> Result<Arc<Facts>, DriverError> {
        let facts = self.look(host).await.map_err(driver_error)?;
        if facts.has_agent {
            return Ok(facts);
        }
        self.bring(host, &facts).await?;
        let facts = Arc::new(Facts { has_agent: true, ..(*facts).clone() });
        self.facts().insert(host.target().clone(), facts.clone());
        Ok(facts)
    }

    /// Brings the agent.
    pub(super) async fn bring(&self, host: &Host, facts: &Facts) -> Result<(), DriverError> {
        let (name, bytes) = self.agent_for(&facts.machine).await.map_err(|error| {
            let (target, machine) = (host.target(), &facts.machine);
            let message = format!(
                "{target} is a host of the kind {machine}, and there is no calve-agent for it here: {error}"
            );
            DriverError::new(DriverErrorKind::Unusable, message)
                .hint(format!("put one for {machine} as calve-agent-{machine} beside calve-agent"))
        })?;
        let size = bytes.len().to_string();
        let words = facts.root(&["sh", "-c", BRING, "calve", &facts.base, &name, &size]);
        host.run(&words, &bytes, BRING_MAX).await.map_err(|error| brought_not(facts, error))?;
        Ok(())
    }

    /// The agent for such hosts: its name there, which tells its content, and its bytes.
    async fn agent_for(&self, machine: &str) -> io::Result<(String, Vec<u8>)> {
        let path = match machine == std::env::consts::ARCH {
            true => self.agent_binary.clone(),
            false => self.agent_binary.with_file_name(format!("calve-agent-{machine}")),
        };
        let shown = path.display().to_string();
        let bytes = tokio::fs::read(path).await;
        let bytes = bytes.map_err(|error| io::Error::new(error.kind(), format!("{shown}: {error}")))?;
        let digest = Sha256::digest(&bytes);
        let name: String = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        Ok((format!("agent-{name}"), bytes))
    }
}

impl Facts {
    /// A command there, as root where that can be.
    fn root<'a>(&'a self, words: &[&'a str]) -> Vec<&'a str> {
        let sudo: &[&str] = if self.sudo { &["sudo", "-n"] } else { &[] };
        [sudo, words].concat()
    }

    /// The agent's lending with these options.
    pub(super) fn words<'a>(&'a self, options: &[&'a str]) -> Vec<&'a str> {
        // By way of a shell, as the agent's place may hold spaces and its absence must have a code of its own.
        let script = "b=$1; a=$2; shift 2; exec \"$b/$a\" lend --base \"$b\" \"$@\"";
        let words = [&["sh", "-c", script, "calve", &self.base, &self.agent], options].concat();
        self.root(&words)
    }

    fn parse(output: &str, agent: &str) -> Option<Self> {
        let line = output.lines().find_map(|line| line.strip_prefix("calve-host "))?;
        let mut words = line.splitn(5, ' ');
        let (machine, uid, sudo) = (words.next()?, words.next()?, words.next()? == "sudo");
        Some(Self {
            machine: machine.to_owned(),
            rooted: sudo || uid == "0",
            sudo,
            has_agent: words.next()? == "yes",
            base: words.next()?.to_owned(),
            agent: agent.to_owned(),
        })
    }
}

/// Ends a machine on the host, and what nobody uses there any more; absence is success.
pub(super) async fn end(host: &Host, facts: &Facts, id: MachineId) -> Result<(), ProviderError> {
    if !facts.has_agent {
        // It goes with the last machine, never before.
        return Ok(());
    }
    let output = host.run(&facts.words(&["--give-back", &id.to_string()]), b"", GIVE_BACK_MAX).await?;
    let target = host.target();
    match output.lines().find_map(Lent::parse_line) {
        Some(Lent::Gone) => Ok(()),
        Some(Lent::Failed(failure)) => Err(ssh_error(ErrorKind::Failed, format!("{target}: {failure}"))),
        _ => {
            let message = format!("{target} does not say whether the machine is gone");
            Err(ssh_error(ErrorKind::Failed, message))
        }
    }
}

pub(super) fn ssh_error(kind: ErrorKind, message: String) -> ProviderError {
    ProviderError::new(calve_provider::ssh::NAME, kind, message)
}

async fn ask(host: &Host, agent: &str) -> Result<Facts, ProviderError> {
    let words = ["sh", "-c", FACTS, "calve", agent, BASE_OF_ROOT, BASE_OF_USER];
    let output = host.run(&words, b"", FACTS_MAX).await?;
    Facts::parse(&output, agent).ok_or_else(|| {
        let message = format!("{} has no usual shell: it does not say what it is", host.target());
        ssh_error(ErrorKind::Refused, message)
    })
}

fn brought_not(facts: &Facts, error: ProviderError) -> DriverError {
    let full = error.message.contains("No space left") || error.message.contains("quota exceeded");
    let mut error = driver_error(error);
    error.message = format!("{}; the agent cannot be brought to {}", error.message, facts.base);
    if full {
        error.kind = DriverErrorKind::NoSpace;
    }
    error
}

fn refused(host: &Host, failure: SandboxFailure) -> DriverError {
    let kind = match failure.kind {
        SandboxFailureKind::Unusable => DriverErrorKind::Unusable,
        SandboxFailureKind::NoSpace => DriverErrorKind::NoSpace,
        SandboxFailureKind::Failed => DriverErrorKind::Failed,
    };
    let error = DriverError::new(kind, format!("{}: {}", host.target(), failure.message));
    match failure.hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

fn strange(host: &Host, said: &Lent) -> DriverError {
    DriverError::new(
        DriverErrorKind::Failed,
        format!("{}: its agent says {said:?} out of turn", host.target()),
    )
}

/// Why a talk did not come to its end.
enum Talk {
    /// The connection or the agent there.
    Broken,
    /// The closure here.
    Read(SeedError),
}

/// The whole talk of [`calve_wire::lend`]; gives the last word.
async fn talk(
    store: &Arc<Store>,
    host: &Host,
    session: &mut Session,
    lend: &LendOrder,
    closure: &Closure,
) -> Result<Lent, Talk> {
    let mut stdin = session.stdin.take().expect("it is new");
    let mut line = serde_json::to_vec(lend).expect("names and numbers");
    line.push(b'\n');
    // Who takes nothing says why.
    let _ = stdin.write_all(&line).await;
    let missing = match hear(session).await? {
        Lent::Missing { paths } => paths,
        said => return Ok(said),
    };
    let missing: BTreeSet<String> = missing.into_iter().collect();
    let lacks = |at: &&ClosurePath| missing.contains(at.path.base_name());
    let closure = Closure::new(closure.paths.iter().filter(lacks).cloned().collect());
    let (pieces, mut read) = mpsc::channel::<Bytes>(PIECES_MAX);
    let progress = Arc::<Progress>::default();
    let (store, counted) = (store.clone(), progress.clone());
    let reading = tokio::task::spawn_blocking(move || {
        // Nothing is copied from what lies there: this session has no second try.
        seed::send(&store, &closure, Some(Held::default()), seed::Pieces::new(pieces, counted))
    });
    let sending = async {
        while let Some(piece) = read.recv().await {
            if stdin.write_all(&piece).await.is_err() {
                // Why it takes no more is its last word.
                return Ok(());
            }
        }
        // Half a closure does not look like all of it: it has no end.
        let sent = reading.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        sent.map_err(Talk::Read)?;
        tracing::info!(host = %host.target(), machine = lend.spec.machine_id, "{}", seed::summary(&progress));
        Ok(())
    };
    let hearing = hear(session);
    tokio::pin!(sending, hearing);
    tokio::select! {
        sent = &mut sending => { sent?; hearing.await }
        heard = &mut hearing => heard,
    }
}

async fn hear(session: &mut Session) -> Result<Lent, Talk> {
    while let Ok(Some(line)) = session.line().await {
        if let Some(said) = Lent::parse_line(&line) {
            return Ok(said);
        }
    }
    Err(Talk::Broken)
}

fn lend_order(order: &Order) -> Result<LendOrder, DriverError> {
    if let Workload::System { .. } = order.spec.workload {
        let message = "a borrowed host keeps its own system";
        return Err(DriverError::new(DriverErrorKind::Unusable, message)
            .hint("`calve adopt ssh://HOST --ttl none` and then `calve switch` give it another"));
    }
    let names = order.closure.paths.iter().map(|path| path.path.base_name());
    let user =
        std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).unwrap_or_else(|_| "somebody".to_owned());
    let here = rustix::system::uname().nodename().to_string_lossy().into_owned();
    Ok(LendOrder {
        version: LEND_VERSION,
        attempt: order.attempt,
        holder: format!("{user}@{here}"),
        spec: SandboxSpec {
            version: AGENT_PROTOCOL_VERSION,
            machine_id: order.id.to_string(),
            hostname: order.name.to_string(),
            token: order.token.clone(),
            remaining: order.remaining,
            written_unix_ms: now().0,
            store_paths: names
                .map(|name| StoreMount { source: String::new(), base_name: name.to_owned() })
                .collect(),
            limits: order.spec.limits,
            network: order.spec.network,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_host_says_is_found_among_the_words_of_its_shell() {
        let output = "Welcome!\ncalve-host x86_64 1000 none no /home/a b/.calve-lent\nbye\n";
        let facts = Facts::parse(output, "agent-1").unwrap();
        assert_eq!(
            (facts.sudo, facts.rooted, facts.has_agent, facts.base.as_str()),
            (false, false, false, "/home/a b/.calve-lent")
        );
        assert!(Facts::parse("calve-host x86_64", "a").is_none());
        assert!(Facts::parse("calve-host x86_64 0 none no /b", "a").is_some_and(|facts| facts.rooted));
        let rooted = Facts { sudo: true, ..facts };
        assert_eq!(rooted.root(&["true"]), ["sudo", "-n", "true"]);
    }
}
