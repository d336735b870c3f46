//! A static program from nothing to its end: the sandbox driver alone, its peers, and the whole of `calve run`, in turns.

use std::time::{Duration, Instant};

use anyhow::ensure;
use calve_node::Driver;
use calve_node::driver::sandbox::SandboxDriver;

use crate::Effort;
use crate::home::{Home, beside, megabytes};
use crate::peers::{self, Peer};
use crate::store::Store;
use crate::support::Client;
use crate::table::Table;
use crate::times::{Times, millis};

/// A closure of middling size.
const MANY_PATHS: usize = 300;
/// Most that the whole of `calve run` may take beyond the driver alone, in milliseconds.
const BEYOND_DRIVER_MS: f64 = 15.0;
/// Pause before each measurement: namespaces go some time after their last process, and what begins meanwhile waits for
/// the same locks of the kernel. Nobody shall pay for who ran before.
const SETTLE: Duration = Duration::from_millis(40);
/// Most resident memory of an idle server, in MB.
pub const SERVER_RSS_MB: f64 = 40.0;

pub async fn measure(effort: Effort, table: &mut Table) -> anyhow::Result<()> {
    alone(effort, table).await?;
    with_many_paths(effort, table).await
}

/// One store path; everything in turns.
async fn alone(effort: Effort, table: &mut Table) -> anyhow::Result<()> {
    let store = Store::new(1);
    let mut driver = Ours::new()?;
    let mut cold = Ours::new()?;
    let mut peers = Peers::new(&store);
    let home = Home::new()?;
    let app = home.app()?;
    let mut whole = Times::default();
    // The first one starts the server and adds the tree.
    whole_run(&home, &app)?;
    for _ in 0..effort.starts {
        driver.run(&store).await;
        cold.renew();
        cold.run(&store).await;
        peers.run();
        whole.push(whole_run(&home, &app)?);
    }
    peers.show("sandbox driver, to the first output", driver.heard.median(), |peer| &peer.0, table);
    peers.show("sandbox driver, to the program's end", driver.ended.median(), |peer| &peer.1, table);
    peers.show("sandbox driver, to nothing left", driver.gone.median(), |peer| &peer.1, table);
    peers.note("the same, none standing by, to the program's end", cold.ended.median(), table);
    let (ours, beneath) = (whole.median(), driver.ended.median());
    let beyond = ours.saturating_sub(beneath);
    table.limit(
        "calve run beyond the driver alone, p50",
        format!("{} − {}", millis(ours), millis(beneath)),
        beyond.as_secs_f64() * 1000.0,
        BEYOND_DRIVER_MS,
        "ms",
    );
    for (name, (_, theirs)) in &peers.times {
        let ratio = ours.as_secs_f64() / theirs.median().as_secs_f64();
        let most = matches!(*name, "runc" | "systemd-nspawn").then_some(1.0);
        table.ratio(
            "calve run as a whole",
            millis(ours),
            format!("{name} {}", millis(theirs.median())),
            ratio,
            most,
        );
    }
    let rss = megabytes(home.server_rss_kib()?);
    let what = format!("server's memory after {} machines", effort.starts + 1);
    table.limit(&what, format!("{rss:.1} MB"), rss, SERVER_RSS_MB, "MB");
    Ok(())
}

async fn with_many_paths(effort: Effort, table: &mut Table) -> anyhow::Result<()> {
    let store = Store::new(MANY_PATHS);
    let mut driver = Ours::new()?;
    let mut peers = Peers::new(&store);
    for _ in 0..effort.starts.div_ceil(3) {
        driver.run(&store).await;
        peers.run();
    }
    let what = format!("the same with {MANY_PATHS} store paths, to nothing left");
    peers.show(&what, driver.gone.median(), |peer| &peer.1, table);
    Ok(())
}

fn whole_run(home: &Home, app: &str) -> anyhow::Result<Duration> {
    settle();
    let begun = Instant::now();
    let status = home.command(&["run", "--driver", "sandbox", app, "--", "true"]).status()?;
    let took = begun.elapsed();
    ensure!(status.success(), "calve run: {status}");
    Ok(took)
}

fn settle() {
    std::thread::sleep(SETTLE);
}

/// The driver alone.
pub struct Ours {
    driver: SandboxDriver,
    heard: Times,
    ended: Times,
    gone: Times,
    runtime: tempfile::TempDir,
}

impl Ours {
    pub fn new() -> anyhow::Result<Self> {
        let runtime = tempfile::tempdir()?;
        let driver = SandboxDriver::new(runtime.path(), beside("calve-agent"));
        let [heard, ended, gone] = [const { Times::new() }; 3];
        Ok(Self { driver, heard, ended, gone, runtime })
    }

    /// A driver that has made no machine yet, so that no supervisor stands by.
    fn renew(&mut self) {
        self.driver = SandboxDriver::new(self.runtime.path(), beside("calve-agent"));
    }

    async fn run(&mut self, store: &Store) {
        self.run_order(store.order(), &store.program()).await;
    }

    /// Takes the time until the program's first output was heard, which it gives, its end, and until the machine was
    /// destroyed.
    pub async fn run_order(&mut self, order: calve_node::Order, program: &str) -> Duration {
        settle();
        let begun = Instant::now();
        self.driver.create(&order).await.expect("it can be made");
        let mut client = Client::connect(&self.driver.agent_socket(order.id));
        client.run(program, &peers::ARGS);
        client.until_output();
        let heard = begun.elapsed();
        self.heard.push(heard);
        let exit = client.until_ended().last_exit.expect("it ended");
        self.ended.push(begun.elapsed());
        self.driver.destroy(order.id).await.expect("it can be destroyed");
        self.gone.push(begun.elapsed());
        assert_eq!(exit.code, Some(0), "the program ran");
        heard
    }
}

/// The others.
struct Peers {
    peers: Vec<Peer>,
    /// To the first output, and to the end.
    times: Vec<(&'static str, (Times, Times))>,
}

impl Peers {
    fn new(store: &Store) -> Self {
        let peers = peers::peers(store);
        let times = peers.iter().map(|peer| (peer.name, <(Times, Times)>::default())).collect();
        Self { peers, times }
    }

    fn run(&mut self) {
        for (peer, (_, times)) in self.peers.iter().zip(&mut self.times) {
            settle();
            let (heard, ended) = peer.run();
            times.0.push(heard);
            times.1.push(ended);
        }
    }

    /// Beside `bwrap`, without a promise.
    fn note(&self, what: &str, ours: Duration, table: &mut Table) {
        for (name, (_, ended)) in self.times.iter().filter(|(name, _)| *name == "bwrap") {
            let theirs = ended.median();
            let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
            table.ratio(what, millis(ours), format!("{name} {}", millis(theirs)), ratio, None);
        }
    }

    fn show(&self, what: &str, ours: Duration, which: fn(&(Times, Times)) -> &Times, table: &mut Table) {
        for (name, times) in &self.times {
            let theirs = which(times).median();
            let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
            let most = (*name != peers::BARE).then_some(1.0);
            table.ratio(what, millis(ours), format!("{name} {}", millis(theirs)), ratio, most);
        }
    }
}
