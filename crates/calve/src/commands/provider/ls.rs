use calve_provider::Listed;
use calve_provider::mark::{Mark, TAG, Until};
use serde_json::json;

use super::{ProviderArgs, everywhere, open, price, refused};
use crate::failure::{ExitStatus, Outcome};
use crate::ui::{self, Cell, Table};

/// Lists the machines at a provider that carry the tag of calve, whoever made them.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    of: ProviderArgs,
}

pub async fn run(args: Args) -> Outcome {
    let machines = open(&args.of.provider)?.list(TAG).await.map_err(refused)?.machines;
    show(&machines.iter().map(|machine| (&*args.of.provider, machine)).collect::<Vec<_>>(), args.of.json)
}

/// The same of all providers together.
pub async fn show_everywhere(json: bool) -> Outcome {
    let machines = everywhere::machines().await?;
    show(&machines.iter().map(|(provider, machine)| (*provider, machine)).collect::<Vec<_>>(), json)
}

fn show(machines: &[(&str, &Listed)], json: bool) -> Outcome {
    let marked = machines
        .iter()
        .map(|(provider, machine)| (provider, machine, Mark::read(&machine.name, &machine.tags)));
    if json {
        let objects: Vec<_> = marked
            .map(|(provider, machine, mark)| {
                let mark = mark.as_ref();
                json!({
                    "provider": provider, "provider_id": machine.id, "name": machine.name, "region": machine.region, "size": machine.size,
                    "status": machine.status, "address": machine.address, "created_at": machine.created_at,
                    "dollars_per_hour": machine.dollars_per_hour,
                    "machine": mark.ok().map(|mark| mark.subject.id.to_string()),
                    "owner": mark.ok().map(|mark| mark.owner.to_string()),
                    "until": mark.ok().map(|mark| mark.until.to_string()),
                    "unmarked": mark.err().map(ToString::to_string),
                })
            })
            .collect();
        ui::json(serde_json::Value::from(objects).to_string().as_bytes())?;
        return Ok(ExitStatus::Success);
    }
    let mut table = Table::new([
        "NAME", "PROVIDER", "ID", "REGION", "SIZE", "STATUS", "ADDRESS", "$/HOUR", "UNTIL", "OWNER",
    ]);
    for (provider, machine, mark) in marked {
        let (until, owner) = match mark {
            Ok(mark) => (show_until(mark.until), mark.owner.to_string()),
            Err(why) => ("-".to_owned(), format!("({why})")),
        };
        table.row([
            Cell::new(machine.name.as_str()),
            Cell::new(*provider),
            Cell::new(machine.id.as_str()),
            Cell::new(machine.region.as_str()),
            Cell::new(machine.size.as_str()),
            Cell::new(machine.status.as_str()),
            Cell::new(machine.address.as_deref().unwrap_or("-")),
            Cell::new(machine.dollars_per_hour.map_or_else(|| "-".to_owned(), price)),
            Cell::new(until),
            Cell::new(owner),
        ]);
    }
    table.print()?;
    Ok(ExitStatus::Success)
}

fn show_until(until: Until) -> String {
    match until {
        Until::Never => "never".to_owned(),
        Until::Unix(seconds) => {
            let moment = i64::try_from(seconds).ok().and_then(|it| jiff::Timestamp::from_second(it).ok());
            moment.map_or_else(|| seconds.to_string(), |moment| moment.to_string())
        }
    }
}
