//! What becomes of a system that is made elsewhere, whose console nobody here sees: a line for each step, until it runs.

use std::time::Duration;

use calve_core::State;
use calve_wire::api::{Bringing, MachineView};
use calve_wire::machine::Workload;
use calve_wire::system::{SwitchView, first_switch};

use crate::args::show_size;
use crate::client::Client;
use crate::commands::names;
use crate::ui;

/// Pause between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// Whether a machine's steps are worth a line each.
pub fn is_wanted(machine: &MachineView) -> bool {
    matches!(machine.spec.workload, Workload::System { .. }) && machine.spec.place.is_some()
}

/// Tells each step until the system runs or has ended.
pub async fn report(client: Client, machine: MachineView) {
    let name = machine.summary.name;
    let path = format!("/v1/machines/{}", machine.summary.id);
    let mut told = String::new();
    loop {
        // Where the server does not answer now, the session waits for it or says so.
        if let Ok(now) = client.get::<MachineView>(&path).await {
            let state = now.summary.state;
            let step = match state {
                State::Running => format!("{name} runs {}", now.summary.runs),
                State::Seeding => format!("{name}: seeding{}{}", stage(&client, &now).await, brought(&now)),
                state => format!("{name}: {state}"),
            };
            if step != told {
                ui::note(&step);
            }
            if state == State::Running || state.is_terminal() {
                return;
            }
            told = step;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// How far its closure is, in tenths: nobody wants a line for each second.
fn brought(machine: &MachineView) -> String {
    let Some(Bringing { bytes, bytes_done, .. }) = machine.bringing else { return String::new() };
    let tenths = (10 * bytes_done).checked_div(bytes).unwrap_or(10);
    format!(", {}0 % of {}", tenths, show_size(bytes))
}

/// How far the machine's first switch is, in parentheses.
async fn stage(client: &Client, machine: &MachineView) -> String {
    let switch = format!("/switches/{}", first_switch(machine.attempt));
    match client.get::<SwitchView>(&names::path(&machine.summary.name, &switch)).await {
        Ok(view) => format!(" ({})", view.stage.as_str()),
        Err(_) => String::new(),
    }
}
