//! Cold start of a guest to the first line of its program's output, against the floor: QEMU started by hand with the
//! quickest command that is known, the same kernel and the same initrd, to the first line that its first process prints.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use calve_core::{DriverName, Kind, MachineId, Timestamp};
use calve_nix::StorePath;
use calve_node::driver::qemu::{QemuDriver, QemuOptions};
use calve_node::{Driver as _, Order};
use calve_store::{Closure, ClosurePath};
use calve_wire::agent::{AGENT_PROTOCOL_VERSION, FromAgent, Phase, Remaining, ToAgent};
use calve_wire::frame::{Channel, Decoder, Frame, Incoming, Token};
use calve_wire::guard::PROBE_MARKER;
use calve_wire::machine::{MachineSpec, Program, Restart, Workload};

use crate::Effort;
use crate::home::beside;
use crate::table::Table;
use crate::times::{Times, millis};

const TOKEN: &str = "00112233445566778899aabbccddeeff";
const BUSYBOX: &str = "0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-busybox";
const LEASE: Remaining = Remaining { until_deadline_ms: Some(120_000), grace_ms: 0 };

/// Most that a guest's start may take, as a multiple of the floor.
const RATIO_MAX: f64 = 1.15;

pub async fn measure(effort: Effort, table: &mut Table) -> anyhow::Result<()> {
    let bench = Bench::new(beside("calve-agent"));
    // The first one makes kernel and initrd, and tries KVM.
    bench.through_driver(0).await;
    let floor_argv = bench.floor_argv();
    let (mut ours, mut floor) = (Times::default(), Times::default());
    for round in 1..=effort.boots {
        floor.push(by_hand(&floor_argv));
        ours.push(bench.through_driver(u128::from(round)).await);
    }
    // Boots of both take turns, so that what else the host does slows both: medians compare. One lucky boot of either side
    // moves the quickest by more than the promise has room for.
    for (what, percent, most) in [
        ("guest, cold, to its first line, median", 50, Some(RATIO_MAX)),
        ("guest, cold, to its first line, quickest", 0, None),
    ] {
        let (ours, floor) = (ours.quantile(percent), floor.quantile(percent));
        let ratio = ours.as_secs_f64() / floor.as_secs_f64();
        table.ratio(what, millis(ours), format!("QEMU by hand {}", millis(floor)), ratio, most);
    }
    Ok(())
}

struct Bench {
    dir: tempfile::TempDir,
    driver: QemuDriver,
    closure: Closure,
}

impl Bench {
    fn new(agent_binary: PathBuf) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let store = dir.path().join("store");
        std::fs::create_dir_all(store.join(BUSYBOX).join("bin")).expect("made");
        std::fs::copy("/bin/busybox", store.join(BUSYBOX).join("bin/busybox"))
            .expect("busybox-static is installed");
        let image = dir.path().join("store.erofs");
        let made = Command::new("mkfs.erofs").arg("--quiet").arg(&image).arg(&store).output();
        assert!(made.expect("erofs-utils is installed").status.success());
        let path = StorePath::from_base_name(BUSYBOX).expect("a base name");
        let closure = Closure { paths: vec![ClosurePath { path, host_path: store.join(BUSYBOX) }] };
        let driver = QemuDriver::new(QemuOptions {
            runtime_dir: dir.path().join("run"),
            images_dir: dir.path().join("images"),
            agent_binary,
            kernel: std::env::var_os("CALVE_KERNEL").map(PathBuf::from),
            store_image: Arc::new(move |_, _| Ok(image.clone())),
        });
        Self { dir, driver, closure }
    }

    /// From the order to the first byte of the program's output.
    async fn through_driver(&self, n: u128) -> Duration {
        let order = self.order(n);
        let begun = Instant::now();
        self.driver.create(&order).await.expect("a guest");
        let socket = self.driver.agent_socket(order.id);
        let took = tokio::task::spawn_blocking(move || {
            first_output(&socket);
            begun.elapsed()
        });
        let took = took.await.expect("output");
        self.driver.destroy(order.id).await.expect("destroyed");
        took
    }

    fn order(&self, n: u128) -> Order {
        Order {
            id: MachineId::new(Timestamp(1), n),
            name: "bench".parse().expect("a name"),
            attempt: 1,
            token: TOKEN.into(),
            spec: MachineSpec {
                driver: Some(DriverName::Qemu),
                ..MachineSpec::new(Kind::Job, Workload::Program(program()))
            },
            closure: self.closure.clone(),
            remaining: LEASE,
        }
    }

    /// The quickest command by hand: PVH kernel, microVM with qboot, tuned parameters.
    fn floor_argv(&self) -> Vec<String> {
        let images = self.dir.path().join("images");
        let newest = |prefix: &str, not: &str| {
            let entries = std::fs::read_dir(&images).expect("made by the first run").flatten();
            let ours = entries.filter(|entry| {
                let name = entry.file_name().into_string().expect("UTF-8");
                name.starts_with(prefix) && !name.ends_with(not)
            });
            // The initrd for a program has more modules in it than the one that tries KVM.
            let path = ours.max_by_key(|entry| entry.metadata().expect("there").len()).expect("one").path();
            path.to_str().expect("UTF-8").to_owned()
        };
        let tsc = std::fs::read_to_string(newest("tsc-", "-")).expect("measured by the first run");
        let append = format!(
            "console=ttyS0 quiet panic=-1 reboot=t cryptomgr.notests no_timer_check tsc=reliable tsc_early_khz={tsc} \
             rdinit=/calve-agent calve.mode=probe calve.token={TOKEN} calve.name=bench"
        );
        let (kernel, initrd) = (newest("kernel-", ".json"), newest("initrd-", "-"));
        let words = [
            "qemu-system-x86_64",
            "-M",
            "microvm,acpi=on,accel=tcg",
            "-bios",
            "qboot.rom",
            "-cpu",
            "qemu64",
            "-m",
            "256",
            "-nodefaults",
            "-no-user-config",
            "-nographic",
            "-no-reboot",
            "-serial",
            "stdio",
            "-kernel",
            &kernel,
            "-initrd",
            &initrd,
            "-append",
            &append,
        ];
        words.map(str::to_owned).to_vec()
    }
}

fn program() -> Program {
    Program {
        path: format!("/nix/store/{BUSYBOX}/bin/busybox"),
        args: vec!["echo".into(), "hello".into()],
        env: Default::default(),
        cwd: None,
        extra_roots: vec![],
        work_tree: None,
        stdin: false,
    }
}

/// From the start of QEMU to the first line of the first process.
fn by_hand(argv: &[String]) -> Duration {
    let begun = Instant::now();
    let mut qemu = Command::new(&argv[0])
        .args(&argv[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("QEMU starts");
    let console = BufReader::new(qemu.stdout.take().expect("piped"));
    let said = console.lines().any(|line| line.is_ok_and(|line| line.contains(PROBE_MARKER)));
    let took = begun.elapsed();
    let _ = qemu.kill();
    let _ = qemu.wait();
    assert!(said, "the guest by hand did not boot");
    took
}

/// What a server does until the first output of the program.
fn first_output(socket: &Path) {
    let token: Token = TOKEN.parse().expect("a token");
    let mut stream = UnixStream::connect(socket).expect("QEMU listens");
    let mut decoder = Decoder::new(token.clone());
    stream.write_all(&token.preamble()).expect("written");
    let hello = ToAgent::Hello { version: AGENT_PROTOCOL_VERSION, log_seq: 0, remaining: LEASE };
    send(&mut stream, &hello);
    let mut bytes = [0; 4096];
    loop {
        let count = stream.read(&mut bytes).expect("the agent speaks");
        assert!(count > 0, "the agent hung up");
        decoder.push(&bytes[..count]);
        while let Some(incoming) = decoder.next().expect("frames") {
            match incoming {
                Incoming::Frame(Frame::Control(json)) => {
                    let message: FromAgent = serde_json::from_slice(&json).expect("a message");
                    // As a server does: the order came with the guest, unless that is still waiting for it.
                    if matches!(message, FromAgent::Welcome { status, .. } if status.phase == Phase::Waiting)
                    {
                        let start = ToAgent::Start {
                            program: Some(program()),
                            restart: Restart::Never,
                            health: None,
                        };
                        send(&mut stream, &start);
                    }
                }
                Incoming::Frame(Frame::Log(entry)) if entry.channel == Channel::Stdout => return,
                Incoming::Frame(Frame::Log(_) | Frame::Data { .. }) | Incoming::Connected => {}
            }
        }
    }
}

fn send(stream: &mut UnixStream, message: &ToAgent) {
    let mut bytes = Vec::new();
    Frame::Control(serde_json::to_vec(message).expect("JSON")).encode(&mut bytes);
    stream.write_all(&bytes).expect("written");
}
