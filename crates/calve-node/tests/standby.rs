//! The supervisor that stands by for the next machine: it serves one, ends with its driver, and is never missed.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use calve_node::driver::sandbox::SandboxDriver;
use calve_node::run_dir::RunDirs;
use calve_node::{Driver, Found, Order};
use calve_store::ClosurePath;
use calve_wire::machine::Network;
use rustix::process::{Pid, Signal, kill_process};
use support::{Client, agent_program, cgroups_named, copy_program, new_id, order, processes_with, wait_for};

const BASE_NAME: &str = "0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-busybox";

struct Bench {
    dir: tempfile::TempDir,
    /// A copy of its own, so that each test knows its supervisors.
    agent: PathBuf,
    driver: SandboxDriver,
}

impl Bench {
    /// A driver with a supervisor in standby.
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let bin = dir.path().join(BASE_NAME).join("bin");
        fs::create_dir_all(&bin).expect("made");
        copy_program(Path::new("/bin/busybox"), &bin.join("busybox"));
        let agent = dir.path().join("calve-agent");
        copy_program(&agent_program(), &agent);
        let driver = SandboxDriver::new(&dir.path().join("run"), agent.clone());
        let bench = Self { dir, agent, driver };
        let first = bench.order();
        bench.driver.create(&first).await.expect("it can be made");
        bench.driver.destroy(first.id).await.expect("it can be destroyed");
        bench.standby().await;
        bench
    }

    fn order(&self) -> Order {
        let mut order = order(new_id(), 1);
        let path = format!("/nix/store/{BASE_NAME}").parse().expect("a store path");
        order.closure.paths.push(ClosurePath { path, host_path: self.dir.path().join(BASE_NAME) });
        order
    }

    /// The supervisor in standby, once its sandbox is there.
    async fn standby(&self) -> i32 {
        let agent = self.agent.display().to_string();
        let find = move || {
            let all = processes_with(&format!("{agent}\0standby"));
            // It and its init.
            if all.len() == 2 { all.into_iter().min() } else { None }
        };
        let found = tokio::task::spawn_blocking(move || {
            let mut found = None;
            wait_for("a supervisor in standby", || {
                found = find();
                found.is_some()
            });
            found.expect("just found")
        });
        found.await.expect("no panic")
    }

    fn supervisor(&self, order: &Order) -> i32 {
        let dirs = RunDirs::new(&self.dir.path().join("run"), self.driver.name());
        dirs.meta(order.id).expect("made").process.pid
    }

    /// Runs a script in a new machine to its end; gives its supervisor and what the script said.
    async fn run(&self, order: &Order, script: &str) -> (i32, String) {
        self.driver.create(order).await.expect("it can be made");
        let supervisor = self.supervisor(order);
        let dir = self.dir.path().join("run/m/sandbox").join(order.id.to_string());
        assert!(
            processes_with(&dir.display().to_string()).contains(&supervisor),
            "a process list shows whose it is"
        );
        let mut client = Client::connect(&self.driver.agent_socket(order.id));
        let busybox = format!("/nix/store/{BASE_NAME}/bin/busybox");
        client.run(&busybox, &["sh", "-c", &script.replace("BUSYBOX", &busybox)]);
        let status = client.until_ended();
        self.driver.destroy(order.id).await.expect("it can be destroyed");
        assert_eq!(status.last_exit.expect("it ended").code, Some(0), "{}", client.text());
        assert_eq!(processes_with(&dir.display().to_string()), Vec::<i32>::new());
        assert_eq!(cgroups_named(&order.id.to_string()), Vec::<PathBuf>::new());
        (supervisor, client.text())
    }
}

fn kill(pid: i32) {
    kill_process(Pid::from_raw(pid).expect("a process id"), Signal::KILL).expect("it was alive");
}

#[tokio::test]
async fn it_serves_the_next_machine_and_no_other() {
    let bench = Bench::new().await;
    let standby = bench.standby().await;
    let script = "BUSYBOX hostname; echo mine > /tmp/file; BUSYBOX ls /nix/store /tmp";
    let (supervisor, said) = bench.run(&bench.order(), script).await;
    assert_eq!((supervisor, said), (standby, format!("berg\n/nix/store:\n{BASE_NAME}\n\n/tmp:\nfile\n")));
    let next = bench.standby().await;
    let (supervisor, said) = bench.run(&bench.order(), "BUSYBOX ls /tmp").await;
    assert!(supervisor == next && next != standby && said.is_empty(), "{supervisor} {next} {standby} {said}");
}

#[tokio::test]
async fn a_machine_from_standby_outlives_its_driver() {
    let mut bench = Bench::new().await;
    let standby = bench.standby().await;
    let order = bench.order();
    bench.driver.create(&order).await.expect("it can be made");
    bench.driver = SandboxDriver::new(&bench.dir.path().join("run"), bench.agent.clone());
    assert_eq!(bench.driver.list().await.expect("listed"), [Found { id: order.id, attempt: 1 }]);
    let mut client = Client::connect(&bench.driver.agent_socket(order.id));
    client.run(&format!("/nix/store/{BASE_NAME}/bin/busybox"), &["echo", "up"]);
    client.until_ended();
    assert_eq!((bench.supervisor(&order), client.text().as_str()), (standby, "up\n"));
    bench.driver.destroy(order.id).await.expect("it can be destroyed");
    assert_eq!(bench.driver.list().await.expect("listed"), []);
}

#[tokio::test]
async fn a_machine_that_needs_another_sandbox_gets_one_from_it() {
    let bench = Bench::new().await;
    let standby = bench.standby().await;
    let mut order = bench.order();
    order.spec.network = Network::Host;
    let (supervisor, said) = bench.run(&order, "BUSYBOX cat /proc/net/dev").await;
    let host = fs::read_to_string("/proc/net/dev").expect("a proc file system").lines().count();
    assert_eq!((supervisor, said.lines().count()), (standby, host));
}

#[tokio::test]
async fn what_it_cannot_do_is_said_as_by_any_other() {
    let bench = Bench::new().await;
    let mut order = bench.order();
    order.closure.paths[0].host_path = "/nonexistent/gone".into();
    let error = bench.driver.create(&order).await.expect_err("its closure is incomplete");
    assert!(error.message.contains("/nonexistent/gone") && error.hint.is_some(), "{error:?}");
    assert_eq!(cgroups_named(&order.id.to_string()), Vec::<PathBuf>::new());
    assert_eq!(bench.driver.list().await.expect("listed"), []);
}

#[tokio::test]
async fn one_that_died_is_not_missed() {
    let bench = Bench::new().await;
    let standby = bench.standby().await;
    kill(standby);
    let (supervisor, said) = bench.run(&bench.order(), "echo up").await;
    assert_ne!(supervisor, standby);
    assert_eq!(said, "up\n");
}

#[tokio::test]
async fn one_whose_sandbox_died_is_not_missed() {
    let bench = Bench::new().await;
    let standby = bench.standby().await;
    let both = processes_with(&format!("{}\0standby", bench.agent.display()));
    kill(both.into_iter().find(|pid| *pid != standby).expect("its init"));
    let (_, said) = bench.run(&bench.order(), "echo up").await;
    assert_eq!(said, "up\n");
}

#[tokio::test]
async fn one_of_another_program_is_not_used() {
    let bench = Bench::new().await;
    let standby = bench.standby().await;
    let new = bench.dir.path().join("new");
    copy_program(&agent_program(), &new);
    fs::rename(new, &bench.agent).expect("replaced");
    let (supervisor, _) = bench.run(&bench.order(), "echo up").await;
    assert_ne!(supervisor, standby);
}

#[tokio::test]
async fn it_ends_with_its_driver() {
    let Bench { dir, agent, driver } = Bench::new().await;
    drop(driver);
    let agent = agent.display().to_string();
    tokio::task::spawn_blocking(move || {
        wait_for("nothing to be left", || processes_with(&agent).is_empty());
    })
    .await
    .expect("no panic");
    drop(dir);
}

/// As it does after a crash of the server: nobody tells it anything any more.
#[test]
fn it_ends_when_nobody_is_left_to_ask() {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("a socket pair");
    let mut supervisor = std::process::Command::new(agent_program())
        .args(["standby", "--ready-fd", "0", "--room", "-"])
        .stdin(std::process::Stdio::from(std::os::fd::OwnedFd::from(theirs)))
        .spawn()
        .expect("it starts");
    let pid = supervisor.id();
    let children = || fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    wait_for("its sandbox", || !children().is_empty());
    let init: i32 = children().trim().parse().expect("one child");
    drop(ours);
    assert!(supervisor.wait().expect("it ends").success());
    wait_for("its sandbox's end", || !Path::new(&format!("/proc/{init}")).exists());
}

/// Without root its sandbox keeps a copy of the host's mounts: what is unmounted must not stay in use by it, and what is
/// mounted later must be there for the machine.
#[test]
fn without_root_its_sandbox_goes_when_the_hosts_mounts_change() {
    const SCRIPT: &str = r#"
        exec 3<&0
        "$0" standby --ready-fd 0 --room - <&3 &
        sandbox() {
            kill -0 $! || exit 3
            read -r first rest < /proc/$!/task/$!/children
            [ -n "$first" ]
        }
        until sandbox; do sleep 0.01; done
        mount -t tmpfs none "$1" || exit 2
        while sandbox; do sleep 0.01; done
        kill $!
    "#;
    let dir = tempfile::tempdir().expect("a directory");
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("a socket pair");
    // A host of its own, where the test is root and may still not have other users.
    let mut host = Killed(
        std::process::Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", SCRIPT])
            .arg(agent_program())
            .arg(dir.path())
            .stdin(std::process::Stdio::from(std::os::fd::OwnedFd::from(theirs)))
            .spawn()
            .expect("unshare(1) of util-linux is needed"),
    );
    let mut ended = None;
    wait_for("the sandbox's end", || {
        ended = host.0.try_wait().expect("a child");
        ended.is_some()
    });
    let code = ended.expect("just seen").code();
    assert_eq!(code, Some(0), "1: no user namespaces, 2: no mount, 3: it does not stand by");
    drop(ours);
}

/// Whatever happens.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
