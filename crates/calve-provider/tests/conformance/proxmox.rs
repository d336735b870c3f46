//! Proxmox VE: its emulator, and what holds for it alone.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use calve_provider::mark::{Mark, TAG, Until};
use calve_provider::proxmox::{Proxmox, Settings};
use calve_provider::reap::{self, Whose};
use calve_provider::{ErrorKind, Order, Pace, Provider};
use digitalocean_emulator::faults::{Fault, FaultKind};
use proxmox_emulator::{Emulator, Options, TOKEN};

use crate::but;
use crate::stage::{Behind, Call, Stage, There, pace};

pub struct ProxmoxBehind(Arc<Emulator>);

/// A provider with some variables more than it needs, or other ones.
fn provider(emulator: &Emulator, others: &[(&str, &str)], pace: Pace) -> Arc<dyn Provider> {
    let variables = |name: &str| match others.iter().find(|(other, _)| *other == name) {
        Some((_, value)) => Some((*value).to_owned()),
        None => match name {
            "PROXMOX_API_URL" => Some(emulator.url.clone()),
            "PROXMOX_TOKEN" => Some(TOKEN.to_owned()),
            "PROXMOX_FINGERPRINT" => Some(emulator.fingerprint.clone()),
            _ => None,
        },
    };
    Arc::new(Proxmox::new(Settings::from_environment(&variables).unwrap(), pace).unwrap())
}

impl ProxmoxBehind {
    pub async fn start(options: Options) -> Self {
        Self(Arc::new(Emulator::start(options).await.unwrap()))
    }
}

impl Behind for ProxmoxBehind {
    fn provider(&self, pace: Pace) -> Arc<dyn Provider> {
        provider(&self.0, &[], pace)
    }

    fn with_wrong_token(&self, pace: Pace) -> Arc<dyn Provider> {
        provider(&self.0, &[("PROXMOX_TOKEN", "calve@pve!emulated=wrong")], pace)
    }

    fn created(&self) -> usize {
        self.0.created()
    }

    fn machines(&self) -> Vec<There> {
        let there = |vm: proxmox_emulator::Vm| {
            let volume =
                vm.config.values().find_map(|value| value.strip_suffix(",media=cdrom").map(str::to_owned));
            There {
                name: vm.name().to_owned(),
                told: volume.and_then(|it| self.0.file(&it)).unwrap_or_default(),
            }
        };
        self.0.machines().into_iter().map(there).collect()
    }

    fn tags(&self) -> BTreeSet<String> {
        self.0.machines().iter().flat_map(|vm| vm.tags()).map(|tag| tag.replace('.', ":")).collect()
    }

    fn fault(&self, call: Call, kind: FaultKind, times: u32) {
        let (method, path) = match call {
            Call::Create => ("POST", "/api2/json/nodes/pve1/qemu/9000/clone"),
            Call::Destroy => ("DELETE", "/api2/json/nodes/pve1/qemu/"),
            Call::Tag => ("PUT", "/api2/json/nodes/pve1/qemu/"),
        };
        self.0.fault(Fault { method, path, kind, times });
    }

    fn place(&self) -> [&'static str; 3] {
        ["pve1", "1vcpu-1gb", "calve-base"]
    }

    fn dollars_per_hour(&self) -> Option<f64> {
        None
    }

    fn many(&self) -> usize {
        40
    }

    fn failures(&self) -> &'static [u16] {
        &[500, 596]
    }

    fn request(&self) -> &'static str {
        "proxmox: "
    }
}

async fn stage(options: Options, pace: Pace) -> (Arc<Emulator>, Arc<Stage>) {
    let behind = ProxmoxBehind::start(options).await;
    (behind.0.clone(), Arc::new(Stage::of(behind, pace)))
}

/// Locks that are given up on soon, and work that takes its time under them.
fn contended() -> Options {
    let ms = Duration::from_millis;
    Options { clone: ms(20), task: ms(1), lock_wait: ms(200), clone_lock_wait: ms(100), ..Options::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_parallel_creations_and_removals_meet_no_lock_error() {
    let (emulator, stage) = stage(contended(), pace()).await;
    let all = |what: fn(Arc<Stage>, u128) -> tokio::task::JoinHandle<()>| {
        let doing: Vec<_> = (0..50).map(|number| what(stage.clone(), number)).collect();
        async move {
            for done in doing {
                done.await.unwrap();
            }
        }
    };
    all(|stage, number| {
        tokio::spawn(async move {
            stage.provider.create(&stage.order(number, Until::Never)).await.unwrap();
        })
    })
    .await;
    let machines = emulator.machines();
    assert_eq!((machines.len(), emulator.created(), emulator.lock_errors()), (50, 50, 0));
    assert!(
        machines.iter().all(|vm| vm.running && vm.option("scsi0").contains("/vm-")),
        "not linked: {machines:?}"
    );
    all(|stage, number| {
        tokio::spawn(async move {
            let key = stage.order(number, Until::Never).key;
            stage.provider.destroy_tagged(&key).await.unwrap();
        })
    })
    .await;
    assert_eq!((emulator.machines().len(), emulator.files().len(), emulator.lock_errors()), (0, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_know_nothing_of_each_other_make_each_its_machine() {
    let (emulator, _) =
        stage(Options { clone: Duration::from_millis(5), ..Options::default() }, pace()).await;
    let mut making = tokio::task::JoinSet::new();
    for number in 0..12 {
        let behind = ProxmoxBehind(emulator.clone());
        making.spawn(async move {
            let alone = Stage::of(behind, Pace { settle: Duration::from_millis(50), ..pace() });
            alone.provider.create(&alone.order(number, Until::Never)).await.unwrap();
        });
    }
    while let Some(made) = making.join_next().await {
        made.unwrap();
    }
    let names: BTreeSet<String> = emulator.machines().iter().map(|vm| vm.name().to_owned()).collect();
    assert_eq!((names.len(), emulator.machines().len()), (12, 12));
}

#[tokio::test]
async fn a_storage_that_somebody_else_works_on_is_waited_for() {
    let lock_wait = Duration::from_millis(10);
    let (emulator, stage) = stage(Options { lock_wait, ..Options::default() }, pace()).await;
    let held = emulator.hold_storage("local-lvm").await;
    let making = tokio::spawn({
        let stage = stage.clone();
        async move { stage.provider.create(&stage.order(1, Until::Never)).await }
    });
    while emulator.lock_errors() < 3 {
        assert!(!making.is_finished(), "it gave up");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(held);
    making.await.unwrap().unwrap();
    assert_eq!((emulator.machines().len(), emulator.created()), (1, 1));
}

#[tokio::test]
async fn a_machine_half_made_is_listed_reaped_and_completed() {
    let (emulator, stage) = stage(Options::default(), pace()).await;
    let now = stage.provider.list(TAG).await.unwrap().unix_s.unwrap();
    let half = async |number, until| {
        // The process dies after the clone, as far as anybody can see.
        let path = "/api2/json/nodes/pve1/storage";
        emulator.fault(Fault { method: "POST", path, kind: FaultKind::FailBefore(500), times: 5 });
        let image = "debian-13".to_owned();
        let order = Order { image, ..stage.order(number, until) };
        stage.provider.create(&order).await.unwrap_err();
        order
    };
    let order = half(1, Until::Unix(now + 600)).await;
    let vm = &emulator.machines()[0];
    assert!(!vm.running && !vm.tags().iter().any(|tag| tag.starts_with("calve")));
    // Another process, which has seen nothing of it.
    let other = Stage::of(ProxmoxBehind(emulator.clone()), pace());
    let listed = other.provider.list(&order.key).await.unwrap().machines;
    assert!(Mark::read(&listed[0].name, &listed[0].tags).is_ok(), "{listed:?}");
    let made = other.provider.create(&order).await.unwrap();
    let vm = &emulator.machines()[0];
    assert!(vm.running && emulator.created() == 1 && made.id == listed[0].id);
    assert!(!vm.option("description").contains("calve:until"), "what it once said would count for ever");
    half(2, Until::Unix(now - 1)).await;
    let reaped = reap::reap(&*other.provider, Whose::Anybody, 0, false).await.unwrap();
    assert_eq!(crate::stage::names(&reaped), ["run-2"]);
    assert_eq!(emulator.machines().len(), 1);
}

#[tokio::test]
async fn nothing_happens_to_the_next_machine_with_a_vmid() {
    let (emulator, stage) = stage(Options::default(), pace()).await;
    let first = stage.provider.create(&stage.order(1, Until::Never)).await.unwrap();
    stage.provider.destroy(&first.id).await.unwrap();
    let second = stage.provider.create(&stage.order(2, Until::Never)).await.unwrap();
    assert_eq!(first.id.split('-').next(), second.id.split('-').next());
    stage.provider.destroy(&first.id).await.unwrap();
    stage.provider.add_tag(&first.id, "calve:until:never:0").await.unwrap();
    assert_eq!(stage.provider.list("calve:until:never:0").await.unwrap().machines.len(), 0);
    // Nor to one without a mark, or to a template.
    let refused = stage.provider.destroy("101").await.unwrap_err();
    assert!(refused.to_string().contains("left alone"), "{refused}");
    stage.provider.destroy("9000").await.unwrap();
    assert_eq!(stage.provider.images().await.unwrap().len(), 5);
    assert_eq!(emulator.machines().len(), 1);
}

#[tokio::test]
async fn a_machine_is_as_large_as_it_was_asked_for_and_has_one_drive_with_data() {
    let (emulator, stage) = stage(Options::default(), pace()).await;
    let made = |number: u128, size: &str, image: &str| {
        let (size, image) = (size.to_owned(), image.to_owned());
        Order { size, image, ..stage.order(number, Until::Never) }
    };
    stage.provider.create(&made(1, "2vcpu-512mb-20gb", "debian-13")).await.unwrap();
    let vm = emulator.machines().pop().unwrap();
    assert_eq!((vm.option("cores"), vm.option("memory")), ("2", "512"));
    assert!(vm.option("scsi0").ends_with("size=20G") && vm.option("scsi0").contains("/vm-"), "{vm:?}");
    assert!(vm.option("ide2").starts_with("local:iso/calve-") && !vm.config.contains_key("scsi1"), "{vm:?}");
    stage.provider.create(&made(2, "template", "9000")).await.unwrap();
    let vm = emulator.machines().pop().unwrap();
    assert_eq!((vm.option("cores"), vm.option("memory")), ("1", "1024"));
    assert!(vm.option("scsi1").ends_with(",media=cdrom") && vm.option("scsi0").ends_with("size=2252M"));
    // A storage that makes no linked clones, and a node that has the disk only by shared storage.
    stage.provider.create(&made(3, "template", "thick-base")).await.unwrap();
    assert!(emulator.machines().pop().unwrap().option("scsi0").starts_with("thick:vm-"));
    let linked = provider(&emulator, &[("PROXMOX_CLONE", "linked")], pace());
    let refused = linked.create(&made(4, "template", "thick-base")).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Refused, "{refused}");
    stage
        .provider
        .create(&but(&made(5, "template", "shared-base"), |it| it.region = "pve2".to_owned()))
        .await
        .unwrap();
    assert_eq!(emulator.machines().pop().unwrap().node, "pve2");
    let full = provider(&emulator, &[("PROXMOX_CLONE", "full"), ("PROXMOX_STORAGE", "ceph")], pace());
    full.create(&made(6, "template", "calve-base")).await.unwrap();
    assert!(emulator.machines().pop().unwrap().option("scsi0").starts_with("ceph:vm-"));
    assert_eq!(emulator.files().len(), 5);
    stage.provider.destroy_tagged(&stage.ours.owner().tag()).await.unwrap();
    assert!(emulator.files().is_empty() && emulator.machines().is_empty());
}

#[tokio::test]
async fn a_lock_of_somebody_else_is_waited_for_and_one_that_stays_is_an_error() {
    let (emulator, stage) = stage(Options::default(), pace()).await;
    let made = stage.provider.create(&stage.order(1, Until::Never)).await.unwrap();
    let vmid = emulator.machines()[0].vmid;
    emulator.lock(vmid, Some("backup"));
    let (ending, seen) = (stage.provider.clone(), emulator.requests());
    let id = made.id.clone();
    let ending = tokio::spawn(async move { ending.destroy(&id).await });
    while emulator.requests() < seen + 5 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(emulator.machines().len(), 1);
    emulator.lock(vmid, None);
    ending.await.unwrap().unwrap();
    assert!(emulator.machines().is_empty());
    let made = stage.provider.create(&stage.order(2, Until::Never)).await.unwrap();
    emulator.lock(emulator.machines()[0].vmid, Some("migrate"));
    let impatient = provider(&emulator, &[], Pace { rate: Duration::from_millis(20), ..pace() });
    let error = impatient.destroy(&made.id).await.unwrap_err();
    assert!(error.kind == ErrorKind::Locked && error.may_pass(), "{error}");
    assert!(error.to_string().contains("is locked (migrate)"), "{error}");
}

#[tokio::test]
async fn what_nodes_report_late_is_asked_for() {
    let lag = Options { report_lag: Duration::from_secs(3600), ..Options::default() };
    let (emulator, stage) = stage(lag, pace()).await;
    let order = stage.order(1, Until::Never);
    let made = stage.provider.create(&order).await.unwrap();
    let other = provider(&emulator, &[], pace());
    let listed = other.list(&order.key).await.unwrap().machines;
    assert_eq!((listed[0].name.as_str(), &listed[0].id), ("run-1", &made.id));
    assert!(Mark::read(&listed[0].name, &listed[0].tags).is_ok());
    other.destroy(&made.id).await.unwrap();
    assert!(emulator.machines().is_empty());
}

#[tokio::test]
async fn answers_that_are_lost_anywhere_double_nothing() {
    let (emulator, stage) = stage(Options::default(), pace()).await;
    let paths = [
        ("POST", "/api2/json/nodes/pve1/storage/local/upload"),
        ("POST", "/api2/json/nodes/pve1/qemu/100/config"),
        ("PUT", "/api2/json/nodes/pve1/qemu/100/resize"),
        ("POST", "/api2/json/nodes/pve1/qemu/100/status/start"),
        ("GET", "/api2/json/nodes/pve1/tasks"),
        ("GET", "/api2/json/cluster/nextid"),
        ("DELETE", "/api2/json/nodes/pve1/storage/local/content"),
        ("POST", "/api2/json/nodes/pve1/qemu/100/status/stop"),
        ("DELETE", "/api2/json/nodes/pve1/qemu/100"),
    ];
    for kind in [FaultKind::LoseReply, FaultKind::FailAfter(596), FaultKind::FailBefore(596)] {
        for (method, path) in paths {
            emulator.fault(Fault { method, path, kind, times: 1 });
        }
        let order = but(&stage.order(1, Until::Never), |order| order.size = "1vcpu-1gb-9gb".to_owned());
        let made = stage.provider.create(&order).await.unwrap();
        let vm = emulator.machines().pop().unwrap();
        assert!(emulator.machines().len() == 1 && vm.running && vm.vmid == 100, "{kind:?}: {vm:?}");
        stage.provider.destroy(&made.id).await.unwrap();
        assert!(emulator.machines().is_empty() && emulator.files().is_empty(), "{kind:?}");
    }
}

#[tokio::test]
async fn what_cannot_be_done_is_one_sentence() {
    let (emulator, stage) = stage(Options { room: 1, ..Options::default() }, pace()).await;
    let good = stage.order(1, Until::Never);
    let cases = [
        (but(&good, |order| order.size = "huge".to_owned()), "2vcpu-4gb"),
        (but(&good, |order| order.region = "pve9".to_owned()), "pve9"),
        (but(&good, |order| order.region = "pve/9".to_owned()), "no name of a node"),
        (but(&good, |order| order.image = "none".to_owned()), "no template \"none\""),
        (but(&good, |order| order.name = "-bad-".to_owned()), "name: "),
        (but(&good, |order| order.user_data = "x".repeat(70_000)), "user data"),
        (but(&good, |order| order.tags.push("Web".to_owned())), "no tag"),
    ];
    for (order, words) in cases {
        let error = stage.provider.create(&order).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Refused, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
    assert_eq!(emulator.created(), 0);
    stage.provider.create(&good).await.unwrap();
    let full = stage.provider.create(&stage.order(2, Until::Never)).await.unwrap_err();
    assert_eq!(full.kind, ErrorKind::Quota, "{full}");
    let lacks = vec!["Datastore.AllocateTemplate"];
    let poor = self::stage(Options { lacks, ..Options::default() }, pace()).await.1;
    let denied = poor.provider.check().await.unwrap_err();
    assert!(
        denied.kind == ErrorKind::Denied && denied.to_string().contains("lacks Datastore.AllocateTemplate")
    );
    let denied = poor.provider.create(&poor.order(1, Until::Never)).await.unwrap_err();
    assert!(denied.to_string().contains("Permission check failed (/storage/local"), "{denied}");
}

#[tokio::test]
async fn the_certificate_is_the_pinned_one_or_nothing_is_said() {
    let (emulator, _) = stage(Options::default(), pace()).await;
    let other = "AA:".repeat(31) + "AA";
    let wrong = provider(&emulator, &[("PROXMOX_FINGERPRINT", &other)], pace()).check().await.unwrap_err();
    assert_eq!(wrong.kind, ErrorKind::Unreachable);
    assert!(wrong.to_string().contains(&emulator.fingerprint), "{wrong}");
    // Without a pin the system's authorities count, and none of them knows it.
    let unknown = provider(&emulator, &[("PROXMOX_FINGERPRINT", "")], pace()).check().await.unwrap_err();
    assert_eq!(unknown.kind, ErrorKind::Unreachable, "{unknown}");
    assert_eq!(emulator.requests(), 0);
}

#[tokio::test]
async fn nodes_are_regions_and_templates_are_images() {
    let (_emulator, stage) = stage(Options::default(), pace()).await;
    let regions = stage.provider.regions().await.unwrap();
    assert!(regions.len() == 2 && regions.iter().all(|region| region.available));
    let images = stage.provider.images().await.unwrap();
    let image = |id: &str| images.iter().find(|image| image.id == id).unwrap();
    assert_eq!(
        (image("9001").name.as_str(), &*image("9001").regions),
        ("calve-base", &["pve2".to_owned()][..])
    );
    assert_eq!(image("9002").regions.len(), 2);
    let sizes = stage.provider.sizes().await.unwrap();
    assert!(
        sizes
            .iter()
            .any(|size| size.slug == "2vcpu-4gb" && size.memory_mib == 4096 && size.regions.len() == 2)
    );
    let account = stage.provider.check().await.unwrap();
    assert_eq!(account.name, "calve@pve!emulated");
    assert!(account.status.contains("Proxmox VE 9"));
}
