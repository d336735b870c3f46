use calve_core::DriverName;
use calve_wire::doctor::{Check, CheckStatus};

use crate::client::Client;
use crate::failure::{ExitStatus, Outcome};
use crate::ui::{self, Cell, Progress, Table};

/// Checks what each driver needs on this host; says what is missing, what that costs and the command that mends it.
///
/// Ends with 0 where at least one driver can be used, else with 1.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print an array of objects with area, name, status, found, cost and mend.
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args) -> Outcome {
    let client = Client::connect().await?;
    let progress = Progress::new("checking this host");
    let checks: Vec<Check> = client.get("/v1/doctor").await?;
    drop(progress);
    if args.json {
        ui::json(&serde_json::to_vec(&checks).expect("what was parsed can be written"))?;
    } else {
        show(&checks)?;
    }
    Ok(if usable(&checks) { ExitStatus::Success } else { ExitStatus::No })
}

fn show(checks: &[Check]) -> Outcome<()> {
    let mut table = Table::new(["AREA", "CHECK", "STATUS", "FOUND"]);
    for check in checks {
        let area = Cell::new(check.area.as_str());
        table.row([
            area,
            Cell::new(check.name.as_str()),
            ui::check(check.status),
            Cell::new(check.found.as_str()),
        ]);
    }
    table.print()?;
    let lacking = |check: &&Check| matches!(check.status, CheckStatus::Degraded | CheckStatus::Missing);
    for check in checks.iter().filter(lacking) {
        ui::line(&format!("\n{}: {}", check.area, check.name))?;
        if !check.cost.is_empty() {
            ui::line(&format!("  costs: {}", check.cost))?;
        }
        if let Some(mend) = &check.mend {
            ui::line(&format!("  mend:  {mend}"))?;
        }
    }
    Ok(())
}

/// Whether some driver was checked and lacks nothing that it cannot do without.
fn usable(checks: &[Check]) -> bool {
    DriverName::ALL.iter().any(|driver| {
        let mut of_driver = checks.iter().filter(|check| check.area == driver.as_str()).peekable();
        let lacks = |check: &Check| matches!(check.status, CheckStatus::Missing | CheckStatus::Unset);
        of_driver.peek().is_some() && !of_driver.any(lacks)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_usable_driver_is_enough() {
        let check = |area: &str, status| Check {
            area: area.to_owned(),
            name: String::new(),
            status,
            found: String::new(),
            cost: String::new(),
            mend: None,
        };
        let (ok, less, none) = (CheckStatus::Ok, CheckStatus::Degraded, CheckStatus::Missing);
        assert!(usable(&[check("sandbox", less), check("qemu", none), check("nix", none)]));
        assert!(!usable(&[check("sandbox", ok), check("sandbox", none), check("qemu", none)]));
        assert!(!usable(&[check("nix", ok)]));
    }
}
