//! What each driver lacks on this host, remembered for a while: a preflight may boot a guest.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use calve_core::DriverName;
use calve_node::Driver;
use calve_wire::doctor::{Check, CheckStatus};
use futures_util::future::join_all;
use tokio::sync::watch;

use crate::reconcile::DriverState;

/// How long a driver that can be used is believed to be: kernels and their modules rarely go away under a server.
const USABLE_FOR: Duration = Duration::from_secs(600);
/// How long one that cannot be used is believed to be unusable: who mends it tries again at once.
const UNUSABLE_FOR: Duration = Duration::from_secs(2);

/// The preflights of all drivers.
pub(super) struct Preflights {
    drivers: BTreeMap<DriverName, Arc<Checked>>,
}

/// One driver and what was found of it.
struct Checked {
    driver: Arc<dyn Driver>,
    found: watch::Sender<Found>,
    /// Rings when something was found.
    changes: watch::Sender<u64>,
}

#[derive(Clone, Default)]
struct Found {
    latest: Option<(Instant, Vec<Check>)>,
    /// Whether a preflight is under way.
    running: bool,
}

impl Preflights {
    pub(super) fn new(drivers: Vec<Arc<dyn Driver>>, changes: watch::Sender<u64>) -> Self {
        let checked = |driver: Arc<dyn Driver>| {
            let found = watch::Sender::new(Found::default());
            (driver.name(), Arc::new(Checked { driver, found, changes: changes.clone() }))
        };
        Self { drivers: drivers.into_iter().map(checked).collect() }
    }

    /// What is known now. What is not, or no longer for sure, is found out meanwhile.
    pub(super) fn known(&self) -> Vec<DriverState> {
        self.drivers.values().filter_map(|checked| checked.known()).collect()
    }

    /// Whether the driver can be used, waiting for it to be found out.
    pub(super) async fn state(&self, driver: DriverName) -> DriverState {
        match self.drivers.get(&driver) {
            Some(checked) => checked.wait(false).await.0,
            None => DriverState { driver, unusable: Some("this server was started without it".to_owned()) },
        }
    }

    /// Every preflight, anew.
    pub(super) async fn run_all(&self) -> Vec<Check> {
        let checks = join_all(self.drivers.values().map(async |checked| checked.wait(true).await.1)).await;
        checks.into_iter().flatten().collect()
    }
}

impl Checked {
    fn known(self: &Arc<Self>) -> Option<DriverState> {
        if self.found.borrow().stale() {
            self.begin();
        }
        self.found.borrow().latest.as_ref().map(|(_, checks)| self.judge(checks))
    }

    async fn wait(self: &Arc<Self>, anew: bool) -> (DriverState, Vec<Check>) {
        let asked = Instant::now();
        if anew || self.found.borrow().stale() {
            self.begin();
        }
        let mut found = self.found.subscribe();
        // One that was begun before the question may tell of the time before it; good enough unless asked for anew.
        let done = |found: &Found| match &found.latest {
            Some((at, _)) => !found.running && (!anew || *at >= asked),
            None => false,
        };
        loop {
            let now = found.borrow_and_update().clone();
            if done(&now)
                && let Some((_, checks)) = now.latest
            {
                return (self.judge(&checks), checks);
            }
            if !now.running {
                self.begin();
            }
            found.changed().await.expect("this holds the sender");
        }
    }

    /// Begins a preflight unless one is under way.
    fn begin(self: &Arc<Self>) {
        let begun = self.found.send_if_modified(|found| !std::mem::replace(&mut found.running, true));
        if !begun {
            return;
        }
        let this = self.clone();
        tokio::spawn(async move {
            let driver = this.driver.clone();
            // In a task of its own, so that one that panics is found wanting and not waited for.
            let checks = tokio::spawn(async move { driver.preflight().await }).await;
            let checks = checks.unwrap_or_else(|error| vec![broken(this.driver.name(), &error)]);
            this.found.send_replace(Found { latest: Some((Instant::now(), checks)), running: false });
            this.changes.send_modify(|count| *count += 1);
        });
    }

    fn judge(&self, checks: &[Check]) -> DriverState {
        let driver = self.driver.name();
        DriverState { driver, unusable: missing(driver, checks) }
    }
}

impl Found {
    fn stale(&self) -> bool {
        let Some((at, checks)) = &self.latest else { return true };
        let usable = checks.iter().all(|check| check.status != CheckStatus::Missing);
        at.elapsed() > if usable { USABLE_FOR } else { UNUSABLE_FOR }
    }
}

fn broken(driver: DriverName, error: &tokio::task::JoinError) -> Check {
    tracing::error!(%driver, %error, "a preflight failed");
    Check {
        area: driver.to_string(),
        name: "preflight".to_owned(),
        status: CheckStatus::Missing,
        found: "it failed, which is a bug of calve".to_owned(),
        cost: "the driver cannot be used".to_owned(),
        mend: None,
    }
}

/// The first thing without which the driver cannot be used, in a sentence.
fn missing(driver: DriverName, checks: &[Check]) -> Option<String> {
    let fatal = |check: &&Check| check.status == CheckStatus::Missing && check.area == driver.as_str();
    let check = checks.iter().find(fatal)?;
    let mend = check.mend.as_ref().map(|mend| format!("; mend it with: {mend}")).unwrap_or_default();
    Some(format!("{}: {}{mend}", check.name, check.found))
}
