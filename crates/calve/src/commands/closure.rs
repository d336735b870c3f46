use std::collections::{BTreeMap, BTreeSet};

use calve_nix::StorePath;
use calve_store::PathInfo;

use super::pull::parse_path;
use crate::args::show_size;
use crate::caches::{self, Opened, Place, Purpose, TokenArgs, parse_place};
use crate::failure::{ExitStatus, Outcome};
use crate::resolve;
use crate::ui::{self, Colour};

/// Shows what a path refers to, as a tree with sizes, and what caches lack of it.
///
/// A path that is not on this host is looked up in the caches.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A store path, a link to one, a flake reference, or a file or directory, which is added to the store.
    #[arg(value_name = "X")]
    what: String,
    /// A cache to compare with, as http://…, https://…, unix:/SOCKET or a directory; may be repeated.
    #[arg(long, value_name = "CACHE", value_parser = parse_place)]
    cache: Vec<Place>,
    #[command(flatten)]
    token: TokenArgs,
    /// Print an object.
    #[arg(long)]
    json: bool,
}

/// A closure, and who lacks what of it.
struct Shown {
    root: StorePath,
    infos: BTreeMap<StorePath, PathInfo>,
    /// Not on this host.
    absent_here: bool,
    /// By the name of each cache.
    missing: Vec<(String, BTreeSet<StorePath>)>,
}

pub async fn run(args: Args) -> Outcome {
    let opened = caches::open_all(&args.cache, &args.token, Purpose::Read).await?;
    let shown = gather(&args.what, &opened).await?;
    if args.json {
        shown.json()?
    } else {
        shown.tree()?
    }
    Ok(ExitStatus::Success)
}

async fn gather(what: &str, opened: &[Opened]) -> Outcome<Shown> {
    let (root, infos, absent_here) = match local(what) {
        Ok((root, infos)) => (root, infos, false),
        Err(failure) if failure.status == ExitStatus::NotFound && !opened.is_empty() => {
            let Ok(root) = parse_path(what) else { return Err(failure) };
            (root.clone(), remote(&root, opened).await?, true)
        }
        Err(failure) => return Err(failure),
    };
    let paths: Vec<StorePath> = infos.iter().map(|info| info.path.clone()).collect();
    let mut missing = Vec::with_capacity(opened.len());
    for cache in opened {
        let lacking = cache.remote.missing_paths(&paths).await.map_err(caches::refused)?;
        missing.push((cache.name.clone(), lacking.into_iter().collect()));
    }
    let infos = infos.into_iter().map(|info| (info.path.clone(), info)).collect();
    Ok(Shown { root, infos, absent_here, missing })
}

fn local(what: &str) -> Outcome<(StorePath, Vec<PathInfo>)> {
    let root = resolve::root(what)?;
    let store = resolve::store()?;
    let failed = |error: calve_store::StoreError| caches::transfer_failed(error.into());
    let closure = store.closure(std::slice::from_ref(&root)).map_err(failed)?;
    Ok((root, store.path_infos(&closure).map_err(failed)?))
}

/// From the first cache that has it.
async fn remote(root: &StorePath, opened: &[Opened]) -> Outcome<Vec<PathInfo>> {
    let mut last = None;
    for cache in opened {
        match cache.remote.closure(std::slice::from_ref(root)).await {
            Ok(manifests) => return Ok(manifests.into_iter().map(|manifest| manifest.info).collect()),
            Err(error) => last = Some(error),
        }
    }
    Err(caches::refused(last.expect("at least one cache was asked")))
}

impl Shown {
    fn total(&self) -> u64 {
        self.infos.values().map(|info| info.nar_size).sum()
    }

    fn json(&self) -> Outcome<()> {
        let paths = self.infos.values().map(|info| {
            serde_json::json!({
                "path": info.path.to_string(),
                "nar_size": info.nar_size,
                "references": info.references.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "missing_in": self.missing_in(&info.path),
            })
        });
        let json = serde_json::json!({
            "root": self.root.to_string(),
            "here": !self.absent_here,
            "nar_size": self.total(),
            "paths": paths.collect::<Vec<_>>(),
        });
        ui::json(json.to_string().as_bytes())
    }

    fn missing_in(&self, path: &StorePath) -> Vec<&str> {
        let lacks = self.missing.iter().filter(|(_, missing)| missing.contains(path));
        lacks.map(|(name, _)| name.as_str()).collect()
    }

    /// Depth first; what stands in the tree already is named again without what is below it.
    fn tree(&self) -> Outcome<()> {
        let mut text = String::new();
        let mut seen = BTreeSet::new();
        let mut waiting = vec![(&self.root, String::new(), "", "")];
        while let Some((path, indent, branch, below)) = waiting.pop() {
            let Some(info) = self.infos.get(path) else { continue };
            let first = seen.insert(path);
            let references: Vec<_> = info.references.iter().filter(|reference| *reference != path).collect();
            let again = if first || references.is_empty() { "" } else { " …" };
            let lacking = self.missing_in(path);
            let missing = match lacking.is_empty() {
                true => String::new(),
                false => {
                    let said = format!("  missing in {}", lacking.join(", "));
                    ui::painted(&said, Colour::Yellow).into_owned()
                }
            };
            let size = show_size(info.nar_size);
            let size = ui::painted(&size, Colour::Dim);
            text.push_str(&format!("{indent}{branch}{path}  {size}{again}{missing}\n"));
            if !first {
                continue;
            }
            let inner = format!("{indent}{below}");
            for (at, reference) in references.iter().enumerate().rev() {
                let last = at + 1 == references.len();
                let (branch, below) = if last { ("└── ", "    ") } else { ("├── ", "│   ") };
                waiting.push((reference, inner.clone(), branch, below));
            }
        }
        ui::data(text.as_bytes())?;
        let here = if self.absent_here { ", not on this host" } else { "" };
        ui::note(&format!("{} paths, {}{here}", self.infos.len(), show_size(self.total())));
        for (name, missing) in &self.missing {
            let size: u64 =
                missing.iter().filter_map(|path| self.infos.get(path)).map(|info| info.nar_size).sum();
            ui::note(&format!("{name} lacks {} paths, {}", missing.len(), show_size(size)));
        }
        Ok(())
    }
}
