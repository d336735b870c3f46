//! The guarantees of [`Provider`], for every provider, where its answers are lost, late, or refused.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use calve_core::{MachineId, Timestamp};
use calve_provider::digitalocean::{DigitalOcean, Settings};
use calve_provider::mark::{OwnerKey, Subject, TAG, Until};
use calve_provider::reap::{self, Verdict, Whose};
use calve_provider::{ErrorKind, Order, Pace, Provider};
use digitalocean_emulator::faults::{Fault, FaultKind};
use digitalocean_emulator::{Emulator, Options, TOKEN};

/// A provider and what stands behind it.
struct Stage {
    emulator: Emulator,
    provider: Arc<dyn Provider>,
    ours: OwnerKey,
}

/// Quick, and patient enough for a loaded host.
fn pace() -> Pace {
    Pace {
        attempts: 5,
        backoff: Duration::from_millis(5),
        answer: Duration::from_secs(60),
        rate: Duration::from_secs(120),
        settle: Duration::from_secs(3),
    }
}

fn digitalocean(emulator: &Emulator, token: &str, pace: Pace) -> Arc<dyn Provider> {
    let variables = |name: &str| match name {
        "DIGITALOCEAN_API_URL" => Some(emulator.url.clone()),
        "DIGITALOCEAN_TOKEN" => Some(token.to_owned()),
        _ => None,
    };
    Arc::new(DigitalOcean::new(Settings::from_environment(&variables).unwrap(), pace).unwrap())
}

impl Stage {
    async fn set(options: Options) -> Self {
        Self::with(options, pace()).await
    }

    async fn with(options: Options, pace: Pace) -> Self {
        let emulator = Emulator::start(options).await.unwrap();
        let provider = digitalocean(&emulator, TOKEN, pace);
        Self { emulator, provider, ours: OwnerKey::from_seed(&[1; 32]) }
    }

    fn order(&self, number: u128, until: Until) -> Order {
        order(&self.ours, number, until)
    }

    fn posts(&self, kind: FaultKind, times: u32) {
        self.emulator.fault(Fault { method: "POST", path: "/v2/droplets", kind, times });
    }

    fn names(&self) -> BTreeSet<String> {
        self.emulator.droplets().into_iter().map(|droplet| droplet.name).collect()
    }
}

fn order(owner: &OwnerKey, number: u128, until: Until) -> Order {
    let subject =
        Subject { id: MachineId::new(Timestamp(1), number), attempt: 1, name: format!("run-{number}") };
    Order {
        key: subject.key(),
        tags: owner.tags(&subject, until),
        name: subject.name,
        region: "ams3".to_owned(),
        size: "s-1vcpu-1gb".to_owned(),
        image: "debian-13-x64".to_owned(),
        user_data: "#!calve".to_owned(),
    }
}

/// A machine in the account that calve has nothing to do with.
fn stranger(number: u128, tags: &[&str]) -> Order {
    let plain = OwnerKey::from_seed(&[9; 32]);
    let name = format!("stranger-{number}");
    let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
    Order { name, tags, key: format!("stranger:{number}"), ..order(&plain, number, Until::Never) }
}

#[tokio::test]
async fn a_machine_is_made_once_listed_and_destroyed() {
    let stage = Stage::set(Options::default()).await;
    let order = stage.order(1, Until::Never);
    let made = stage.provider.create(&order).await.unwrap();
    assert_eq!(stage.provider.create(&order).await.unwrap().id, made.id);
    let listed = stage.provider.list(&order.key).await.unwrap();
    assert_eq!((listed.machines.len(), stage.emulator.created()), (1, 1));
    let machine = &listed.machines[0];
    assert_eq!((machine.region.as_str(), machine.size.as_str()), ("ams3", "s-1vcpu-1gb"));
    assert_eq!(BTreeSet::from_iter(&machine.tags), BTreeSet::from_iter(&order.tags));
    assert_eq!(machine.dollars_per_hour, Some(0.00893));
    assert!(listed.unix_s.is_some(), "the provider's clock is not read");
    assert_eq!(stage.emulator.droplets()[0].user_data, order.user_data);
    for _ in 0..2 {
        stage.provider.destroy(&made.id).await.unwrap();
    }
    stage.provider.destroy_tagged(&order.key).await.unwrap();
    stage.provider.remove_tag("never-was").await.unwrap();
    assert!(stage.provider.list(&order.key).await.unwrap().machines.is_empty());
}

#[tokio::test]
async fn an_answer_that_is_lost_makes_no_second_machine() {
    for kind in [FaultKind::FailAfter(500), FaultKind::FailAfter(503), FaultKind::LoseReply] {
        let stage = Stage::set(Options { list_lag: Duration::from_millis(300), ..Options::default() }).await;
        stage.posts(kind, 1);
        let made = stage.provider.create(&stage.order(1, Until::Never)).await.unwrap();
        assert_eq!(stage.emulator.created(), 1, "{kind:?}");
        assert_eq!(made.id, stage.emulator.droplets()[0].id.to_string());
    }
}

#[tokio::test]
async fn what_was_refused_before_it_was_done_is_asked_for_again() {
    let stage = Stage::with(Options::default(), Pace { settle: Duration::from_millis(20), ..pace() }).await;
    stage.posts(FaultKind::FailBefore(500), 2);
    stage.provider.create(&stage.order(1, Until::Never)).await.unwrap();
    assert_eq!(stage.emulator.created(), 1);
    stage.posts(FaultKind::FailBefore(500), 9);
    let error = stage.provider.create(&stage.order(2, Until::Never)).await.unwrap_err();
    assert!(error.is_uncertain() && error.to_string().contains("(request emulated-"), "{error}");
    assert_eq!(stage.emulator.created(), 1);
}

#[tokio::test]
async fn twins_of_a_list_that_lags_for_too_long_are_found_and_one_stays() {
    let lag = Duration::from_millis(1500);
    let impatient = Pace { settle: Duration::from_millis(10), ..pace() };
    let stage = Stage::with(Options { list_lag: lag, ..Options::default() }, impatient).await;
    stage.posts(FaultKind::FailAfter(500), 1);
    let order = stage.order(1, Until::Never);
    stage.provider.create(&order).await.unwrap();
    // Loaded hosts take so long that the list shows the first in time.
    let twins = stage.emulator.created();
    assert!(twins <= 2, "{twins}");
    while stage.provider.list(&order.key).await.unwrap().machines.len() < twins {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let first = stage.emulator.droplets()[0].id;
    let kept = stage.provider.create(&order).await.unwrap();
    let left: Vec<u64> = stage.emulator.droplets().iter().map(|droplet| droplet.id).collect();
    assert_eq!((left, kept.id), (vec![first], first.to_string()));
}

#[tokio::test(flavor = "multi_thread")]
async fn three_hundred_machines_are_listed_each_once_while_others_go() {
    let stage = Arc::new(Stage::set(Options::default()).await);
    let mut making = tokio::task::JoinSet::new();
    for worker in 0..10 {
        let stage = stage.clone();
        making.spawn(async move {
            for number in 0..31 {
                stage.provider.create(&stage.order(worker * 31 + number, Until::Never)).await.unwrap();
            }
        });
    }
    stage.provider.create(&stranger(1, &["web"])).await.unwrap();
    while let Some(made) = making.join_next().await {
        made.unwrap();
    }
    let tag = stage.ours.owner().tag();
    assert_eq!(stage.provider.list(&tag).await.unwrap().machines.len(), 310);
    // Newest first: what goes from the first page moves others to it from the second.
    let going: Vec<u64> = stage.emulator.droplets().iter().rev().take(10).map(|droplet| droplet.id).collect();
    let others: BTreeSet<String> = stage
        .emulator
        .droplets()
        .iter()
        .filter(|droplet| droplet.name.starts_with("run-") && !going.contains(&droplet.id))
        .map(|droplet| droplet.id.to_string())
        .collect();
    let provider = stage.provider.clone();
    let gone = tokio::spawn(async move {
        for id in going {
            provider.destroy(&id.to_string()).await.unwrap();
        }
    });
    while !gone.is_finished() {
        let listed = stage.provider.list(&tag).await.unwrap().machines;
        let ids: BTreeSet<String> = listed.iter().map(|machine| machine.id.clone()).collect();
        assert_eq!(ids.len(), listed.len());
        assert!(ids.is_superset(&others), "{:?} are missing", others.difference(&ids));
    }
    stage.provider.destroy_tagged(&tag).await.unwrap();
    assert!(stage.provider.list(&tag).await.unwrap().machines.is_empty());
    assert_eq!(stage.names(), BTreeSet::from(["stranger-1".to_owned()]));
}

#[tokio::test]
async fn rate_limits_are_kept_to() {
    const LIMIT: u32 = 15;
    let stage =
        Stage::set(Options { rate: Some((LIMIT, Duration::from_secs(1))), ..Options::default() }).await;
    for number in 0..20 {
        stage.provider.create(&stage.order(number, Until::Never)).await.unwrap();
    }
    // Each refusal is followed by a pause in which the whole window passes.
    let (refused, requests) = (stage.emulator.refused_for_rate(), stage.emulator.requests());
    assert_eq!(stage.emulator.created(), 20);
    assert!(refused <= requests / LIMIT as usize + 1, "{refused} of {requests} requests were refused");
}

#[tokio::test]
async fn a_rate_that_asks_for_too_much_patience_is_an_error() {
    let stage = Stage::set(Options::default()).await;
    stage.posts(FaultKind::RateLimited(3600), 1);
    let error = stage.provider.create(&stage.order(1, Until::Never)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::RateLimited(Duration::from_secs(3600)));
    assert!(error.may_pass() && !error.is_uncertain());
    let text = error.to_string();
    assert!(text.starts_with("digitalocean: ") && text.contains("3600 s"), "{text}");
    assert!(text.contains("(request emulated-"), "{text}");
}

#[tokio::test]
async fn what_cannot_be_done_is_one_sentence_with_the_request() {
    let stage = Stage::set(Options { droplet_limit: 1, ..Options::default() }).await;
    let bad = |change: &dyn Fn(&mut Order)| {
        let mut order = stage.order(1, Until::Never);
        change(&mut order);
        order
    };
    let cases = [
        (bad(&|order| order.size = "huge".to_owned()), ErrorKind::Refused, "invalid size"),
        (bad(&|order| order.region = "nyc2".to_owned()), ErrorKind::Refused, "Region is not available"),
        (bad(&|order| order.image = "190000001".to_owned()), ErrorKind::Refused, ""),
        (bad(&|order| order.user_data = "x".repeat(70_000)), ErrorKind::Refused, "user data"),
    ];
    for (order, kind, words) in cases {
        let nyc = Order { region: "nyc3".to_owned(), ..order.clone() };
        let order = if words.is_empty() { nyc } else { order };
        let error = stage.provider.create(&order).await.unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert!(!error.may_pass() && error.to_string().contains(words), "{error}");
        assert!(error.request.is_some() || words == "user data", "{error}");
    }
    stage.provider.create(&stage.order(1, Until::Never)).await.unwrap();
    let full = stage.provider.create(&stage.order(2, Until::Never)).await.unwrap_err();
    assert_eq!(full.kind, ErrorKind::Quota, "{full}");
    let wrong = digitalocean(&stage.emulator, "dop_v1_wrong", pace()).check().await.unwrap_err();
    assert_eq!(wrong.kind, ErrorKind::Credentials);
    assert!(!format!("{wrong} {wrong:?}").contains("dop_v1_wrong"));
    let url = stage.emulator.url.clone();
    drop(stage);
    let settings =
        |name: &str| Some(if name == "DIGITALOCEAN_API_URL" { url.clone() } else { "x".to_owned() });
    let nobody = DigitalOcean::new(Settings::from_environment(&settings).unwrap(), pace()).unwrap();
    let gone = nobody.check().await.unwrap_err();
    assert_eq!(gone.kind, ErrorKind::Unreachable, "{gone}");
}

#[tokio::test]
async fn what_can_be_had_is_read_from_every_page() {
    let stage = Stage::set(Options::default()).await;
    let sizes = stage.provider.sizes().await.unwrap();
    let size = sizes.iter().find(|size| size.slug == "s-1vcpu-1gb").unwrap();
    assert_eq!((size.cpus, size.memory_mib, size.dollars_per_hour), (1, 1024, 0.00893));
    let regions = stage.provider.regions().await.unwrap();
    assert!(regions.iter().any(|region| region.slug == "nyc2" && !region.available));
    let images = stage.provider.images().await.unwrap();
    assert!(images[0].slug.is_none() && images.iter().any(|it| it.slug.as_deref() == Some("debian-13-x64")));
    assert_eq!(stage.provider.check().await.unwrap().machines_max, Some(1000));
}

#[tokio::test]
async fn reaping_is_exact_and_touches_nothing_that_is_not_ours() {
    let stage = Stage::set(Options::default()).await;
    let now = stage.provider.list(TAG).await.unwrap().unix_s.unwrap();
    let (past, future) = (Until::Unix(now - 1), Until::Unix(now + 600));
    let theirs = OwnerKey::from_seed(&[2; 32]);
    let ended = stage.order(1, past);
    let copied: Vec<&str> = ended.tags.iter().map(String::as_str).collect();
    for order in [
        ended.clone(),
        stage.order(2, future),
        stage.order(3, Until::Never),
        order(&theirs, 4, past),
        stranger(1, &["web"]),
        stranger(2, &copied),
        stranger(3, &[TAG]),
    ] {
        stage.provider.create(&order).await.unwrap();
    }
    let all = stage.names();
    // A clock of this host that is wrong by years ends no lease.
    let ours = Whose::Owner(stage.ours.owner());
    let dry = reap::reap(&*stage.provider, ours, u64::MAX, true).await.unwrap();
    assert_eq!(stage.names(), all);
    let ends: Vec<&str> = names(&dry);
    assert_eq!(ends, ["run-1"]);
    stage.emulator.fault(Fault {
        method: "DELETE",
        path: "/v2/droplets",
        kind: FaultKind::FailAfter(500),
        times: 1,
    });
    let done = reap::reap(&*stage.provider, ours, u64::MAX, false).await.unwrap();
    assert!(done.iter().all(|judged| judged.destroyed.as_ref().is_none_or(Result::is_ok)), "{done:?}");
    assert_eq!(all.difference(&stage.names()).collect::<Vec<_>>(), ["run-1"]);
    // Its own tags go with it, those of others stay.
    let tags = stage.emulator.tags();
    assert!(!tags.contains(&ended.key) && tags.contains(&stage.order(2, future).key));
    reap::reap(&*stage.provider, Whose::Anybody, 0, false).await.unwrap();
    assert!(!stage.names().contains("run-4") && stage.names().len() == 5, "{:?}", stage.names());
}

#[tokio::test]
async fn a_renewed_lease_counts_at_every_moment() {
    let stage = Stage::set(Options::default()).await;
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

fn names(judged: &[reap::Judged]) -> Vec<&str> {
    let ending = judged.iter().filter(|judged| judged.verdict.is_destroyed());
    ending.map(|judged| judged.machine.name.as_str()).collect()
}
