//! The program's role: looks around and says what it sees.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::TcpListener;

use serde::{Deserialize, Serialize};

/// What the program sees.
#[derive(Debug, Serialize, Deserialize)]
pub struct Facts {
    pub root: Vec<String>,
    pub above_root: Vec<String>,
    pub store: Vec<String>,
    pub writable: Vec<String>,
    pub processes: Vec<String>,
    pub interfaces: Vec<String>,
    pub hostname: String,
    pub uid_map: String,
    pub uid: u32,
    pub status: BTreeMap<String, String>,
    pub refused: BTreeMap<String, i32>,
    pub low_port: bool,
    pub loopback: bool,
    pub descriptors: Vec<String>,
    pub terminal: bool,
    pub cgroup: String,
    pub mounts: String,
    pub rlimit_core: u64,
    pub source: String,
}

pub fn run(args: Vec<String>) {
    match args[0].as_str() {
        "facts" => println!("{}", serde_json::to_string(&facts()).unwrap()),
        "eat" => eat(args[1].parse().unwrap()),
        "oom-score-adj" => print!("{}", fs::read_to_string("/proc/self/oom_score_adj").unwrap()),
        "fork" => fork(args[1].parse().unwrap()),
        "foreign" => foreign_call(),
        "x32" => std::process::exit(x32_call()),
        "sleep" => loop {
            std::thread::park();
        },
        other => panic!("no such role: {other}"),
    }
}

fn facts() -> Facts {
    let names = |dir: &str| {
        let mut names: Vec<String> = fs::read_dir(dir)
            .map(|dir| dir.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect())
            .unwrap_or_default();
        names.sort();
        names
    };
    let can_write = |dir: &&str| {
        let file = format!("{dir}/probe");
        fs::write(&file, b"x").is_ok() && fs::remove_file(file).is_ok()
    };
    let dirs =
        ["/", "/nix/store", "/etc", "/dev", "/bin", "/tmp", "/work", "/var/tmp", "/run", "/root", "/dev/shm"];
    // Before anything below is opened.
    let descriptors = names("/proc/self/fd");
    let store = names("/nix/store");
    let own = std::env::args().next().unwrap();
    let devices = fs::read_to_string("/proc/net/dev").unwrap_or_default();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    Facts {
        root: names("/"),
        above_root: names("/.."),
        writable: dirs.iter().filter(|dir| can_write(dir)).map(|dir| (*dir).to_owned()).collect(),
        processes: names("/proc").into_iter().filter(|name| name.parse::<u32>().is_ok()).collect(),
        interfaces: devices
            .lines()
            .filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()))
            .collect(),
        hostname: fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned(),
        uid_map: fs::read_to_string("/proc/self/uid_map").unwrap_or_default(),
        // SAFETY: getuid cannot fail and touches no memory.
        uid: unsafe { libc::getuid() },
        status: status
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
            .collect(),
        refused: refused(),
        low_port: TcpListener::bind("127.0.0.1:80").is_ok(),
        loopback: loopback(),
        descriptors,
        terminal: fs::OpenOptions::new().read(true).write(true).open("/dev/ptmx").is_ok(),
        cgroup: fs::read_to_string("/proc/self/cgroup").unwrap_or_default(),
        mounts: fs::read_to_string("/proc/self/mounts").unwrap_or_default(),
        rlimit_core: rustix::process::getrlimit(rustix::process::Resource::Core).current.unwrap_or(u64::MAX),
        source: format!(
            "{:?}",
            fs::OpenOptions::new().write(true).open(own).err().and_then(|e| e.raw_os_error())
        ),
        store,
    }
}

fn loopback() -> bool {
    let Ok(listener) = TcpListener::bind("127.0.0.1:0") else { return false };
    std::net::TcpStream::connect(listener.local_addr().unwrap()).is_ok()
}

/// Calls by name, and the error each of them gave; 0 where it was done.
fn refused() -> BTreeMap<String, i32> {
    let errno = |done: libc::c_long| match done {
        -1 => io::Error::last_os_error().raw_os_error().unwrap(),
        _ => 0,
    };
    let mut out = BTreeMap::new();
    let mut call = |name: &str, done: libc::c_long| out.insert(name.to_owned(), errno(done));
    // SAFETY: every one of these is refused before it looks at its pointers; those that are not refused get valid ones.
    unsafe {
        call(
            "mount",
            libc::mount(c"x".as_ptr(), c"/tmp".as_ptr(), c"tmpfs".as_ptr(), 0, std::ptr::null()).into(),
        );
        call("umount", libc::umount2(c"/tmp".as_ptr(), libc::MNT_DETACH).into());
        call("open_tree", libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, c"/".as_ptr(), 1));
        call("unshare user", libc::unshare(libc::CLONE_NEWUSER).into());
        call("unshare mount", libc::unshare(libc::CLONE_NEWNS).into());
        call("unshare files", libc::unshare(libc::CLONE_FILES).into());
        call("clone user", libc::syscall(libc::SYS_clone, libc::CLONE_NEWUSER | libc::SIGCHLD, 0, 0, 0, 0));
        call("clone3", libc::syscall(libc::SYS_clone3, 0, 0));
        call("setns", libc::setns(0, 0).into());
        call("ptrace", libc::ptrace(libc::PTRACE_ATTACH, 1, 0, 0));
        call("bpf", libc::syscall(libc::SYS_bpf, 0, 0, 0));
        call("keyctl", libc::syscall(libc::SYS_keyctl, 0, 0, 0, 0, 0));
        call("io_uring", libc::syscall(libc::SYS_io_uring_setup, 1, 0));
        call("personality", libc::personality(0x0040_0000).into());
        call("personality query", libc::personality(0xffff_ffff).into());
        call("TIOCSTI", libc::ioctl(0, libc::TIOCSTI, c"x".as_ptr()).into());
        call("TIOCSTI high", libc::syscall(libc::SYS_ioctl, 0, (1u64 << 32) | libc::TIOCSTI, c"x".as_ptr()));
        call("vsock", libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0).into());
        call("kill init", libc::kill(1, libc::SIGKILL).into());
        call("chown device", libc::chown(c"/dev/null".as_ptr(), 0, 0).into());
        call("chmod device", libc::chmod(c"/dev/null".as_ptr(), 0).into());
    }
    out.insert("init memory".to_owned(), open_error("/proc/1/mem"));
    out.insert(
        "init files".to_owned(),
        fs::read_dir("/proc/1/fd").err().and_then(|e| e.raw_os_error()).unwrap_or(0),
    );
    out.insert(
        "sysctl".to_owned(),
        fs::write("/proc/sys/kernel/core_pattern", "x").err().and_then(|e| e.raw_os_error()).unwrap_or(0),
    );
    out
}

fn open_error(path: &str) -> i32 {
    fs::File::open(path).err().and_then(|e| e.raw_os_error()).unwrap_or(0)
}

/// Writes to so many MiB of memory.
fn eat(mib: usize) {
    let mut all = Vec::new();
    for _ in 0..mib {
        all.push(vec![1u8; 1 << 20]);
    }
    println!("ate {}", std::hint::black_box(all).len());
}

/// Makes processes that stay, and says how many there could be.
fn fork(wanted: usize) {
    let mut made = 0;
    for _ in 0..wanted {
        // SAFETY: this process has one thread; the child only waits.
        match unsafe { libc::fork() } {
            0 => loop {
                std::thread::park();
            },
            -1 => break,
            _ => made += 1,
        }
    }
    println!("{made}");
}

/// getpid(2) through the entry of 32-bit programs, which is no call of this architecture.
fn foreign_call() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: call 20 of i386 is getpid, which touches no memory; registers that the entry changes are declared.
    unsafe {
        std::arch::asm!("int 0x80", inout("eax") 20 => _, out("r8") _, out("r9") _, out("r10") _, out("r11") _);
    }
    println!("alive");
}

/// The error of mount(2) with the bit of x32 programs.
fn x32_call() -> i32 {
    // SAFETY: refused before any argument is looked at.
    let done = unsafe { libc::syscall(libc::SYS_mount | 0x4000_0000, 0, 0, 0, 0, 0) };
    if done == -1 { io::Error::last_os_error().raw_os_error().unwrap() } else { 0 }
}
