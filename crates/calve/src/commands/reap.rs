use calve_provider::mark::{Owner, OwnerKey};
use calve_provider::reap::{self, Judged, Verdict, Whose};
use serde_json::{Value, json};

use super::provider;
use crate::dirs;
use crate::failure::{ExitStatus, Failure, Outcome};
use crate::ui::{self, Cell, Colour, Table};

/// Destroys machines at a provider whose lease has ended, by nothing but the signed tags on them.
///
/// Needs the provider's credentials and no server: run it from a timer, and no machine outlives its lease by more than the
/// timer's period, whatever became of the server. Leases are judged by the provider's clock. Machines without calve's
/// tags, or with tags whose signature does not hold, are never touched. Ends with 125 where a machine could not be
/// destroyed.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The provider.
    #[arg(long, value_name = "PROVIDER", value_parser = provider::parser())]
    provider: String,
    /// Say what would be destroyed, and destroy nothing.
    #[arg(long)]
    dry_run: bool,
    /// Whose machines: the owner that `calve provider ls` shows. [default: the server of this data directory]
    #[arg(long, value_name = "OWNER", conflicts_with = "all_owners")]
    owner: Option<Owner>,
    /// The machines of every calve server in the account.
    #[arg(long)]
    all_owners: bool,
    /// Print an array of objects, one for each machine that was looked at.
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args) -> Outcome {
    let whose = whose(&args)?;
    let provider = provider::open(&args.provider)?;
    let now = u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or(0);
    let judged = reap::reap(&*provider, whose, now, args.dry_run).await.map_err(provider::refused)?;
    if args.json {
        let objects: Vec<Value> = judged.iter().map(object).collect();
        ui::json(Value::from(objects).to_string().as_bytes())?;
    } else {
        show(&judged)?;
    }
    let failed: Vec<_> =
        judged.iter().filter_map(|judged| judged.destroyed.as_ref()?.as_ref().err()).collect();
    match failed.first() {
        None => Ok(ExitStatus::Success),
        Some(first) => {
            Err(Failure::failed(format!("{} machines could not be destroyed: {first}", failed.len())))
        }
    }
}

fn whose(args: &Args) -> Outcome<Whose> {
    if args.all_owners {
        return Ok(Whose::Anybody);
    }
    if let Some(owner) = args.owner {
        return Ok(Whose::Owner(owner));
    }
    let file = dirs::find()?.owner_key(&args.provider);
    if !file.exists() {
        let sentence =
            format!("no server of this data directory made machines: there is no {}", file.display());
        return Err(Failure::not_found(sentence)
            .hint("--owner names another server, --all-owners means every one in the account"));
    }
    let key = OwnerKey::load_or_make(&file)
        .map_err(|error| Failure::failed(format!("{} cannot be read", file.display())).caused_by(error))?;
    Ok(Whose::Owner(key.owner()))
}

/// What became of a machine, in one word.
fn word(judged: &Judged) -> &'static str {
    match (&judged.verdict, &judged.destroyed) {
        (_, Some(Ok(()))) => "destroyed",
        (_, Some(Err(_))) => "failed",
        (Verdict::Expired(..) | Verdict::Doubled(..), None) => "would-be-destroyed",
        (Verdict::Lives(_), None) => "lives",
        (Verdict::Another(_), None) => "of-another",
        (Verdict::Unmarked(_), None) => "not-touched",
    }
}

fn why(judged: &Judged) -> String {
    let reason = match &judged.verdict {
        Verdict::Lives(mark) => format!("its lease ends at {}", mark.until),
        Verdict::Expired(_, ago) => format!("its lease ended {ago} s ago"),
        Verdict::Doubled(_, first) => format!("it was made twice; {first} stays"),
        Verdict::Another(owner) => format!("it belongs to {owner}"),
        Verdict::Unmarked(why) => why.to_string(),
    };
    match &judged.destroyed {
        Some(Err(error)) => format!("{reason}; {error}"),
        _ => reason,
    }
}

fn object(judged: &Judged) -> Value {
    let mark = match &judged.verdict {
        Verdict::Lives(mark) | Verdict::Expired(mark, _) | Verdict::Doubled(mark, _) => Some(mark),
        Verdict::Another(_) | Verdict::Unmarked(_) => None,
    };
    json!({
        "provider_id": judged.machine.id, "name": judged.machine.name, "outcome": word(judged), "reason": why(judged),
        "machine": mark.map(|mark| mark.subject.id.to_string()), "until": mark.map(|mark| mark.until.to_string()),
    })
}

fn show(judged: &[Judged]) -> Outcome<()> {
    let mut table = Table::new(["NAME", "ID", "OUTCOME", "WHY"]);
    for judged in judged {
        let colour = match word(judged) {
            "failed" => Colour::Red,
            "destroyed" | "would-be-destroyed" => Colour::Yellow,
            _ => Colour::Plain,
        };
        table.row([
            Cell::new(judged.machine.name.as_str()),
            Cell::new(judged.machine.id.as_str()),
            Cell::new(word(judged)).colour(colour),
            Cell::new(why(judged)),
        ]);
    }
    table.print()
}
