//! The guarantees of [`Provider`], for every provider, where its answers are lost, late, or refused.

#[path = "conformance/stage.rs"]
mod stage;

#[path = "conformance/digitalocean.rs"]
mod digitalocean;
#[path = "conformance/exec.rs"]
mod exec;
#[path = "conformance/proxmox.rs"]
mod proxmox;

use std::collections::BTreeSet;
use std::sync::Arc;

use calve_core::{MachineId, Timestamp};
use calve_provider::adopt::{self, AdoptError};
use calve_provider::mark::{Mark, OwnerKey, Subject, TAG, Until};
use calve_provider::reap::{self, Verdict, Whose};
use calve_provider::{ErrorKind, Order, Pace};
use stage::{Stage, every, names, pace};

#[tokio::test]
async fn a_machine_is_made_once_listed_and_destroyed() {
    for stage in every(pace()).await {
        let order = stage.order(1, Until::Never);
        let made = stage.provider.create(&order).await.unwrap();
        assert_eq!(stage.provider.create(&order).await.unwrap().id, made.id);
        let listed = stage.provider.list(&order.key).await.unwrap();
        assert_eq!((listed.machines.len(), stage.behind.created()), (1, 1));
        let machine = &listed.machines[0];
        assert_eq!((&machine.id, &machine.name), (&made.id, &order.name));
        assert_eq!((&machine.region, &machine.size), (&order.region, &order.size));
        assert_eq!(BTreeSet::from_iter(&machine.tags), BTreeSet::from_iter(&order.tags));
        assert_eq!(machine.dollars_per_hour, stage.behind.dollars_per_hour());
        assert!(listed.unix_s.is_some(), "the provider's clock is not read");
        let told = &stage.behind.machines()[0].told;
        assert!(told.windows(order.user_data.len()).any(|bytes| bytes == order.user_data.as_bytes()));
        for _ in 0..2 {
            stage.provider.destroy(&made.id).await.unwrap();
        }
        stage.provider.destroy_tagged(&order.key).await.unwrap();
        stage.provider.remove_tag("never-was").await.unwrap();
        assert!(stage.provider.list(&order.key).await.unwrap().machines.is_empty());
        assert!(stage.behind.machines().is_empty());
    }
}

#[tokio::test]
async fn an_answer_that_is_lost_makes_no_second_machine() {
    use digitalocean_emulator::faults::FaultKind::{FailAfter, LoseReply};
    for stage in every(pace()).await {
        let failures = stage.behind.failures().iter().map(|status| FailAfter(*status)).chain([LoseReply]);
        for (number, kind) in failures.enumerate() {
            stage.behind.fault(stage::Call::Create, kind, 1);
            let order = stage.order(number as u128, Until::Never);
            let made = stage.provider.create(&order).await.unwrap();
            assert_eq!(stage.behind.created(), number + 1, "{kind:?}");
            let listed = stage.provider.list(&order.key).await.unwrap().machines;
            assert_eq!(listed.iter().map(|it| &it.id).collect::<Vec<_>>(), [&made.id]);
        }
    }
}

#[tokio::test]
async fn what_was_refused_before_it_was_done_is_asked_for_again() {
    use digitalocean_emulator::faults::FaultKind::FailBefore;
    for stage in every(Pace { settle: std::time::Duration::from_millis(20), ..pace() }).await {
        let status = stage.behind.failures()[0];
        stage.behind.fault(stage::Call::Create, FailBefore(status), 2);
        stage.provider.create(&stage.order(1, Until::Never)).await.unwrap();
        assert_eq!(stage.behind.created(), 1);
        stage.behind.fault(stage::Call::Create, FailBefore(status), 9);
        let error = stage.provider.create(&stage.order(2, Until::Never)).await.unwrap_err();
        assert!(error.is_uncertain() && error.to_string().contains(stage.behind.request()), "{error}");
        assert_eq!(stage.behind.created(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_hundred_machines_are_listed_each_once_while_others_go() {
    const WORKERS: usize = 10;
    for stage in every(pace()).await {
        let stage = Arc::new(stage);
        let many = stage.behind.many();
        let mut making = tokio::task::JoinSet::new();
        for worker in 0..WORKERS {
            let stage = stage.clone();
            making.spawn(async move {
                for number in (worker..many).step_by(WORKERS) {
                    stage.provider.create(&stage.order(number as u128, Until::Never)).await.unwrap();
                }
            });
        }
        stage.provider.create(&stage.stranger(1, &["web"])).await.unwrap();
        while let Some(made) = making.join_next().await {
            made.unwrap();
        }
        let tag = stage.ours.owner().tag();
        let mut ids: Vec<String> =
            stage.provider.list(&tag).await.unwrap().machines.into_iter().map(|it| it.id).collect();
        assert_eq!(ids.len(), many);
        // Newest first: what goes from the first page moves others to it from the second.
        ids.sort_by(|a, b| (b.len(), b).cmp(&(a.len(), a)));
        let others: BTreeSet<String> = ids.split_off(many / 30 + 1).into_iter().collect();
        let provider = stage.provider.clone();
        let gone = tokio::spawn(async move {
            for id in ids {
                provider.destroy(&id).await.unwrap();
            }
        });
        while !gone.is_finished() {
            let listed = stage.provider.list(&tag).await.unwrap().machines;
            let ids: BTreeSet<String> = listed.iter().map(|machine| machine.id.clone()).collect();
            assert_eq!(ids.len(), listed.len());
            assert!(ids.is_superset(&others), "{:?} are missing", others.difference(&ids));
        }
        gone.await.unwrap();
        stage.provider.destroy_tagged(&tag).await.unwrap();
        assert!(stage.provider.list(&tag).await.unwrap().machines.is_empty());
        assert_eq!(stage.names(), BTreeSet::from(["stranger-1".to_owned()]));
    }
}

#[tokio::test]
async fn credentials_that_are_not_known_and_hosts_that_are_not_there_are_told_apart() {
    for stage in every(pace()).await {
        let wrong = stage.behind.with_wrong_token(pace()).check().await.unwrap_err();
        assert_eq!(wrong.kind, ErrorKind::Credentials, "{wrong}");
        assert!(!format!("{wrong} {wrong:?}").contains("wrong"), "{wrong:?}");
        stage.provider.check().await.unwrap();
        let Stage { behind, provider, .. } = stage;
        drop(behind);
        let gone = provider.check().await.unwrap_err();
        assert!(matches!(gone.kind, ErrorKind::Unreachable | ErrorKind::NoAnswer), "{gone}");
    }
}

#[tokio::test]
async fn reaping_is_exact_and_touches_nothing_that_is_not_ours() {
    use digitalocean_emulator::faults::FaultKind::FailAfter;
    for stage in every(pace()).await {
        let now = stage.provider.list(TAG).await.unwrap().unix_s.unwrap();
        let (past, future) = (Until::Unix(now - 1), Until::Unix(now + 600));
        let theirs = OwnerKey::from_seed(&[2; 32]);
        let ended = stage.order(1, past);
        let copied: Vec<&str> = ended.tags.iter().map(String::as_str).collect();
        for order in [
            ended.clone(),
            stage.order(2, future),
            stage.order(3, Until::Never),
            stage.order_of(&theirs, 4, past),
            stage.stranger(1, &["web"]),
            stage.stranger(2, &copied),
            stage.stranger(3, &[TAG]),
        ] {
            stage.provider.create(&order).await.unwrap();
        }
        let all = stage.names();
        // A clock of this host that is wrong by years ends no lease.
        let ours = Whose::Owner(stage.ours.owner());
        let dry = reap::reap(&*stage.provider, ours, u64::MAX, true).await.unwrap();
        assert_eq!(stage.names(), all);
        assert_eq!(names(&dry), ["run-1"]);
        stage.behind.fault(stage::Call::Destroy, FailAfter(stage.behind.failures()[0]), 1);
        let done = reap::reap(&*stage.provider, ours, u64::MAX, false).await.unwrap();
        assert!(done.iter().all(|judged| judged.destroyed.as_ref().is_none_or(Result::is_ok)), "{done:?}");
        let left = stage.names();
        assert_eq!(all.difference(&left).collect::<Vec<_>>(), ["run-1"]);
        // Its own tags go with it, those of others stay; where tags stand on machines, a copy keeps its own.
        let tags = stage.behind.tags();
        assert!(tags.contains(&stage.order(2, future).key));
        reap::reap(&*stage.provider, Whose::Anybody, 0, false).await.unwrap();
        assert!(!stage.names().contains("run-4") && stage.names().len() == 5, "{:?}", stage.names());
    }
}

#[tokio::test]
async fn a_renewed_lease_counts_at_every_moment() {
    for stage in every(pace()).await {
        let now = stage.provider.list(TAG).await.unwrap().unix_s.unwrap();
        let order = stage.order(1, Until::Unix(now - 1));
        let made = stage.provider.create(&order).await.unwrap();
        let subject = Subject { id: MachineId::new(Timestamp(1), 1), attempt: 1, name: order.name.clone() };
        let old = stage.ours.until_tag(&subject, Until::Unix(now - 1));
        let new = stage.ours.until_tag(&subject, Until::Unix(now + 600));
        let lives = async || {
            let judged = reap::reap(&*stage.provider, Whose::Anybody, 0, true).await.unwrap();
            matches!(judged[0].verdict, Verdict::Lives(_))
        };
        assert!(!lives().await);
        stage.provider.add_tag(&made.id, &new).await.unwrap();
        assert!(lives().await);
        stage.provider.remove_tag(&old).await.unwrap();
        assert!(lives().await);
    }
}

/// An order that is otherwise in one thing.
#[tokio::test]
async fn a_machine_that_somebody_else_made_is_adopted_once_and_keeps_what_it_has() {
    use digitalocean_emulator::faults::FaultKind::LoseReply;
    for stage in every(Pace { attempts: 1, ..pace() }).await {
        let (provider, ours) = (&*stage.provider, &stage.ours);
        let made = provider.create(&stage.stranger(1, &["web"])).await.unwrap();
        let other = provider.create(&stage.stranger(2, &["web"])).await.unwrap();
        let shown = provider.machine(&made.id).await;
        if provider.describe().name == calve_provider::exec::NAME {
            let refused = shown.unwrap_err().to_string();
            assert!(refused.contains("none can be adopted"), "{refused}");
            continue;
        }
        let shown = shown.unwrap().unwrap();
        assert_eq!((&shown.id, &shown.name, &shown.region), (&made.id, &made.name, &made.region));
        assert_eq!(shown.tags, ["web"]);
        assert_eq!(provider.machine("4294967295").await.unwrap(), None);
        assert_eq!(provider.machine("../x").await.unwrap_err().kind, ErrorKind::Refused);

        // Whatever is lost on the way: it is nobody's, or ours, and the next attempt makes it ours.
        let id = MachineId::new(Timestamp(1), 77);
        let adopt = async |attempt: u32| {
            let until = Until::Unix(1000 + u64::from(attempt));
            let adopted = adopt::adopt(provider, &made.id, ours, (id, attempt), until).await;
            if adopted.is_ok() {
                let shown = provider.machine(&made.id).await.unwrap().unwrap();
                let subject = Subject { id, attempt, name: made.name.clone() };
                let mark = Mark { owner: ours.owner(), subject, until };
                assert_eq!(Mark::read(&shown.name, &shown.tags), Ok(mark));
            }
            adopted
        };
        for attempt in 1..=3 {
            stage.behind.fault(stage::Call::Tag, LoseReply, 1);
            match adopt(attempt).await {
                Err(AdoptError::Provider(error)) => assert!(error.is_uncertain(), "{error}"),
                adopted => panic!("{adopted:?}"),
            }
        }
        adopt(4).await.unwrap();
        // Its answer was lost as well.
        let machine = adopt(5).await.unwrap();
        assert!(machine.tags.contains(&"web".to_owned()), "{machine:?}");
        let of_one = |tag: &&String| tag.starts_with("calve:machine:") || tag.starts_with("calve:until:");
        assert_eq!(machine.tags.iter().filter(of_one).count(), 2, "{machine:?}");

        let looked = async |owner: &OwnerKey, id| adopt::look(provider, &made.id, owner.owner(), id).await;
        assert!(looked(ours, Some(id)).await.is_ok());
        assert!(matches!(looked(ours, None).await, Err(AdoptError::Ours { id: found, .. }) if found == id));
        let theirs = OwnerKey::from_seed(&[2; 32]);
        assert!(matches!(looked(&theirs, None).await, Err(AdoptError::Another { .. })));
        provider.add_tag(&other.id, &theirs.owner().tag()).await.unwrap();
        let odd = adopt::look(provider, &other.id, ours.owner(), None).await.unwrap_err();
        assert!(matches!(&odd, AdoptError::Odd { tag, .. } if *tag == theirs.owner().tag()), "{odd}");

        let reaped = reap::reap(provider, Whose::Owner(ours.owner()), 5000, false).await.unwrap();
        assert_eq!(names(&reaped), ["stranger-1"]);
        assert_eq!(stage.names(), BTreeSet::from(["stranger-2".to_owned()]));
    }
}

fn but(order: &Order, change: impl FnOnce(&mut Order)) -> Order {
    let mut order = order.clone();
    change(&mut order);
    order
}
