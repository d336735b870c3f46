//! `calve run --on digitalocean/ams3` and `--on proxmox/pve1`, with the built programs: the server asks the provider, a real
//! guest boots, dials the server's door, gets the closure, runs the program, and is gone afterwards.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use digitalocean_emulator::faults::{Fault, FaultKind};
use droplets::{Guests, HOST_FROM_GUEST, SystemDisk};
use e2e::{Home, Ran, bin_dir, finish, standin, wait_until};

/// A provider, emulated.
enum Cloud {
    DigitalOcean(digitalocean_emulator::Emulator),
    Proxmox(proxmox_emulator::Emulator),
}

impl Cloud {
    async fn digitalocean(guests: &Arc<Guests>) -> Self {
        let backing = Some(guests.clone() as Arc<dyn digitalocean_emulator::Backing>);
        let options = digitalocean_emulator::Options { backing, ..Default::default() };
        Self::DigitalOcean(digitalocean_emulator::Emulator::start(options).await.unwrap())
    }

    async fn proxmox(guests: &Arc<Guests>) -> Self {
        let backing = Some(guests.clone() as Arc<dyn proxmox_emulator::Backing>);
        let options = proxmox_emulator::Options { backing, ..Default::default() };
        Self::Proxmox(proxmox_emulator::Emulator::start(options).await.unwrap())
    }

    /// Where it is, and with which credentials.
    fn variables(&self) -> Vec<(&'static str, &str)> {
        match self {
            Self::DigitalOcean(emulator) => vec![
                ("DIGITALOCEAN_API_URL", emulator.url.as_str()),
                ("DIGITALOCEAN_TOKEN", digitalocean_emulator::TOKEN),
            ],
            Self::Proxmox(emulator) => vec![
                ("PROXMOX_API_URL", emulator.url.as_str()),
                ("PROXMOX_TOKEN", proxmox_emulator::TOKEN),
                ("PROXMOX_FINGERPRINT", emulator.fingerprint.as_str()),
            ],
        }
    }

    /// Where machines are made there, and how large.
    fn place(&self) -> &'static [&'static str] {
        match self {
            Self::DigitalOcean(_) => &["--on", "digitalocean/ams3", "--size", "s-1vcpu-1gb"],
            Self::Proxmox(_) => &["--on", "proxmox/pve1"],
        }
    }

    /// Numbers of machines that are there.
    fn machines(&self) -> Vec<u64> {
        match self {
            Self::DigitalOcean(emulator) => emulator.droplets().iter().map(|droplet| droplet.id).collect(),
            Self::Proxmox(emulator) => emulator.machines().iter().map(|vm| vm.vmid).collect(),
        }
    }

    /// How many were ever made.
    fn created(&self) -> usize {
        match self {
            Self::DigitalOcean(emulator) => emulator.created(),
            Self::Proxmox(emulator) => emulator.created(),
        }
    }

    fn tags(&self) -> Vec<String> {
        match self {
            Self::DigitalOcean(emulator) => emulator.tags(),
            Self::Proxmox(emulator) => emulator.machines().iter().flat_map(|vm| vm.tags()).collect(),
        }
    }

    /// The answer to the next creation is lost.
    fn lose_answer(&self) {
        let fault = |path| Fault { method: "POST", path, kind: FaultKind::LoseReply, times: 1 };
        match self {
            Self::DigitalOcean(emulator) => emulator.fault(fault("/v2/droplets")),
            Self::Proxmox(emulator) => emulator.fault(fault("/api2/json/nodes/pve1/qemu/9000/clone")),
        }
    }
}

/// An account with real machines, and a server that has its credentials.
struct Stage {
    home: Home,
    guests: Arc<Guests>,
    cloud: Cloud,
    server: Option<Child>,
    /// Where its door for agents is.
    door: u16,
}

impl Stage {
    async fn set(cloud: impl AsyncFnOnce(&Arc<Guests>) -> Cloud) -> Self {
        Self::with(cloud, None).await
    }

    /// An account whose machines boot this system, where there is one.
    async fn with(cloud: impl AsyncFnOnce(&Arc<Guests>) -> Cloud, system: Option<SystemDisk>) -> Self {
        let home = Home::new();
        let images = Path::new(env!("CARGO_TARGET_TMPDIR")).join("images");
        let consoles = home.path().join("consoles");
        std::fs::create_dir(&consoles).unwrap();
        let guests = Guests::with(&bin_dir().join("calve-agent"), &consoles, &images, system).unwrap();
        let cloud = cloud(&guests).await;
        // Free a moment ago; another server has to find its door again where the first had it.
        let door = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut stage = Self { home, guests, cloud, server: None, door };
        stage.serve();
        stage
    }

    fn serve(&mut self) {
        let door = self.door.to_string();
        let mut command = self.home.command(["server", "--agents", &format!("127.0.0.1:{door}")]);
        command.args(["--agents-address", &format!("{HOST_FROM_GUEST}:{door}")]);
        command.envs(self.cloud.variables());
        self.server = Some(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let socket = self.home.path().join("run/calve.sock");
        wait_until("the server to listen", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    }

    fn kill_server(&mut self) {
        let mut server = self.server.take().unwrap();
        server.kill().unwrap();
        server.wait().unwrap();
    }

    fn command(&self, arguments: &[&str], script: &str) -> Command {
        let mut command = self.home.command(["run"]);
        command
            .args(self.cloud.place())
            .args(arguments)
            .arg(self.home.app())
            .args(["--", "sh", "-c", script]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs a script at the provider to its end.
    fn run(&self, arguments: &[&str], script: &str) -> Ran {
        finish(self.command(arguments, script).spawn().unwrap())
    }

    fn nothing_is_left(&self) {
        assert!(self.cloud.machines().is_empty());
        let left: Vec<_> = self.cloud.tags().into_iter().filter(|tag| tag.contains(":machine:")).collect();
        assert!(left.is_empty(), "{left:?}");
        if let Cloud::Proxmox(emulator) = &self.cloud {
            assert!(emulator.files().is_empty() && emulator.lock_errors() == 0);
        }
    }

    /// Runs a program whose creation's answer is lost: on one machine, which is gone afterwards.
    fn runs_a_program_and_nothing_is_left(&self) {
        self.cloud.lose_answer();
        let ran = self.run(&["--ttl", "90m"], "echo at $(hostname); echo oh >&2; exit 7");
        assert_eq!(
            (ran.code, ran.stdout.as_str(), ran.stderr.as_str()),
            (7, "at run-1\n", "oh\n"),
            "{ran:?} {:?}",
            self.consoles()
        );
        assert_eq!(self.cloud.created(), 1);
        wait_until("the machine to be gone", || self.home.state("run-1") == "gone");
        self.nothing_is_left();
    }

    /// What guests have said, for a test that fails.
    fn consoles(&self) -> Vec<String> {
        let files = std::fs::read_dir(self.home.path().join("consoles")).into_iter().flatten().flatten();
        let files = files.filter(|file| file.file_name().to_string_lossy().starts_with("console"));
        files
            .map(|file| String::from_utf8_lossy(&std::fs::read(file.path()).unwrap_or_default()).into_owned())
            .collect()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some(server) = &mut self.server {
            self.home.run(&["rm", "--all"]);
            self.home.run(&["server", "stop"]);
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

/// Nothing of these tests may block the emulator.
async fn apart<T: Send + 'static>(stage: Stage, body: impl FnOnce(&mut Stage) -> T + Send + 'static) -> T {
    let running = tokio::task::spawn_blocking(move || {
        let mut stage = stage;
        let result = body(&mut stage);
        drop(stage);
        result
    });
    running.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_runs_at_a_provider_and_the_machine_is_gone_with_it() {
    let stage = Stage::set(Cloud::digitalocean).await;
    apart(stage, |stage| {
        stage.runs_a_program_and_nothing_is_left();
        // What cannot be had is one sentence with the request.
        let mut huge = stage.home.command(["run", "--on", "digitalocean/ams3", "--size", "huge"]);
        let huge = Ran::from_output(&huge.arg(stage.home.app()).output().unwrap());
        assert!(huge.code == 125 && huge.stderr.contains("invalid size"), "{huge:?}");
        assert!(huge.stderr.contains("(request emulated-"), "{huge:?}");
        stage.nothing_is_left();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_runs_at_proxmox_on_a_clone_that_is_gone_with_it() {
    let stage = Stage::set(Cloud::proxmox).await;
    apart(stage, |stage| {
        stage.runs_a_program_and_nothing_is_left();
        let mut nowhere = stage.home.command(["run", "--on", "proxmox/pve9"]);
        let nowhere = Ran::from_output(&nowhere.arg(stage.home.app()).output().unwrap());
        assert!(
            nowhere.code == 125 && nowhere.stderr.contains("no image called calve-base in pve9"),
            "{nowhere:?}"
        );
        stage.nothing_is_left();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_at_a_provider_survives_its_server_and_its_lease_is_renewed_on_it() {
    let stage = Stage::set(Cloud::digitalocean).await;
    apart(stage, |stage| {
        let script = "i=0; while true; do echo line $i; i=$((i+1)); sleep 0.2; done";
        let started = stage.run(&["--detach", "--ttl", "10m"], script);
        assert_eq!(started.code, 0, "{started:?}");
        stage.home.wait_for_running("run-1");
        let droplet = stage.cloud.machines()[0];
        stage.kill_server();
        stage.serve();
        stage.home.wait_for_running("run-1");
        assert_eq!(stage.cloud.machines()[0], droplet, "it was made anew");
        // A renewed lease stands on the machine as well.
        let until =
            || stage.cloud.tags().into_iter().filter(|tag| tag.contains(":until:")).collect::<Vec<_>>();
        let before = until();
        stage.home.ok(&["extend", "run-1", "10m"]);
        wait_until("the tag to be renewed", || until().len() == 1 && until() != before);
        let log = stage.home.ok(&["logs", "run-1"]);
        let lines: Vec<String> = (0..log.lines().count()).map(|n| format!("line {n}")).collect();
        assert_eq!(log.lines().collect::<Vec<_>>(), lines, "the log has lost or doubled something");
        // Without a server it is found, and known to live, by its tags alone.
        stage.kill_server();
        let mut reap = stage.home.command(["reap", "--provider", "digitalocean", "--json"]);
        reap.envs(stage.cloud.variables());
        let reaped = Ran::from_output(&reap.output().unwrap());
        assert!(reaped.code == 0 && reaped.stdout.contains("\"lives\""), "{reaped:?}");
        assert!(stage.guests.is_running(droplet));
        stage.serve();
        stage.home.ok(&["rm", "run-1"]);
        wait_until("the machine to be gone", || stage.cloud.machines().is_empty());
        assert!(!stage.guests.is_running(droplet));
    })
    .await;
}

/// The agent's own base image holds nothing that could be switched.
#[tokio::test(flavor = "multi_thread")]
async fn a_system_on_an_image_without_one_is_a_sentence_and_no_machine_is_left() {
    let stage = Stage::set(Cloud::digitalocean).await;
    apart(stage, |stage| {
        let system = stage.home.path().join("system");
        std::fs::create_dir_all(system.join("bin")).unwrap();
        for file in ["init", "kernel", "initrd", "kernel-params", "bin/switch-to-configuration"] {
            std::fs::write(system.join(file), "").unwrap();
        }
        let mut run = stage.home.command(["run", "-d", "--ttl", "10m"]);
        let ran = Ran::from_output(&run.args(stage.cloud.place()).arg(system).output().unwrap());
        assert_eq!(ran.code, 0, "{ran:?}");
        wait_until("the machine to fail", || stage.home.state("run-1") == "failed");
        let status = stage.home.ok(&["status", "run-1"]);
        assert!(status.contains("it runs no NixOS that can be switched"), "{status}");
        wait_until("the machine to be gone", || stage.cloud.machines().is_empty());
        stage.nothing_is_left();
    })
    .await;
}

/// A disk with the stand-in system, in which the agent is a service; and another version of the system.
fn system_disk() -> (SystemDisk, String) {
    let first = standin("build", &[]);
    let second = standin("variant", &[&first, "two"]);
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("droplets-disk");
    std::fs::create_dir_all(&dir).unwrap();
    let program = |name: &str| bin_dir().join(name).to_str().expect("a plain path").to_owned();
    standin("disk", &[dir.to_str().unwrap(), &program("calve-switch"), &program("calve-agent"), &first]);
    let kernel = format!("{first}/kernel").into();
    (SystemDisk { disk: dir.join("disk"), kernel, initrd: dir.join("boot-initrd") }, second)
}

/// A store path to a machine in a cloud in one command.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_at_a_provider_is_switched_to_its_system() {
    let (disk, system) = system_disk();
    let stage = Stage::with(Cloud::digitalocean, Some(disk)).await;
    apart(stage, move |stage| {
        let home = &stage.home;
        let told = home.path().join("told");
        let mut run = home.command(["run", "--name", "web", "--ttl", "30m"]);
        run.args(stage.cloud.place()).arg(&system).stdin(Stdio::null()).stdout(Stdio::null());
        let mut run = run.stderr(std::fs::File::create(&told).unwrap()).spawn().unwrap();
        let told = || std::fs::read_to_string(&told).unwrap();
        wait_until("the system to run", || {
            assert!(run.try_wait().unwrap().is_none(), "{} {:?}", told(), stage.consoles());
            told().contains(&format!("web runs {system}"))
        });
        // Steps that are over between two looks are not told: how fast the cloud creates is not our doing.
        for step in ["web: booting", "web: seeding ("] {
            assert!(told().contains(step), "{step}: {}", told());
        }
        let sh = |line: &str| home.run(&["exec", "web", "--", &format!("{system}/sw/bin/sh"), "-c", line]);
        assert_eq!(sh(&format!("{system}/sw/bin/busybox cat /run/standin-version")).stdout.trim(), "two");
        assert_eq!(
            sh(&format!("{system}/sw/bin/busybox readlink /run/current-system")).stdout.trim(),
            system
        );
        let history = home.ok(&["history", "web"]);
        assert!(history.contains("applied") && history.contains(&system), "{history}");
        // Ctrl-C lets go of it.
        let interrupted = Command::new("kill").args(["-INT", &run.id().to_string()]).status();
        assert!(interrupted.unwrap().success());
        assert_eq!(run.wait().unwrap().code(), Some(130), "{}", told());
        wait_until("the machine to be gone", || home.state("web") == "gone");
        stage.nothing_is_left();
    })
    .await;
}
