//! A process that is killed while it pushes and collects leaves nothing half done.
#![cfg(feature = "cache")]

mod cache_support;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use cache_support::*;
use calve_store::cache::GcPolicy;
use calve_store::remote::Remote;

/// Names the cache's directory to the process that is killed.
const DIR: &str = "CALVE_TEST_CRASH_DIR";
const FROM: &str = "CALVE_TEST_CRASH_FROM";
const ROUNDS: u64 = 10;

fn build(number: u64) -> Vec<Made> {
    let base = made("base", number, 100_000, &[]);
    let top = made(&format!("top{number}"), number, 300_000, &[&base.info.path]);
    vec![base, top]
}

/// Not a test of its own: what the process does that is killed.
#[tokio::test]
async fn child() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let from: u64 = std::env::var(FROM).unwrap().parse().unwrap();
    let cache = local(dir.as_ref()).await;
    for number in from.. {
        let (_, unused) = chunks(&made("unused", 1000 + number, 100_000 + 8 * number as usize, &[]));
        cache.put_chunks(unused).await.unwrap();
        push(&cache, &build(number)).await.unwrap();
        println!("\ncommitted {number}");
        cache.collect(&GcPolicy::default()).await.unwrap();
    }
}

#[tokio::test]
async fn killed_while_pushing_and_collecting() {
    let dir = tempfile::tempdir().unwrap();
    let mut committed = Vec::new();
    for round in 0..ROUNDS {
        let from = committed.last().map_or(0, |last| last + 1);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env(DIR, dir.path())
            .env(FROM, from.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let number = lines.find_map(|line| line.unwrap().strip_prefix("committed ")?.parse::<u64>().ok());
        committed.push(number.expect("it commits"));
        // At another place each time; where exactly does not matter.
        tokio::time::sleep(Duration::from_millis(round * 9)).await;
        child.kill().unwrap();
        child.wait().unwrap();
        let more = lines.filter_map(|line| line.ok()?.strip_prefix("committed ")?.parse::<u64>().ok());
        committed.extend(more);

        let cache = local(dir.path()).await;
        for number in &committed {
            assert_intact(&cache, &build(*number)).await;
        }
        let next = build(committed.last().unwrap() + 1);
        for made in &next {
            // There as a whole, or not at all.
            if cache.find(made.info.path.hash_part()).await.unwrap().is_some() {
                assert_intact(&cache, std::slice::from_ref(made)).await;
            }
        }
        let found = cache.verify(None).await.unwrap();
        assert_eq!((found.damage, found.paths_broken), (vec![], vec![]));
    }
    // The index built anew says the same.
    for name in ["index.sqlite", "index.sqlite-wal", "index.sqlite-shm"] {
        let _ = std::fs::remove_file(dir.path().join(name));
    }
    let cache = local(dir.path()).await;
    for number in committed {
        assert_intact(&cache, &build(number)).await;
    }
}
