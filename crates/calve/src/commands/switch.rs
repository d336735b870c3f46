use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use calve_core::{Kind, MachineName};
use calve_store::progress::Progress;
use calve_wire::api::{CreateMachine, MachineView};
use calve_wire::machine::{MachineSpec, Workload};
use calve_wire::system::{SwitchAction, SwitchOutcome, SwitchRequest, SwitchStage, SwitchView};
use clap::ValueEnum;
use clap_complete::ArgValueCompleter;

use super::names;
use crate::args::{parse_duration, parse_name};
use crate::client::Client;
use crate::failure::{ExitStatus, Failure, Outcome};
use crate::resolve::{self, Wish};
use crate::ship;
use crate::ui::{self, Transfer};

/// How long a switch is followed without its server: the next one goes on with it within moments.
const SERVER_GONE_MAX: Duration = Duration::from_secs(30);
/// Pause between two tries to reach the next server.
const PAUSE: Duration = Duration::from_millis(200);

/// Pause between two looks at how far the closure is.
const LOOK: Duration = Duration::from_millis(500);

/// Switches a machine to another system, and back where that does not prove itself.
///
/// The closure is brought to the host, its profile set, the system activated. Then it has to be confirmed: the health check
/// passes, and the server hears the host's agent over a new connection. Otherwise the host goes back to its former system
/// by itself, also when it is cut off; and a restart before that leads to the former system.
///
/// Exit codes: 0 applied (or, for boot, set for the next boot); 3 rolled back: the host has its former system; 4 failed:
/// neither is sure; 125 nothing was begun.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The machine.
    #[arg(value_parser = parse_name, add = ArgValueCompleter::new(names::complete))]
    name: MachineName,
    /// The new system: a store path, a link to one, a Nix file or a flake reference, as for `calve run`.
    #[arg(value_hint = clap::ValueHint::AnyPath, required_unless_present = "attr")]
    what: Option<String>,
    /// Build and switch to this attribute of a Nix file (default.nix where none is named).
    #[arg(short = 'A', long, value_name = "ATTR")]
    attr: Option<String>,
    /// What is done with it.
    #[arg(long, value_enum, default_value = "switch")]
    action: ActionWord,
    #[command(flatten)]
    confirm: ConfirmArgs,
}

/// What has to be true of the new system, and when.
#[derive(Debug, clap::Args)]
pub struct ConfirmArgs {
    /// A command of the host's shell that exits with 0 where the new system is well; tried until it does.
    #[arg(long, value_name = "COMMAND")]
    health: Option<String>,
    /// Time from the beginning of the activation until it has to be confirmed, e.g. 5m. [default: 60s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    confirm: Option<Duration>,
    /// Print the switch as an object once it has ended.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ActionWord {
    /// Activate it now, and boot it from now on.
    Switch,
    /// Boot it at the next boot: tried once, and from then on where that boot was confirmed.
    Boot,
    /// Activate it now; the next boot is of the former system.
    Test,
    /// Show what activating it would do.
    DryActivate,
}

impl From<ActionWord> for SwitchAction {
    fn from(word: ActionWord) -> Self {
        match word {
            ActionWord::Switch => Self::Switch,
            ActionWord::Boot => Self::Boot,
            ActionWord::Test => Self::Test,
            ActionWord::DryActivate => Self::DryActivate,
        }
    }
}

pub async fn run(args: Args) -> Outcome {
    let wish = Wish { what: args.what.clone(), attr: args.attr.clone(), ..Wish::default() };
    let Workload::System { toplevel } = resolve::resolve(&wish)?.workload else {
        return Err(Failure::usage("only a system can be switched to")
            .hint("a system's store path holds init, kernel, initrd and kernel-params"));
    };
    let action = args.action.into();
    let request = args.confirm.request(Some(toplevel.clone()), action);
    let client = Client::connect().await?;
    let begun = match begin(&client, &args.name, &request).await {
        Err(refusal) if refusal.status == ExitStatus::NotFound && client.has(&args.name).await => {
            let spec = MachineSpec::new(Kind::System, Workload::System { toplevel });
            let pretended =
                CreateMachine { id: None, name: None, spec, ttl_ms: None, grace_ms: None, hold: false };
            ship::ship(&client, &pretended, Some(refusal)).await?;
            begin(&client, &args.name, &request).await?
        }
        begun => begun?,
    };
    follow(client, &args.name, begun, args.confirm.json).await
}

impl ConfirmArgs {
    /// The request for a switch.
    pub fn request(&self, toplevel: Option<calve_nix::StorePath>, action: SwitchAction) -> SwitchRequest {
        let confirm_ms = self.confirm.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        SwitchRequest { toplevel, action, health: self.health.clone(), confirm_ms }
    }

    /// Whether the end is wanted as an object.
    pub fn json(&self) -> bool {
        self.json
    }
}

/// Has a switch begin.
pub async fn begin(client: &Client, name: &MachineName, request: &SwitchRequest) -> Outcome<SwitchView> {
    client.post(&names::path(name, "/switch"), request).await
}

/// Follows a switch to its end, and ends as it does.
pub async fn follow(client: Client, name: &MachineName, begun: SwitchView, json: bool) -> Outcome {
    let mut view = begun;
    let mut client = client;
    let mut lost_at = None;
    while !has_answer(&view) {
        let path = names::path(name, &format!("/switches/{}?known={}", view.id, view.stage.as_str()));
        let asked = client.get_bytes(&path);
        let answer = match view.stage {
            SwitchStage::Bringing if ui::talks_to_people() => while_brought(&client, name, asked).await,
            _ => asked.await,
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(failure) if failure.status == ExitStatus::NotFound => return Err(failure),
            Err(failure) => {
                let since = *lost_at.get_or_insert_with(tokio::time::Instant::now);
                if since.elapsed() > SERVER_GONE_MAX {
                    return Err(failure);
                }
                tokio::time::sleep(PAUSE).await;
                client = Client::connect().await.unwrap_or(client);
                continue;
            }
        };
        lost_at = None;
        let now: SwitchView = client.parse(&answer)?;
        if now.stage != view.stage && ui::talks_to_people() {
            ui::note(&format!("{name}: {}", describe(now.stage)));
        }
        view = now;
    }
    if json {
        ui::json(&Bytes::from(serde_json::to_vec(&view).expect("what was parsed can be written")))?;
        return Ok(status(&view));
    }
    conclude(&view)
}

/// Shows how far the closure is, until `work` ends.
async fn while_brought<T>(client: &Client, name: &MachineName, work: impl Future<Output = T>) -> T {
    let progress = Progress::default();
    let look = async {
        loop {
            if let Ok(MachineView { bringing: Some(now), .. }) = client.get(&names::path(name, "")).await {
                progress.paths.set(now.paths);
                progress.paths_done.set(now.paths_done);
                progress.archive_bytes.set(now.bytes);
                progress.archive_bytes_done.set(now.bytes_done);
                progress.bytes_moved.set(now.sent_bytes);
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::select! {
        done = Transfer::show("bringing the closure", &progress, work) => done,
        never = look => never,
    }
}

/// Whether the one who asked has an answer: of a boot, that it is set.
fn has_answer(view: &SwitchView) -> bool {
    view.outcome.is_some() || view.stage == SwitchStage::AwaitingBoot
}

fn describe(stage: SwitchStage) -> &'static str {
    match stage {
        SwitchStage::Bringing => "the closure is brought to the host",
        SwitchStage::Applying => "the new system is set up",
        SwitchStage::Confirming => "the new system runs and has to be confirmed",
        SwitchStage::AwaitingBoot => "the new system is tried at the next boot",
        SwitchStage::Keeping => "confirmed; it boots from now on",
        SwitchStage::GoingBack => "the former system is brought back",
        SwitchStage::Ended => "ended",
    }
}

fn status(view: &SwitchView) -> ExitStatus {
    match view.outcome {
        Some(SwitchOutcome::Applied) | None => ExitStatus::Success,
        Some(SwitchOutcome::RolledBack) => ExitStatus::RolledBack,
        Some(SwitchOutcome::Failed) => ExitStatus::SwitchFailed,
        Some(SwitchOutcome::Refused) => ExitStatus::Failed,
    }
}

fn conclude(view: &SwitchView) -> Outcome {
    let (machine, toplevel) = (&view.machine, &view.toplevel);
    let why = view.message.clone().unwrap_or_else(|| "no reason is known".to_owned());
    match view.outcome {
        None => ui::line(&format!("{machine} tries {toplevel} at its next boot"))?,
        Some(SwitchOutcome::Applied) if view.action == SwitchAction::DryActivate => ui::line(&why)?,
        Some(SwitchOutcome::Applied) => ui::line(&format!("{machine} has {toplevel}"))?,
        Some(SwitchOutcome::RolledBack) => {
            return Err(Failure::new(
                ExitStatus::RolledBack,
                format!("{machine} has its former system again: {why}"),
            ));
        }
        Some(SwitchOutcome::Failed) => {
            return Err(Failure::new(
                ExitStatus::SwitchFailed,
                format!("{machine} has neither system for sure: {why}"),
            )
            .hint(format!("`calve drift {machine}` shows what it runs")));
        }
        Some(SwitchOutcome::Refused) => {
            return Err(Failure::failed(format!("nothing was changed on {machine}: {why}")));
        }
    }
    Ok(ExitStatus::Success)
}
