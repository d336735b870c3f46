//! `docs/reference.md`: every command with its help, as clap has it. The test below says when it is stale.

use std::fmt::Write as _;

use clap::builder::StyledStr;
use clap::{Arg, ArgAction, Command, CommandFactory};

/// The reference as Markdown.
fn reference() -> String {
    let mut out = "<!-- Made from the help texts by `UPDATE=1 cargo test -p calve --bin calve reference`: change those. -->\n\n\
                   # Reference of the command line\n\n"
        .to_owned();
    let mut cli = super::Cli::command();
    cli.build();
    let about = cli.get_long_about().or(cli.get_about());
    let _ = writeln!(out, "{}\n\n```\n{}\n```\n", text(about), text(cli.get_after_long_help()));
    for command in cli.get_subcommands().filter(|command| !command.is_hide_set()) {
        let _ =
            writeln!(out, "- [`calve {0}`](#calve-{0}): {1}", command.get_name(), text(command.get_about()));
    }
    for command in cli.get_subcommands().filter(|command| !command.is_hide_set()) {
        describe(&mut out, command, "calve", 2);
    }
    out
}

fn describe(out: &mut String, command: &Command, parents: &str, level: usize) {
    let name = format!("{parents} {}", command.get_name());
    let _ = writeln!(out, "\n{} {name}\n", "#".repeat(level));
    let _ = writeln!(out, "{}\n", text(command.get_long_about().or(command.get_about())));
    let usage = command.clone().render_usage().to_string();
    let _ = writeln!(out, "```\n{}\n```", usage.trim_start_matches("Usage: "));
    let shown =
        |arg: &&Arg| !arg.is_hide_set() && !matches!(arg.get_action(), ArgAction::Help | ArgAction::HelpLong);
    let (positionals, options): (Vec<_>, Vec<_>) =
        command.get_arguments().filter(shown).partition(|arg| arg.is_positional());
    if positionals.len() + options.len() > 0 {
        out.push('\n');
    }
    for arg in positionals.into_iter().chain(options) {
        let _ = writeln!(out, "- `{}`: {}", spelled(arg), explained(arg));
    }
    if let Some(after) = command.get_after_long_help().or(command.get_after_help()) {
        let _ = writeln!(out, "\n```\n{}\n```", after.to_string().trim_end());
    }
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set() && inner.get_name() != "help")
    {
        describe(out, inner, &name, level + 1);
    }
}

/// An argument as it is written, with the name of its value.
fn spelled(arg: &Arg) -> String {
    let value = match arg.get_action() {
        ArgAction::Set | ArgAction::Append => {
            let names = arg.get_value_names().unwrap_or_default();
            names.iter().map(|name| format!("<{name}>")).collect::<Vec<_>>().join(" ")
        }
        _ => String::new(),
    };
    let flags: Vec<String> =
        [arg.get_short().map(|short| format!("-{short}")), arg.get_long().map(|long| format!("--{long}"))]
            .into_iter()
            .flatten()
            .collect();
    format!("{} {value}", flags.join(", ")).trim().to_owned()
}

fn explained(arg: &Arg) -> String {
    let mut out = text(arg.get_long_help().or(arg.get_help())).replace("\n\n", " ").replace('\n', " ");
    let values: Vec<String> =
        arg.get_possible_values().iter().map(|value| format!("`{}`", value.get_name())).collect();
    if !values.is_empty() && matches!(arg.get_action(), ArgAction::Set | ArgAction::Append) {
        let _ = write!(out, " [possible: {}]", values.join(", "));
    }
    let defaults: Vec<_> =
        arg.get_default_values().iter().map(|value| format!("`{}`", value.to_string_lossy())).collect();
    if !defaults.is_empty()
        && !matches!(arg.get_action(), ArgAction::SetTrue | ArgAction::SetFalse | ArgAction::Count)
    {
        let _ = write!(out, " [default: {}]", defaults.join(", "));
    }
    out
}

fn text(text: Option<&StyledStr>) -> String {
    text.map(ToString::to_string).unwrap_or_default().trim().to_owned()
}

#[test]
fn the_reference_matches_the_help_texts() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference.md");
    let reference = reference();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, &reference).expect("docs can be written");
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        found == reference,
        "docs/reference.md is stale: `UPDATE=1 cargo test -p calve --bin calve reference` makes it anew"
    );
}
