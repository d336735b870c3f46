//! Programs in machines of the sandbox driver: what reaches the server of their ends, and what they leave on the host.

mod support;

use std::fs;
use std::path::Path;

use calve_core::{DriverName, ExitCause};
use calve_node::driver::sandbox::SandboxDriver;
use calve_node::run_dir::RunDirs;
use calve_node::{Driver, Found, Order};
use calve_store::ClosurePath;
use calve_wire::machine::Exit;
use support::{Client, agent_program, copy_program, new_id, order, processes_with, wait_for};

const BASE_NAME: &str = "0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-busybox";

/// A driver, and a closure of one static program.
struct Bench {
    dir: tempfile::TempDir,
    driver: SandboxDriver,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let bin = dir.path().join(BASE_NAME).join("bin");
        fs::create_dir_all(&bin).expect("made");
        copy_program(Path::new("/bin/busybox"), &bin.join("busybox"));
        Self { driver: SandboxDriver::new(&dir.path().join("run"), agent_program()), dir }
    }

    fn order(&self) -> Order {
        let mut order = order(new_id(), 1);
        let path = format!("/nix/store/{BASE_NAME}").parse().expect("a store path");
        order.closure.paths.push(ClosurePath { path, host_path: self.dir.path().join(BASE_NAME) });
        order
    }

    async fn create(&self, order: &Order) -> Client {
        self.driver.create(order).await.expect("it can be made");
        Client::connect(&self.driver.agent_socket(order.id))
    }

    /// Runs a script to its end: how it ended and what it said.
    async fn run(&self, order: &Order, script: &str) -> (Exit, String) {
        let mut client = self.create(order).await;
        client.run(&format!("/nix/store/{BASE_NAME}/bin/busybox"), &["sh", "-c", script]);
        let status = client.until_ended();
        self.driver.destroy(order.id).await.expect("it can be destroyed");
        (status.last_exit.expect("it ended"), client.text())
    }
}

#[tokio::test]
async fn output_and_exit_code_reach_the_server() {
    let bench = Bench::new();
    let (exit, said) = bench.run(&bench.order(), "echo out; echo err >&2; exit 7").await;
    assert_eq!((exit.code, exit.cause, said.as_str()), (Some(7), ExitCause::Normal, "out\n"));
}

/// The agent's own way into a sandbox leaves no more of the host in it than the walls' own tests see.
#[tokio::test]
async fn a_program_sees_nothing_of_the_host() {
    let bench = Bench::new();
    let busybox = format!("/nix/store/{BASE_NAME}/bin/busybox");
    let script = format!("{busybox} ls /.. && {busybox} ls / && {busybox} cat /proc/self/mounts");
    let (exit, said) = bench.run(&bench.order(), &script).await;
    assert_eq!(exit.code, Some(0));
    let (names, mounts): (Vec<_>, Vec<_>) = said.lines().partition(|line| !line.contains(' '));
    assert_eq!(names[..names.len() / 2], names[names.len() / 2..], "/.. is / itself");
    assert_eq!(mounts.iter().filter(|line| line.split(' ').nth(1) == Some("/")).count(), 1, "{mounts:?}");
}

#[tokio::test]
async fn want_of_memory_is_told_from_other_ends() {
    let bench = Bench::new();
    let mut order = bench.order();
    order.spec.limits.memory_bytes = Some(32 << 20);
    let client = bench.create(&order).await;
    let unenforced = client.status.expect("welcomed").notes.iter().any(|note| note.contains("memory limit"));
    bench.driver.destroy(order.id).await.expect("it can be destroyed");
    if unenforced {
        eprintln!("not shown: this host gives no memory cgroup to this user");
        return;
    }
    // The line grows until there is no more room for it.
    let (exit, said) = bench.run(&order, "exec tail -c 100m /dev/zero").await;
    assert_eq!((exit.signal, exit.cause, said.as_str()), (Some(9), ExitCause::OutOfMemory, ""));
    let (exit, _) = bench.run(&order, "kill -9 $$").await;
    assert_eq!((exit.signal, exit.cause), (Some(9), ExitCause::Normal));
}

#[tokio::test]
async fn a_program_that_runs_into_its_limit_of_processes_is_told() {
    let bench = Bench::new();
    let mut order = bench.order();
    order.spec.limits.pids = Some(3);
    let script =
        format!("for n in 1 2 3 4 5 6; do /nix/store/{BASE_NAME}/bin/busybox sleep 60 & done; exit 9");
    let (exit, _) = bench.run(&order, &script).await;
    assert_eq!(exit.cause, ExitCause::Limit, "{exit:?}");
}

#[tokio::test]
async fn what_a_killed_supervisor_ran_is_gone_with_it() {
    let bench = Bench::new();
    let order = bench.order();
    let mark = format!("{}", 1_000_000 + std::process::id());
    let mut client = bench.create(&order).await;
    let busybox = format!("/nix/store/{BASE_NAME}/bin/busybox");
    let sleep = format!("{busybox} sleep {mark}");
    let script = format!("(trap '' TERM HUP; {sleep}) & ({busybox} setsid {sleep} &); {sleep}");
    client.run(&format!("/nix/store/{BASE_NAME}/bin/busybox"), &["sh", "-c", &script]);
    wait_for("the program's processes", || processes_with(&mark).len() >= 3);
    let pid = RunDirs::new(&bench.dir.path().join("run"), DriverName::Sandbox)
        .meta(order.id)
        .expect("made")
        .process
        .pid;
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).expect("a process id"),
        rustix::process::Signal::KILL,
    )
    .expect("it was alive");
    bench.driver.destroy(order.id).await.expect("it can be destroyed");
    assert_eq!(processes_with(&mark), Vec::<i32>::new());
}

#[tokio::test]
async fn supervisors_that_end_by_themselves_leave_no_zombies() {
    let bench = Bench::new();
    let mut order = bench.order();
    order.remaining.until_deadline_ms = Some(0);
    order.remaining.grace_ms = 0;
    bench.driver.create(&order).await.expect("it can be made");
    let pid = RunDirs::new(&bench.dir.path().join("run"), DriverName::Sandbox)
        .meta(order.id)
        .expect("made")
        .process
        .pid;
    tokio::task::spawn_blocking(move || {
        wait_for("the supervisor's end", || !Path::new(&format!("/proc/{pid}")).exists());
    })
    .await
    .expect("no panic");
    bench.driver.destroy(order.id).await.expect("it can be destroyed");
}

#[tokio::test]
async fn a_creation_that_was_cut_off_is_listed_and_destroyed() {
    let bench = Bench::new();
    let dirs = RunDirs::new(&bench.dir.path().join("run"), DriverName::Sandbox);
    let id = new_id();
    dirs.create(id).expect("made");
    assert_eq!(bench.driver.list().await.expect("listed"), [Found { id, attempt: 0 }]);
    bench.driver.destroy(id).await.expect("it can be destroyed");
    assert_eq!(bench.driver.list().await.expect("listed"), []);
}

/// The driver's death before the machine is written down: the supervisor must not go on by itself.
#[tokio::test]
async fn a_supervisor_whose_driver_dies_too_early_undoes_everything() {
    let bench = Bench::new();
    let order = bench.order();
    bench.driver.create(&order).await.expect("it can be made");
    let dir = bench.driver.agent_socket(order.id).parent().expect("a run directory").to_owned();
    let spec = fs::read(dir.join("sandbox.json")).expect("written");
    bench.driver.destroy(order.id).await.expect("it can be destroyed");
    fs::create_dir_all(&dir).expect("made");
    fs::write(dir.join("sandbox.json"), spec).expect("written");
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("a socket pair");
    let mut supervisor = std::process::Command::new(agent_program())
        .args(["sandbox", "--ready-fd", "0", "--run-dir"])
        .arg(&dir)
        .stdin(std::process::Stdio::from(std::os::fd::OwnedFd::from(theirs)))
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("it starts");
    let mut ready = [0];
    std::io::Read::read_exact(&mut &ours, &mut ready).expect("it gets ready");
    drop(ours);
    assert!(!supervisor.wait().expect("it ends").success());
    assert_eq!(support::cgroups_named(&order.id.to_string()), Vec::<std::path::PathBuf>::new());
    bench.driver.destroy(order.id).await.expect("it can be destroyed");
}

#[tokio::test]
async fn an_agent_that_is_not_there_is_one_sentence() {
    let bench = Bench::new();
    let driver = SandboxDriver::new(&bench.dir.path().join("run"), "/nonexistent/calve-agent".into());
    let error = driver.create(&bench.order()).await.expect_err("there is no agent");
    assert!(error.message.contains("/nonexistent/calve-agent") && error.hint.is_some(), "{error:?}");
    assert_eq!(driver.list().await.expect("listed"), []);
    let missing = driver.preflight().await;
    assert_eq!(missing.len(), 1);
    assert!(missing[0].mend.is_some(), "{missing:?}");
}

#[tokio::test]
async fn what_the_supervisor_cannot_do_reaches_the_caller_as_it_said_it() {
    let bench = Bench::new();
    let order = bench.order();
    fs::remove_dir_all(bench.dir.path().join(BASE_NAME)).expect("it was there");
    let error = bench.driver.create(&order).await.expect_err("its closure is incomplete");
    assert!(
        error.message.contains(BASE_NAME) && error.hint.is_some_and(|hint| hint.contains("garbage")),
        "{}",
        error.message
    );
}

#[tokio::test]
async fn the_preflight_finds_what_the_driver_needs() {
    let checks = Bench::new().driver.preflight().await;
    let names: Vec<_> = checks.iter().map(|check| check.name.as_str()).collect();
    assert_eq!(names, ["agent", "user namespaces", "mounts", "seccomp", "cgroups"]);
    for check in checks {
        let well = check.status == calve_wire::doctor::CheckStatus::Ok;
        assert!(
            check.area == "sandbox" && !check.found.is_empty() && check.cost.is_empty() == well,
            "{check:?}"
        );
    }
}

/// One static file that is a store path by itself: it is called by its name, as whoever typed it would expect.
#[tokio::test]
async fn a_file_alone_is_called_by_its_name() {
    let bench = Bench::new();
    let mut order = bench.order();
    let name = "0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-echo";
    let file = bench.dir.path().join(name);
    copy_program(Path::new("/bin/busybox"), &file);
    let path = format!("/nix/store/{name}");
    order.closure.paths = vec![ClosurePath { path: path.parse().expect("a store path"), host_path: file }];
    let mut client = bench.create(&order).await;
    client.run(&path, &["up"]);
    let exit = client.until_ended().last_exit.expect("it ended");
    bench.driver.destroy(order.id).await.expect("it can be destroyed");
    assert_eq!((exit.code, client.text().as_str()), (Some(0), "up\n"));
}
