use clap::ValueEnum;
use clap_complete::env::{Bash, EnvCompleter, Fish, Zsh};

use crate::failure::{ExitStatus, Failure, Outcome};
use crate::ui;

/// Prints a script that completes commands, options and machine names in a shell.
///
/// bash: `source <(calve completions bash)` in ~/.bashrc; zsh: the same in ~/.zshrc; fish: `calve completions fish |
/// source` in ~/.config/fish/config.fish.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The shell.
    shell: Shell,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

pub fn run(args: Args) -> Outcome {
    let shell: &dyn EnvCompleter = match args.shell {
        Shell::Bash => &Bash,
        Shell::Zsh => &Zsh,
        Shell::Fish => &Fish,
    };
    let mut script = Vec::new();
    shell
        .write_registration("COMPLETE", "calve", "calve", "calve", &mut script)
        .map_err(|error| Failure::failed("the script cannot be made").caused_by(error))?;
    ui::data(&script)?;
    Ok(ExitStatus::Success)
}
