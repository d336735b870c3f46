use calve_nix::StorePath;
use calve_store::diff::{Diff, PackageChange, diff};

use crate::args::show_size;
use crate::caches;
use crate::failure::{ExitStatus, Outcome};
use crate::resolve;
use crate::ui::{self, Cell, Colour, Progress, Table};

/// Compares two closures: packages, versions, sizes, and the chunks that would move to a host that has the first.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The first: a store path, a link to one, a flake reference, or a file or directory, which is added to the store.
    #[arg(value_name = "X")]
    before: String,
    /// The second.
    #[arg(value_name = "Y")]
    after: String,
    /// Print an object.
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args) -> Outcome {
    let (before, after) = (resolve::root(&args.before)?, resolve::root(&args.after)?);
    let store = resolve::store()?;
    let index = caches::chunk_index()?;
    let progress = Progress::new("comparing");
    let (first, second) = (std::slice::from_ref(&before), std::slice::from_ref(&after));
    let found = diff(&store, index.as_deref(), first, second).map_err(caches::transfer_failed)?;
    drop(progress);
    if args.json {
        json(&before, &after, &found)?
    } else {
        table(&found)?
    }
    Ok(ExitStatus::Success)
}

fn json(before: &StorePath, after: &StorePath, found: &Diff) -> Outcome<()> {
    let packages = found.packages.iter().map(|package| {
        serde_json::json!({
            "name": package.name,
            "before": package.before,
            "after": package.after,
            "before_bytes": package.before_bytes,
            "after_bytes": package.after_bytes,
            "rebuild": package.is_rebuild(),
        })
    });
    let json = serde_json::json!({
        "before": before.to_string(),
        "after": after.to_string(),
        "before_bytes": found.before_bytes,
        "after_bytes": found.after_bytes,
        "moved_chunks": found.moved_chunks,
        "moved_bytes": found.moved_bytes,
        "packages": packages.collect::<Vec<_>>(),
    });
    ui::json(json.to_string().as_bytes())
}

fn table(found: &Diff) -> Outcome<()> {
    let mut table = Table::new(["PACKAGE", "BEFORE", "AFTER", "SIZE"]);
    for package in &found.packages {
        table.row([
            Cell::new(package.name.as_str()).colour(colour(package)),
            Cell::new(versions(&package.before)),
            Cell::new(if package.is_rebuild() { "rebuilt".to_owned() } else { versions(&package.after) }),
            Cell::new(change(package.before_bytes, package.after_bytes)),
        ]);
    }
    if !found.packages.is_empty() {
        table.print()?;
    }
    ui::note(&format!(
        "{} packages differ, {} to {}; {} chunks of {} would move",
        found.packages.len(),
        show_size(found.before_bytes),
        show_size(found.after_bytes),
        found.moved_chunks,
        show_size(found.moved_bytes)
    ));
    Ok(())
}

fn colour(package: &PackageChange) -> Colour {
    match (package.before.is_empty(), package.after.is_empty()) {
        (true, _) => Colour::Green,
        (_, true) => Colour::Red,
        (false, false) => Colour::Plain,
    }
}

/// Versions as people read them; paths without one are there nevertheless.
fn versions(versions: &[String]) -> String {
    let shown = versions.iter().map(|version| if version.is_empty() { "(no version)" } else { version });
    match versions.is_empty() {
        true => "-".to_owned(),
        false => shown.collect::<Vec<_>>().join(", "),
    }
}

fn change(before: u64, after: u64) -> String {
    match after.cmp(&before) {
        std::cmp::Ordering::Equal => show_size(after),
        std::cmp::Ordering::Greater => format!("{} (+{})", show_size(after), show_size(after - before)),
        std::cmp::Ordering::Less => format!("{} (-{})", show_size(after), show_size(before - after)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_told_with_their_sign() {
        assert_eq!(change(1024, 3072), "3K (+2K)");
        assert_eq!(change(3072, 1024), "1K (-2K)");
        assert_eq!(change(7, 7), "7B");
        assert_eq!(versions(&[]), "-");
        assert_eq!(versions(&[String::new(), "1.2".to_owned()]), "(no version), 1.2");
    }
}
