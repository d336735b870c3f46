mod archive;
mod pipe;
mod unpack;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use calve_core::MachineName;
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::names;
use crate::client::{Client, with_query};
use crate::failure::{ExitStatus, Failure, Outcome};
use crate::ui::{self, Progress};

/// The media type of archives.
const TAR_MEDIA_TYPE: &str = "application/x-tar";

/// Copies files and directories into and out of a machine.
///
/// One of the two is NAME:PATH with an absolute path, the other a path here, or `-` for a tar archive on standard input or
/// output. As with cp(1), a target that is an existing directory takes the source in; any other is its new name.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What is copied: PATH, NAME:PATH or -
    #[arg(value_parser = parse_place, add = ArgValueCompleter::new(complete_place))]
    from: Place,
    /// Where it goes: NAME:PATH, PATH or -
    #[arg(value_parser = parse_place, add = ArgValueCompleter::new(complete_place))]
    to: Place,
}

/// Files here and machines, for a shell's completion.
fn complete_place(typed: &OsStr) -> Vec<CompletionCandidate> {
    let machines = names::complete(typed)
        .into_iter()
        .map(|name| CompletionCandidate::new(format!("{}:/", name.get_value().display())));
    PathCompleter::any().complete(typed).into_iter().chain(machines).collect()
}

/// One side of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// A path in a machine.
    Machine(MachineName, String),
    /// A path here.
    Here(PathBuf),
    /// An archive on standard input or output.
    Archive,
}

fn parse_place(text: &str) -> Result<Place, String> {
    if text == "-" {
        return Ok(Place::Archive);
    }
    // `./a:b` is a path here, as a name holds no slash.
    match text.split_once(':') {
        Some((name, path)) if !name.contains('/') && !name.is_empty() => {
            let name = name.parse().map_err(|_| {
                format!("{name:?} is not a machine name; a file with a colon in its name is ./{text}")
            })?;
            if !path.starts_with('/') {
                return Err(format!("a path in a machine is absolute: {name}:/{path}"));
            }
            if path.split('/').any(|part| part == "..") {
                return Err("a path in a machine is given without `..`".to_owned());
            }
            Ok(Place::Machine(name, path.to_owned()))
        }
        _ if text.is_empty() => Err("a path is empty".to_owned()),
        _ => Ok(Place::Here(text.into())),
    }
}

pub async fn run(args: Args) -> Outcome {
    match (args.from, args.to) {
        (Place::Machine(name, path), Place::Archive) => to_stdout(&name, &path).await,
        (Place::Machine(name, path), Place::Here(target)) => out_of(&name, &path, &target).await,
        (Place::Archive, Place::Machine(name, path)) => {
            let client = Client::connect().await?;
            send(&client, &name, &path, pipe::pump(pipe::copy_stdin)).await
        }
        (Place::Here(source), Place::Machine(name, path)) => into(&source, &name, &path).await,
        (Place::Machine(..), Place::Machine(..)) => {
            Err(Failure::usage("one side of a copy is here, and both are in a machine")
                .hint("calve cp A:/x - | calve cp - B:/dir"))
        }
        (Place::Here(_) | Place::Archive, Place::Here(_) | Place::Archive) => {
            Err(Failure::usage("one side of a copy is in a machine, and neither is")
                .hint("write it as NAME:/PATH"))
        }
    }
}

fn files_path(name: &MachineName, path: &str) -> String {
    with_query(&names::path(name, "/files"), &[("path", Some(path.to_owned()))])
}

async fn to_stdout(name: &MachineName, path: &str) -> Outcome {
    let client = Client::connect().await?;
    let mut body = client.get_stream(&files_path(name, path), TAR_MEDIA_TYPE).await?;
    while let Some(part) = body.frame().await {
        let part = part.map_err(|error| broken(name, error))?;
        if let Ok(bytes) = part.into_data() {
            ui::data(&bytes)?;
        }
    }
    Ok(ExitStatus::Success)
}

fn broken(name: &MachineName, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Failure {
    Failure::failed(format!("the copy from {name} broke off")).caused_by(error)
}

async fn out_of(name: &MachineName, path: &str, target: &Path) -> Outcome {
    let client = Client::connect().await?;
    let body = client.get_stream(&files_path(name, path), TAR_MEDIA_TYPE).await?;
    let base = path.rsplit('/').find(|part| !part.is_empty());
    let target = match base {
        Some(base) if target.is_dir() => target.join(base),
        _ => target.to_owned(),
    };
    let progress = Progress::new(&format!("copying {name}:{path}"));
    let (reader, feeding) = pipe::reader(body);
    let unpacking = tokio::task::spawn_blocking(move || unpack::unpack(reader, &target));
    feeding.await;
    let skipped = unpacking.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    drop(progress);
    for what in skipped? {
        ui::note(&format!("left out: {what}"));
    }
    Ok(ExitStatus::Success)
}

async fn into(source: &Path, name: &MachineName, path: &str) -> Outcome {
    let metadata = std::fs::metadata(source)
        .map_err(|error| Failure::not_found(format!("there is no {}", source.display())).caused_by(error))?;
    if !metadata.is_dir() && !metadata.is_file() {
        return Err(Failure::usage(format!("{} is neither a file nor a directory", source.display()))
            .hint("what a pipe or a device says can be an archive: tar c … | calve cp - NAME:/DIR"));
    }
    let client = Client::connect().await?;
    let (directory, called) = target(&client, name, path, source).await?;
    let source = source.to_owned();
    let is_directory = metadata.is_dir();
    let archive = pipe::pump(move |out| archive::write(out, &source, &called, is_directory));
    send(&client, name, &directory, archive).await
}

/// The directory that takes the source in, and the name that it gets there.
async fn target(client: &Client, name: &MachineName, path: &str, source: &Path) -> Outcome<(String, String)> {
    let trimmed = path.trim_end_matches('/');
    if trimmed.is_empty() || is_directory(client, name, path).await? {
        let source = source.canonicalize().map_err(|error| {
            Failure::not_found(format!("{} cannot be read", source.display())).caused_by(error)
        })?;
        let own = source.file_name().and_then(|own| own.to_str()).map(str::to_owned);
        let own = own.ok_or_else(|| {
            Failure::usage(format!("{} has no name that a machine could be told", source.display()))
        })?;
        let directory = if trimmed.is_empty() { "/" } else { trimmed };
        return Ok((directory.to_owned(), own));
    }
    if path.ends_with('/') {
        return Err(Failure::not_found(format!("there is no directory {path} in {name}"))
            .hint(format!("make it: calve exec {name} -- mkdir -p {path}")));
    }
    let (directory, called) = trimmed.rsplit_once('/').expect("the path is absolute");
    let directory = if directory.is_empty() { "/" } else { directory };
    Ok((directory.to_owned(), called.to_owned()))
}

/// Whether there is a directory at the path: what the archive of it begins with.
async fn is_directory(client: &Client, name: &MachineName, path: &str) -> Outcome<bool> {
    let body = match client.get_stream(&files_path(name, path), TAR_MEDIA_TYPE).await {
        Ok(body) => body,
        // Nothing there (yet), or nothing that can be read; an unknown machine is told by its own path.
        Err(failure) => {
            client.get_bytes(&names::path(name, "")).await?;
            let not_there = matches!(failure.status, ExitStatus::NotFound | ExitStatus::Usage);
            return if not_there { Ok(false) } else { Err(failure) };
        }
    };
    Ok(first_block(body).await.is_some_and(|header| header.entry_type().is_dir()))
}

async fn first_block(mut body: Incoming) -> Option<tar::Header> {
    let mut header = tar::Header::new_old();
    let mut filled = 0;
    while filled < header.as_bytes().len() {
        let bytes = body.frame().await?.ok()?.into_data().ok()?;
        let room = &mut header.as_mut_bytes()[filled..];
        let length = room.len().min(bytes.len());
        room[..length].copy_from_slice(&bytes[..length]);
        filled += length;
    }
    Some(header)
}

async fn send(client: &Client, name: &MachineName, directory: &str, archive: pipe::Pump) -> Outcome {
    let progress = Progress::new(&format!("copying to {name}:{directory}"));
    let sent = client.put_stream(&files_path(name, directory), TAR_MEDIA_TYPE, archive.body).await;
    drop(progress);
    // A file that cannot be read also breaks the request: its own error says more. A machine that refuses says more than
    // the pipe that it closed.
    match archive.ended.await {
        Ok(Err(error)) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            return Err(Failure::failed("what is to be copied cannot be read").caused_by(error));
        }
        _ => sent?,
    }
    Ok(ExitStatus::Success)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_apart_by_a_name_before_the_colon() {
        let place = |text| parse_place(text).unwrap();
        assert_eq!(place("web:/etc/hosts"), Place::Machine("web".parse().unwrap(), "/etc/hosts".to_owned()));
        assert_eq!(place("./web:/etc"), Place::Here("./web:/etc".into()));
        assert_eq!(place("file"), Place::Here("file".into()));
        assert_eq!(place("-"), Place::Archive);
        for (bad, sentence) in [
            ("web:etc", "web:/etc"),
            ("W_b:/x", "not a machine name"),
            ("", "empty"),
            ("web:/a/../b", "`..`"),
        ] {
            assert!(parse_place(bad).unwrap_err().contains(sentence), "{bad}");
        }
    }
}
