use std::path::PathBuf;

use calve_nix::StorePath;
use calve_server::cache::tokens::{Right, TokenError, Tokens};
use clap::Subcommand;

use crate::caches;
use crate::failure::{ExitStatus, Failure, Outcome};
use crate::ui::{self, Cell, Table};

/// Makes, lists and revokes the tokens of a cache; they work at once, also where it is being served.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes a token and prints it, this once: only a hash of it is kept.
    Add {
        /// Its name, for revoking it.
        name: String,
        /// It may push and pull.
        #[arg(long, conflicts_with = "closure")]
        push: bool,
        /// It may pull this path and what it refers to, and nothing else of a private cache; may be repeated. [default: all]
        #[arg(long, value_name = "PATH", value_parser = parse_path)]
        closure: Vec<StorePath>,
        /// The cache's directory. [default: cache in the data directory]
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// Lists the tokens: names and rights.
    Ls {
        /// The cache's directory. [default: cache in the data directory]
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// Print an array.
        #[arg(long)]
        json: bool,
    },
    /// Revokes a token.
    Rm {
        /// Its name.
        name: String,
        /// The cache's directory. [default: cache in the data directory]
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

fn parse_path(text: &str) -> Result<StorePath, String> {
    StorePath::parse(text).map_err(|error| error.to_string())
}

fn tokens(dir: Option<PathBuf>) -> Outcome<Tokens> {
    let dir = dir.map_or_else(caches::default_dir, Ok)?;
    Ok(Tokens::new(&dir))
}

/// What went wrong with tokens.
pub fn refused(error: TokenError) -> Failure {
    match error {
        TokenError::Name(_) => Failure::usage(error.to_string()),
        TokenError::Unknown(_) => {
            Failure::not_found(error.to_string()).hint("`calve cache token ls` lists them")
        }
        TokenError::Exists(_) => Failure::failed(error.to_string())
            .hint("take another name, or revoke that one with `calve cache token rm`"),
        TokenError::Io { .. } | TokenError::Damaged { .. } => {
            Failure::failed("the tokens cannot be used").caused_by(error)
        }
    }
}

pub fn run(args: Args) -> Outcome {
    match args.command {
        Command::Add { name, push, closure, dir } => {
            let right = match (push, closure.is_empty()) {
                (true, _) => Right::Push,
                (false, true) => Right::Pull,
                (false, false) => Right::Closure(closure),
            };
            ui::line(&tokens(dir)?.add(&name, &right).map_err(refused)?)?;
        }
        Command::Ls { dir, json } => list(&tokens(dir)?, json)?,
        Command::Rm { name, dir } => tokens(dir)?.remove(&name).map_err(refused)?,
    }
    Ok(ExitStatus::Success)
}

fn list(tokens: &Tokens, json: bool) -> Outcome<()> {
    let tokens = tokens.list().map_err(refused)?;
    if json {
        let tokens = tokens.iter().map(|token| {
            let closure = match &token.right {
                Right::Closure(roots) => roots.iter().map(ToString::to_string).collect(),
                Right::Push | Right::Pull => Vec::new(),
            };
            serde_json::json!({ "name": token.name, "right": word(&token.right), "closure": closure })
        });
        return ui::json(serde_json::Value::from(tokens.collect::<Vec<_>>()).to_string().as_bytes());
    }
    let mut table = Table::new(["NAME", "RIGHT"]);
    for token in tokens.iter() {
        let right = match &token.right {
            Right::Closure(roots) => {
                let roots: Vec<_> = roots.iter().map(ToString::to_string).collect();
                format!("closure of {}", roots.join(" "))
            }
            right => word(right).to_owned(),
        };
        table.row([Cell::new(token.name.as_str()), Cell::new(right)]);
    }
    table.print()
}

fn word(right: &Right) -> &'static str {
    match right {
        Right::Push => "push",
        Right::Pull => "pull",
        Right::Closure(_) => "closure",
    }
}
