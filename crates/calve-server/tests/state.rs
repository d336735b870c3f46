//! One suite for every state backend, and what the embedded one promises beyond it: crashes and full disks.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use calve_server::state::memory::MemoryState;
use calve_server::state::{
    Durability, EmbeddedState, Entry, Expect, KEY_MAX_BYTES, Revision, State, StateError, VALUE_MAX_BYTES,
};
use futures_util::FutureExt;
use proptest::prelude::*;

const NOW: Durability = Durability::Now;
const SOON: Durability = Durability::Soon;
/// No test waits longer for anything.
const DEADLINE: Duration = Duration::from_secs(60);

/// Runs a test on every backend.
async fn on_each<F: Future<Output = ()>>(test: impl Fn(Arc<dyn State>) -> F) {
    test(Arc::new(MemoryState::default())).await;
    let dir = tempfile::tempdir().unwrap();
    test(Arc::new(EmbeddedState::open(dir.path()).unwrap())).await;
}

fn text(entry: Option<Entry>) -> Option<String> {
    entry.map(|entry| String::from_utf8(entry.value.to_vec()).unwrap())
}

fn keys(entries: &[Entry]) -> Vec<&str> {
    entries.iter().map(|entry| entry.key.as_str()).collect()
}

#[tokio::test]
async fn what_was_put_is_got_with_its_revision() {
    on_each(|state| async move {
        assert_eq!(state.get("a").await.unwrap(), None);
        let first = state.put("a", "1".into(), Expect::Any, NOW).await.unwrap();
        let second = state.put("a", "2".into(), Expect::Any, SOON).await.unwrap();
        assert!(second > first);
        let entry = state.get("a").await.unwrap().unwrap();
        assert_eq!((entry.revision, &entry.value[..]), (second, &b"2"[..]));
        assert!(state.delete("a", Expect::Any, NOW).await.unwrap() > second);
        assert_eq!(state.get("a").await.unwrap(), None);
        state.delete("a", Expect::Any, SOON).await.unwrap();
        assert!(state.put("a", Bytes::new(), Expect::Absent, SOON).await.is_ok());
        assert_eq!(text(state.get("a").await.unwrap()).as_deref(), Some(""));
    })
    .await;
}

#[tokio::test]
async fn changes_are_made_only_where_their_expectation_holds() {
    on_each(|state| async move {
        let conflict = |result: Result<Revision, StateError>| {
            assert!(matches!(result, Err(StateError::Conflict { key }) if key == "k"));
        };
        conflict(state.put("k", "x".into(), Expect::Revision(1), NOW).await);
        conflict(state.delete("k", Expect::Revision(1), NOW).await);
        let first = state.put("k", "1".into(), Expect::Absent, NOW).await.unwrap();
        conflict(state.put("k", "x".into(), Expect::Absent, SOON).await);
        state.put("other", "o".into(), Expect::Absent, NOW).await.unwrap();
        let second = state.put("k", "2".into(), Expect::Revision(first), SOON).await.unwrap();
        conflict(state.put("k", "x".into(), Expect::Revision(first), NOW).await);
        conflict(state.delete("k", Expect::Revision(first), SOON).await);
        assert_eq!(text(state.get("k").await.unwrap()).as_deref(), Some("2"));
        state.delete("k", Expect::Revision(second), NOW).await.unwrap();
        conflict(state.put("k", "x".into(), Expect::Revision(second), NOW).await);
        state.put("k", "3".into(), Expect::Absent, NOW).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn of_many_at_once_one_wins() {
    on_each(|state| async move {
        let tries = (0..64).map(|n| {
            let state = state.clone();
            let durability = if n % 2 == 0 { NOW } else { SOON };
            tokio::spawn(async move {
                state.put("k", n.to_string().into(), Expect::Absent, durability).await.is_ok()
            })
        });
        let won =
            futures_util::future::join_all(tries).await.into_iter().filter(|won| *won.as_ref().unwrap());
        assert_eq!(won.count(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_list_shows_its_prefix_in_order() {
    on_each(|state| async move {
        for key in ["a/2", "b", "a/1", "a", "a/10", "a0"] {
            state.put(key, key.to_owned().into(), Expect::Absent, SOON).await.unwrap();
        }
        let last = state.delete("a/2", Expect::Any, NOW).await.unwrap();
        let (entries, revision) = state.list("a/").await.unwrap();
        assert_eq!((keys(&entries), revision), (vec!["a/1", "a/10"], last));
        assert_eq!(state.list("").await.unwrap().0.len(), 5);
        assert!(state.list("c").await.unwrap().0.is_empty());
    })
    .await;
}

#[tokio::test]
async fn changes_since_a_revision_are_told_once_a_key() {
    on_each(|state| async move {
        let seen = state.put("m/old", "".into(), Expect::Any, NOW).await.unwrap();
        for key in ["m/a", "n/x", "m/a", "m/b", "m/gone"] {
            state.put(key, "v".into(), Expect::Any, SOON).await.unwrap();
        }
        state.delete("m/gone", Expect::Any, SOON).await.unwrap();
        let last = state.delete("m/old", Expect::Any, SOON).await.unwrap();
        let changes = state.list_since("m/", seen).await.unwrap().expect("so few are remembered");
        assert_eq!((keys(&changes.set), changes.revision), (vec!["m/a", "m/b"], last));
        let mut removed = changes.removed;
        removed.sort_unstable();
        assert_eq!(removed, ["m/gone", "m/old"]);
        let none = state.list_since("m/", last).await.unwrap().unwrap();
        assert!(none.set.is_empty() && none.removed.is_empty());
    })
    .await;
}

#[tokio::test]
async fn waiting_ends_with_the_next_change_that_a_list_then_shows() {
    on_each(|state| async move {
        let first = state.put("a", "".into(), Expect::Any, NOW).await.unwrap();
        assert_eq!(state.changed(0).await, first);
        assert!(state.changed(first).now_or_never().is_none());
        let waiting = tokio::spawn({
            let state = state.clone();
            async move {
                let seen = state.changed(first).await;
                (seen, state.list("").await.unwrap())
            }
        });
        let second = state.put("b", "".into(), Expect::Any, SOON).await.unwrap();
        let (seen, (entries, revision)) = tokio::time::timeout(DEADLINE, waiting).await.unwrap().unwrap();
        assert!(seen >= second && revision >= seen && entries.len() == 2);
    })
    .await;
}

#[tokio::test]
async fn what_no_backend_could_hold_is_refused() {
    on_each(|state| async move {
        let long = "k".repeat(KEY_MAX_BYTES + 1);
        for key in ["", "a b", "ä", "a\0", long.as_str()] {
            let result = state.put(key, Bytes::new(), Expect::Any, NOW).await;
            assert!(matches!(result, Err(StateError::Invalid(_))), "{key:?}");
        }
        let most = Bytes::from(vec![7; VALUE_MAX_BYTES]);
        state.put("k", most, Expect::Any, SOON).await.unwrap();
        let over = Bytes::from(vec![7; VALUE_MAX_BYTES + 1]);
        assert!(matches!(state.put("k", over, Expect::Any, NOW).await, Err(StateError::Invalid(_))));
    })
    .await;
}

/// A step of the model check; keys are few, so that steps meet.
#[derive(Debug, Clone)]
enum Step {
    Put {
        key: u8,
        size: usize,
        expect: Wanted,
        soon: bool,
    },
    Delete {
        key: u8,
        expect: Wanted,
        soon: bool,
    },
    /// Closes and opens again, where the backend can.
    Reopen,
}

#[derive(Debug, Clone, Copy)]
enum Wanted {
    Any,
    Absent,
    Current,
    Stale,
}

fn step() -> impl Strategy<Value = Step> {
    let wanted =
        || prop_oneof![Just(Wanted::Any), Just(Wanted::Absent), Just(Wanted::Current), Just(Wanted::Stale)];
    prop_oneof![
        8 => (0..5u8, 0..300usize, wanted(), any::<bool>())
            .prop_map(|(key, size, expect, soon)| Step::Put { key, size, expect, soon }),
        4 => (0..5u8, wanted(), any::<bool>()).prop_map(|(key, expect, soon)| Step::Delete { key, expect, soon }),
        1 => Just(Step::Reopen),
    ]
}

/// What a store should hold.
#[derive(Default)]
struct Model {
    values: BTreeMap<String, (Revision, Vec<u8>)>,
    revision: Revision,
}

impl Model {
    fn expect(&self, key: &str, wanted: Wanted) -> (Expect, bool) {
        let current = self.values.get(key).map(|(revision, _)| *revision);
        match wanted {
            Wanted::Any => (Expect::Any, true),
            Wanted::Absent => (Expect::Absent, current.is_none()),
            Wanted::Current => {
                current.map_or((Expect::Absent, true), |revision| (Expect::Revision(revision), true))
            }
            Wanted::Stale => (Expect::Revision(current.unwrap_or(self.revision) + 1), false),
        }
    }

    async fn check(&mut self, state: &dyn State, step: &Step) {
        let (key, wanted, soon, value) = match step {
            Step::Put { key, size, expect, soon } => (key, *expect, *soon, Some(vec![*key; *size])),
            Step::Delete { key, expect, soon } => (key, *expect, *soon, None),
            Step::Reopen => return,
        };
        let key = format!("k/{key}");
        let (expect, holds) = self.expect(&key, wanted);
        let durability = if soon { SOON } else { NOW };
        let result = match value.clone() {
            Some(value) => state.put(&key, value.into(), expect, durability).await,
            None => state.delete(&key, expect, durability).await,
        };
        assert_eq!(result.is_ok(), holds, "{step:?}: {result:?}");
        let Ok(revision) = result else { return };
        assert!(revision >= self.revision);
        self.revision = revision;
        match value {
            Some(value) => drop(self.values.insert(key, (revision, value))),
            None => drop(self.values.remove(&key)),
        }
    }

    async fn same(&self, state: &dyn State) {
        let (entries, _) = state.list("k/").await.unwrap();
        let found: BTreeMap<_, _> =
            entries.into_iter().map(|entry| (entry.key, (entry.revision, entry.value.to_vec()))).collect();
        assert_eq!(found, self.values);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn every_backend_does_what_a_map_does(steps in proptest::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let memory = MemoryState::default();
            let mut model = Model::default();
            for step in &steps {
                model.check(&memory, step).await;
            }
            model.same(&memory).await;

            let dir = tempfile::tempdir().unwrap();
            let mut state = EmbeddedState::open(dir.path()).unwrap();
            let mut model = Model::default();
            for step in &steps {
                model.check(&state, step).await;
                if matches!(step, Step::Reopen) {
                    drop(state);
                    state = EmbeddedState::open(dir.path()).unwrap();
                    model.same(&state).await;
                }
            }
            model.same(&state).await;
        });
    }
}

/// Set in a child process: which part of this file to be, and where.
const CHILD: &str = "CALVE_STATE_TEST_CHILD";

fn child(part: &str, dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", part, "--nocapture", "--include-ignored"]).env(CHILD, dir);
    command
}

/// Not a test of its own: writes until it is killed, and says each change once it is acknowledged.
#[tokio::test]
#[ignore = "the child of another test"]
async fn child_that_writes() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let state = Arc::new(EmbeddedState::open(Path::new(&dir)).unwrap());
    let writers = (0..4).map(|writer| {
        let state = state.clone();
        tokio::spawn(async move {
            for n in 0.. {
                let durability = if n % 3 == 0 { NOW } else { SOON };
                let value = format!("{n}").into();
                let revision =
                    state.put(&format!("w/{writer}"), value, Expect::Any, durability).await.unwrap();
                println!("acknowledged {writer} {n} {revision}");
            }
        })
    });
    futures_util::future::join_all(writers).await;
}

#[tokio::test]
async fn a_killed_writer_loses_nothing_that_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut newest = BTreeMap::new();
    for round in 0..6u32 {
        let mut writing = child("child_that_writes", dir.path()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(writing.stdout.take().unwrap()).lines();
        let mut seen = 0;
        for line in lines {
            let Ok(line) = line else { break };
            let words: Vec<_> = line.split(' ').collect();
            if let ["acknowledged", writer, n, revision] = words[..] {
                newest.insert(
                    format!("w/{writer}"),
                    (n.parse::<u64>().unwrap(), revision.parse::<Revision>().unwrap()),
                );
                seen += 1;
                if seen == 40 + 37 * round {
                    writing.kill().unwrap();
                }
            }
        }
        writing.wait().unwrap();
        assert!(seen >= 40, "it wrote {seen}");
        let state = EmbeddedState::open(dir.path()).unwrap();
        for (key, (n, revision)) in &newest {
            let entry = state.get(key).await.unwrap().unwrap();
            assert!(entry.revision >= *revision, "{key} fell back from {revision} to {}", entry.revision);
            let kept: u64 = String::from_utf8(entry.value.to_vec()).unwrap().parse().unwrap();
            assert!(kept >= *n || entry.revision > *revision, "{key}");
        }
    }
}

/// Not a test of its own: fills a small disk, is told so, makes room, and goes on.
#[tokio::test]
#[ignore = "the child of another test"]
async fn child_on_a_small_disk() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let dir = Path::new(&dir);
    let ballast = dir.join("ballast");
    std::fs::write(&ballast, vec![1; 3 << 20]).unwrap();
    let state = EmbeddedState::open(dir).unwrap();
    // Stops and removals are small, and have their space already.
    let filler = dir.join("filler");
    let mut filling = std::fs::File::create(&filler).unwrap();
    while std::io::Write::write_all(&mut filling, &[1; 4096]).is_ok() {}
    for n in 0..500 {
        state.put(&format!("small/{n}"), "gone".into(), Expect::Absent, SOON).await.expect("space set aside");
    }
    let refusal = state.put("large", Bytes::from(vec![7; 100_000]), Expect::Absent, NOW).await;
    assert!(matches!(refusal, Err(StateError::Full)), "{refusal:?}");
    std::fs::remove_file(filler).unwrap();

    let value = Bytes::from(vec![7; 100_000]);
    let mut kept = Vec::new();
    let mut refused = Vec::new();
    for n in 0..100 {
        let key = format!("k/{n}");
        let durability = if n % 2 == 0 { SOON } else { NOW };
        match state.put(&key, value.clone(), Expect::Absent, durability).await {
            Ok(_) => kept.push(key),
            Err(StateError::Full) => refused.push(key),
            Err(error) => panic!("{error}: {:?}", std::error::Error::source(&error)),
        }
    }
    assert!(!kept.is_empty() && !refused.is_empty(), "{} kept, {} refused", kept.len(), refused.len());
    // Reads go on all the time.
    assert!(state.get(&kept[0]).await.unwrap().is_some());
    std::fs::remove_file(ballast).unwrap();
    state.put("after", "1".into(), Expect::Any, NOW).await.expect("there is room again");
    drop(state);
    let state = EmbeddedState::open(dir).unwrap();
    for key in &kept {
        assert_eq!(state.get(key).await.unwrap().map(|entry| entry.value), Some(value.clone()), "{key}");
    }
    for key in &refused {
        assert_eq!(state.get(key).await.unwrap(), None, "{key}");
    }
    println!("the small disk was survived");
}

#[test]
fn a_full_disk_is_told_apart_and_survived() {
    let dir = tempfile::tempdir().unwrap();
    let inner = child("child_on_a_small_disk", dir.path());
    // A mount namespace of its own, so that the small disk goes with it.
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--mount", "sh", "-c"]);
    command.arg("mount -t tmpfs -o size=12m small \"$1\" && shift && exec \"$@\"").arg("sh").arg(dir.path());
    command.arg(inner.get_program()).args(inner.get_args()).env(CHILD, dir.path());
    let output = command.output().expect("unshare(1) of util-linux");
    let said = String::from_utf8_lossy(&output.stdout);
    if String::from_utf8_lossy(&output.stderr).contains("unshare: ") {
        eprintln!(
            "skipped: this host allows no mount namespaces: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        return;
    }
    assert!(
        said.contains("the small disk was survived"),
        "{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
