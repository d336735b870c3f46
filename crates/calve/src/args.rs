//! The forms of arguments: each is parsed once, here, into a type that cannot be wrong. Errors are one sentence, as clap
//! prints them behind `invalid value '…' for '…':`.

mod cpus;
mod duration;
mod environment;
mod ports;
mod size;
mod words;

pub use cpus::parse_cpus;
pub use duration::{
    Ttl, as_ms, parse_duration, parse_grace, parse_ttl, show as show_duration,
    show_behind as show_duration_behind,
};
pub use environment::gather as gather_environment;
pub use ports::{Forward, HttpProbe, parse_forward, parse_http_probe, parse_port_mapping};
pub use size::{parse_size, show as show_size};
pub use words::split_words;

use calve_core::MachineName;

/// A machine's name.
pub fn parse_name(text: &str) -> Result<MachineName, String> {
    text.parse().map_err(|error: calve_core::ids::IdError| format!("not a machine name ({})", error.rule))
}
