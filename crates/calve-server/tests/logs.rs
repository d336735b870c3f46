//! Logs on disk: kept over restarts, torn writes, rotation and full disks; read whole, in part and live.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use calve_core::{MachineId, Timestamp};
use calve_server::logs::{LogError, LogOptions, LogStream, Logs, Query};
use calve_wire::frame::{Channel, LogEntry};
use futures_util::StreamExt;

const DEADLINE: Duration = Duration::from_secs(60);

fn id() -> MachineId {
    MachineId::new(Timestamp(5), 5)
}

fn entry(seq: u64, bytes: &[u8]) -> LogEntry {
    LogEntry { seq, time_unix_ms: 1000 + seq, channel: Channel::Stdout, bytes: bytes.to_vec() }
}

fn entries(seqs: std::ops::RangeInclusive<u64>) -> Vec<LogEntry> {
    seqs.map(|seq| entry(seq, format!("line {seq}\n").as_bytes())).collect()
}

fn open(dir: &tempfile::TempDir) -> Arc<Logs> {
    Arc::new(Logs::open(dir.path().to_owned(), LogOptions::default()))
}

fn small(dir: &tempfile::TempDir) -> Arc<Logs> {
    let options = LogOptions { cap_bytes: 10_000, segment_bytes: 1000 };
    Arc::new(Logs::open(dir.path().to_owned(), options))
}

fn segment_files(dir: &tempfile::TempDir) -> Vec<PathBuf> {
    let names = std::fs::read_dir(dir.path().join(id().to_string())).unwrap();
    let mut paths: Vec<_> = names.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    paths.sort();
    paths
}

async fn all(stream: LogStream) -> Vec<LogEntry> {
    tokio::time::timeout(DEADLINE, stream.collect()).await.expect("the log ends")
}

async fn text(logs: &Arc<Logs>, query: Query) -> String {
    let entries = all(logs.read(id(), query).await.unwrap()).await;
    entries.iter().map(|entry| String::from_utf8_lossy(&entry.bytes).into_owned()).collect()
}

#[tokio::test]
async fn what_was_appended_is_read_after_a_restart_without_doubles() {
    let dir = tempfile::tempdir().unwrap();
    let logs = open(&dir);
    logs.append(id(), &entries(1..=3)).unwrap();
    logs.append(id(), &entries(2..=5)).unwrap();
    assert_eq!(logs.last_seq(id()).unwrap(), 5);
    drop(logs);
    let logs = open(&dir);
    assert_eq!(logs.last_seq(id()).unwrap(), 5);
    logs.append(id(), &[entries(4..=6), entries(5..=6)].concat()).unwrap();
    assert_eq!(all(logs.read(id(), Query::default()).await.unwrap()).await, entries(1..=6));
    assert_eq!(logs.machines().unwrap(), [id()]);
    assert_eq!(logs.size(id()).unwrap(), segment_files(&dir)[0].metadata().unwrap().len());
}

#[tokio::test]
async fn a_gap_is_refused_and_what_came_before_it_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let logs = open(&dir);
    let gap = [entry(1, b"a"), entry(3, b"c")];
    assert!(matches!(logs.append(id(), &gap), Err(LogError::Gap { expected: 2, found: 3 })));
    assert_eq!(logs.last_seq(id()).unwrap(), 1);
}

#[tokio::test]
async fn a_write_that_was_cut_off_anywhere_costs_only_its_own_entry() {
    let whole = {
        let dir = tempfile::tempdir().unwrap();
        open(&dir).append(id(), &entries(1..=3)).unwrap();
        std::fs::read(&segment_files(&dir)[0]).unwrap()
    };
    let third = whole.len() - (whole.len() / 3);
    for length in third..whole.len() {
        let dir = tempfile::tempdir().unwrap();
        open(&dir).append(id(), &entries(1..=3)).unwrap();
        std::fs::write(&segment_files(&dir)[0], &whole[..length]).unwrap();
        let logs = open(&dir);
        assert_eq!(logs.last_seq(id()).unwrap(), 2, "cut at {length}");
        logs.append(id(), &entries(3..=4)).unwrap();
        assert_eq!(all(logs.read(id(), Query::default()).await.unwrap()).await, entries(1..=4));
    }
}

#[tokio::test]
async fn a_new_segment_that_got_nothing_written_keeps_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let logs = small(&dir);
    logs.append(id(), &entries(1..=100)).unwrap();
    let last = segment_files(&dir).pop().unwrap();
    std::fs::File::options().write(true).open(&last).unwrap().set_len(3).unwrap();
    let logs = small(&dir);
    let kept = logs.last_seq(id()).unwrap();
    assert!(kept < 100 && last.to_str().unwrap().ends_with(&format!("{:020}.log", kept + 1)), "{kept}");
    logs.append(id(), &entries(kept + 1..=100)).unwrap();
    assert_eq!(all(logs.read(id(), Query::default()).await.unwrap()).await, entries(1..=100));
}

#[tokio::test]
async fn the_cap_holds_and_the_numbers_show_what_went() {
    let dir = tempfile::tempdir().unwrap();
    let logs = small(&dir);
    for seq in 1..=2000 {
        logs.append(id(), &entries(seq..=seq)).unwrap();
        assert!(logs.size(id()).unwrap() <= 10_000);
    }
    let sum: u64 = segment_files(&dir).iter().map(|path| path.metadata().unwrap().len()).sum();
    assert_eq!(sum, logs.size(id()).unwrap());
    let left = all(logs.read(id(), Query { from_seq: 1, ..Query::default() }).await.unwrap()).await;
    let first = left[0].seq;
    assert!(first > 1 && left == entries(first..=2000), "begins with {first}");
    assert!(left.len() > 100, "most of the cap is used, not {} entries", left.len());
    // One entry larger than a segment has one of its own.
    logs.append(id(), &[entry(2001, &[b'x'; 5000])]).unwrap();
    assert!(logs.size(id()).unwrap() <= 10_000);
    let last = all(logs.read(id(), Query { from_seq: 2001, ..Query::default() }).await.unwrap()).await;
    assert_eq!(last, [entry(2001, &[b'x'; 5000])]);
}

#[tokio::test]
async fn queries_choose_by_number_time_channel_and_lines() {
    let dir = tempfile::tempdir().unwrap();
    let logs = small(&dir);
    let mut some = entries(1..=200);
    for entry in some.iter_mut().filter(|entry| entry.seq % 10 == 0) {
        entry.channel = Channel::Stderr;
    }
    logs.append(id(), &some).unwrap();
    assert_eq!(text(&logs, Query { from_seq: 199, ..Query::default() }).await, "line 199\nline 200\n");
    assert_eq!(text(&logs, Query { since_unix_ms: Some(1200), ..Query::default() }).await, "line 200\n");
    let tail = |lines, channels: &[Channel]| Query {
        tail_lines: Some(lines),
        channels: channels.to_vec(),
        ..Query::default()
    };
    assert_eq!(text(&logs, tail(0, &[])).await, "");
    assert_eq!(text(&logs, tail(1, &[])).await, "line 200\n");
    assert_eq!(text(&logs, tail(2, &[Channel::Stderr])).await, "line 190\nline 200\n");
    assert_eq!(text(&logs, tail(1, &[Channel::Console])).await, "");
    assert_eq!(text(&logs, tail(1000, &[])).await.lines().count(), 200);
    let hundred = text(&logs, tail(100, &[])).await;
    assert!(hundred.starts_with("line 101\n") && hundred.lines().count() == 100);
}

#[tokio::test]
async fn a_tail_begins_within_an_entry_and_counts_an_unended_line() {
    let dir = tempfile::tempdir().unwrap();
    let logs = open(&dir);
    logs.append(id(), &[entry(1, b"a\nb\nc\nd"), entry(2, b"e\nf\n\ng")]).unwrap();
    let expect = [
        (1, "g"),
        (2, "\ng"),
        (3, "f\n\ng"),
        (4, "de\nf\n\ng"),
        (5, "c\nde\nf\n\ng"),
        (9, "a\nb\nc\nde\nf\n\ng"),
    ];
    for (lines, expected) in expect {
        assert_eq!(
            text(&logs, Query { tail_lines: Some(lines), ..Query::default() }).await,
            expected,
            "{lines}"
        );
    }
    logs.append(id(), &[entry(3, b"\n")]).unwrap();
    assert_eq!(text(&logs, Query { tail_lines: Some(1), ..Query::default() }).await, "g\n");
}

#[tokio::test]
async fn followers_replay_and_go_on_without_loss_or_doubles_until_the_log_is_complete() {
    let dir = tempfile::tempdir().unwrap();
    // Large enough to keep everything, in many segments.
    let options = LogOptions { cap_bytes: 10_000_000, segment_bytes: 2000 };
    let logs = Arc::new(Logs::open(dir.path().to_owned(), options));
    let mut followers = Vec::new();
    for round in 0..20u64 {
        let from = round * 100;
        logs.append(id(), &entries(from + 1..=from + 50)).unwrap();
        let stream = logs.follow(id(), Query { from_seq: from, ..Query::default() }).await.unwrap();
        followers.push((from, tokio::spawn(all(stream))));
        tokio::task::yield_now().await;
        for seq in from + 51..=from + 100 {
            logs.append(id(), &entries(seq..=seq)).unwrap();
        }
    }
    logs.finish(id()).unwrap();
    for (from, follower) in followers {
        assert_eq!(follower.await.unwrap(), entries(from.max(1)..=2000), "from {from}");
    }
    // Complete for good, also after a restart.
    let logs = Arc::new(Logs::open(dir.path().to_owned(), options));
    assert_eq!(all(logs.follow(id(), Query::default()).await.unwrap()).await.len(), 2000);
}

#[tokio::test]
async fn a_follower_that_is_overtaken_by_rotation_goes_on_behind_the_gap() {
    let dir = tempfile::tempdir().unwrap();
    let logs = small(&dir);
    logs.append(id(), &entries(1..=10)).unwrap();
    let mut stream = logs.follow(id(), Query::default()).await.unwrap();
    assert_eq!(stream.next().await, Some(entry(1, b"line 1\n")));
    for from in (11..5000).step_by(10) {
        logs.append(id(), &entries(from..=from + 9)).unwrap();
    }
    logs.finish(id()).unwrap();
    let rest = all(stream).await;
    assert_eq!(rest.first(), Some(&entry(2, b"line 2\n")), "what was read already is given");
    assert_eq!(rest.last().unwrap().seq, logs.last_seq(id()).unwrap());
    assert!(rest.windows(2).all(|pair| pair[0].seq < pair[1].seq));
}

#[tokio::test]
async fn a_follower_of_a_log_that_does_not_exist_yet_gets_its_first_entry() {
    let dir = tempfile::tempdir().unwrap();
    let logs = open(&dir);
    let follower = tokio::spawn(all(logs.follow(id(), Query::default()).await.unwrap()));
    tokio::task::yield_now().await;
    logs.append(id(), &entries(1..=1)).unwrap();
    logs.finish(id()).unwrap();
    assert_eq!(follower.await.unwrap(), entries(1..=1));
}

#[tokio::test]
async fn a_removed_log_ends_its_followers_and_takes_nothing_more() {
    let dir = tempfile::tempdir().unwrap();
    let logs = open(&dir);
    logs.append(id(), &entries(1..=1)).unwrap();
    let mut stream = logs.follow(id(), Query::default()).await.unwrap();
    stream.next().await.unwrap();
    let size = logs.size(id()).unwrap();
    assert_eq!(logs.remove(id()).unwrap(), size);
    assert_eq!(logs.remove(id()).unwrap(), 0);
    assert_eq!(tokio::time::timeout(DEADLINE, stream.next()).await.unwrap(), None);
    assert_eq!(logs.machines().unwrap(), []);
}

#[tokio::test]
async fn a_spoilt_part_is_skipped_and_the_rest_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let logs = small(&dir);
    logs.append(id(), &entries(1..=150)).unwrap();
    let files = segment_files(&dir);
    std::fs::File::options().write(true).open(&files[1]).unwrap().write_all_at(&[255; 40], 0).unwrap();
    std::fs::remove_file(&files[2]).unwrap();
    let left = all(logs.read(id(), Query::default()).await.unwrap()).await;
    let first_of = |path: &PathBuf| path.file_stem().unwrap().to_str().unwrap().parse::<u64>().unwrap();
    let expected = [entries(1..=first_of(&files[1]) - 1), entries(first_of(&files[3])..=150)].concat();
    assert_eq!(left, expected);
}
