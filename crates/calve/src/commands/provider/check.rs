use serde_json::json;

use super::{ProviderArgs, open, refused};
use crate::failure::{ExitStatus, Outcome};
use crate::ui::{self, Cell, Colour, Table};

/// Asks a provider whose credentials these are, and whether they are good.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    of: ProviderArgs,
}

pub async fn run(args: Args) -> Outcome {
    let provider = open(&args.of.provider)?;
    let account = provider.check().await.map_err(refused)?;
    let described = provider.describe();
    if args.of.json {
        let object = json!({
            "provider": described.name, "api": described.api, "account": account.name, "status": account.status,
            "machines_max": account.machines_max,
        });
        ui::json(object.to_string().as_bytes())?;
        return Ok(ExitStatus::Success);
    }
    let most = account.machines_max.map_or_else(|| "not told".to_owned(), |most| most.to_string());
    let rows = [
        ("provider", described.name.to_owned()),
        ("api", described.api),
        ("account", account.name),
        ("status", account.status),
        ("machines at most", most),
    ];
    let mut table = Table::without_headings();
    for (label, value) in rows {
        table.row([Cell::new(label).colour(Colour::Bold), Cell::new(value)]);
    }
    table.print()?;
    Ok(ExitStatus::Success)
}
