//! Machines at a provider: what calve adds to the time in which a provider makes one, and what it takes to look after a thousand.
//! The provider is the emulator of DigitalOcean's API; the machines of the first part are real guests, in emulation.

use std::io::Read;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use calve_core::{DriverName, Kind, MachineId, Timestamp};
use calve_provider::digitalocean::{DigitalOcean, Settings};
use calve_provider::mark::{OwnerKey, Subject, Until};
use calve_provider::{Order, Pace, Provider};
use calve_server::state::EmbeddedState;
use calve_wire::machine::{MachineSpec, Place, Workload};
use calve_wire::record::MachineRecord;
use digitalocean_emulator::{Backing, Droplet, Emulator, Options, TOKEN};
use droplets::{Guests, HOST_FROM_GUEST};
use tokio::net::{TcpListener, TcpStream};

use crate::Effort;
use crate::home::{Home, beside, free_address, serve};
use crate::reads::worked;
use crate::records;
use crate::table::Table;
use crate::times::{Times, millis};

/// Where machines are made, and how large.
const REGION: &str = "ams3";
const SIZE: &str = "s-1vcpu-1gb";
/// Most that calve may add to a provider's own time, in milliseconds.
const OVERHEAD_MS: f64 = 5000.0;
/// Machines that are listed and reconciled, as promised.
const MACHINES: u64 = 1000;
/// Most processor time for that, in milliseconds.
const ROUND_MS: f64 = 1000.0;
/// A server that has just started makes itself acquainted with what there is.
const WARM_UP: Duration = Duration::from_secs(15);

pub async fn measure(effort: Effort, table: &mut Table) -> anyhow::Result<()> {
    overhead(effort, table).await?;
    thousand(effort, table).await
}

/// A server with an account, and a door for agents.
struct Server {
    home: Home,
    child: Child,
}

impl Server {
    fn start(home: Home, emulator: &Emulator, door: SocketAddr, dialled: &str) -> anyhow::Result<Self> {
        let mut command =
            home.command(&["server", "--agents", &door.to_string(), "--agents-address", dialled]);
        command.env("DIGITALOCEAN_API_URL", &emulator.url).env("DIGITALOCEAN_TOKEN", TOKEN);
        let socket = home.dirs().socket();
        let child = serve(&mut command, || UnixStream::connect(&socket).is_ok())?;
        Ok(Self { home, child })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // The account goes with the measurement: nobody is to let go of its machines one by one.
        let _ = std::fs::remove_dir_all(self.home.dirs().data);
    }
}

/// When the provider was asked for the last machine, and when that dialled.
#[derive(Default)]
struct Moments {
    asked: Mutex<Option<Instant>>,
    dialled: Mutex<Option<Instant>>,
}

impl Moments {
    fn note(moment: &Mutex<Option<Instant>>) {
        let mut moment = moment.lock().unwrap_or_else(PoisonError::into_inner);
        moment.get_or_insert_with(Instant::now);
    }

    fn take(moment: &Mutex<Option<Instant>>) -> anyhow::Result<Instant> {
        moment.lock().unwrap_or_else(PoisonError::into_inner).take().context("a machine was made and dialled")
    }
}

/// Guests, and when the last one was asked for.
struct Watched {
    guests: Arc<Guests>,
    moments: Arc<Moments>,
}

impl Backing for Watched {
    fn created(&self, droplet: &Droplet) {
        Moments::note(&self.moments.asked);
        self.guests.created(droplet);
    }

    fn destroyed(&self, id: u64) {
        self.guests.destroyed(id);
    }
}

/// Passes on who dials, and notes when.
async fn pass_on(listener: TcpListener, door: SocketAddr, moments: Arc<Moments>) {
    while let Ok((mut agent, _)) = listener.accept().await {
        Moments::note(&moments.dialled);
        tokio::spawn(async move {
            let Ok(mut server) = TcpStream::connect(door).await else { return };
            let _ = tokio::io::copy_bidirectional(&mut agent, &mut server).await;
        });
    }
}

/// A program on a machine that is made for it, again and again: the time of which the provider is not the cause. The closure is
/// known to the server from the first time on, which does not count.
async fn overhead(effort: Effort, table: &mut Table) -> anyhow::Result<()> {
    let home = Home::new()?;
    let moments = Arc::new(Moments::default());
    let consoles = home.path().join("consoles");
    std::fs::create_dir(&consoles)?;
    let guests = Guests::new(&beside("calve-agent"), &consoles, &home.path().join("images"))?;
    let backing = Some(Arc::new(Watched { guests, moments: moments.clone() }) as Arc<dyn Backing>);
    let emulator = Emulator::start(Options { backing, ..Options::default() }).await?;
    let door = free_address()?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let dialled = format!("{HOST_FROM_GUEST}:{}", listener.local_addr()?.port());
    tokio::spawn(pass_on(listener, door, moments.clone()));
    let app = home.app()?;
    let server = Server::start(home, &emulator, door, &dialled)?;
    let (mut own, mut before, mut behind, mut providers) =
        (Times::new(), Times::new(), Times::new(), Times::new());
    for n in 0..=effort.boots {
        let on = format!("digitalocean/{REGION}");
        let mut command =
            server.home.command(&["run", "--on", &on, "--size", SIZE, &app, "--", "echo", "ran"]);
        let began = Instant::now();
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let mut said = child.stdout.take().context("it was asked for")?;
        let ran = tokio::task::spawn_blocking(move || said.read_exact(&mut [0]).map(|()| Instant::now()));
        let ran = ran.await?.context("the program said nothing")?;
        child.wait()?;
        let (asked, dialled) = (Moments::take(&moments.asked)?, Moments::take(&moments.dialled)?);
        if n > 0 {
            own.push(asked.duration_since(began) + ran.duration_since(dialled));
            before.push(asked.duration_since(began));
            behind.push(ran.duration_since(dialled));
            providers.push(dialled.duration_since(asked));
        }
    }
    let longest = own.quantile(100);
    let ours = format!(
        "{} (p50 {}: {} before the request, {} behind the agent's call; in between, by the provider: {})",
        millis(longest),
        millis(own.median()),
        millis(before.median()),
        millis(behind.median()),
        millis(providers.median())
    );
    let what = "calve run --on PROVIDER to a program's first output, beyond the provider's own time, longest";
    table.limit(what, ours, longest.as_secs_f64() * 1000.0, OVERHEAD_MS, "ms");
    Ok(())
}

/// A thousand machines that live at the provider: the server's processor time for listing them and planning once.
async fn thousand(effort: Effort, table: &mut Table) -> anyhow::Result<()> {
    let home = Home::new()?;
    let emulator =
        Emulator::start(Options { droplet_limit: 2 * MACHINES as usize, ..Options::default() }).await?;
    let dirs = home.dirs();
    dirs.create()?;
    let key = OwnerKey::load_or_make(&dirs.owner_key(DriverName::DigitalOcean.as_str()))?;
    let state = EmbeddedState::open(&dirs.data)?;
    let provider = provider(&emulator)?;
    let now = calve_server::world::now();
    for n in 1..=MACHINES {
        let record = record(n, now)?;
        let deadline = record.deadline_unix_ms.context("it has one")?;
        let subject = Subject { id: record.id, attempt: record.attempt, name: record.name.to_string() };
        let order = Order {
            key: subject.key(),
            tags: key.tags(&subject, Until::Unix((deadline + record.grace_ms).div_ceil(1000))),
            name: subject.name,
            region: REGION.to_owned(),
            size: SIZE.to_owned(),
            image: "190000001".to_owned(),
            user_data: String::new(),
        };
        provider.create(&order).await.map_err(|error| anyhow::anyhow!("{error}"))?;
        records::write(&state, &record).await?;
    }
    drop(state);
    let door = free_address()?;
    let server = Server::start(home, &emulator, door, &door.to_string())?;
    let pid = server.home.server_pid()?;
    tokio::time::sleep(WARM_UP).await;
    // All pages of all machines, each time that they are listed.
    let pages = requests_of_a_list(&emulator, &*provider, key.owner()).await?;
    let (lists_before, worked_before) = (emulator.requests(), worked(pid)?);
    tokio::time::sleep(WARM_UP * if effort.machines < MACHINES as usize { 2 } else { 8 }).await;
    let lists = (emulator.requests() - lists_before) / pages;
    let each = (worked(pid)? - worked_before) / u32::try_from(lists.max(1))?;
    ensure!(lists > 0, "nothing was listed");
    let there = emulator.droplets().len() as u64;
    ensure!(there == MACHINES, "{there} machines are left");
    let what =
        format!("{MACHINES} machines at a provider listed and reconciled, processor time of the server");
    table.limit(
        &what,
        format!("{} ({lists} times)", millis(each)),
        each.as_secs_f64() * 1000.0,
        ROUND_MS,
        "ms",
    );
    Ok(())
}

async fn requests_of_a_list(
    emulator: &Emulator,
    provider: &dyn Provider,
    owner: calve_provider::mark::Owner,
) -> anyhow::Result<usize> {
    let before = emulator.requests();
    let listed = provider.list(&owner.tag()).await.map_err(|error| anyhow::anyhow!("{error}"))?.machines;
    ensure!(listed.len() as u64 == MACHINES, "{} machines are listed", listed.len());
    Ok(emulator.requests() - before)
}

fn provider(emulator: &Emulator) -> anyhow::Result<Arc<dyn Provider>> {
    let variables = |name: &str| match name {
        "DIGITALOCEAN_API_URL" => Some(emulator.url.clone()),
        _ => Some(TOKEN.to_owned()),
    };
    let settings = Settings::from_environment(&variables).map_err(|error| anyhow::anyhow!("{error}"))?;
    let provider =
        DigitalOcean::new(settings, Pace::default()).map_err(|error| anyhow::anyhow!("{error}"))?;
    Ok(Arc::new(provider))
}

fn record(n: u64, now: Timestamp) -> anyhow::Result<MachineRecord> {
    let place = Place { region: REGION.to_owned(), size: SIZE.to_owned(), image: None, host_key: None };
    let driver = DriverName::DigitalOcean;
    let spec = MachineSpec {
        driver: Some(driver),
        place: Some(place),
        ..MachineSpec::new(Kind::System, Workload::Base)
    };
    records::running(MachineId::new(now, u128::from(n)), &format!("run-{n}"), spec, driver, now.0)
}
