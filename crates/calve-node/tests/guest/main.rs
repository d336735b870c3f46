//! Real guests under QEMU, made by the driver. Needs `qemu-system-x86_64`, a kernel in `/boot` with its modules,
//! `mkfs.erofs` and a static busybox.

mod client;
mod host;

use std::time::{Duration, Instant};

use calve_node::Driver as _;
use calve_node::run_dir::Process;
use calve_wire::agent::{Remaining, ToAgent};
use calve_wire::machine::{ExitCause, Restart};

use client::Client;
use host::{HOUR, Host, busybox, eventually};

#[tokio::test]
async fn a_program_of_the_closure_runs_and_the_guest_is_adopted_and_destroyed() {
    let host = Host::new();
    let order = host.order(1, HOUR);
    let driver = host.driver();
    driver.create(&order).await.unwrap();
    driver.create(&order).await.expect("repeated, it changes nothing");
    let (mut client, _) = Client::connect(&driver.agent_socket(order.id), 0);
    let script = "echo out; echo err >&2; hostname; exit 7";
    let start = ToAgent::Start {
        program: Some(busybox(&["sh", "-c", script])),
        restart: Restart::Never,
        health: None,
    };
    client.send(&start);
    let status = client.until_ended();
    client.until_log(status.log_seq);
    assert_eq!(client.stdout(), "out\nguest-1\n");
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
    assert_eq!(client.stdout(), "out\nguest-1\n");
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
async fn a_guest_cannot_outlive_its_guard() {
    let host = Host::new();
    let order = host.order(3, HOUR);
    let driver = host.driver();
    driver.create(&order).await.unwrap();
    let [guard, qemu] = host.processes(order.id);
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(guard.pid).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    eventually("the end of QEMU", || !qemu.is_alive());
    driver.destroy(order.id).await.unwrap();
    assert_eq!(driver.list().await.unwrap(), []);
}
