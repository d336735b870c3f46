//! Good clients of `/v1` beside hostile ones. Compared is within one run: how long the same requests take with and without.

use std::net::{SocketAddr, TcpListener};
use std::process::Stdio;
use std::time::Duration;

use e2e::{Home, wait_until};
use soak::load::{measure, under_load};

/// Clients of each hostile kind at once.
const OF_EACH: usize = 6;
/// Requests of good clients that are measured.
const REQUESTS: usize = 150;
/// How many times as long the median of good clients may become. On two cores hostile clients take one of them for
/// themselves; a server that waits for one of them would take thousands of times as long.
const RATIO_MAX: f64 = 20.0;
/// Below this a median counts as this: scheduling alone takes as long on a busy host.
const FLOOR: Duration = Duration::from_millis(5);
/// Most memory that the server may have with all of them there, in KiB.
const MEMORY_MAX_KIB: u64 = 300 * 1024;

fn server(home: &Home) -> (SocketAddr, String) {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let token_file = home.path().join("token");
    let mut command = home.command(["server", "--listen", &free.to_string(), "--token-file"]);
    let mut child = command.arg(&token_file).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_until("the server", || {
        assert!(child.try_wait().unwrap().is_none(), "the server has ended");
        std::net::TcpStream::connect(free).is_ok()
    });
    (free, std::fs::read_to_string(token_file).unwrap().trim().to_owned())
}

fn memory_kib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn hostile_clients_do_not_hold_up_good_ones() {
    let home = Home::new();
    let (address, token) = server(&home);
    let pid = home.server_pid();
    let quiet = measure(address, &token, REQUESTS);
    let ((loaded, memory), done) = under_load(address, &token, OF_EACH, || {
        let loaded = measure(address, &token, REQUESTS);
        (loaded, memory_kib(pid))
    });
    let median = |took: &[Duration]| took[took.len() / 2].max(FLOOR);
    let ratio = median(&loaded).as_secs_f64() / median(&quiet).as_secs_f64();
    println!(
        "median {:?} alone, {:?} beside {} hostile requests: {ratio:.1} x; longest {:?} and {:?}; {memory} KiB",
        quiet[quiet.len() / 2],
        loaded[loaded.len() / 2],
        done,
        quiet.last().unwrap(),
        loaded.last().unwrap(),
    );
    assert!(ratio <= RATIO_MAX, "{ratio} x");
    assert!(memory <= MEMORY_MAX_KIB, "{memory} KiB");
    assert_eq!(home.server_pid(), pid, "it is still the same server");
    home.ok(&["server", "stop"]);
}
