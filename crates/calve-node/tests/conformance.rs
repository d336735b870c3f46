//! What every driver guarantees (see `Driver`), run on each of them. A new driver adds a line at the end.

mod support;

use std::path::Path;
use std::sync::Arc;

use calve_core::MachineId;
use calve_node::driver::sandbox::SandboxDriver;
use calve_node::{Driver, DriverErrorKind, Found, Order};
use calve_wire::agent::{Phase, Remaining};
use support::{Client, agent_program, cgroups_named, new_id, order, processes_with, wait_for};

/// How the suite gets at one driver.
trait Subject {
    /// A new instance, as a new process would have: it knows nothing but the runtime directory.
    fn open(runtime_dir: &Path) -> Arc<dyn Driver>;

    /// An order that the driver must refuse or fail at, after it has begun.
    fn impossible(id: MachineId) -> Order;
}

struct Bench {
    dir: tempfile::TempDir,
    driver: Arc<dyn Driver>,
    id: MachineId,
}

impl Bench {
    fn new<S: Subject>() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        Self { driver: S::open(dir.path()), id: new_id(), dir }
    }

    async fn created<S: Subject>() -> Self {
        let bench = Self::new::<S>();
        bench.driver.create(&order(bench.id, 1)).await.expect("it can be made");
        bench
    }

    async fn list(&self) -> Vec<Found> {
        self.driver.list().await.expect("it can be listed")
    }

    async fn destroy(&self) {
        self.driver.destroy(self.id).await.expect("it can be destroyed");
        self.assert_nothing_left();
    }

    fn connect(&self) -> Client {
        Client::connect(&self.driver.agent_socket(self.id))
    }

    fn processes(&self) -> Vec<i32> {
        processes_with(&self.run_dir())
    }

    fn run_dir(&self) -> String {
        let socket = self.driver.agent_socket(self.id);
        socket.parent().expect("it lies in the run directory").display().to_string()
    }

    fn assert_nothing_left(&self) {
        assert_eq!(self.processes(), Vec::<i32>::new(), "processes");
        assert_eq!(cgroups_named(&self.id.to_string()), Vec::<std::path::PathBuf>::new(), "cgroups");
        assert!(!Path::new(&self.run_dir()).exists(), "the run directory");
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("a proc file system");
        assert!(!mounts.contains(&self.run_dir()), "mounts");
    }
}

async fn a_machine_is_listed_from_creation_to_destruction<S: Subject>() {
    let bench = Bench::new::<S>();
    assert_eq!(bench.list().await, []);
    bench.driver.create(&order(bench.id, 3)).await.expect("it can be made");
    assert_eq!(bench.list().await, [Found { id: bench.id, attempt: 3 }]);
    bench.destroy().await;
    assert_eq!(bench.list().await, []);
}

async fn its_agent_answers<S: Subject>() {
    let bench = Bench::created::<S>().await;
    let status = bench.connect().status.expect("welcomed");
    assert_eq!((status.phase, status.starts), (Phase::Waiting, 0));
    bench.destroy().await;
}

async fn a_repeated_creation_changes_nothing<S: Subject>() {
    let bench = Bench::created::<S>().await;
    let before = bench.processes();
    bench.driver.create(&order(bench.id, 1)).await.expect("it is there already");
    assert_eq!(bench.processes(), before);
    bench.connect();
    bench.destroy().await;
}

async fn a_later_attempt_replaces_an_earlier_one<S: Subject>() {
    let bench = Bench::created::<S>().await;
    let before = bench.processes();
    bench.driver.create(&order(bench.id, 2)).await.expect("it can be made again");
    assert_eq!(bench.list().await, [Found { id: bench.id, attempt: 2 }]);
    assert!(bench.processes().iter().all(|pid| !before.contains(pid)));
    bench.connect();
    bench.destroy().await;
}

async fn destroying_the_unknown_succeeds<S: Subject>() {
    let bench = Bench::new::<S>();
    bench.destroy().await;
    bench.driver.create(&order(bench.id, 1)).await.expect("it can be made");
    bench.destroy().await;
    bench.destroy().await;
}

async fn another_process_lists_and_destroys_it<S: Subject>() {
    let mut bench = Bench::created::<S>().await;
    bench.driver = S::open(bench.dir.path());
    assert_eq!(bench.list().await, [Found { id: bench.id, attempt: 1 }]);
    bench.connect();
    bench.destroy().await;
}

async fn a_killed_supervisor_leaves_nothing_behind<S: Subject>() {
    let bench = Bench::created::<S>().await;
    for pid in bench.processes() {
        let pid = rustix::process::Pid::from_raw(pid).expect("a process id");
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    assert_eq!(bench.list().await, [Found { id: bench.id, attempt: 1 }]);
    bench.destroy().await;
}

async fn a_failed_creation_leaves_nothing<S: Subject>() {
    let bench = Bench::new::<S>();
    let error = bench.driver.create(&S::impossible(bench.id)).await.expect_err("it cannot be made");
    assert!(!error.message.is_empty() && !error.message.contains('\n'), "one sentence: {}", error.message);
    assert_eq!(bench.list().await, []);
    bench.assert_nothing_left();
}

async fn a_lease_ends_a_machine_that_nobody_looks_after<S: Subject>() {
    let bench = Bench::new::<S>();
    let remaining = Remaining { until_deadline_ms: Some(1000), grace_ms: 0 };
    bench.driver.create(&Order { remaining, ..order(bench.id, 1) }).await.expect("it can be made");
    wait_for("the lease's end", || bench.processes().is_empty());
    assert_eq!(bench.list().await, [Found { id: bench.id, attempt: 1 }]);
    bench.destroy().await;
}

async fn many_at_once_are_all_there_and_all_gone<S: Subject>() {
    const MACHINES: usize = 6;
    let bench = Bench::new::<S>();
    let ids: Vec<_> = (0..MACHINES).map(|_| new_id()).collect();
    let each = |id: MachineId, destroy: bool| {
        let driver = bench.driver.clone();
        tokio::spawn(async move {
            match destroy {
                false => driver.create(&order(id, 1)).await.expect("it can be made"),
                true => driver.destroy(id).await.expect("it can be destroyed"),
            }
        })
    };
    for destroy in [false, true] {
        let tasks: Vec<_> = ids.iter().map(|id| each(*id, destroy)).collect();
        for task in tasks {
            task.await.expect("no panic");
        }
        assert_eq!(bench.list().await.len(), if destroy { 0 } else { MACHINES });
    }
    assert_eq!(processes_with(&bench.dir.path().display().to_string()), Vec::<i32>::new());
}

/// The suite for one driver.
macro_rules! conformance {
    ($driver:ident, $subject:ty) => {
        mod $driver {
            use super::*;
            conformance!(@each $subject:
                a_machine_is_listed_from_creation_to_destruction
                its_agent_answers
                a_repeated_creation_changes_nothing
                a_later_attempt_replaces_an_earlier_one
                destroying_the_unknown_succeeds
                another_process_lists_and_destroys_it
                a_killed_supervisor_leaves_nothing_behind
                a_failed_creation_leaves_nothing
                a_lease_ends_a_machine_that_nobody_looks_after
                many_at_once_are_all_there_and_all_gone
            );
        }
    };
    (@each $subject:ty: $($test:ident)+) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test::<$subject>().await;
            }
        )+
    };
}

struct Sandbox;

impl Subject for Sandbox {
    fn open(runtime_dir: &Path) -> Arc<dyn Driver> {
        Arc::new(SandboxDriver::new(runtime_dir, agent_program()))
    }

    /// A store path that is not there any more.
    fn impossible(id: MachineId) -> Order {
        let mut order = order(id, 1);
        let path = "/nix/store/0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-gone".parse().expect("a store path");
        order.closure.paths.push(calve_store::ClosurePath { path, host_path: "/nonexistent/gone".into() });
        order
    }
}

conformance!(sandbox, Sandbox);

#[tokio::test]
async fn a_sandbox_refuses_a_system() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut order = order(new_id(), 1);
    let toplevel = "/nix/store/0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-nixos".parse().expect("a store path");
    order.spec.workload = calve_wire::machine::Workload::System { toplevel };
    let error = Sandbox::open(dir.path()).create(&order).await.expect_err("it has no kernel");
    assert_eq!(error.kind, DriverErrorKind::Unusable);
    assert!(error.hint.is_some_and(|hint| hint.contains("qemu")));
}
