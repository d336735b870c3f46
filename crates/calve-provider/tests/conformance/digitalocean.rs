//! DigitalOcean: its emulator, and what holds for it alone.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use calve_provider::digitalocean::{DigitalOcean, Settings};
use calve_provider::mark::Until;
use calve_provider::{ErrorKind, Order, Pace, Provider};
use digitalocean_emulator::faults::{Fault, FaultKind};
use digitalocean_emulator::{Emulator, Options, TOKEN};

use crate::but;
use crate::stage::{Behind, Call, Stage, There, pace};

pub struct DigitalOceanBehind(Arc<Emulator>);

impl DigitalOceanBehind {
    pub async fn start(options: Options) -> Self {
        Self(Arc::new(Emulator::start(options).await.unwrap()))
    }

    fn with_token(&self, token: &str, pace: Pace) -> Arc<dyn Provider> {
        let variables = |name: &str| match name {
            "DIGITALOCEAN_API_URL" => Some(self.0.url.clone()),
            "DIGITALOCEAN_TOKEN" => Some(token.to_owned()),
            _ => None,
        };
        Arc::new(DigitalOcean::new(Settings::from_environment(&variables).unwrap(), pace).unwrap())
    }
}

impl Behind for DigitalOceanBehind {
    fn provider(&self, pace: Pace) -> Arc<dyn Provider> {
        self.with_token(TOKEN, pace)
    }

    fn with_wrong_token(&self, pace: Pace) -> Arc<dyn Provider> {
        self.with_token("dop_v1_wrong", pace)
    }

    fn created(&self) -> usize {
        self.0.created()
    }

    fn machines(&self) -> Vec<There> {
        let there = |droplet: digitalocean_emulator::Droplet| There {
            name: droplet.name,
            told: droplet.user_data.into_bytes(),
        };
        self.0.droplets().into_iter().map(there).collect()
    }

    fn tags(&self) -> BTreeSet<String> {
        self.0.tags().into_iter().collect()
    }

    fn fault(&self, call: Call, kind: FaultKind, times: u32) {
        let (method, path) = match call {
            Call::Create => ("POST", "/v2/droplets"),
            Call::Destroy => ("DELETE", "/v2/droplets"),
            Call::Tag => ("POST", "/v2/tags/"),
        };
        self.0.fault(Fault { method, path, kind, times });
    }

    fn place(&self) -> [&'static str; 3] {
        ["ams3", "s-1vcpu-1gb", "debian-13-x64"]
    }

    fn dollars_per_hour(&self) -> Option<f64> {
        Some(0.00893)
    }

    fn many(&self) -> usize {
        310
    }

    fn failures(&self) -> &'static [u16] {
        &[500, 503]
    }

    fn request(&self) -> &'static str {
        "(request emulated-"
    }
}

async fn stage(options: Options, pace: Pace) -> (Arc<Emulator>, Stage) {
    let behind = DigitalOceanBehind::start(options).await;
    (behind.0.clone(), Stage::of(behind, pace))
}

#[tokio::test]
async fn a_list_that_lags_shows_a_machine_in_time() {
    let (emulator, stage) =
        stage(Options { list_lag: Duration::from_millis(300), ..Options::default() }, pace()).await;
    stage.behind.fault(Call::Create, FaultKind::LoseReply, 1);
    let made = stage.provider.create(&stage.order(1, Until::Never)).await.unwrap();
    assert_eq!((emulator.created(), made.id), (1, emulator.droplets()[0].id.to_string()));
}

#[tokio::test]
async fn twins_of_a_list_that_lags_for_too_long_are_found_and_one_stays() {
    let lag = Duration::from_millis(1500);
    let impatient = Pace { settle: Duration::from_millis(10), ..pace() };
    let (emulator, stage) = stage(Options { list_lag: lag, ..Options::default() }, impatient).await;
    stage.behind.fault(Call::Create, FaultKind::FailAfter(500), 1);
    let order = stage.order(1, Until::Never);
    stage.provider.create(&order).await.unwrap();
    // Loaded hosts take so long that the list shows the first in time.
    let twins = emulator.created();
    assert!(twins <= 2, "{twins}");
    while stage.provider.list(&order.key).await.unwrap().machines.len() < twins {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let first = emulator.droplets()[0].id;
    let kept = stage.provider.create(&order).await.unwrap();
    let left: Vec<u64> = emulator.droplets().iter().map(|droplet| droplet.id).collect();
    assert_eq!((left, kept.id), (vec![first], first.to_string()));
}

#[tokio::test]
async fn rate_limits_are_kept_to() {
    const LIMIT: u32 = 15;
    let rate = Some((LIMIT, Duration::from_secs(1)));
    let (emulator, stage) = stage(Options { rate, ..Options::default() }, pace()).await;
    for number in 0..20 {
        stage.provider.create(&stage.order(number, Until::Never)).await.unwrap();
    }
    // Each refusal is followed by a pause in which the whole window passes.
    let (refused, requests) = (emulator.refused_for_rate(), emulator.requests());
    assert_eq!(emulator.created(), 20);
    assert!(refused <= requests / LIMIT as usize + 1, "{refused} of {requests} requests were refused");
}

#[tokio::test]
async fn a_rate_that_asks_for_too_much_patience_is_an_error() {
    let (_emulator, stage) = stage(Options::default(), pace()).await;
    stage.behind.fault(Call::Create, FaultKind::RateLimited(3600), 1);
    let error = stage.provider.create(&stage.order(1, Until::Never)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::RateLimited(Duration::from_secs(3600)));
    assert!(error.may_pass() && !error.is_uncertain());
    let text = error.to_string();
    assert!(text.starts_with("digitalocean: ") && text.contains("3600 s"), "{text}");
    assert!(text.contains("(request emulated-"), "{text}");
}

#[tokio::test]
async fn what_cannot_be_done_is_one_sentence_with_the_request() {
    let (_emulator, stage) = stage(Options { droplet_limit: 1, ..Options::default() }, pace()).await;
    let good = stage.order(1, Until::Never);
    let cases = [
        (but(&good, |order| order.size = "huge".to_owned()), "invalid size"),
        (but(&good, |order| order.region = "nyc2".to_owned()), "Region is not available"),
        (
            Order { region: "nyc3".to_owned(), image: "190000001".to_owned(), ..good.clone() },
            "not available in the region",
        ),
        (but(&good, |order| order.user_data = "x".repeat(70_000)), "user data"),
    ];
    for (order, words) in cases {
        let error = stage.provider.create(&order).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Refused, "{error}");
        assert!(!error.may_pass() && error.to_string().contains(words), "{error}");
        assert!(error.request.is_some() || words == "user data", "{error}");
    }
    stage.provider.create(&good).await.unwrap();
    let full = stage.provider.create(&stage.order(2, Until::Never)).await.unwrap_err();
    assert_eq!(full.kind, ErrorKind::Quota, "{full}");
}

#[tokio::test]
async fn what_can_be_had_is_read_from_every_page() {
    let (_emulator, stage) = stage(Options::default(), pace()).await;
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
async fn the_tags_of_a_reaped_machine_go_from_the_account() {
    let (emulator, stage) = stage(Options::default(), pace()).await;
    let order = stage.order(1, Until::Unix(1));
    stage.provider.create(&order).await.unwrap();
    let whose = calve_provider::reap::Whose::Anybody;
    calve_provider::reap::reap(&*stage.provider, whose, 0, false).await.unwrap();
    assert!(!emulator.tags().contains(&order.key), "{:?}", emulator.tags());
}
