//! A program that starts before its closure is here: a closure of 1 GiB of which it reads some, over a line of 20 ms and 1
//! Gbit/s. Beside it the same line's own bound for all of the closure, which is what a pull cannot beat.

use std::io::Read;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::closure::Size;
use crate::closure::engine::call;
use crate::closure::make::Maker;
use crate::closure::nix::NixRoot;
use crate::closure::proxy::Proxy;
use crate::closure::server::{Server, peak_kib};
use crate::home::Home;
use crate::table::Table;
use crate::times::{Times, millis};

/// The line.
const ROUND_TRIP: Duration = Duration::from_millis(20);
/// Bytes that it carries in a second: 1 Gbit.
const RATE: u64 = 125_000_000;
/// Of the closure the program reads one part in so many, in files of [`FILE_BYTES`].
const PART: usize = 50;
/// Bytes of each file.
const FILE_BYTES: usize = 4 << 20;
/// What was promised: the first output in so many seconds.
const FIRST_OUTPUT_MAX: f64 = 1.5;
/// And so many hundredths of the closure's bytes until then.
const BYTES_MAX: f64 = 10.0;
/// Most memory of the process that serves, in MiB.
const PEAK_MIB: f64 = 256.0;
/// Level of zstd of the push: what `calve push` takes.
const LEVEL: i32 = calve_store::push::DEFAULT_LEVEL;

pub async fn measure(size: Size, table: &mut Table) -> anyhow::Result<()> {
    let nix = NixRoot::new()?;
    let server = Server::start()?;
    let files = size.large_files * size.large_file_bytes / FILE_BYTES;
    let made = Maker::new(&nix)?.program_with_files(files, FILE_BYTES)?;
    call("push", &nix, (&server, &server.url), &made.root, LEVEL)?;
    let read = (files / PART).max(1);
    let names: Vec<_> = (0..read).map(|n| format!("{}/lib/lib{}.so", made.root, n * PART)).collect();
    let (mut times, mut bytes, mut peak) = (Times::default(), 0, 0);
    for _ in 0..size.runs {
        let line = Proxy::with_rate(server.port(), ROUND_TRIP, Some(RATE)).await?;
        let url = line.url.clone();
        let program = format!("{}/bin/busybox", made.root);
        let script = format!("{program} cat {} | {program} md5sum", names.join(" "));
        let key = server.key.clone();
        let ran = tokio::task::spawn_blocking(move || first_output(&url, &key, &program, &script));
        let (time, kib) = ran.await??;
        // The rest has not begun to come: that waits for longer than this may take.
        bytes = bytes.max(line.bytes());
        peak = peak.max(kib);
        times.push(time);
    }
    let whole = Duration::from_secs_f64(made.archive_bytes as f64 / RATE as f64);
    let touched = (read * FILE_BYTES) as f64 / made.archive_bytes as f64 * 100.0;
    let what = "lazy: first output";
    table.note(&format!("{what}, of the closure read"), format!("{touched:.1} %"));
    table.note(&format!("{what}, all of its plain bytes over that line"), millis(whole));
    let median = times.median();
    table.limit(what, millis(median), median.as_secs_f64(), FIRST_OUTPUT_MAX, "s");
    let share = bytes as f64 / made.archive_bytes as f64 * 100.0;
    table.limit("lazy: bytes over the line until then", format!("{share:.1} %"), share, BYTES_MAX, "%");
    let mib = peak as f64 / 1024.0;
    table.limit("lazy: peak memory of who serves", format!("{mib:.0} MiB"), mib, PEAK_MIB, "MiB");
    Ok(())
}

/// Runs the program in a home that has nothing of it, with the server up: time to its first output, and the peak memory
/// of the process that serves, in KiB.
fn first_output(url: &str, key: &str, program: &str, script: &str) -> anyhow::Result<(Duration, u64)> {
    let home = Home::new()?;
    // The server and its sandbox that stands by are there, as they are for any second run.
    let app = home.app()?;
    home.calve(&["run", "--driver", "sandbox", &app, "--", "true"])?;
    let lazily = ["run", "--driver", "sandbox", "--store", "lazy", "--from", url, "--trusted-key", key];
    let mut command = home.command(&[&lazily[..], &[program, "--", "sh", "-c", script]].concat());
    let begun = Instant::now();
    let mut child = command.stdout(Stdio::piped()).spawn().context("calve starts")?;
    let mut said = String::new();
    let mut out = child.stdout.take().expect("piped");
    let mut first = [0];
    out.read_exact(&mut first).context("some output")?;
    let time = begun.elapsed();
    let serving = serving_process(program)?;
    let peak = peak_kib(&serving.to_string())?;
    out.read_to_string(&mut said)?;
    ensure!(child.wait()?.success() && said.len() > 30, "the program failed: {said:?}");
    // Told to end, as its mount lies in the home that goes now.
    let pid = rustix::process::Pid::from_raw(serving).context("a process")?;
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    while std::fs::exists(format!("/proc/{serving}"))? {
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok((time, peak))
}

/// The process that serves the closure of this program.
fn serving_process(program: &str) -> anyhow::Result<i32> {
    let path = program.strip_suffix("/bin/busybox").context("a path")?;
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        if line.contains("--for-machines") && line.contains(path) {
            return entry.file_name().to_str().and_then(|pid| pid.parse().ok()).context("a number");
        }
    }
    anyhow::bail!("nothing serves {path}")
}
