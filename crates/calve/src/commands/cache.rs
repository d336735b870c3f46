mod gc;
mod info;
mod key;
mod pin;
mod serve;
mod token;
mod verify;

use std::path::PathBuf;

use calve_store::cache::{Cache, CacheOptions, Storage};
use clap::Subcommand;

use crate::caches;
use crate::failure::{Failure, Outcome};
use crate::ui;

/// Runs a binary cache, or looks after one.
///
/// A cache is a directory on this host; its chunks may lie in S3. Any Nix client can use it over HTTP, and `calve push` and
/// `calve pull` move only the chunks that are missing.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(Box<serve::Args>),
    Info(info::Args),
    Gc(gc::Args),
    Pin(pin::Args),
    Unpin(pin::UnpinArgs),
    Verify(verify::Args),
    Key(key::Args),
    Token(token::Args),
}

/// Which cache of this host is meant.
#[derive(Debug, clap::Args)]
struct CacheArgs {
    /// The cache's directory. [default: cache in the data directory]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// S3 storage for its chunks, as s3://BUCKET/PREFIX; credentials are taken from AWS_… variables.
    #[arg(long, value_name = "URL")]
    s3: Option<String>,
    /// An option of the S3 storage, such as endpoint=http://127.0.0.1:9000 or allow_http=true.
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_option, requires = "s3")]
    s3_option: Vec<(String, String)>,
}

fn parse_option(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("it is written as NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

impl CacheArgs {
    fn dir(&self) -> Outcome<PathBuf> {
        self.dir.clone().map_or_else(caches::default_dir, Ok)
    }

    fn options(&self) -> Outcome<CacheOptions> {
        let storage = match &self.s3 {
            Some(url) => Storage::S3 { url: url.clone(), options: self.s3_option.clone() },
            None => Storage::Local,
        };
        Ok(CacheOptions { storage, ..CacheOptions::local(&self.dir()?) })
    }

    /// The cache, which must be there.
    async fn open(&self) -> Outcome<Cache> {
        let options = self.options()?;
        if !options.dir.join("key").exists() {
            return Err(Failure::not_found(format!("there is no cache in {}", options.dir.display()))
                .hint("`calve cache serve --dir DIR` makes one"));
        }
        Cache::open(options).await.map_err(caches::cache_failed)
    }
}

/// Says how many paths the index had to be told of again.
fn note_restored(paths: u64) {
    if paths > 0 {
        let paths = ui::count(paths, "path");
        ui::note(&format!(
            "the packs held {paths} that the index did not know, as where a push was cut off: they are there again"
        ));
    }
}

pub async fn run(args: Args) -> Outcome {
    match args.command {
        Command::Serve(args) => serve::run(*args).await,
        Command::Info(args) => info::run(args).await,
        Command::Gc(args) => gc::run(args).await,
        Command::Pin(args) => pin::run(args).await,
        Command::Unpin(args) => pin::unpin(args).await,
        Command::Verify(args) => verify::run(args).await,
        Command::Key(args) => key::run(args).await,
        Command::Token(args) => token::run(args),
    }
}
