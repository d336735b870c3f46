//! The tests: each launches one sandbox and looks at what its program said.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use calve_wire::agent::{
    AGENT_PROTOCOL_VERSION, Remaining, SandboxCgroups, SandboxInit, SandboxSpec, StoreMount,
};
use calve_wire::machine::{Limits, Network};
use rustix::process::{Resource, Rlimit, geteuid, setrlimit};

use crate::inside::Facts;
use crate::launcher::Seen;

/// The user without rights.
const NOBODY: u32 = 65_534;
const HASH: &str = "0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq";

type Test = (&'static str, fn(Who));

const TESTS: &[Test] = &[
    ("sees_only_its_closure", sees_only_its_closure),
    ("writes_only_where_it_may", writes_only_where_it_may),
    ("writes_nowhere_else_on_an_older_kernel", writes_nowhere_else_on_an_older_kernel),
    ("is_alone", is_alone),
    ("has_no_power", has_no_power),
    ("runs_where_core_dumps_are_forbidden", runs_where_core_dumps_are_forbidden),
    ("cannot_make_foreign_calls", cannot_make_foreign_calls),
    ("shares_the_network_when_asked", shares_the_network_when_asked),
    ("is_killed_for_want_of_memory", is_killed_for_want_of_memory),
    ("goes_before_its_init_for_want_of_memory", goes_before_its_init_for_want_of_memory),
    ("is_held_to_its_processes", is_held_to_its_processes),
    ("leaves_nothing", leaves_nothing),
    ("dies_with_its_agent", dies_with_its_agent),
    ("a_missing_store_path_is_one_sentence", a_missing_store_path_is_one_sentence),
    ("a_machine_without_a_closure_has_a_shell", a_machine_without_a_closure_has_a_shell),
    ("takes_hundreds_of_store_paths", takes_hundreds_of_store_paths),
];

/// As whom the agent runs, and whether its sandbox stood by before it knew the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    /// As who runs the tests.
    Me,
    /// The same from standby.
    MeStandingBy,
    /// As nobody, where root runs the tests.
    Nobody,
    /// The same from standby.
    NobodyStandingBy,
}

impl Who {
    fn is_nobody(self) -> bool {
        matches!(self, Self::Nobody | Self::NobodyStandingBy)
    }

    fn stands_by(self) -> bool {
        matches!(self, Self::MeStandingBy | Self::NobodyStandingBy)
    }
}

/// Runs the tests whose name contains `filter`, as root also as nobody; ends with the number of failures.
pub fn run_all(filter: Option<String>) {
    let mut failures = 0;
    let whos = [Who::Me, Who::MeStandingBy, Who::Nobody, Who::NobodyStandingBy];
    let whos = &whos[..if geteuid().is_root() { 4 } else { 2 }];
    for who in whos {
        for (name, test) in
            TESTS.iter().filter(|(name, _)| filter.as_ref().is_none_or(|part| name.contains(part)))
        {
            let passed = std::panic::catch_unwind(|| test(*who)).is_ok();
            println!("test {name} as {who:?} ... {}", if passed { "ok" } else { "FAILED" });
            failures += i32::from(!passed);
        }
    }
    std::process::exit(failures.min(1));
}

/// A machine to be.
struct Bench {
    dir: tempfile::TempDir,
    who: Who,
    spec: SandboxSpec,
    variant: &'static str,
}

impl Bench {
    fn new(who: Who) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        let bin = dir.path().join(format!("store/{HASH}-probe/bin"));
        fs::create_dir_all(&run).unwrap();
        fs::create_dir_all(&bin).unwrap();
        fs::copy(std::env::current_exe().unwrap(), bin.join("probe")).unwrap();
        if who.is_nobody() {
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
            std::os::unix::fs::chown(&run, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let random = dir.path().file_name().unwrap().to_string_lossy().replace('.', "");
        let mut bench = Self {
            who,
            variant: "",
            spec: SandboxSpec {
                version: AGENT_PROTOCOL_VERSION,
                machine_id: format!("test-{random}"),
                hostname: "berg".to_owned(),
                token: "0".repeat(32),
                remaining: Remaining { until_deadline_ms: None, grace_ms: 0 },
                written_unix_ms: 0,
                store_paths: Vec::new(),
                limits: Limits::default(),
                network: Network::None,
            },
            dir,
        };
        bench.add("probe");
        bench
    }

    fn add(&mut self, name: &str) {
        let base_name = format!("{HASH}-{name}");
        let source = self.dir.path().join("store").join(&base_name).to_string_lossy().into_owned();
        self.spec.store_paths.push(StoreMount { source, base_name });
    }

    fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    fn command(&self, program: &str, args: &[&str]) -> Command {
        fs::write(self.run_dir().join("sandbox.json"), serde_json::to_vec(&self.spec).unwrap()).unwrap();
        let mut command = Command::new(self.dir.path().join(format!("store/{HASH}-probe/bin/probe")));
        let way = if self.who.stands_by() { "standby" } else { "launch" };
        command
            .arg(format!("{way}{}", self.variant))
            .arg(self.run_dir())
            .arg(program)
            .args(args)
            .stdin(Stdio::null());
        if self.who.is_nobody() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }

    fn probe() -> String {
        format!("/nix/store/{HASH}-probe/bin/probe")
    }

    fn run(&self, args: &[&str]) -> Output {
        let all: Vec<_> = ["inside"].iter().chain(args).copied().collect();
        self.command(&Self::probe(), &all).output().unwrap()
    }

    fn facts(&self) -> Facts {
        let output = self.run(&["facts"]);
        let said = String::from_utf8_lossy(&output.stderr);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?} {said}"))
    }

    fn seen(&self) -> Seen {
        serde_json::from_slice(&fs::read(self.run_dir().join("seen.json")).unwrap()).unwrap()
    }

    fn cgroups(&self) -> Vec<String> {
        let file = fs::read(self.run_dir().join("cgroups.json")).unwrap();
        serde_json::from_slice::<SandboxCgroups>(&file).unwrap().dirs
    }

    fn init(&self) -> Option<SandboxInit> {
        serde_json::from_slice(&fs::read(self.run_dir().join("init.json")).ok()?).ok()
    }
}

fn sees_only_its_closure(who: Who) {
    let mut bench = Bench::new(who);
    let store = bench.dir.path().join("store");
    fs::write(store.join(format!("{HASH}-file")), "x").unwrap();
    std::os::unix::fs::symlink(Bench::probe(), store.join(format!("{HASH}-link"))).unwrap();
    fs::create_dir(store.join(format!("{HASH}-other"))).unwrap();
    bench.add("file");
    bench.add("link");
    assert_sees_only_its_closure(&bench.facts());
    bench.variant = "-settled";
    assert_sees_only_its_closure(&bench.facts());
}

fn assert_sees_only_its_closure(facts: &Facts) {
    assert_eq!(facts.store, ["file", "link", "probe"].map(|name| format!("{HASH}-{name}")));
    assert_eq!(facts.root, ["bin", "dev", "etc", "nix", "proc", "root", "run", "tmp", "var", "work"]);
    assert_eq!(facts.above_root, facts.root);
    let expected = [
        "/",
        "/dev/full",
        "/dev/null",
        "/dev/pts",
        "/dev/random",
        "/dev/shm",
        "/dev/tty",
        "/dev/urandom",
        "/dev/zero",
        "/proc",
        "/root",
        "/run",
        "/tmp",
        "/var",
        "/work",
    ];
    let mut mounts: Vec<_> = facts.mounts.lines().filter_map(|line| line.split(' ').nth(1)).collect();
    mounts.retain(|place| !place.starts_with("/nix/store/"));
    mounts.sort_unstable();
    assert_eq!(mounts, expected, "nothing of the host is mounted in the machine");
}

fn writes_only_where_it_may(who: Who) {
    let facts = Bench::new(who).facts();
    assert_eq!(facts.writable, ["/tmp", "/work", "/var/tmp", "/run", "/root", "/dev/shm"]);
    let refusals = [libc::EROFS, libc::EACCES].map(|errno| format!("Some({errno})"));
    assert!(refusals.contains(&facts.source), "{}", facts.source);
    let store = facts.mounts.lines().find(|line| line.contains("-probe ")).unwrap();
    let options: Vec<_> = store.split(' ').nth(3).unwrap().split(',').collect();
    assert!(["ro", "nosuid", "nodev"].iter().all(|option| options.contains(option)), "{store}");
    assert!(facts.terminal);
}

fn writes_nowhere_else_on_an_older_kernel(who: Who) {
    let mut bench = Bench::new(who);
    bench.variant = "-as-on-5.10";
    let facts = bench.facts();
    assert_eq!(facts.writable, ["/tmp", "/work", "/var/tmp", "/run", "/root", "/dev/shm"]);
    for place in [" / ", "-probe ", " /dev/null "] {
        let mount = facts.mounts.lines().find(|line| line.contains(place)).unwrap();
        let options: Vec<_> = mount.split(' ').nth(3).unwrap().split(',').collect();
        assert!(["ro", "nosuid"].iter().all(|option| options.contains(option)), "{mount}");
    }
}

fn is_alone(who: Who) {
    let facts = Bench::new(who).facts();
    assert_eq!(facts.processes, ["1", "2"]);
    assert_eq!(facts.interfaces, ["lo"]);
    assert!(facts.loopback && facts.low_port);
    assert_eq!(facts.hostname, "berg");
    assert_eq!(facts.uid, 0);
    let map: Vec<u64> = facts.uid_map.split_ascii_whitespace().map(|n| n.parse().unwrap()).collect();
    match who.is_nobody() {
        false if geteuid().is_root() => assert!(map[1] >= 0x7000_0000 && map[2] == 65_536, "{map:?}"),
        false => assert_eq!(map[1..], [geteuid().as_raw().into(), 1]),
        true => assert_eq!(map[1..], [u64::from(NOBODY), 1]),
    }
    assert_eq!(facts.descriptors.len(), 4, "the three and the directory: {:?}", facts.descriptors);
    assert!(!facts.cgroup.contains("calve"), "{}", facts.cgroup);
}

fn has_no_power(who: Who) {
    let mut bench = Bench::new(who);
    assert_has_no_power(&bench.facts());
    bench.variant = "-settled";
    assert_has_no_power(&bench.facts());
}

/// As below `sudo`: what a host has taken away cannot be had again, and need not be.
fn runs_where_core_dumps_are_forbidden(who: Who) {
    let bench = Bench::new(who);
    let mut command = bench.command(&Bench::probe(), &["inside", "facts"]);
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    // SAFETY: one system call between fork and execve.
    unsafe { command.pre_exec(move || Ok(setrlimit(Resource::Core, none)?)) };
    let output = command.output().unwrap();
    let facts: Facts = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    assert_eq!(facts.rlimit_core, 0);
}

fn assert_has_no_power(facts: &Facts) {
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(facts.status[set], "0000000000000000", "{set}");
    }
    assert_eq!((facts.status["NoNewPrivs"].as_str(), facts.status["Seccomp"].as_str()), ("1", "2"));
    assert_eq!(facts.rlimit_core, 1);
    for (call, errno) in &facts.refused {
        let expected: &[i32] = match call.as_str() {
            "clone3" => &[libc::ENOSYS],
            "unshare files" | "personality query" => &[0],
            // To init a signal that it does not handle is nothing (pid_namespaces(7)).
            "kill init" => &[0],
            "chown device" | "chmod device" => &[libc::EPERM, libc::EROFS],
            "init memory" | "init files" | "sysctl" => &[libc::EACCES],
            _ => &[libc::EPERM],
        };
        assert!(expected.contains(errno), "{call}: {errno}");
    }
}

fn cannot_make_foreign_calls(who: Who) {
    let bench = Bench::new(who);
    let output = bench.run(&["foreign"]);
    assert!(output.stdout.is_empty(), "{output:?}");
    assert_eq!(bench.run(&["x32"]).stdout, b"");
}

fn shares_the_network_when_asked(who: Who) {
    let mut bench = Bench::new(who);
    bench.spec.network = Network::Host;
    let host =
        fs::read_to_string("/proc/self/net/dev").unwrap().lines().filter(|line| line.contains(':')).count();
    assert_eq!(bench.facts().interfaces.len(), host);
}

fn is_killed_for_want_of_memory(who: Who) {
    let mut bench = Bench::new(who);
    bench.spec.limits.memory_bytes = Some(32 << 20);
    let output = bench.run(&["eat", "64"]);
    let seen = bench.seen();
    match seen.notes.iter().find(|note| note.contains("memory limit")) {
        None => {
            assert_eq!(output.stdout, b"");
            assert!(seen.oom_kills >= 1, "{seen:?}");
        }
        Some(_) => {
            assert!(!geteuid().is_root() || who.is_nobody(), "root has cgroups here: {seen:?}");
            assert_eq!((output.stdout.as_slice(), seen.oom_kills), (b"ate 64\n".as_slice(), 0));
        }
    }
    assert_eq!(bench.run(&["eat", "8"]).stdout, b"ate 8\n");
    assert_eq!(bench.seen().oom_kills, 0);
}

fn goes_before_its_init_for_want_of_memory(who: Who) {
    let mut bench = Bench::new(who);
    let own = fs::read("/proc/self/oom_score_adj").unwrap();
    assert_eq!(bench.run(&["oom-score-adj"]).stdout, own);
    bench.spec.limits.memory_bytes = Some(32 << 20);
    assert_eq!(bench.run(&["oom-score-adj"]).stdout, b"500\n");
}

fn is_held_to_its_processes(who: Who) {
    let mut bench = Bench::new(who);
    bench.spec.limits.pids = Some(5);
    assert_eq!(bench.run(&["fork", "20"]).stdout, b"4\n");
    let seen = bench.seen();
    let by_cgroup = !seen.notes.iter().any(|note| note.contains("pids limit"));
    assert_eq!(seen.pids_limit_hits > 0, by_cgroup, "{seen:?}");
}

fn leaves_nothing(who: Who) {
    let mut bench = Bench::new(who);
    bench.spec.limits = Limits { cpus_milli: Some(500), memory_bytes: Some(64 << 20), pids: Some(10) };
    bench.facts();
    assert!(bench.cgroups().iter().all(|dir| !Path::new(dir).exists()), "{:?}", bench.cgroups());
    assert!(!Path::new(&format!("/proc/{}", bench.init().unwrap().pid)).exists());
}

fn dies_with_its_agent(who: Who) {
    let bench = Bench::new(who);
    let mut agent = bench.command(&Bench::probe(), &["inside", "sleep"]).spawn().unwrap();
    let init = wait_for(|| bench.init());
    let proc = PathBuf::from(format!("/proc/{}", init.pid));
    wait_for(|| children(init.pid).pop());
    agent.kill().unwrap();
    agent.wait().unwrap();
    wait_for(|| (!proc.exists()).then_some(()));
    for dir in bench.cgroups() {
        wait_for(|| fs::remove_dir(&dir).is_ok().then_some(()));
        let _ = fs::remove_dir(Path::new(&dir).parent().unwrap());
    }
}

fn children(pid: i32) -> Vec<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_ascii_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

fn a_missing_store_path_is_one_sentence(who: Who) {
    let mut bench = Bench::new(who);
    bench.add("missing");
    let output = bench.run(&["facts"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(99));
    assert!(said.contains("-missing") && said.contains("garbage"), "{said}");
    assert!(bench.cgroups().iter().all(|dir| !Path::new(dir).exists()));
}

fn a_machine_without_a_closure_has_a_shell(who: Who) {
    let mut bench = Bench::new(who);
    bench.spec.store_paths.clear();
    let output = bench.command("/bin/sh", &["-c", "ls / | wc -l; cat /etc/hostname"]).output().unwrap();
    match Path::new("/bin/busybox").exists() {
        true => assert_eq!(String::from_utf8_lossy(&output.stdout), "10\nberg\n", "{output:?}"),
        false => assert!(!output.status.success() || output.stdout.is_empty()),
    }
}

fn takes_hundreds_of_store_paths(who: Who) {
    const PATHS: usize = 1500;
    let mut bench = Bench::new(who);
    for n in 0..PATHS {
        let name = format!("path-{n}");
        fs::create_dir(bench.dir.path().join(format!("store/{HASH}-{name}"))).unwrap();
        bench.add(&name);
    }
    assert_eq!(bench.facts().store.len(), PATHS + 1);
}

/// Asks until there is an answer.
fn wait_for<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(std::time::Instant::now() < deadline, "no answer in 20 s");
        std::thread::yield_now();
    }
}
