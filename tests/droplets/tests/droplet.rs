//! A machine at a provider from its creation to its end, with a real guest: created over the API, it boots, reads its user
//! data from the metadata service, dials the server that is named there, runs a program, and goes.

mod door;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agent_client::{Client, agent_program};
use calve_core::{MachineId, Timestamp};
use calve_provider::digitalocean::{DigitalOcean, Settings};
use calve_provider::mark::{OwnerKey, Subject, Until};
use calve_provider::{Order, Pace, Provider};
use calve_wire::agent::{AGENT_PROTOCOL_VERSION, Remaining, ToAgent};
use calve_wire::machine::Restart;
use digitalocean_emulator::{Emulator, Options};
use door::Door;
use droplets::{Guests, HOST_FROM_GUEST};

/// Longest wait for a guest: it boots in three seconds, on a crowded host in thirty.
const PATIENCE: Duration = Duration::from_secs(240);

struct Stage {
    /// Holds consoles.
    _dir: tempfile::TempDir,
    guests: Arc<Guests>,
    /// Holds the API; dropped with the test.
    emulator: Emulator,
    provider: DigitalOcean,
    door: Door,
}

impl Stage {
    async fn set() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let images = Path::new(env!("CARGO_TARGET_TMPDIR")).join("images");
        let guests = Guests::new(&agent_program(), dir.path(), &images).unwrap();
        let backing = Some(guests.clone() as Arc<dyn digitalocean_emulator::Backing>);
        let emulator = Emulator::start(Options { backing, ..Options::default() }).await.unwrap();
        let variables = |name: &str| match name {
            "DIGITALOCEAN_API_URL" => Some(emulator.url.clone()),
            _ => Some(digitalocean_emulator::TOKEN.to_owned()),
        };
        let settings = Settings::from_environment(&variables).unwrap();
        let provider = DigitalOcean::new(settings, Pace::default()).unwrap();
        Self { _dir: dir, guests, emulator, provider, door: Door::open().await }
    }

    /// Creates the machine; its number.
    async fn create(&self, deadline_unix_ms: Option<u64>) -> u64 {
        let subject = Subject { id: MachineId::new(Timestamp(1), 1), attempt: 1, name: "run-1".to_owned() };
        let order = Order {
            key: subject.key(),
            tags: OwnerKey::from_seed(&[1; 32]).tags(&subject, Until::Never),
            name: subject.name,
            region: "ams3".to_owned(),
            size: "s-1vcpu-1gb".to_owned(),
            image: "190000001".to_owned(),
            user_data: self.door.user_data(HOST_FROM_GUEST, deadline_unix_ms),
        };
        self.provider.create(&order).await.unwrap().id.parse().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_droplet_boots_joins_by_its_user_data_runs_a_program_and_goes() {
    let mut stage = Stage::set().await;
    let id = stage.create(None).await;
    let connected = tokio::time::timeout(PATIENCE, stage.door.connections.recv()).await;
    let link = connected.unwrap_or_else(|_| panic!("nobody dials: {}", stage.guests.console(id))).unwrap();
    let said = tokio::task::spawn_blocking(move || {
        let mut client = Client::new(link.into());
        // The agent's preamble comes first: it says which machine has dialled.
        client.until(Client::is_connected);
        client.preamble();
        let remaining = Remaining { until_deadline_ms: None, grace_ms: 0 };
        client.send(&ToAgent::Hello { version: AGENT_PROTOCOL_VERSION, log_seq: 0, remaining });
        client.until(|client| client.welcome.is_some());
        client.start("hostname; cat /etc/resolv.conf; date +%s; exit 7", Restart::Never);
        let ended = client.until_ended();
        client.until_output();
        (ended.last_exit.and_then(|exit| exit.code), client.text())
    });
    let (code, text) = said.await.unwrap();
    assert_eq!(code, Some(7), "{text}");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..2], ["run-1", "nameserver 169.254.2.3"]);
    let (there, here) = (lines[2].parse::<u64>().unwrap(), unix_ms() / 1000);
    assert!(there.abs_diff(here) < 3600, "the guest's clock says {there}, and it is {here}");
    assert!(stage.guests.is_running(id));
    stage.provider.destroy(&id.to_string()).await.unwrap();
    assert!(!stage.guests.is_running(id) && stage.emulator.droplets().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_droplet_ends_with_its_lease_where_nobody_hears_it() {
    let mut stage = Stage::set().await;
    // Nobody answers at the door: what the machine knows of its lease, it knows from its user data.
    stage.door.connections.close();
    let id = stage.create(Some(unix_ms() + 1000)).await;
    let ended = async {
        while stage.guests.is_running(id) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, ended).await.unwrap_or_else(|_| panic!("{}", stage.guests.console(id)));
    let console = stage.guests.console(id);
    assert!(console.contains("Power down"), "it ended in another way: {console}");
    // It is off, and still there: letting go of it is the server's or `calve reap`'s.
    assert_eq!(stage.emulator.droplets().len(), 1);
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}
