//! Machines at a provider as a driver: the guarantees of [`Driver`], against the emulator, whose lists lag.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use calve_core::{DriverName, Kind, MachineId, Timestamp};
use calve_node::{Driver, DriverErrorKind, Found, Order};
use calve_provider::digitalocean::{DigitalOcean, Settings};
use calve_provider::{Pace, Provider};
use calve_server::cloud::{CloudDriver, Door};
use calve_store::Closure;
use calve_wire::agent::Remaining;
use calve_wire::doctor::CheckStatus;
use calve_wire::join::UserData;
use calve_wire::machine::{MachineSpec, Place, Workload};
use digitalocean_emulator::faults::{Fault, FaultKind};
use digitalocean_emulator::{Emulator, Options, TOKEN};

const HOUR: Remaining = Remaining { until_deadline_ms: Some(3_600_000), grace_ms: 10_000 };

struct Stage {
    dir: tempfile::TempDir,
    emulator: Emulator,
}

impl Stage {
    async fn set(options: Options) -> Self {
        let emulator = Emulator::start(options).await.unwrap();
        Self { dir: tempfile::tempdir().unwrap(), emulator }
    }

    /// The driver of a server that has just started.
    fn driver(&self) -> CloudDriver {
        self.driver_of(Pace::default())
    }

    fn driver_of(&self, pace: Pace) -> CloudDriver {
        self.driver_with(Ok(self.provider_of(pace)))
    }

    fn provider_of(&self, pace: Pace) -> Arc<dyn Provider> {
        let variables = |name: &str| match name {
            "DIGITALOCEAN_API_URL" => Some(self.emulator.url.clone()),
            _ => Some(TOKEN.to_owned()),
        };
        let settings = Settings::from_environment(&variables).unwrap();
        Arc::new(DigitalOcean::new(settings, pace).unwrap())
    }

    fn driver_with(&self, provider: Result<Arc<dyn Provider>, String>) -> CloudDriver {
        let door = Door { address: "calve.example.org:7077".to_owned(), fingerprint: "0a".repeat(32) };
        let key = self.dir.path().join("owner.key");
        CloudDriver::new(DriverName::DigitalOcean, provider, key, Arc::new(OnceLock::from(door)))
    }

    fn until_tags(&self) -> Vec<String> {
        self.emulator.tags().into_iter().filter(|tag| tag.contains(":until:")).collect()
    }
}

/// Waits until it is so.
async fn until(what: &str, so: impl AsyncFn() -> bool) {
    let waiting = async {
        while !so().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(60), waiting).await;
    waited.unwrap_or_else(|_| panic!("waited in vain until {what}"));
}

fn order(attempt: u32) -> Order {
    let place =
        Place { region: "ams3".to_owned(), size: "s-1vcpu-1gb".to_owned(), image: None, host_key: None };
    Order {
        id: MachineId::new(Timestamp(1), 1),
        name: "run-1".parse().unwrap(),
        attempt,
        token: "00112233445566778899aabbccddeeff".to_owned(),
        spec: MachineSpec { place: Some(place), ..MachineSpec::new(Kind::System, Workload::Base) },
        closure: Closure::default(),
        remaining: HOUR,
    }
}

#[tokio::test]
async fn a_machine_is_listed_from_its_creation_on_however_lists_lag() {
    let stage = Stage::set(Options { list_lag: Duration::from_secs(3600), ..Options::default() }).await;
    let driver = stage.driver_of(Pace { settle: Duration::ZERO, ..Pace::default() });
    assert_eq!(driver.list().await.unwrap(), []);
    let order = order(1);
    driver.create(&order).await.unwrap();
    let found = Found { id: order.id, attempt: 1 };
    assert_eq!(driver.list().await.unwrap(), [found]);
    let droplets = stage.emulator.droplets();
    let data = UserData::parse(&droplets[0].user_data).unwrap();
    assert_eq!((data.machine, data.server.as_str()), (Some(order.id), "calve.example.org:7077"));
    // What knows the machine for its whole life stays here.
    assert!(data.join.is_some() && !droplets[0].user_data.contains(&order.token));
    assert!(data.deadline_unix_ms.is_some() && !droplets[0].user_data.contains(TOKEN));
    // The account's own base image is what it boots, as nothing else was said.
    assert_eq!(droplets[0].image, 190_000_001);
    driver.destroy(order.id).await.unwrap();
    driver.destroy(order.id).await.unwrap();
    assert!(stage.emulator.droplets().is_empty());
    // With a list that was begun later; its tags go then too.
    until("nothing is listed", async || driver.list().await.unwrap().is_empty()).await;
    until("no tag is left", async || !stage.emulator.tags().iter().any(|tag| tag.contains(":machine:")))
        .await;
}

#[tokio::test]
async fn a_machine_counts_as_there_until_a_list_would_show_what_came_of_its_creation() {
    let stage = Stage::set(Options::default()).await;
    let driver = stage.driver_of(Pace { settle: Duration::from_secs(3600), ..Pace::default() });
    driver.create(&order(1)).await.unwrap();
    driver.destroy(order(1).id).await.unwrap();
    assert!(stage.emulator.droplets().is_empty());
    // The request may have come to the provider twice.
    assert_eq!(driver.list().await.unwrap(), [Found { id: order(1).id, attempt: 1 }]);
    // What was refused was not made.
    let mut refused = order(1);
    refused.id = MachineId::new(Timestamp(1), 2);
    refused.spec.place.as_mut().unwrap().size = "huge".to_owned();
    driver.create(&refused).await.unwrap_err();
    assert_eq!(driver.list().await.unwrap().len(), 1);
}

#[tokio::test]
async fn the_lists_of_a_server_that_has_just_started_do_not_show_all_that_the_last_one_made() {
    let stage = Stage::set(Options { list_lag: Duration::from_secs(3600), ..Options::default() }).await;
    stage.driver().create(&order(1)).await.unwrap();
    let next = stage.driver_of(Pace { settle: Duration::from_secs(3600), ..Pace::default() });
    assert_eq!(next.list().await.unwrap(), []);
    assert!(!next.lists_all());
    let settled = stage.driver_of(Pace { settle: Duration::ZERO, ..Pace::default() });
    settled.list().await.unwrap();
    assert!(settled.lists_all());
}

#[tokio::test]
async fn another_server_of_the_same_data_finds_the_machine_and_a_new_attempt_replaces_it() {
    let stage = Stage::set(Options::default()).await;
    stage.driver().create(&order(1)).await.unwrap();
    stage.driver().create(&order(1)).await.unwrap();
    assert_eq!(stage.emulator.created(), 1);
    // With lists that do not lag what is not listed is not there.
    let settled = || stage.driver_of(Pace { settle: Duration::ZERO, ..Pace::default() });
    let next = settled();
    assert_eq!(next.list().await.unwrap(), [Found { id: order(1).id, attempt: 1 }]);
    next.create(&order(2)).await.unwrap();
    assert_eq!((stage.emulator.created(), stage.emulator.droplets().len()), (2, 1));
    let last = settled();
    assert_eq!(last.list().await.unwrap(), [Found { id: order(1).id, attempt: 2 }]);
    last.destroy(order(1).id).await.unwrap();
    assert!(stage.emulator.droplets().is_empty());
    assert!(!stage.emulator.tags().iter().any(|tag| tag.contains(":machine:")));
}

#[tokio::test]
async fn a_renewed_lease_is_written_on_the_machine_and_the_same_one_is_not() {
    let stage = Stage::set(Options::default()).await;
    let driver = stage.driver_of(Pace { settle: Duration::ZERO, ..Pace::default() });
    driver.create(&order(1)).await.unwrap();
    let before = stage.until_tags();
    driver.set_lease(order(1).id, HOUR).await.unwrap();
    assert_eq!(stage.until_tags(), before);
    for longer in [
        Remaining { until_deadline_ms: Some(7_200_000), ..HOUR },
        Remaining { until_deadline_ms: None, ..HOUR },
    ] {
        driver.set_lease(order(1).id, longer).await.unwrap();
    }
    // The old ones go once a list shows that there is no twin that has only them.
    assert!(stage.until_tags().iter().any(|tag| tag.contains(":until:never:")));
    until("one tag is left", async || driver.list().await.is_ok() && stage.until_tags().len() == 1).await;
    assert!(stage.until_tags()[0].contains(":until:never:"));
    driver.set_lease(MachineId::new(Timestamp(1), 9), HOUR).await.unwrap();
}

#[tokio::test]
async fn a_lease_that_was_renewed_on_a_twin_is_said_by_the_machine_that_stays() {
    let stage = Stage::set(Options { list_lag: Duration::from_secs(1), ..Options::default() }).await;
    let driver = stage.driver_of(Pace { settle: Duration::ZERO, ..Pace::default() });
    // No list shows the first when the second is made, which is the one that the driver knows.
    driver.create(&order(1)).await.unwrap();
    driver.create(&order(1)).await.unwrap();
    driver.set_lease(order(1).id, Remaining { until_deadline_ms: None, ..HOUR }).await.unwrap();
    assert_eq!(stage.emulator.droplets().len(), 2);
    // One that says none would not be listed.
    until("one machine is left, which says the new lease alone", async || {
        driver.list().await.unwrap();
        let another = stage.driver_of(Pace { settle: Duration::ZERO, ..Pace::default() });
        let listed = another.list().await.unwrap().len() == 1;
        listed && matches!(&stage.until_tags()[..], [one] if one.contains(":until:never:"))
    })
    .await;
}

#[tokio::test]
async fn a_machine_that_is_there_becomes_one_of_this_server_and_of_one_record() {
    let stage = Stage::set(Options { list_lag: Duration::from_secs(3600), ..Options::default() }).await;
    let provider = stage.provider_of(Pace { settle: Duration::ZERO, attempts: 1, ..Pace::default() });
    let asked = calve_provider::Order {
        name: "web-7".to_owned(),
        key: "nobody's".to_owned(),
        tags: vec!["web".to_owned()],
        region: "nyc3".to_owned(),
        size: "s-1vcpu-1gb".to_owned(),
        image: "debian-13-x64".to_owned(),
        user_data: String::new(),
    };
    let machine = provider.create(&asked).await.unwrap().id;
    // Nobody dials, so that no door is needed.
    let key = stage.dir.path().join("owner.key");
    let driver = CloudDriver::new(DriverName::DigitalOcean, Ok(provider), key, Arc::default());
    let place = driver.adoptable(&machine, None).await.unwrap();
    assert_eq!((place.region.as_str(), place.size.as_str()), ("nyc3", "s-1vcpu-1gb"));
    assert!(driver.adoptable("1", None).await.unwrap_err().message.contains("there is no machine 1"));
    let of = |number: u128, attempt: u32| {
        let mut order = order(attempt);
        (order.id, order.spec.workload) =
            (MachineId::new(Timestamp(1), number), Workload::Adopted { machine: machine.clone() });
        order
    };
    // The first attempt fails half way, and leaves a machine that nobody would end.
    let fault =
        Fault { method: "POST", path: "/v2/tags/calve:until", kind: FaultKind::FailBefore(500), times: 1 };
    stage.emulator.fault(fault);
    let failed = driver.create(&of(1, 1)).await.unwrap_err();
    assert_eq!(failed.kind, DriverErrorKind::Failed);
    driver.destroy(of(1, 1).id).await.unwrap();
    assert_eq!(stage.emulator.droplets().len(), 1);
    driver.create(&of(1, 2)).await.unwrap();
    driver.create(&of(1, 2)).await.unwrap();
    assert_eq!(driver.list().await.unwrap(), [Found { id: of(1, 2).id, attempt: 2 }]);
    let taken = driver.create(&of(2, 1)).await.unwrap_err();
    assert_eq!(taken.kind, DriverErrorKind::Unusable);
    assert!(taken.hint.unwrap().contains(&of(1, 2).id.to_string()));
    driver.destroy(of(2, 1).id).await.unwrap();
    driver.set_lease(of(1, 2).id, Remaining { until_deadline_ms: None, ..HOUR }).await.unwrap();
    assert!(stage.until_tags().iter().any(|tag| tag.contains(":until:never:")));
    driver.destroy(of(1, 2).id).await.unwrap();
    assert!(stage.emulator.droplets().is_empty());
}

#[tokio::test]
async fn without_credentials_nothing_is_made_and_nothing_is_taken_for_gone() {
    let stage = Stage::set(Options::default()).await;
    let without = stage.driver_with(Err("no credentials for digitalocean".to_owned()));
    let checks = without.preflight().await;
    assert_eq!((checks.len(), checks[0].status), (1, CheckStatus::Unset));
    let refused = without.create(&order(1)).await.unwrap_err();
    assert_eq!(refused.kind, DriverErrorKind::Unusable);
    assert_eq!(without.list().await.unwrap(), []);
    stage.driver().create(&order(1)).await.unwrap();
    // There may be machines now, of which this server cannot know.
    assert!(without.list().await.is_err());
    assert!(stage.driver().preflight().await.iter().all(|check| check.status == CheckStatus::Ok));
}

#[tokio::test]
async fn what_the_provider_refuses_is_told_with_its_request() {
    let stage = Stage::set(Options { droplet_limit: 0, ..Options::default() }).await;
    let driver = stage.driver();
    let full = driver.create(&order(1)).await.unwrap_err();
    assert_eq!(full.kind, DriverErrorKind::NoSpace, "{full}");
    let mut huge = order(1);
    huge.spec.place.as_mut().unwrap().size = "huge".to_owned();
    let refused = driver.create(&huge).await.unwrap_err();
    assert!(
        refused.kind == DriverErrorKind::Unusable && refused.message.contains("(request emulated-"),
        "{refused}"
    );
    let mut nowhere = order(1);
    nowhere.spec.place.as_mut().unwrap().region = "sgp1".to_owned();
    let no_image = driver.create(&nowhere).await.unwrap_err();
    assert!(no_image.message.contains("no image called calve-base in sgp1"), "{no_image}");
}
