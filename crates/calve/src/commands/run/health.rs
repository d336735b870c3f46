//! The options of a health check.

use std::time::Duration;

use calve_wire::machine::{HealthCheck, Probe};

use crate::args::{HttpProbe, parse_duration, parse_http_probe, split_words};
use crate::failure::{Failure, Outcome};

/// Time from one probe to the next where none is said.
const INTERVAL_DEFAULT: Duration = Duration::from_secs(10);
/// Time for a probe where none is said.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);
/// Failures in a row where no number is said: one may be chance, three are not.
const RETRIES_DEFAULT: u32 = 3;

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Health check")]
pub struct HealthArgs {
    /// Healthy where this command in the machine exits with 0; split at blanks, with quotes.
    #[arg(long = "health-cmd", value_name = "COMMAND", value_parser = parse_command, group = "health-probe")]
    command: Option<Command>,
    /// Healthy where this port of the machine accepts connections.
    #[arg(long = "health-tcp", value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..), group = "health-probe")]
    tcp: Option<u16>,
    /// Healthy where GET answers with a status of 200 to 399.
    #[arg(long = "health-http", value_name = "PORT[/PATH]", value_parser = parse_http_probe, group = "health-probe")]
    http: Option<HttpProbe>,
    /// Time from one probe to the next. [default: 10s]
    #[arg(long = "health-interval", value_name = "DURATION", value_parser = parse_duration, requires = "health-probe")]
    interval: Option<Duration>,
    /// Time after which a probe has failed. [default: 5s]
    #[arg(long = "health-timeout", value_name = "DURATION", value_parser = parse_duration, requires = "health-probe")]
    timeout: Option<Duration>,
    /// Failures in a row that make it unhealthy. [default: 3]
    #[arg(long = "health-retries", value_name = "N", value_parser = clap::value_parser!(u32).range(1..), requires = "health-probe")]
    retries: Option<u32>,
}

/// A command in words.
#[derive(Debug, Clone)]
struct Command(Vec<String>);

fn parse_command(text: &str) -> Result<Command, String> {
    split_words(text).map(Command)
}

impl HealthArgs {
    /// The check, if one was asked for.
    pub fn to_check(&self) -> Outcome<Option<HealthCheck>> {
        let command = self.command.clone().map(|command| Probe::Command { argv: command.0 });
        let tcp = self.tcp.map(|port| Probe::Tcp { port });
        let http = self.http.clone().map(|http| Probe::Http { port: http.port, path: http.path });
        let Some(probe) = command.or(tcp).or(http) else { return Ok(None) };
        let interval = self.interval.unwrap_or(INTERVAL_DEFAULT);
        let timeout = self.timeout.unwrap_or(TIMEOUT_DEFAULT);
        if interval.is_zero() || timeout.is_zero() {
            return Err(Failure::usage("the times of a health check are above zero"));
        }
        Ok(Some(HealthCheck {
            probe,
            interval_ms: interval.as_millis() as u64,
            timeout_ms: timeout.as_millis() as u64,
            retries: self.retries.unwrap_or(RETRIES_DEFAULT),
        }))
    }
}
