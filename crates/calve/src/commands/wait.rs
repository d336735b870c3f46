use calve_core::{Kind, MachineName, State};
use calve_wire::api::MachineView;
use clap_complete::ArgValueCompleter;

use super::names;
use crate::args::parse_name;
use crate::client::Client;
use crate::failure::{ExitStatus, Outcome};
use crate::ui;

/// Waits until machines have ended; ends with the exit code of the first program that did not succeed, 125 where none is known.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The machines.
    #[arg(required = true, value_parser = parse_name, add = ArgValueCompleter::new(names::complete))]
    names: Vec<MachineName>,
    /// Print an array of objects, one a machine.
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args) -> Outcome {
    let client = Client::connect().await?;
    let wait = |name: MachineName| {
        let client = client.clone();
        async move { client.get::<MachineView>(&names::path(&name, "/wait")).await }
    };
    let results = names::each(args.names, wait).await;
    let mut status = ExitStatus::Success;
    let mut views = Vec::new();
    for (_, result) in results {
        let ended = match result {
            Ok(view) => {
                let ended = end_status(&view);
                views.push(view);
                ended
            }
            Err(failure) => ui::failure(&failure),
        };
        if status.code() == 0 {
            status = ended;
        }
    }
    if args.json {
        ui::json(&serde_json::to_vec(&views).expect("what was parsed can be written"))?;
    }
    Ok(status)
}

/// The status of a machine that has ended: its program's code; without one, 125 as `run` has it, unless it is a system, which
/// has none, and was let go of.
fn end_status(view: &MachineView) -> ExitStatus {
    let summary = &view.summary;
    let Some(why) = no_exit(summary.state, summary.exit.is_some(), &summary.kind) else {
        return summary.exit.map_or(ExitStatus::Success, |exit| {
            ExitStatus::Program(calve_core::Exit::from(exit).shell_code())
        });
    };
    let messages: Vec<_> = std::iter::once(why).chain(view.messages.iter().map(String::as_str)).collect();
    ui::note(&format!("{} {}", summary.name, messages.join("; ")));
    ExitStatus::Failed
}

/// Why nobody can say how it ended, where that is so.
fn no_exit(state: State, has_exit: bool, kind: &str) -> Option<&'static str> {
    match state {
        _ if has_exit => None,
        State::Failed => Some("failed"),
        State::Expired => Some("ended with its lease"),
        _ if kind == Kind::System.as_str() => None,
        _ => Some("has ended, and how its program did is not known"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_that_is_not_known_is_no_success() {
        let known = |state, has_exit, kind| no_exit(state, has_exit, kind).is_none();
        assert!(known(State::Gone, true, "job") && known(State::Expired, true, "job"));
        assert!(known(State::Gone, false, "system"));
        for state in [State::Failed, State::Expired] {
            assert!(!known(state, false, "system") && !known(state, false, "service"));
        }
        assert!(!known(State::Gone, false, "job"));
    }
}
