use serde_json::json;

use super::provider::everywhere;
use crate::failure::{ExitStatus, Outcome};
use crate::ui::{self, Cell, Table};

/// Shows what the machines at providers cost: by the hour, and since each was made.
///
/// Asks every provider whose credentials are there for the machines that carry calve's tag, whoever made them, with or without a
/// server. What machines cost that are gone is on the provider's bill alone.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print an object with the machines and the sums.
    #[arg(long)]
    json: bool,
}

/// A machine with what it costs.
struct Priced {
    provider: &'static str,
    machine: calve_provider::Listed,
    hours: Option<f64>,
}

impl Priced {
    fn spent(&self) -> Option<f64> {
        Some(self.machine.dollars_per_hour? * self.hours?)
    }
}

pub async fn run(args: Args) -> Outcome {
    let now = jiff::Timestamp::now();
    let hours = |made: &str| {
        let made: jiff::Timestamp = made.parse().ok()?;
        Some((now.as_second() - made.as_second()).max(0) as f64 / 3600.0)
    };
    let machines = everywhere::machines().await?;
    let priced: Vec<Priced> = machines
        .into_iter()
        .map(|(provider, machine)| Priced { hours: hours(&machine.created_at), provider, machine })
        .collect();
    let hourly: f64 = priced.iter().filter_map(|it| it.machine.dollars_per_hour).sum();
    let spent: f64 = priced.iter().filter_map(Priced::spent).sum();
    if args.json {
        let object = |it: &Priced| {
            json!({
                "provider": it.provider, "provider_id": it.machine.id, "name": it.machine.name, "size": it.machine.size,
                "dollars_per_hour": it.machine.dollars_per_hour, "hours": it.hours, "dollars": it.spent(),
            })
        };
        let objects: Vec<_> = priced.iter().map(object).collect();
        let whole = json!({"machines": objects, "dollars_per_hour": hourly, "dollars": spent});
        ui::json(whole.to_string().as_bytes())?;
        return Ok(ExitStatus::Success);
    }
    let mut table = Table::new(["NAME", "PROVIDER", "SIZE", "$/HOUR", "HOURS", "$ SO FAR"]);
    let shown =
        |value: Option<f64>, digits: usize| value.map_or("-".to_owned(), |value| format!("{value:.digits$}"));
    for it in &priced {
        table.row([
            Cell::new(it.machine.name.as_str()),
            Cell::new(it.provider),
            Cell::new(it.machine.size.as_str()),
            Cell::new(shown(it.machine.dollars_per_hour, 5)),
            Cell::new(shown(it.hours, 1)),
            Cell::new(shown(it.spent(), 2)),
        ]);
    }
    let sums = [shown(Some(hourly), 5), String::new(), shown(Some(spent), 2)].map(Cell::new);
    let [hourly, none, spent] = sums;
    table.row([Cell::new("together"), Cell::new("-"), Cell::new("-"), hourly, none, spent]);
    table.print()?;
    Ok(ExitStatus::Success)
}
