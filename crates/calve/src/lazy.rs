//! Runs what is in a cache and not here yet: has a process of its own mount it, for a server on this host.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use calve_nix::StorePath;
use calve_nix::sign::PublicKey;
use calve_node::lazy::LazyDirs;
use calve_store::Closure;

use crate::caches::{Place, TokenArgs, parse_key, parse_place};
use crate::dirs;
use crate::failure::{Failure, Outcome};
use crate::resolve::{self, Resolved, Wish};

/// How long mounting may take: some round trips, and a cache that stalls is given up before.
const READY_MAX: Duration = Duration::from_secs(120);
/// Pause between two tries while another process mounts the same.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// Where a closure comes from that is delivered lazily.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Lazy delivery")]
pub struct LazyArgs {
    /// With --store lazy: a cache, as http://…, https://…, unix:/SOCKET or a directory; may be repeated.
    /// [default: CALVE_CACHE]
    #[arg(long, value_name = "CACHE", value_parser = parse_place, requires = "store")]
    from: Vec<Place>,
    /// With --store lazy: a public key to trust; may be repeated.
    #[arg(long, value_name = "NAME:KEY", value_parser = parse_key, requires = "store")]
    trusted_key: Vec<PublicKey>,
    #[command(flatten)]
    token: TokenArgs,
}

impl LazyArgs {
    /// Whether any of it was said.
    pub fn is_given(&self) -> bool {
        !self.from.is_empty() || !self.trusted_key.is_empty() || self.token.file().is_some()
    }

    /// The caches: those named, else that of the environment.
    fn caches(&self) -> Outcome<Vec<Place>> {
        let named = std::env::var("CALVE_CACHE").ok().filter(|named| !named.is_empty());
        match named {
            Some(named) if self.from.is_empty() => {
                let place = parse_place(&named);
                let shown = calve_store::http::redacted(&named);
                Ok(vec![place.map_err(|error| Failure::usage(format!("CALVE_CACHE={shown}: {error}")))?])
            }
            _ => Ok(self.from.clone()),
        }
    }
}

/// Finds out what is meant, which must be a store path or a file in one; gives whether it is served lazily: what lies on
/// this host already needs no cache.
pub fn resolve(wish: &Wish, args: &LazyArgs) -> Outcome<(Resolved, bool)> {
    let what = wish.what.as_deref().filter(|_| wish.attr.is_none() && !wish.shell);
    let split = what.and_then(|what| StorePath::split(what).ok());
    let Some((path, rest)) = split else {
        return Err(Failure::usage("lazily only what is in a cache can be run")
            .hint("name a store path, or a program in one: /nix/store/…/bin/…"));
    };
    if resolve::store()?.closure(std::slice::from_ref(&path)).is_ok() {
        return Ok((resolve::resolve(wish)?, false));
    }
    let closure = served(&path, args)?;
    let place = closure.host_path_of(&path);
    let place = place.ok_or_else(|| Failure::failed(format!("{path} is not in its own closure")))?;
    Ok((resolve::served(wish, &path, rest, place)?, true))
}

/// The closure of a path, served by now.
fn served(path: &StorePath, args: &LazyArgs) -> Outcome<Closure> {
    let caches = args.caches()?;
    if caches.is_empty() {
        return Err(Failure::usage(format!("{path} is not on this host, and no cache is named"))
            .hint("say --from CACHE"));
    }
    let dirs = dirs::find()?;
    let dir = LazyDirs::new(&dirs.run).of(std::slice::from_ref(path));
    let deadline = Instant::now() + READY_MAX;
    loop {
        if let Some(closure) = dir.closure() {
            return Ok(closure);
        }
        start(path, &caches, args)?;
        if Instant::now() > deadline {
            let seconds = READY_MAX.as_secs();
            return Err(Failure::failed(format!("{path} was not mounted within {seconds} s"))
                .hint(format!("see {}", dirs.lazy_log().display())));
        }
        // Where another process is at it, this one ended without a word.
        std::thread::sleep(LOOK_PAUSE);
    }
}

/// Starts the process that serves, in a session of its own, and waits until it does or says why not.
fn start(path: &StorePath, caches: &[Place], args: &LazyArgs) -> Outcome<()> {
    let failed = |error| Failure::failed("the process that mounts cannot be started").caused_by(error);
    let mut command = Command::new(std::env::current_exe().map_err(failed)?);
    command.args(["mount", "--for-machines"]).arg(path.to_string());
    for place in caches {
        command.arg("--from").arg(absolute(place));
    }
    for key in &args.trusted_key {
        command.arg("--trusted-key").arg(key.to_string());
    }
    if let Some(file) = args.token.file() {
        command.arg("--token-file").arg(std::path::absolute(file).unwrap_or_else(|_| file.to_owned()));
    }
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // SAFETY: between fork and exec only setsid(2) is called, which is async-signal-safe and touches no memory.
    unsafe {
        command.pre_exec(|| rustix::process::setsid().map(drop).map_err(Into::into));
    }
    let mut child = command.spawn().map_err(failed)?;
    let mut said = String::new();
    if let Some(mut out) = child.stdout.take() {
        out.read_to_string(&mut said).map_err(failed)?;
    }
    if !said.is_empty() {
        return Ok(());
    }
    let mut complaint = String::new();
    if let Some(mut err) = child.stderr.take() {
        err.read_to_string(&mut complaint).map_err(failed)?;
    }
    let status = child.wait().map_err(failed)?;
    if status.success() { Ok(()) } else { Err(complained(&complaint)) }
}

/// What the process said, as if this one had found it out.
fn complained(text: &str) -> Failure {
    let line = |label: &str| text.lines().rev().find_map(|line| line.strip_prefix(label));
    let sentence = line("error: ").or(text.lines().last()).unwrap_or("the process that mounts ended");
    let failure = Failure::failed(sentence);
    match line("hint: ") {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// A cache's place as it is understood from any working directory.
fn absolute(place: &Place) -> PathBuf {
    match place {
        Place::Http(address) => address.to_string().into(),
        Place::Directory(dir) => std::path::absolute(dir).unwrap_or_else(|_| Path::new(dir).to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_process_said_is_told_as_it_was_said() {
        let failure = complained("note: x\nerror: it is away: refused\nhint: try again\n");
        assert_eq!(failure.sentence, "it is away: refused");
        assert_eq!(failure.hint.as_deref(), Some("try again"));
        assert!(complained("").sentence.contains("ended"));
    }

    #[test]
    fn only_what_is_in_a_cache_is_run_lazily() {
        let args = LazyArgs { from: vec![], trusted_key: vec![], token: TokenArgs::default() };
        for what in [None, Some("./x"), Some("nixpkgs#hello")] {
            let wish = Wish { what: what.map(str::to_owned), ..Wish::default() };
            assert!(resolve(&wish, &args).unwrap_err().sentence.contains("in a cache"));
        }
    }
}
