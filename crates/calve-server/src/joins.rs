//! Join tokens: what a machine elsewhere is given to become known here, once ([`calve_wire::join`]).
//!
//! ```text
//!  made      token = end │ HMAC(agent token of the record; id, attempt, end)      nothing is stored
//!  redeemed  compare-and-set of the machine's record: this attempt is this key's
//!  again     the same key: the same answer, also when the token has ended; any other key: refused
//! ```
//! A server that is killed after the compare-and-set has redeemed the token all the same, and the agent that heard no answer
//! asks again. Killed before, nothing has happened.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use calve_core::{MachineId, Timestamp};
use calve_wire::event::What;
use calve_wire::join::{KNOCK_EXPORT_BYTES, KNOCK_VERSION, Knock, KnockAnswer, Refusal, knock_statement};
use calve_wire::record::{Joined, MachineRecord};
use ring::hmac;
use ring::signature::{ED25519, UnparsedPublicKey};

use crate::chain;
use crate::events::EventLog;
use crate::reconcile::records::{self, RecordsError, View};
use crate::state::State;

/// Time in which a token must be redeemed: a machine whose agent has not spoken after ten minutes has failed
/// ([`calve_core::limits::BOOT_MAX_PROVIDER`]).
pub const JOIN_MAX: Duration = Duration::from_secs(15 * 60);
/// Hexadecimal digits of a token's end, in seconds since the epoch.
const END_DIGITS: usize = 8;
/// Hexadecimal digits of its authentication code: 128 bits.
const CODE_DIGITS: usize = 32;
/// Of one kind of refusal for one machine, one event in so long: an agent that is refused keeps asking.
const TELL_PAUSE: Duration = Duration::from_secs(60);
/// Refusals that are remembered for that; beyond, all are forgotten.
const TOLD_MAX: usize = 10_000;

/// The token of a machine's attempt, which may be redeemed before `end`.
pub fn token(agent_token: &str, id: MachineId, attempt: u32, end: Timestamp) -> String {
    let end = format!("{:0END_DIGITS$x}", u32::try_from(end.0.div_ceil(1000)).unwrap_or(u32::MAX));
    let code = code(agent_token, id, attempt, &end);
    end + &code
}

fn code(agent_token: &str, id: MachineId, attempt: u32, end: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, agent_token.as_bytes());
    let tag = hmac::sign(&key, format!("calve join 1\n{id}\n{attempt}\n{end}").as_bytes());
    hex(&tag.as_ref()[..CODE_DIGITS / 2])
}

/// Redeems tokens.
pub struct Joins {
    state: Arc<dyn State>,
    view: View,
    events: EventLog,
    told: Mutex<BTreeMap<(MachineId, &'static str), Instant>>,
}

/// Whose machine it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The machine.
    pub id: MachineId,
    /// Its agent's key.
    pub key: [u8; 32],
    /// The token of its link.
    pub token: String,
}

/// A knock that is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    /// Which kind of no.
    pub reason: Refusal,
    /// One sentence.
    pub message: String,
}

impl From<Refused> for KnockAnswer {
    fn from(refused: Refused) -> Self {
        Self::Refused { reason: refused.reason, message: refused.message }
    }
}

/// What a knock means for a record.
enum Verdict {
    /// The machine is the key's already.
    Known,
    /// The token is good: the machine becomes the key's.
    Redeems,
    No(Refusal),
}

impl Joins {
    /// For the machines of this state.
    pub fn new(state: Arc<dyn State>, view: View, events: EventLog) -> Self {
        Self { state, view, events, told: Mutex::default() }
    }

    /// Finds out whose knock it is, over the connection with this keying material, and redeems its token where that is new.
    pub async fn answer(
        &self,
        knock: &Knock,
        exported: &[u8; KNOCK_EXPORT_BYTES],
        from: &str,
        now: Timestamp,
    ) -> Result<Member, Refused> {
        let (id, key) = prove(knock, exported)?;
        self.redeem(id, &key, knock.join.as_deref(), from, now).await
    }

    async fn redeem(
        &self,
        id: MachineId,
        key: &[u8; 32],
        join: Option<&str>,
        from: &str,
        now: Timestamp,
    ) -> Result<Member, Refused> {
        let text = hex(key);
        let redeemed = AtomicBool::new(false);
        let changed = records::update_now(&*self.state, &self.view, id, |record| {
            let redeems = matches!(judge(record, &text, join, now), Verdict::Redeems);
            if redeems {
                let (attempt, key) = (record.attempt, text.clone());
                record.joined = Some(Joined { attempt, key, unix_ms: now.0 });
            }
            redeemed.store(redeems, Ordering::Relaxed);
            Ok(redeems)
        });
        let record = match changed.await {
            Ok(record) => record,
            Err(RecordsError::NotFound(_)) => {
                tracing::warn!(machine = %id, from, "a join as a machine that does not exist was refused");
                return Err(refusal(Refusal::Foreign));
            }
            Err(error) => {
                tracing::warn!(machine = %id, from, error = chain(&error), "a join must wait");
                return Err(refusal(Refusal::Later));
            }
        };
        if let Verdict::No(reason) = judge(&record, &text, join, now) {
            let refused = refusal(reason);
            self.tell(&record, from, &refused).await;
            return Err(refused);
        }
        if redeemed.into_inner() {
            tracing::info!(machine = %id, from, key = text, "joined");
            self.events.append(&format!("agent:{from}"), id, &record.name, What::Joined { key: text });
        }
        Ok(Member { id, key: *key, token: record.agent_token.clone() })
    }

    /// Logs, audits and notes a refusal; of many alike, one in a minute.
    async fn tell(&self, record: &MachineRecord, from: &str, refused: &Refused) {
        let kind = word(refused.reason);
        {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            if told.get(&(record.id, kind)).is_some_and(|at| at.elapsed() < TELL_PAUSE) {
                return;
            }
            if told.len() >= TOLD_MAX {
                told.clear();
            }
            told.insert((record.id, kind), Instant::now());
        }
        let why = &refused.message;
        tracing::warn!(machine = %record.id, from, why, "a join was refused");
        let what = What::JoinRefused { from: from.to_owned(), why: why.clone() };
        self.events.append(&format!("agent:{from}"), record.id, &record.name, what);
        let note = format!("a join from {from} was refused: {why}");
        let noted = records::update_now(&*self.state, &self.view, record.id, |record| {
            let over = record.state.is_terminal();
            Ok(!over && record.message.replace(note.clone()).as_ref() != Some(&note))
        });
        if let Err(error) = noted.await {
            tracing::warn!(machine = %record.id, error = chain(&error), "a refused join could not be noted");
        }
    }
}

/// Whether the knock was made with its key, on this connection.
fn prove(knock: &Knock, exported: &[u8; KNOCK_EXPORT_BYTES]) -> Result<(MachineId, [u8; 32]), Refused> {
    let broken = || refusal(Refusal::Broken);
    if knock.version != KNOCK_VERSION {
        return Err(broken());
    }
    let id: MachineId = knock.machine.parse().map_err(|_| refusal(Refusal::Foreign))?;
    let key: [u8; 32] = bytes(&knock.key).ok_or_else(broken)?;
    let signature: [u8; 64] = bytes(&knock.signature).ok_or_else(broken)?;
    let statement = knock_statement(exported, &knock.machine, knock.join.as_deref());
    UnparsedPublicKey::new(&ED25519, key).verify(&statement, &signature).map_err(|_| broken())?;
    Ok((id, key))
}

fn judge(record: &MachineRecord, key: &str, join: Option<&str>, now: Timestamp) -> Verdict {
    if record.agent_key() == Some(key) {
        return Verdict::Known;
    }
    let ours = |token: &&str| {
        token.len() == END_DIGITS + CODE_DIGITS && token.is_ascii() && {
            let (end, code_shown) = token.split_at(END_DIGITS);
            let code = code(&record.agent_token, record.id, record.attempt, end);
            crate::agents::same(code.as_bytes(), code_shown.as_bytes())
        }
    };
    let Some(token) = join.filter(ours) else { return Verdict::No(Refusal::Foreign) };
    if record.agent_key().is_some() {
        return Verdict::No(Refusal::Used);
    }
    if record.state.is_terminal() {
        return Verdict::No(Refusal::Foreign);
    }
    let end = u64::from_str_radix(&token[..END_DIGITS], 16).unwrap_or(0);
    if now.0 >= end.saturating_mul(1000) { Verdict::No(Refusal::Expired) } else { Verdict::Redeems }
}

fn refusal(reason: Refusal) -> Refused {
    let message = match reason {
        Refusal::Used => "the join token was redeemed before, by another key",
        Refusal::Expired => "the join token was not redeemed in time",
        Refusal::Foreign => "the join token is not of this machine, or of an earlier attempt at it",
        Refusal::Broken => {
            "the agent's introduction is not signed by its key, or not of a version that this server reads"
        }
        Refusal::Later => "the server's state cannot be changed at the moment",
    };
    Refused { reason, message: message.to_owned() }
}

fn word(reason: Refusal) -> &'static str {
    match reason {
        Refusal::Used => "used",
        Refusal::Expired => "expired",
        Refusal::Foreign => "foreign",
        Refusal::Broken => "broken",
        Refusal::Later => "later",
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads so many bytes from twice as many hexadecimal digits.
pub(crate) fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if text.len() != 2 * N || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
    }
    Some(bytes)
}
