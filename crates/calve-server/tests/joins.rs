//! Join tokens: redeemed once, by one key, for one attempt at one machine.

mod fake_agent;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use calve_core::{Kind, MachineId, Timestamp};
use calve_server::agents::Listener;
use calve_server::joins::{JOIN_MAX, token};
use calve_server::reconcile::records::{self, NewMachine, machine_key};
use calve_server::state::{Durability, Expect};
use calve_server::world::now;
use calve_wire::event::What;
use calve_wire::join::{KnockAnswer, Refusal};
use calve_wire::machine::{MachineSpec, Workload};
use calve_wire::record::MachineRecord;
use fake_agent::door::{Records, answer, connect, key, knock, listen, public, say};
use fake_agent::*;
use tokio::io::AsyncReadExt;
use tokio::task::JoinSet;

/// A server that expects one machine.
struct Stage {
    world: World,
    records: Records,
    id: MachineId,
    addr: SocketAddr,
    fingerprint: String,
    _listener: Listener,
}

impl Stage {
    async fn set() -> Self {
        let world = World::new();
        let records = Records::new(&world);
        let id = machine(1);
        let new = NewMachine {
            held: false,
            id,
            agent_token: TOKEN.to_owned(),
            name: None,
            spec: MachineSpec::new(Kind::System, Workload::Base),
            ttl: None,
            grace: Duration::ZERO,
        };
        records::create(&*records.state, &records.view, new, now()).await.unwrap();
        world.agents.expect_joined(id, TOKEN.to_owned(), None, Arc::new(remaining)).unwrap();
        let (listener, fingerprint) = listen(&world, records.joins()).await;
        Self { world, records, id, addr: listener.local_addr(), fingerprint, _listener: listener }
    }

    /// The server is begun anew, on the same state.
    async fn restart(&mut self) {
        let (listener, fingerprint) = listen(&self.world, self.records.joins()).await;
        (self.addr, self.fingerprint, self._listener) = (listener.local_addr(), fingerprint, listener);
    }

    fn token(&self, attempt: u32) -> String {
        token(TOKEN, self.id, attempt, now().after(JOIN_MAX))
    }

    async fn knock(&self, n: u8, join: Option<&str>) -> KnockAnswer {
        let mut stream = connect(self.addr, &self.fingerprint).await;
        let said = knock(&stream, &key(n), self.id, join);
        say(&mut stream, &said).await;
        answer(&mut stream).await
    }

    async fn record(&self) -> MachineRecord {
        let entry = self.records.state.get(&machine_key(self.id)).await.unwrap().unwrap();
        MachineRecord::from_json(&entry.value).unwrap()
    }

    async fn change(&self, change: impl FnOnce(&mut MachineRecord)) {
        let mut record = self.record().await;
        change(&mut record);
        let value = record.to_json().into();
        let key = machine_key(self.id);
        self.records.state.put(&key, value, Expect::Any, Durability::Soon).await.unwrap();
    }

    fn events(&self) -> Vec<What> {
        self.records.events.after(0).kept().unwrap().into_iter().map(|event| event.what).collect()
    }
}

fn refused(answer: &KnockAnswer) -> Option<Refusal> {
    match answer {
        KnockAnswer::Welcome { token } => {
            assert_eq!(token, TOKEN);
            None
        }
        KnockAnswer::Refused { reason, .. } => Some(*reason),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_fifty_who_redeem_a_token_at_once_one_wins() {
    let stage = Arc::new(Stage::set().await);
    let token = stage.token(0);
    let mut readers = JoinSet::new();
    for n in 1..=50 {
        let (stage, token) = (stage.clone(), token.clone());
        readers.spawn(async move { (n, stage.knock(n, Some(&token)).await) });
    }
    let answers = readers.join_all().await;
    let winners: Vec<u8> = answers.iter().filter(|(_, it)| refused(it).is_none()).map(|(n, _)| *n).collect();
    let used = answers.iter().filter(|(_, it)| refused(it) == Some(Refusal::Used)).count();
    assert_eq!((winners.len(), used), (1, 49), "{answers:?}");
    let record = stage.record().await;
    assert_eq!(record.agent_key(), Some(&*public(&key(winners[0]))));
    // One clear sentence where people look, and the audit.
    assert!(record.message.unwrap().contains("redeemed before, by another key"));
    let events = stage.events();
    let joined = events.iter().filter(|what| matches!(what, What::Joined { .. })).count();
    let told = events.iter().filter(|what| matches!(what, What::JoinRefused { .. })).count();
    assert_eq!((joined, told), (1, 1), "{events:?}");
}

#[tokio::test]
async fn an_agent_whose_answer_was_lost_asks_again_and_gets_the_same() {
    let mut stage = Stage::set().await;
    let token = stage.token(0);
    // Cut off before anything was said, and after the knock before the answer: killed between the steps.
    drop(connect(stage.addr, &stage.fingerprint).await);
    let mut stream = connect(stage.addr, &stage.fingerprint).await;
    let said = knock(&stream, &key(1), stage.id, Some(&token));
    say(&mut stream, &said).await;
    drop(stream);
    assert_eq!(refused(&stage.knock(1, Some(&token)).await), None);
    // Whoever reads the user data now has nothing, and neither has who only read the record.
    assert_eq!(refused(&stage.knock(2, Some(&token)).await), Some(Refusal::Used));
    assert_eq!(refused(&stage.knock(2, None).await), Some(Refusal::Foreign));
    stage.restart().await;
    assert_eq!(refused(&stage.knock(1, Some(&token)).await), None);
    // Its key alone says who it is, also when the token's time is over.
    assert_eq!(refused(&stage.knock(1, None).await), None);
    assert_eq!(refused(&stage.knock(2, Some(&token)).await), Some(Refusal::Used));
    let joined = stage.events().into_iter().filter(|what| matches!(what, What::Joined { .. })).count();
    assert_eq!(joined, 1);
}

#[tokio::test]
async fn the_link_of_a_machine_that_has_joined_is_its_keys_alone() {
    let stage = Stage::set().await;
    let token = stage.token(0);
    let mut stream = connect(stage.addr, &stage.fingerprint).await;
    let said = knock(&stream, &key(1), stage.id, Some(&token));
    say(&mut stream, &said).await;
    assert_eq!(refused(&answer(&mut stream).await), None);
    let mut agent = Conversation::new(stream);
    agent.raw(&fake_agent::token().preamble()).await;
    assert_eq!(agent.hello().await, 0);
    agent.welcome(1).await;
    stage.world.until_linked(stage.id).await;
    // The link's token, from wherever somebody may have it, is nothing without the key.
    let mut stranger = connect(stage.addr, &stage.fingerprint).await;
    tokio::io::AsyncWriteExt::write_all(&mut stranger, &fake_agent::token().preamble()).await.unwrap();
    let mut rest = Vec::new();
    let _ = stranger.read_to_end(&mut rest).await;
    assert_eq!(rest, b"");
    assert!(stage.world.agents.reports()[&stage.id].linked);
    // What was signed for one connection says nothing on another.
    let mut replayed = connect(stage.addr, &stage.fingerprint).await;
    say(&mut replayed, &said).await;
    assert_eq!(refused(&answer(&mut replayed).await), Some(Refusal::Broken));
}

#[tokio::test]
async fn expired_and_foreign_tokens_are_refused_in_a_sentence_that_stands_on_the_machine() {
    let stage = Stage::set().await;
    let expired = token(TOKEN, stage.id, 0, Timestamp(now().0 - 2000));
    let answer = stage.knock(1, Some(&expired)).await;
    assert_eq!(refused(&answer), Some(Refusal::Expired));
    assert!(stage.record().await.message.unwrap().contains("not redeemed in time"));
    let KnockAnswer::Refused { message, .. } = answer else { unreachable!() };
    assert!(message.contains("not redeemed in time"), "{message}");
    // Of another machine, of another attempt, with its end moved, and nonsense.
    let other = token(TOKEN, machine(2), 0, now().after(JOIN_MAX));
    let mut moved = stage.token(0);
    moved.replace_range(..8, "ffffffff");
    for bad in [other.as_str(), &stage.token(1), &moved, "", "é", TOKEN] {
        assert_eq!(refused(&stage.knock(1, Some(bad)).await), Some(Refusal::Foreign), "{bad}");
    }
    assert!(stage.record().await.message.unwrap().contains("earlier attempt"));
    let told = stage.events().iter().filter(|what| matches!(what, What::JoinRefused { .. })).count();
    assert_eq!(told, 2, "one of each kind");
    assert_eq!(stage.record().await.joined, None);
    // A machine that nobody knows.
    let mut stream = connect(stage.addr, &stage.fingerprint).await;
    let said = knock(&stream, &key(1), machine(9), Some(&stage.token(0)));
    say(&mut stream, &said).await;
    assert_eq!(refused(&door::answer(&mut stream).await), Some(Refusal::Foreign));
}

#[tokio::test]
async fn the_next_attempt_is_another_machine_and_the_former_one_never_comes_back() {
    let stage = Stage::set().await;
    stage.change(|record| record.attempt = 1).await;
    let first = stage.token(1);
    assert_eq!(refused(&stage.knock(1, Some(&first)).await), None);
    // The first machine was given up; its agent, still alive somewhere, is refused from then on.
    stage.change(|record| record.attempt = 2).await;
    assert_eq!(refused(&stage.knock(1, Some(&first)).await), Some(Refusal::Foreign));
    let second = stage.token(2);
    assert_eq!(refused(&stage.knock(2, Some(&second)).await), None);
    assert_eq!(refused(&stage.knock(1, Some(&first)).await), Some(Refusal::Foreign));
    assert_eq!(stage.record().await.agent_key(), Some(&*public(&key(2))));
}
