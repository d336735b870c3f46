//! Lending without a host: what the program does to its directory.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use calve_wire::agent::{AGENT_PROTOCOL_VERSION, Remaining, SandboxSpec};
use calve_wire::lend::{LEND_VERSION, LendOrder, Lent, LentMachine};
use calve_wire::machine::{Limits, Network};

fn order() -> LendOrder {
    LendOrder {
        version: LEND_VERSION,
        attempt: 1,
        holder: "somebody@somewhere".to_owned(),
        spec: SandboxSpec {
            version: AGENT_PROTOCOL_VERSION,
            machine_id: "0123".to_owned(),
            hostname: "one".to_owned(),
            token: String::new(),
            remaining: Remaining { until_deadline_ms: None, grace_ms: 0 },
            written_unix_ms: 0,
            store_paths: Vec::new(),
            limits: Limits::default(),
            network: Network::None,
        },
    }
}

fn lend(agent: &Path, base: &Path) -> Command {
    let mut command = Command::new(agent);
    command.args(["lend".as_ref(), "--base".as_ref(), base.as_os_str()]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command
}

/// The machines that an agent finds there.
fn list(agent: &Path, base: &Path) -> Vec<LentMachine> {
    let listed = lend(agent, base).args(["--list", "yes"]).output().unwrap();
    match Lent::parse_line(&String::from_utf8(listed.stdout).unwrap()) {
        Some(Lent::Machines { machines }) => machines,
        said => panic!("no list: {said:?}"),
    }
}

#[test]
fn an_agent_that_goes_with_the_last_machine_stays_for_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("lent");
    let agent = base.join("agent-0123");
    fs::create_dir(&base).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_calve-agent"), &agent).unwrap();
    // It waits for its order, while another one finds that nobody uses the host.
    let mut waiting = lend(&agent, &base).spawn().unwrap();
    assert_eq!(list(&agent, &base), Vec::new());
    assert!(!base.exists());
    let mut stdin = waiting.stdin.take().unwrap();
    stdin.write_all(format!("{}\n", serde_json::to_string(&order()).unwrap()).as_bytes()).unwrap();
    let mut said =
        BufReader::new(waiting.stdout.take().unwrap()).lines().map(|line| Lent::parse_line(&line.unwrap()));
    assert_eq!(said.next(), Some(Some(Lent::Missing { paths: Vec::new() })));
    let same = fs::read(env!("CARGO_BIN_EXE_calve-agent")).unwrap() == fs::read(&agent).unwrap();
    assert!(same, "another agent is there");
    assert_eq!(list(&agent, &base).len(), 1);
    // No closure comes: nothing is left of the machine, and nothing of the agent.
    drop(stdin);
    assert!(matches!(said.next(), Some(Some(Lent::Failed(_)))));
    waiting.wait().unwrap();
    assert!(!base.exists());
}
