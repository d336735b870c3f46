//! A soak with real processes: sandboxes and guests are started and let go of by several clients at once, while server,
//! supervisors, agents and programs are killed with `kill -9` at random. At the end nothing of them may be left.

mod killer;
mod leftovers;
pub mod load;

use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use e2e::{Home, wait_until};

pub use killer::Kills;

/// Clients at once.
const CLIENTS: u64 = 6;
/// Machines of which a client knows the names at a time.
const LEASE: &str = "60s";

/// How much is soaked.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Decides what clients do and whom the killer chooses; the rest is up to the host.
    pub seed: u64,
    /// Sandboxes to start.
    pub sandboxes: u64,
    /// Guests to start.
    pub guests: u64,
    /// Pause between two kills.
    pub kill_every: Duration,
}

/// How it went.
#[derive(Debug)]
pub struct Report {
    /// Machines that a server took on, of those that were asked for.
    pub started: u64,
    /// Requests that failed, as their server was killed under them.
    pub refused: u64,
    /// Whom the killer killed.
    pub kills: Kills,
    /// What was left at the end: nothing, if all is well.
    pub left: Vec<String>,
    /// How long it took.
    pub took: Duration,
}

struct Soak {
    home: Home,
    app: String,
    options: Options,
    next: AtomicU64,
    started: AtomicU64,
    refused: AtomicU64,
    ids: Mutex<BTreeSet<String>>,
}

/// Soaks.
pub fn soak(options: Options) -> Report {
    let began = Instant::now();
    let home = Home::new();
    let app = home.app();
    home.ok(&["ps"]);
    let before = leftovers::Host::look();
    let soak = Arc::new(Soak {
        home,
        app,
        options,
        next: AtomicU64::new(0),
        started: AtomicU64::new(0),
        refused: AtomicU64::new(0),
        ids: Mutex::default(),
    });
    let over = Arc::new(AtomicBool::new(false));
    let killer = {
        let (soak, over) = (soak.clone(), over.clone());
        std::thread::spawn(move || killer::kill_at_random(&soak.home, options, &over))
    };
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let soak = &soak;
            scope.spawn(move || soak.client(client));
        }
    });
    over.store(true, Ordering::Relaxed);
    let kills = killer.join().expect("the killer does not panic");
    let left = soak.finish(&before);
    Report {
        started: soak.started.load(Ordering::Relaxed),
        refused: soak.refused.load(Ordering::Relaxed),
        kills,
        left,
        took: began.elapsed(),
    }
}

impl Soak {
    /// Starts machines and lets go of them, each in one of several ways.
    fn client(&self, client: u64) {
        let mut chance = killer::Chance::new(self.options.seed ^ (client + 1).wrapping_mul(0x9e37_79b9));
        let all = self.options.sandboxes + self.options.guests;
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= all {
                return;
            }
            // Guests come evenly between the sandboxes.
            let guest = number * self.options.guests / all != (number + 1) * self.options.guests / all;
            self.one(number, guest, &mut chance);
        }
    }

    fn one(&self, number: u64, guest: bool, chance: &mut killer::Chance) {
        let name = format!("soak-{number}");
        let driver = if guest { "qemu" } else { "sandbox" };
        let script = "trap 'exit 0' TERM; echo begun; sleep 0.2; while :; do sleep 1; done";
        let short = chance.below(3) == 0;
        let script = if short { "echo begun; exit 3" } else { script };
        let run = ["run", "-d", "--name", &name, "--ttl", LEASE, "--grace", "1s", "--driver", driver];
        let program = [self.app.as_str(), "--", "sh", "-c", script];
        let ran = self.home.run(&[&run[..], &program[..]].concat());
        let counter = if ran.code == 0 { &self.started } else { &self.refused };
        counter.fetch_add(1, Ordering::Relaxed);
        if let Some(id) = self.id_of(&name) {
            self.ids.lock().expect("no holder panics").insert(id);
        }
        match chance.below(6) {
            0 => drop(self.home.run(&["stop", &name])),
            1 => drop(self.home.run(&["exec", &name, "--", "/bin/true"])),
            2 => drop(self.home.run(&["logs", &name])),
            // Its lease ends it, or the end of the soak.
            3 => return,
            _ => {}
        }
        self.home.run(&["rm", &name]);
    }

    fn id_of(&self, name: &str) -> Option<String> {
        let status = self.home.run(&["status", name, "--json"]);
        let status: serde_json::Value = serde_json::from_str(&status.stdout).ok()?;
        Some(status["id"].as_str()?.to_owned())
    }

    /// Lets go of everything, and looks for what is left.
    fn finish(&self, before: &leftovers::Host) -> Vec<String> {
        let home = &self.home;
        wait_until("a server that answers", || home.run(&["ps"]).code == 0);
        // A machine may be removed while another request is under way: until no record is left.
        wait_until("every record to be removed", || {
            home.run(&["rm", "--all"]);
            let listed = home.run(&["ps", "-a", "--json"]);
            listed.code == 0 && serde_json::from_str(&listed.stdout).is_ok_and(is_empty)
        });
        let mut stop = home.command(["server", "stop"]);
        let _ = stop.stdout(Stdio::null()).stderr(Stdio::null()).status();
        let ids = self.ids.lock().expect("no holder panics");
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            // What was killed a moment ago is being reaped by the kernel.
            let left = leftovers::of(home, &ids, before);
            if left.is_empty() || Instant::now() > deadline {
                return left;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

fn is_empty(list: serde_json::Value) -> bool {
    list.as_array().is_some_and(Vec::is_empty)
}
