//! Init's own way into the sandbox, from the clone to the caller's code.

use std::convert::Infallible;

use calve_wire::agent::{SandboxFailure as SandboxError, SandboxSpec};
use rustix::process::{DumpableBehavior, Signal, set_dumpable_behavior, set_parent_process_death_signal};
use rustix::thread::{Gid, Uid, UnshareFlags, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::ids::Map;
use super::talk::Talk;
use super::{etc, failed, net, own_network, tree};
use crate::cgroup::Entrance;
use crate::confine::Confinement;

/// The agent has written the id map.
pub const MAPPED: u8 = b'm';
/// Longest report, in bytes: a sentence or two.
const REPORT_MAX_BYTES: usize = 16 * 1024;
/// Exit code of an init that could not begin; nobody but the agent sees it.
const FAILED_EXIT: i32 = 125;

/// What init must know.
pub struct Job<'a> {
    /// The machine.
    pub spec: &'a SandboxSpec,
    /// Its users.
    pub map: Map,
    /// Files that come into its tree.
    pub files: &'a etc::Files,
    /// The way to the agent.
    pub agent: &'a Talk,
    /// The cgroups that it must enter by itself.
    pub entrances: Vec<Entrance>,
}

/// What init tells the agent: notes for people, or why there is no sandbox.
pub type Report = Result<Vec<String>, SandboxError>;

/// Enters the sandbox and becomes what the caller wants.
pub fn run(job: Job, confinement: Confinement, init: impl FnOnce(Confinement) -> Infallible) -> ! {
    let report = enter(&job);
    let entered = report.is_ok();
    let text = serde_json::to_vec(&report).expect("sentences");
    if job.agent.say(&text).is_err() || !entered {
        exit(FAILED_EXIT)
    }
    match init(confinement) {}
}

/// Without running what the agent's copy of the program would do at its exit.
fn exit(code: i32) -> ! {
    // SAFETY: ends the process at once.
    unsafe { libc::_exit(code) }
}

fn enter(job: &Job) -> Report {
    let step = |what: &'static str| move |error: rustix::io::Errno| failed(what, &error.into());
    for entrance in &job.entrances {
        entrance.enter().map_err(|e| failed("init cannot enter its cgroup", &e))?;
    }
    super::raise_open_files();
    let sources = tree::Sources::open(job)?;
    wait_for(job.agent, MAPPED);
    if job.map.changes_user() {
        let (uid, gid) = (Uid::ROOT, Gid::ROOT);
        set_thread_res_gid(gid, gid, gid).map_err(step("the sandbox's group cannot be taken"))?;
        set_thread_groups(&[]).map_err(step("the host's groups cannot be left"))?;
        set_thread_res_uid(uid, uid, uid).map_err(step("the sandbox's user cannot be taken"))?;
    }
    // Both are undone by a change of user. Should the agent have died before this, waiting for it ends init.
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(step("init cannot be tied to the agent"))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(step("init cannot be hidden from its programs"))?;
    rustix::system::sethostname(job.spec.hostname.as_bytes()).map_err(step("the host name cannot be set"))?;
    if own_network(job.spec.network) {
        net::raise_loopback().map_err(|e| failed("the loopback cannot be raised", &e))?;
    }
    let mut notes = tree::build(job, sources)?;
    if own_network(job.spec.network) && net::open_low_ports().is_err() {
        notes.push(
            "ports below 1024 cannot be listened on: this host does not let its network settings be changed"
                .to_owned(),
        );
    }
    // SAFETY: no descriptor table is shared or unshared; this thread is the only one.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWCGROUP) }
        .map_err(step("no cgroup namespace"))?;
    Ok(notes)
}

/// Waits for the agent's byte; without an agent there is nothing left to do.
fn wait_for(agent: &Talk, expected: u8) {
    let mut byte = [0];
    match agent.hear(&mut byte) {
        Ok(1) if byte[0] == expected => {}
        _ => exit(FAILED_EXIT),
    }
}

/// Reads init's report; none where it ended without one.
pub fn read_report(socket: &Talk) -> Option<Report> {
    let mut text = vec![0; REPORT_MAX_BYTES];
    let length = socket.hear(&mut text).ok()?;
    serde_json::from_slice(&text[..length]).ok()
}
