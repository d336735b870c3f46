//! Against a real server, busybox's, in networks of their own.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::*;

/// How long anything may take on a busy host.
const WAIT_MAX: Duration = Duration::from_secs(60);
const HARDWARE: [u8; 6] = [2, 0, 0, 0, 0, 7];

/// Killed when it is dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn sh(script: &str) {
    let done = Command::new("sh").args(["-euc", script]).status().expect("a shell");
    assert!(done.success(), "{script}");
}

/// A network of its own behind a cable to this thread's: its process, and its name for `nsenter`.
fn other_network() -> (Killed, String) {
    let ours = std::fs::read_link("/proc/thread-self/ns/net").expect("a network");
    let process = Command::new("unshare").args(["--net", "sleep", "1000"]).spawn().expect("unshare");
    let theirs = format!("/proc/{}/ns/net", process.id());
    let process = Killed(process);
    let until = Instant::now() + WAIT_MAX;
    while std::fs::read_link(&theirs).expect("it lives") == ours {
        assert!(Instant::now() < until, "it has no network of its own");
        std::thread::sleep(Duration::from_millis(10));
    }
    let pid = process.0.id();
    sh(&format!(
        "ip link add v0 address 02:00:00:00:00:07 type veth peer name v1 netns {pid}; ip link set v0 up; \
         nsenter --net={theirs} sh -euc 'ip addr add 10.7.0.1/24 dev v1; ip link set v1 up'"
    ));
    (process, theirs)
}

/// A server that has one address to give, for four seconds.
fn serve(dir: &Path, network: &str, address: &str) -> Killed {
    let (conf, log) = (dir.join("conf"), std::fs::File::create(dir.join("log")).expect("a log"));
    let at = dir.display();
    let text = format!(
        "start {address}\nend {address}\ninterface v1\nlease_file {at}/leases\npidfile {at}/pid\n\
         option lease 4\noption subnet 255.255.255.0\noption router 10.7.0.1\n"
    );
    std::fs::write(&conf, text).expect("written");
    std::fs::write(dir.join("leases"), "").expect("written");
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={network}")).args(["busybox", "udhcpd", "-f"]).arg(conf);
    Killed(command.stdout(Stdio::null()).stderr(log).spawn().expect("busybox"))
}

fn granted(dir: &Path) -> usize {
    std::fs::read_to_string(dir.join("log")).expect("a log").matches("sending ACK").count()
}

#[test]
fn an_address_is_kept_and_where_it_is_lost_another_one_is_taken() {
    if !rustix::process::geteuid().is_root() {
        println!("left out: only root makes networks");
        return;
    }
    // In a thread, as its network is its own from then on.
    let tried = std::thread::spawn(|| {
        // SAFETY: no other thread's descriptors or file system are changed by another network.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("a network");
        let dir = tempfile::tempdir().expect("a directory");
        let (_network, network) = other_network();
        let server = serve(dir.path(), &network, "10.7.0.100");
        let lease = Lease::ask("v0", HARDWARE).expect("an address");
        assert_eq!(lease.plan().address, Ipv4Addr::new(10, 7, 0, 100));
        assert_eq!(lease.plan().gateway, Some(Ipv4Addr::new(10, 7, 0, 1)));
        sh("ip addr add 10.7.0.100/24 dev v0");
        let (give, taken) = mpsc::channel();
        std::thread::spawn(move || {
            lease.keep(|plan| give.send(plan.map(|plan| plan.address)).expect("heard"))
        });
        let until = Instant::now() + WAIT_MAX;
        while granted(dir.path()) < 4 {
            assert!(Instant::now() < until && taken.try_recv().is_err(), "it is not renewed");
            std::thread::sleep(Duration::from_millis(100));
        }
        drop(server);
        assert_eq!(taken.recv_timeout(WAIT_MAX), Ok(None));
        sh("ip addr flush dev v0");
        let _server = serve(dir.path(), &network, "10.7.0.200");
        assert_eq!(taken.recv_timeout(WAIT_MAX), Ok(Some(Ipv4Addr::new(10, 7, 0, 200))));
    });
    tried.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}
