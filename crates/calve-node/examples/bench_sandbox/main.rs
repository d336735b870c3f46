//! Measures the sandbox driver; `benches/sandbox` runs it.

mod hold;
mod peers;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use calve_node::Driver;
use calve_node::driver::sandbox::SandboxDriver;
use calve_store::ClosurePath;
use support::{Client, agent_binary, new_id, order};

/// Closures: a static program alone, and a middling one.
const PATHS: [usize; 2] = [1, 300];
/// Rounds where none are said; each makes one of each peer.
const ROUNDS_DEFAULT: usize = 40;

#[tokio::main]
async fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("hold") => hold::hold(args.get(1).map_or(1000, |n| n.parse().expect("a count"))).await,
        rounds => {
            let rounds = rounds.map_or(ROUNDS_DEFAULT, |n| n.parse().expect("a count"));
            for paths in PATHS {
                compare(&Store::new(paths), rounds).await;
            }
        }
    }
}

/// Store paths that lie on the host; the first holds the program.
pub struct Store {
    dir: tempfile::TempDir,
    names: Vec<String>,
}

impl Store {
    pub fn new(paths: usize) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let names: Vec<_> =
            (0..paths).map(|n| format!("0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-path-{n}")).collect();
        for name in &names {
            fs::create_dir_all(dir.path().join(name).join("bin")).expect("made");
        }
        fs::copy("/bin/busybox", dir.path().join(&names[0]).join("bin/busybox"))
            .expect("busybox-static is installed");
        Self { dir, names }
    }

    /// Where each lies, and where it is seen.
    pub fn mounts(&self) -> impl Iterator<Item = (PathBuf, String)> {
        self.names.iter().map(|name| (self.dir.path().join(name), format!("/nix/store/{name}")))
    }

    pub fn program(&self) -> String {
        format!("/nix/store/{}/bin/busybox", self.names[0])
    }

    pub fn order(&self) -> calve_node::Order {
        let mut order = order(new_id(), 1);
        let path = |(host_path, path): (PathBuf, String)| ClosurePath {
            path: path.parse().expect("a path"),
            host_path,
        };
        order.closure.paths = self.mounts().map(path).collect();
        order
    }
}

async fn compare(store: &Store, rounds: usize) {
    let runtime = tempfile::tempdir().expect("a directory");
    let driver = SandboxDriver::new(runtime.path(), agent_binary());
    let peers = peers::peers(store);
    let mut program_ended = Vec::new();
    let mut all_gone = Vec::new();
    let mut theirs = vec![Vec::new(); peers.len()];
    for _ in 0..rounds {
        let (ended, gone) = ours(&driver, store).await;
        program_ended.push(ended);
        all_gone.push(gone);
        for (peer, times) in peers.iter().zip(&mut theirs) {
            times.push(peer.run());
        }
    }
    println!("{} store paths, {rounds} rounds: median (fastest) in ms", store.names.len());
    let base = median(&mut program_ended);
    show("calve: program ended", &mut program_ended, base);
    show("calve: all of it gone", &mut all_gone, base);
    for (peer, times) in peers.iter().zip(&mut theirs) {
        show(peer.name, times, base);
    }
}

/// Time until the program's end was heard, and until the machine was destroyed.
async fn ours(driver: &SandboxDriver, store: &Store) -> (Duration, Duration) {
    let order = store.order();
    let begun = Instant::now();
    driver.create(&order).await.expect("it can be made");
    let mut client = Client::connect(&driver.agent_socket(order.id));
    client.start(&store.program(), &["true"]);
    let exit = client.until_ended().last_exit.expect("it ended");
    let ended = begun.elapsed();
    driver.destroy(order.id).await.expect("it can be destroyed");
    let gone = begun.elapsed();
    assert_eq!(exit.code, Some(0), "the program ran");
    (ended, gone)
}

fn show(name: &str, times: &mut [Duration], base: Duration) {
    let (middle, fastest) = (median(times), times[0]);
    let ratio = middle.as_secs_f64() / base.as_secs_f64();
    println!("  {name:24} {:8.2} ({:.2})   {ratio:5.2} x", millis(middle), millis(fastest));
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Whether a program is installed.
pub fn installed(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').any(|dir| Path::new(dir).join(program).exists())
}
