//! Init's own way into the sandbox, from the clone to the caller's code.

use std::convert::Infallible;

use calve_wire::agent::{SandboxFailure as SandboxError, SandboxSpec};
use rustix::process::{DumpableBehavior, Signal, set_dumpable_behavior, set_parent_process_death_signal};
use rustix::thread::{Gid, Uid, UnshareFlags, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::ids::Map;
use super::talk::Talk;
use super::task::{Assigned, Views};
use super::title::Title;
use super::tree::{self, Devices, Sources, Tree};
use super::{etc, failed, net, own_network};
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
    tell(enter(&job), job.agent, confinement, init)
}

fn tell(
    report: Report,
    agent: &Talk,
    confinement: Confinement,
    init: impl FnOnce(Confinement) -> Infallible,
) -> ! {
    let entered = report.is_ok();
    let text = serde_json::to_vec(&report).expect("sentences");
    if agent.say(&text).is_err() || !entered {
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
    for entrance in &job.entrances {
        entrance.enter().map_err(|e| failed("init cannot enter its cgroup", &e))?;
    }
    let own_network = own_network(job.spec.network);
    leave_network(own_network)?;
    super::raise_open_files();
    let devices = Devices::open()?;
    let sources = Sources::open(job.spec, job.files, job.map.changes_user())?;
    let tree = move_in(job.map, own_network, devices, job.agent)?;
    complete(tree, job.spec, job.files, sources)
}

/// As [`run`], for a machine that is not known yet: goes as far as that is the same for all, and on from there once it hears
/// which it is. Says nothing before: why it failed is said by the sandbox that is made in its place.
pub fn stand_by(
    map: Map,
    agent: &Talk,
    title: Option<Title>,
    mut confinement: Confinement,
    init: impl FnOnce(Confinement) -> Infallible,
) -> ! {
    super::raise_open_files();
    let ready = leave_network(true)
        .and_then(|()| move_in(map, true, Devices::open()?, agent))
        .and_then(|tree| if map.changes_user() { out_of_sight(tree) } else { Ok(tree) });
    let Ok(tree) = ready else { exit(FAILED_EXIT) };
    let Some(assigned) = Assigned::hear(agent) else { exit(FAILED_EXIT) };
    if let Some(title) = title {
        title.set(&assigned.task.run_dir);
    }
    confinement.go_first(&assigned.task.spec.limits);
    if let Some(most) = assigned.task.processes_max {
        confinement.limit_processes(most);
    }
    let report = begin(tree, assigned);
    tell(report, agent, confinement, init)
}

/// The host's tree is dropped already: what comes out of it for a machine comes as descriptors.
fn out_of_sight(mut tree: Tree) -> Result<Tree, SandboxError> {
    tree.enter().map_err(|e| failed("the tree cannot be entered", &e.into()))?;
    tree::drop_host().map_err(|e| failed("the host cannot be left", &e))?;
    Ok(tree)
}

fn begin(tree: Tree, assigned: Assigned) -> Report {
    let Assigned { task, standard: [output, errors], entrances, views } = assigned;
    rustix::stdio::dup2_stdout(output)
        .and_then(|()| rustix::stdio::dup2_stderr(errors))
        .map_err(|e| failed("init cannot open its log", &e.into()))?;
    for entrance in entrances.into_iter().map(Entrance::v1) {
        entrance.enter().map_err(|e| failed("init cannot enter its cgroup", &e))?;
    }
    let files = etc::Files::new(&task.spec);
    let sources = match task.views {
        None => Sources::open(&task.spec, &files, false)?,
        Some(Views { kinds, busybox }) => Sources::from_parts(&task.spec, kinds, busybox, views)
            .ok_or_else(|| failed("store paths are missing", &std::io::ErrorKind::InvalidData.into()))?,
    };
    complete(tree, &task.spec, &files, sources)
}

fn leave_network(own: bool) -> Result<(), SandboxError> {
    if own {
        unshare(UnshareFlags::NEWNET).map_err(|e| failed("no network namespace", &e.into()))?;
    }
    Ok(())
}

/// From the agent's word that the users are mapped to a tree without what is the machine's own.
fn move_in(map: Map, own_network: bool, devices: Devices, agent: &Talk) -> Result<Tree, SandboxError> {
    let step = |what: &'static str| move |error: rustix::io::Errno| failed(what, &error.into());
    wait_for(agent, MAPPED);
    if map.changes_user() {
        let (uid, gid) = (Uid::ROOT, Gid::ROOT);
        set_thread_res_gid(gid, gid, gid).map_err(step("the sandbox's group cannot be taken"))?;
        set_thread_groups(&[]).map_err(step("the host's groups cannot be left"))?;
        set_thread_res_uid(uid, uid, uid).map_err(step("the sandbox's user cannot be taken"))?;
    }
    // Both are undone by a change of user. Should the agent have died before this, waiting for it ends init.
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(step("init cannot be tied to the agent"))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(step("init cannot be hidden from its programs"))?;
    if own_network {
        net::raise_loopback().map_err(|e| failed("the loopback cannot be raised", &e))?;
    }
    let mut tree = Tree::lay(devices, map)?;
    if own_network && net::open_low_ports(tree.root()).is_err() {
        tree.note(
            "ports below 1024 cannot be listened on: this host does not let its network settings be changed",
        );
    }
    Ok(tree)
}

/// What is the machine's own.
fn complete(tree: Tree, spec: &SandboxSpec, files: &etc::Files, sources: Sources) -> Report {
    let step = |what: &'static str| move |error: rustix::io::Errno| failed(what, &error.into());
    rustix::system::sethostname(spec.hostname.as_bytes()).map_err(step("the host name cannot be set"))?;
    let notes = tree.fill(spec, files, sources)?;
    unshare(UnshareFlags::NEWCGROUP).map_err(step("no cgroup namespace"))?;
    Ok(notes)
}

fn unshare(namespace: UnshareFlags) -> rustix::io::Result<()> {
    // SAFETY: no descriptor table is shared or unshared; this thread is the only one.
    unsafe { rustix::thread::unshare_unsafe(namespace) }
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
