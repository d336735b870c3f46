//! Programs that run out of a cache before their closure is here.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use e2e::{Home, Ran, wait_until};

use super::cache::{Serving, serve};

/// Bytes of the file of which the program reads a part.
const DATA_BYTES: usize = 24 << 20;

/// A line to a cache that counts what comes over it.
struct Line {
    url: String,
    came: Arc<AtomicU64>,
}

impl Line {
    fn to(cache: &str) -> Self {
        let port: u16 = cache.trim().rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().unwrap());
        let came = Arc::new(AtomicU64::new(0));
        let counter = came.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { continue };
                let (from_client, to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || carry(from_client, to_server, &AtomicU64::new(0)));
                let counter = counter.clone();
                std::thread::spawn(move || carry(server, client, &counter));
            }
        });
        Self { url, came }
    }

    fn came(&self) -> usize {
        self.came.load(Ordering::SeqCst) as usize
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, count: &AtomicU64) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        count.fetch_add(len as u64, Ordering::SeqCst);
        if to.write_all(&buffer[..len]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

/// An app in a cache, and a home that has neither.
struct Scene {
    /// Before the home, which waits for its processes.
    serving: Serving,
    home: Home,
    key: String,
    path: String,
    data: Vec<u8>,
}

impl Scene {
    /// None, with a sentence, where nothing can be mounted.
    fn new() -> Option<Self> {
        let fuse = std::fs::File::options().read(true).write(true).open("/dev/fuse");
        if let Err(error) = fuse {
            eprintln!("skipped: /dev/fuse: {error}");
            return None;
        }
        if !is_root() && !Path::new("/usr/bin/fusermount3").exists() {
            eprintln!("skipped: only root may mount without fusermount3");
            return None;
        }
        let author = Home::alone();
        let data: Vec<u8> = (0..DATA_BYTES / 8).flat_map(|n| noise(n as u64).to_le_bytes()).collect();
        author.app();
        std::fs::write(author.path().join("app/data"), &data).expect("a file");
        let home = Home::alone();
        let dir = home.path().join("cache");
        let app = author.path().join("app");
        let serving = serve(&home, &dir, &["--public"]);
        let dir = dir.to_str().unwrap();
        let path = author.ok(&["push", app.to_str().unwrap(), "--to", dir]).trim().to_owned();
        let key = home.ok(&["cache", "key", "--dir", dir]).trim().to_owned();
        Some(Self { serving, home, key, path, data })
    }

    /// `calve run --store lazy ARGS` of the app's busybox, with nothing coming beside what is touched.
    fn run(&self, cache: &str, key: &str, options: &[&str], args: &[&str]) -> Ran {
        self.run_by("sandbox", cache, key, options, args)
    }

    /// The same by a driver.
    fn run_by(&self, driver: &str, cache: &str, key: &str, options: &[&str], args: &[&str]) -> Ran {
        let busybox = format!("{}/bin/busybox", self.path);
        let lazily = ["run", "--driver", driver, "--store", "lazy", "--from", cache, "--trusted-key", key];
        let mut command = self.home.command([&lazily[..], options, &[&busybox, "--"], args].concat());
        command.env("CALVE_PREFETCH", "never");
        Ran::of(command)
    }

    /// Waits until nothing of lazy delivery is left.
    fn wait_until_gone(&self) {
        let home = self.home.path().to_str().unwrap();
        wait_until("the mount to be gone", || {
            let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
            let dirs = std::fs::read_dir(self.home.path().join("run/lazy")).into_iter().flatten();
            !mounts.contains(home) && dirs.count() == 0 && self.serving_processes().is_empty()
        });
    }

    /// The processes of this home that serve machines.
    fn serving_processes(&self) -> Vec<i32> {
        let home = self.home.path().to_str().unwrap();
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        let processes = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let has = |pid: &i32, file: &str, text: &str| {
            let bytes = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            String::from_utf8_lossy(&bytes).contains(text)
        };
        processes.filter(|pid| has(pid, "cmdline", "--for-machines") && has(pid, "environ", home)).collect()
    }
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// SplitMix64: nothing of it compresses or repeats.
fn noise(n: u64) -> u64 {
    let mut x = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[test]
fn a_program_runs_before_its_closure_is_here_and_leaves_nothing() {
    let Some(scene) = Scene::new() else { return };
    let line = Line::to(&scene.serving.url);
    let data = format!("{}/data", scene.path);
    let head = scene.run(&line.url, &scene.key, &[], &["sh", "-c", &format!("head -c 8 {data}; echo hi")]);
    assert_eq!(head.code, 0, "{head:?}");
    assert!(head.stdout.ends_with("hi\n"), "{head:?}");
    let came = line.came();
    assert!(came > 100_000 && came < DATA_BYTES / 2, "{came} bytes came for a part of {DATA_BYTES}");
    assert!(!scene.home.path().join("data/store").join(&scene.path["/nix/store/".len()..]).exists());

    // A machine whose server dies reads on: who serves it is nobody's child.
    let ran = scene.run(&line.url, &scene.key, &["-d", "--name", "kept"], &["sleep", "1000"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    scene.home.wait_for_running("kept");
    assert_eq!(scene.serving_processes().len(), 1);
    scene.home.kill_server();
    // By the next server; a process that was killed may keep its socket for a moment.
    scene.home.wait_for_running("kept");
    let busybox = format!("{}/bin/busybox", scene.path);
    // It seeks where `tail` would read all.
    let skip = DATA_BYTES / 4096 - 1;
    let tail = ["exec", "kept", "--", &busybox, "sh", "-c"];
    let read = format!(
        "{busybox} dd if={data} bs=4096 skip={skip} count=1 | {busybox} head -c 8 | {busybox} od -An -tx1"
    );
    let read = scene.home.ok(&[&tail[..], &[&read]].concat());
    let at = DATA_BYTES - 4096;
    let expected: Vec<_> = scene.data[at..at + 8].iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(read.split_whitespace().collect::<Vec<_>>(), expected);
    assert!(line.came() < DATA_BYTES, "it did not read all");
    scene.home.ok(&["rm", "kept"]);
    scene.wait_until_gone();
}

#[test]
fn a_guest_runs_before_its_closure_is_here_and_leaves_nothing() {
    let Some(scene) = Scene::new() else { return };
    let line = Line::to(&scene.serving.url);
    let data = format!("{}/data", scene.path);
    let read = format!("head -c 8 {data} | od -An -tx1; uname -n");
    let head = scene.run_by("qemu", &line.url, &scene.key, &["--name", "vm"], &["sh", "-c", &read]);
    let expected: Vec<_> =
        scene.data[..8].iter().map(|byte| format!("{byte:02x}")).chain(["vm".to_owned()]).collect();
    assert_eq!(head.stdout.split_whitespace().collect::<Vec<_>>(), expected, "{head:?}");
    let came = line.came();
    assert!(came > 100_000 && came < DATA_BYTES / 2, "{came} bytes came for a part of {DATA_BYTES}");
    scene.wait_until_gone();
}

#[test]
fn the_rest_of_a_closure_follows_and_then_needs_no_cache() {
    let Some(scene) = Scene::new() else { return };
    let busybox = format!("{}/bin/busybox", scene.path);
    let from = ["--store", "lazy", "--from", &scene.serving.url, "--trusted-key", &scene.key];
    let run = [
        &["run", "-d", "--name", "kept", "--driver", "sandbox"],
        &from[..],
        &[&busybox, "--", "sleep", "1000"],
    ];
    scene.home.ok(&run.concat());
    let place = scene.home.path().join("data/store").join(&scene.path["/nix/store/".len()..]);
    wait_until("the rest to come", || place.join("data").exists());
    assert!(std::fs::read(place.join("data")).unwrap() == scene.data);
    scene.home.ok(&["rm", "kept"]);
    scene.wait_until_gone();
    // By its path alone: it lies here now.
    assert_eq!(scene.home.ok(&["run", "--driver", "sandbox", &busybox, "--", "echo", "hi"]), "hi\n");
}

#[test]
fn what_cannot_be_mounted_is_refused_in_words_and_leaves_nothing() {
    let Some(scene) = Scene::new() else { return };
    let stranger = "stranger-1:3q1swAKNxuMdfkdgnCPykPXhbziJnpv2zaf/MerWV0E=";
    let refused = scene.run(&scene.serving.url, stranger, &[], &["echo", "hi"]);
    assert_eq!(refused.code, 125, "{refused:?}");
    assert!(refused.stderr.contains("cannot be trusted"), "{refused:?}");
    let refused = scene.run("http://127.0.0.1:1", &scene.key, &[], &["echo", "hi"]);
    assert_eq!(refused.code, 125, "{refused:?}");
    assert!(refused.stderr.contains("cannot reach the cache"), "{refused:?}");
    let mut unnamed = scene.home.command(["run", "--store", "lazy", &format!("{}/bin/busybox", scene.path)]);
    unnamed.env_remove("CALVE_CACHE");
    let refused = Ran::of(unnamed);
    assert_eq!(refused.code, 2, "{refused:?}");
    assert!(refused.stderr.contains("no cache is named"), "{refused:?}");
    scene.wait_until_gone();
}
