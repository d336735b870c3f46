//! Real guests under QEMU, made by the driver. Needs `qemu-system-x86_64`, a kernel in `/boot` with its modules,
//! `mkfs.erofs` and a static busybox.

mod client;
mod host;
mod system;

use std::io::Write as _;
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use calve_core::plan::Ended;
use calve_node::Driver as _;
use calve_node::run_dir::Process;
use calve_wire::agent::{Phase, Remaining, ToAgent};
use calve_wire::doctor::CheckStatus;
use calve_wire::machine::{ExitCause, Limits, Network, Restart, StoreDelivery, Workload};

use client::Client;
use host::{BUSYBOX, HOUR, Host, busybox, eventually};

#[tokio::test]
async fn a_program_of_the_closure_runs_and_the_guest_is_adopted_and_destroyed() {
    let host = Host::new();
    let mut order = host.order(1, HOUR);
    order.spec.network = Network::Host;
    order.spec.limits = Limits { cpus_milli: Some(1500), memory_bytes: Some(200 << 20), pids: Some(50) };
    let service = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = service.local_addr().unwrap().port();
    std::thread::spawn(move || service.accept().unwrap().0.write_all(b"from the host\n"));
    let script = format!(
        "b=/nix/store/{BUSYBOX}/bin/busybox; echo err >&2; $b hostname; $b cat /proc/self/cgroup; $b nproc; \
         $b cat /sys/fs/cgroup/programs/pids.max; $b nc 10.0.2.2 {port} </dev/null; exit 7"
    );
    let program = busybox(&["sh", "-c", &script]);
    order.spec.workload = Workload::Program(program.clone());
    let driver = host.driver();
    driver.create(&order).await.unwrap();
    driver.create(&order).await.expect("repeated, it changes nothing");
    let (mut client, _) = Client::connect(&driver.agent_socket(order.id), 0);
    // A server says so where the welcome does not say that it runs already, and may say it twice.
    client.send(&ToAgent::Start { program: Some(program), restart: Restart::Never, health: None });
    let printed = "guest-1\n0::/programs\n2\n50\nfrom the host\n";
    let status = client.until_ended();
    client.until_log(status.log_seq);
    assert_eq!((client.stdout().as_str(), status.starts), (printed, 1));
    assert_eq!(status.notes, Vec::<String>::new());
    let exit = status.last_exit.expect("it has ended");
    assert_eq!((exit.code, exit.cause), (Some(7), ExitCause::Normal));

    // The server dies, and for a while there is none; the guest rests meanwhile.
    drop((client, driver));
    let [_, qemu] = host.processes(order.id);
    assert!(busy_share(qemu) < 0.5, "a guest that does nothing keeps a processor busy");

    // The next one finds the guest and everything that it said.
    let driver = host.driver();
    let found = driver.list().await.unwrap();
    assert_eq!(found.iter().map(|found| (found.id, found.attempt)).collect::<Vec<_>>(), [(order.id, 1)]);
    let (mut client, status) = Client::connect(&driver.agent_socket(order.id), 0);
    client.until_log(status.log_seq);
    assert_eq!(client.stdout(), printed);
    assert!(busy_share(qemu) < 0.5, "a guest whose server came back keeps a processor busy");

    let processes = host.processes(order.id);
    driver.destroy(order.id).await.unwrap();
    assert!(processes.iter().all(|process| !process.is_alive()));
    assert_eq!(driver.list().await.unwrap(), []);
    driver.destroy(order.id).await.expect("absence is success");
}

/// Which part of one processor a process uses.
fn busy_share(process: Process) -> f64 {
    let used_ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.pid)).expect("it is alive");
        let fields: Vec<&str> = stat[stat.rfind(')').unwrap()..].split_ascii_whitespace().collect();
        fields[12].parse::<f64>().unwrap() + fields[13].parse::<f64>().unwrap()
    };
    let (before, begun) = (used_ticks(), Instant::now());
    std::thread::sleep(Duration::from_secs(1));
    (used_ticks() - before) / 100.0 / begun.elapsed().as_secs_f64()
}

#[tokio::test]
async fn a_guest_ends_with_its_lease_though_nobody_is_connected() {
    let host = Host::new();
    let order = host.order(2, Remaining { until_deadline_ms: Some(1000), grace_ms: 0 });
    let driver = host.driver();
    let checks = driver.preflight().await;
    assert!(
        checks.iter().all(|check| check.area == "qemu" && check.status < CheckStatus::Missing),
        "{checks:?}"
    );
    driver.create(&order).await.unwrap();
    let [guard, qemu] = host.processes(order.id);
    eventually("the end of QEMU", || !qemu.is_alive() && !guard.is_alive());
    let note = driver.end_note(order.id).expect("the guard wrote it");
    // On a crowded host, the guard may come before the agent.
    assert!(note.starts_with("the guest powered off") || note.starts_with("the guard ended QEMU"), "{note}");
    assert_eq!(driver.list().await.unwrap().len(), 1, "it is there until it is destroyed");
    driver.destroy(order.id).await.unwrap();
}

#[tokio::test]
async fn a_system_boots_from_its_own_kernel_and_its_init_takes_over() {
    let host = Host::new();
    // Its kernel finds devices on a PCI bus only.
    let order = system::order(&host, 4);
    let driver = host.driver();
    driver.create(&order).await.unwrap();
    let (mut client, status) = Client::connect(&driver.agent_socket(order.id), 0);
    assert_eq!(status.notes, Vec::<String>::new());
    client.send(&ToAgent::Start { program: None, restart: Restart::Never, health: None });
    let console = driver.console_log(order.id).expect("guests have one");
    let said =
        |line: &str| std::fs::read_to_string(&console).unwrap().lines().any(|said| said.trim_end() == line);
    eventually("the agent beside the system", || said("agent: @calve-agent beside-system"));
    for line in [
        "bus: pci",
        "prepared: true",
        "parameter: yes",
        "store: written",
        "root: empty",
        "init is process 1 of guest-1",
    ] {
        assert!(said(line), "{line} in {}", std::fs::read_to_string(&console).unwrap());
    }
    client.send(&ToAgent::PowerOff);
    let [guard, qemu] = host.processes(order.id);
    eventually("the end of QEMU", || !qemu.is_alive() && !guard.is_alive());
    assert!(driver.end_note(order.id).unwrap().starts_with("the guest powered off"));
    assert_eq!(driver.ended(order.id), Some(Ended::ByItself));
    driver.destroy(order.id).await.unwrap();
}

#[tokio::test]
async fn a_guest_cannot_outlive_its_guard() {
    let host = Host::new();
    let mut order = host.order(3, HOUR);
    order.spec.limits.cpus_milli = Some(300);
    let driver = host.driver();
    driver.create(&order).await.unwrap();
    let [guard, qemu] = host.processes(order.id);
    // It boots as fast as it may, which would take all of a processor.
    let cgroups = host.cgroups(order.id);
    let quota = |dir: &PathBuf| std::fs::read_to_string(dir.join("cpu.cfs_quota_us"));
    let quota = cgroups
        .iter()
        .find_map(|dir| quota(dir).or_else(|_| std::fs::read_to_string(dir.join("cpu.max"))).ok());
    if let Some(quota) = quota {
        assert_eq!(quota.split_ascii_whitespace().next(), Some("30000"), "of 100000");
        assert!(busy_share(qemu) < 0.5, "a guest with 0.3 of a processor uses more");
    }
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(guard.pid).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    eventually("the end of QEMU", || !qemu.is_alive());
    assert_eq!(driver.ended(order.id), Some(Ended::Killed));
    driver.destroy(order.id).await.unwrap();
    assert_eq!(driver.list().await.unwrap(), []);
    assert!(cgroups.iter().all(|dir| !dir.exists()), "{cgroups:?}");
}

#[tokio::test]
async fn a_guest_sees_its_closure_live_and_nothing_else_of_the_host() {
    let host = Host::new();
    let mut order = host.order(5, HOUR);
    order.spec.store = Some(StoreDelivery::Live);
    let (link, file) = ("3c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-link", "4c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-file");
    std::os::unix::fs::symlink(format!("/nix/store/{file}"), host.dir.path().join(link)).unwrap();
    std::fs::write(host.dir.path().join(file), "of the host\n").unwrap();
    std::fs::write(host.dir.path().join("5c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-secret"), "").unwrap();
    order.closure.paths.extend([link, file].map(|base| host.path(base)));
    let script = format!(
        "b=/nix/store/{BUSYBOX}/bin/busybox; $b ls /nix/store; $b cat /nix/store/{link}; \
         $b mount -o remount,rw /nix/store; $b touch /nix/store/{BUSYBOX}/new 2>/dev/null || echo read-only"
    );
    let program = busybox(&["sh", "-c", &script]);
    order.spec.workload = Workload::Program(program.clone());
    let driver = host.driver_without_images();
    driver.create(&order).await.unwrap();
    let (mut client, _) = Client::connect(&driver.agent_socket(order.id), 0);
    client.send(&ToAgent::Start { program: Some(program), restart: Restart::Never, health: None });
    let status = client.until_ended();
    client.until_log(status.log_seq);
    assert_eq!(client.stdout(), format!("{BUSYBOX}\n{link}\n{file}\nof the host\nread-only\n"));
    assert_eq!(status.notes, Vec::<String>::new());

    // Asked from outside to end, QEMU takes its leave as it does from a guest that powers off.
    let [guard, qemu] = host.processes(order.id);
    let store = host.live_store(order.id);
    assert!(store.is_alive());
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(qemu.pid).unwrap(),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    eventually("the end of the guard", || !guard.is_alive());
    assert!(!qemu.is_alive() && !store.is_alive());
    assert_eq!(driver.ended(order.id), Some(Ended::Killed));
    driver.destroy(order.id).await.unwrap();
}

/// Guests that are made until one is fast enough.
const ATTEMPTS_MAX: u32 = 6;

#[tokio::test]
async fn a_program_whose_order_came_with_its_guest_begins_with_the_servers_hello_and_once() {
    let host = Host::new();
    let driver = host.driver();
    // Without a word from the server, and with one that has heard more of the machine, nothing begins by itself.
    let mut order = host.order(6, HOUR);
    order.spec.workload = Workload::Program(busybox(&["sh", "-c", "echo $A; read line; echo $line; exit 3"]));
    let Workload::Program(program) = &mut order.spec.workload else { unreachable!() };
    (program.stdin, program.env) = (true, [("A".to_owned(), "of the order".to_owned())].into());
    let program = Some(program.clone());
    driver.create(&order).await.unwrap();
    let (client, status) = Client::connect(&driver.agent_socket(order.id), 40);
    assert_eq!((status.phase, status.starts), (Phase::Waiting, 0));
    drop(client);
    driver.destroy(order.id).await.unwrap();

    let (socket, mut client) = loop {
        order.attempt += 1;
        driver.create(&order).await.unwrap();
        let socket = driver.agent_socket(order.id);
        let (client, status) = Client::connect(&socket, 0);
        // A host that hardly runs the guest hands it the hello too late, and then it waits for its order as ever.
        if status.phase != Phase::Waiting || order.attempt == ATTEMPTS_MAX {
            assert_eq!((status.phase, status.starts), (Phase::Running, 1));
            break (socket, client);
        }
    };
    client.send(&ToAgent::Start { program: program.clone(), restart: Restart::Never, health: None });
    client.until_log(1);
    assert_eq!(client.stdout(), "of the order\n");
    // Another server finds it running, and its order changes nothing.
    drop(client);
    let (mut client, status) = Client::connect(&socket, 0);
    assert_eq!((status.phase, status.starts), (Phase::Running, 1));
    client.send(&ToAgent::Start { program, restart: Restart::Never, health: None });
    client.send_input(b"once\n");
    let status = client.until_ended();
    client.until_log(status.log_seq);
    assert_eq!((client.stdout().as_str(), status.starts), ("of the order\nonce\n", 1));
    assert_eq!(status.last_exit.expect("it has ended").code, Some(3));
    driver.destroy(order.id).await.unwrap();

    // One that cannot be executed says why, as it does when the server orders it.
    let mut order = host.order(7, HOUR);
    let mut missing = busybox(&[]);
    missing.path.push_str("-missing");
    order.spec.workload = Workload::Program(missing.clone());
    let program = Some(missing.clone());
    driver.create(&order).await.unwrap();
    let (mut client, status) = Client::connect(&driver.agent_socket(order.id), 0);
    if status.phase == Phase::Waiting {
        // The hello came too late on a crowded host.
        client.send(&ToAgent::Start { program, restart: Restart::Never, health: None });
    }
    let status = if status.phase == Phase::Ended { status } else { client.until_ended() };
    assert_eq!(
        status.last_exit.map(|exit| (exit.code, exit.cause)),
        Some((Some(127), ExitCause::NotStarted))
    );
    assert_eq!(status.notes, [format!("{} does not exist in the machine", missing.path)]);
    driver.destroy(order.id).await.unwrap();
}
