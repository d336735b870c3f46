use std::borrow::Cow;

use calve_core::{MachineName, Timestamp};
use calve_wire::api::{Bringing, MachineView};
use calve_wire::machine::{Network, Probe, Restart, Workload};
use clap_complete::ArgValueCompleter;

use super::{names, ps};
use crate::args::{parse_name, show_duration, show_size};
use crate::client::Client;
use crate::failure::{ExitStatus, Outcome};
use crate::ui::{self, Cell, Colour, Table};

/// Shows one machine in full.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The machine.
    #[arg(value_parser = parse_name, add = ArgValueCompleter::new(names::complete))]
    name: MachineName,
    /// Print an object.
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args) -> Outcome {
    let client = Client::connect().await?;
    let path = names::path(&args.name, "");
    if args.json {
        ui::json(&client.get_bytes(&path).await?)?;
        return Ok(ExitStatus::Success);
    }
    let machine: MachineView = client.get(&path).await?;
    let mut lines = Lines(Table::without_headings());
    describe(&machine, &mut lines);
    lines.0.print()?;
    Ok(ExitStatus::Success)
}

struct Lines(Table<2>);

impl Lines {
    fn add<'a>(&mut self, label: &str, value: impl Into<Cow<'a, str>>) {
        self.0.row([Cell::new(label).colour(Colour::Bold), Cell::new(value)]);
    }
}

fn describe(machine: &MachineView, lines: &mut Lines) {
    let summary = &machine.summary;
    let now = ps::now();
    let ago = |unix_ms| format!("{} ago", show_duration(now.since(Timestamp(unix_ms))));
    lines.add("name", summary.name.as_str());
    lines.add("id", summary.id.to_string());
    let reason = machine.stop_reason.map(|reason| format!(", {reason}")).unwrap_or_default();
    let state = ps::state(summary.state, None, summary.condition, summary.restarts);
    lines.0.row([Cell::new("state").colour(Colour::Bold), state]);
    lines.add("since", format!("{}{reason}", ago(machine.state_since_unix_ms)));
    if let Some(ready) = summary.ready {
        lines.add("ready", if ready { "yes" } else { "no" });
    }
    if let Some(exit) = &summary.exit {
        lines.add("ended", ps::show_exit(exit));
    }
    if let Some(bringing) = &machine.bringing {
        let Bringing { paths, paths_done, bytes, bytes_done, sent_bytes } = *bringing;
        let [done, all, sent] = [bytes_done, bytes, sent_bytes].map(show_size);
        lines.add(
            "closure",
            format!("{paths_done} of {paths} paths, {done} of {all} brought; {sent} were sent"),
        );
    }
    lines.add("kind", summary.kind.as_str());
    lines.add("runs", summary.runs.as_str());
    if let Workload::Program(program) = &machine.spec.workload
        && !program.args.is_empty()
    {
        lines.add("arguments", program.args.join(" "));
    }
    if !machine.spec.source.given.is_empty() {
        lines.add("given", machine.spec.source.given.as_str());
    }
    if let Some(revision) = &machine.spec.source.revision {
        lines.add("revision", revision.as_str());
    }
    if let Some((driver, node)) = summary.driver.zip(summary.node.as_ref()) {
        lines.add("driver", format!("{driver} on {node}"));
    }
    lines.add("created", ago(summary.created_unix_ms));
    // What has ended holds neither a lease nor a port, and nobody counts its starts any more.
    if !summary.state.is_terminal() {
        lines.add("lease", lease(summary.deadline_unix_ms, now));
        lines.add("starts", format!("{} (restart: {})", machine.starts, show_restart(machine.spec.restart)));
    }
    if let Some(health) = &machine.spec.health {
        lines.add("health", show_probe(&health.probe));
    }
    lines.add(
        "network",
        match machine.spec.network {
            Network::None => "none",
            Network::Host => "host",
        },
    );
    let limits = show_limits(machine);
    if !limits.is_empty() {
        lines.add("limits", limits);
    }
    for port in summary.ports.iter().filter(|_| !summary.state.is_terminal()) {
        lines.add("port", ps::show_port(port));
    }
    if !machine.linked && !summary.state.is_terminal() {
        lines.add("agent", "not heard");
    }
    for message in &machine.messages {
        lines.add("note", message.as_str());
    }
}

fn lease(deadline_unix_ms: Option<u64>, now: Timestamp) -> String {
    match deadline_unix_ms.map(Timestamp) {
        None => "none: it has no end".to_owned(),
        Some(deadline) if deadline > now => format!("ends in {}", show_duration(deadline.since(now))),
        Some(deadline) => format!("ended {} ago", show_duration(now.since(deadline))),
    }
}

fn show_restart(restart: Restart) -> &'static str {
    match restart {
        Restart::Never => "never",
        Restart::OnFailure => "on-failure",
        Restart::Always => "always",
    }
}

fn show_probe(probe: &Probe) -> String {
    match probe {
        Probe::Command { argv } => argv.join(" "),
        Probe::Tcp { port } => format!("TCP port {port}"),
        Probe::Http { port, path } => format!("HTTP port {port}, {path}"),
    }
}

fn show_limits(machine: &MachineView) -> String {
    let limits = &machine.spec.limits;
    let cpus = limits.cpus_milli.map(|milli| format!("{} CPUs", f64::from(milli) / 1000.0));
    let memory = limits.memory_bytes.map(|bytes| format!("{} memory", show_size(bytes)));
    let pids = limits.pids.map(|pids| format!("{pids} processes"));
    [cpus, memory, pids].into_iter().flatten().collect::<Vec<_>>().join(", ")
}
