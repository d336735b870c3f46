use std::time::Duration;

use base64::Engine;
use bytes::{Buf, BytesMut};
use calve_core::{Kind, MachineName};
use calve_wire::api::MachineSummary;
use calve_wire::frame::{Channel, Frame, LogEntry};
use clap_complete::ArgValueCompleter;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::Serialize;

use super::{names, ps};
use crate::args::{parse_duration, parse_name};
use crate::client::{Client, with_query};
use crate::failure::{ExitStatus, Failure, Outcome};
use crate::ui::{Lines, OutputStream};

/// The media type of log frames.
const LOG_MEDIA_TYPE: &str = "application/x-calve-log";

/// Shows a machine's output, also after it is gone: its stdout on stdout, its stderr on stderr.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The machine.
    #[arg(value_parser = parse_name, add = ArgValueCompleter::new(names::complete))]
    name: MachineName,
    /// Go on until the machine ends.
    #[arg(short, long)]
    follow: bool,
    /// Only what came in this time until now, e.g. 10m.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    since: Option<Duration>,
    /// Only the last N lines.
    #[arg(long, short = 'n', value_name = "N")]
    tail: Option<u64>,
    /// Only standard output.
    #[arg(long, group = "stream")]
    stdout: bool,
    /// Only standard error.
    #[arg(long, group = "stream")]
    stderr: bool,
    /// Only the console: messages of the kernel and the boot.
    #[arg(long, group = "stream")]
    console: bool,
    /// Begin each line with its time (UTC).
    #[arg(short, long, conflicts_with = "json")]
    timestamps: bool,
    /// Print one object a line: seq, time_unix_ms, channel, and text (or base64 where it is not UTF-8).
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args) -> Outcome {
    let client = Client::connect().await?;
    let streams = match (args.stdout, args.stderr, args.console) {
        (true, ..) => "stdout",
        (_, true, _) => "stderr",
        (.., true) => "console",
        // What a system says, it says on its console; beside a program's output the boot is noise.
        _ if is_system(&client, &args.name).await? => "stdout,stderr,console",
        _ => "stdout,stderr",
    };
    let since = args.since.map(|since| ps::now().0.saturating_sub(since.as_millis() as u64));
    let (path, follow, tail) = (names::path(&args.name, "/logs"), args.follow, args.tail);
    let asked = |seen: Option<u64>| {
        with_query(
            &path,
            &[
                ("follow", follow.then(|| "true".to_owned())),
                ("since_ms", since.map(|ms| ms.to_string())),
                ("tail", tail.filter(|_| seen.is_none()).map(|lines| lines.to_string())),
                ("from", seen.map(|seen| (seen + 1).to_string())),
                ("stream", Some(streams.to_owned())),
            ],
        )
    };
    let mut printer = Printer { args, lines: Lines::default(), seen: None };
    let mut body = client.get_stream(&asked(None), LOG_MEDIA_TYPE).await?;
    loop {
        match printer.print_all(body).await? {
            None => return Ok(ExitStatus::Success),
            // The machine goes on without its server, and so does its log.
            Some(_) if follow && printer.seen.is_some() => {
                body = Client::connect().await?.get_stream(&asked(printer.seen), LOG_MEDIA_TYPE).await?;
            }
            Some(failure) => return Err(failure),
        }
    }
}

async fn is_system(client: &Client, name: &MachineName) -> Outcome<bool> {
    let machine: MachineSummary = client.get(&names::path(name, "")).await?;
    Ok(machine.kind == Kind::System.as_str())
}

struct Printer {
    args: Args,
    lines: Lines,
    /// The last entry that has a number.
    seen: Option<u64>,
}

/// A log entry as `--json` prints it.
#[derive(Serialize)]
struct Entry<'a> {
    seq: u64,
    time_unix_ms: u64,
    channel: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
}

impl Printer {
    /// Prints what comes. Gives why it broke off, if it did before its end.
    async fn print_all(&mut self, mut body: Incoming) -> Outcome<Option<Failure>> {
        let mut waiting = BytesMut::new();
        let broken = || Failure::failed("the log broke off");
        while let Some(part) = body.frame().await {
            let part = match part {
                Ok(part) => part,
                Err(error) => return Ok(Some(broken().caused_by(error))),
            };
            let Ok(part) = part.into_data() else { continue };
            waiting.extend_from_slice(&part);
            while let Some((frame, length)) =
                Frame::decode(&waiting).map_err(|error| broken().caused_by(error))?
            {
                waiting.advance(length);
                if let Frame::Log(entry) = frame {
                    self.print(&entry)?;
                    if entry.channel != Channel::Console {
                        self.seen = Some(entry.seq);
                    }
                }
            }
            self.lines.flush()?;
        }
        Ok((!waiting.is_empty()).then(broken))
    }

    fn print(&mut self, entry: &LogEntry) -> Outcome<()> {
        if self.args.json {
            return self.lines.write(OutputStream::Stdout, &json_line(entry));
        }
        let to = match entry.channel {
            Channel::Stderr => OutputStream::Stderr,
            Channel::Stdin | Channel::Stdout | Channel::Console => OutputStream::Stdout,
        };
        if self.args.timestamps {
            self.lines.write_prefixed(to, &format!("{} ", show_time(entry.time_unix_ms)), &entry.bytes)
        } else {
            self.lines.write(to, &entry.bytes)
        }
    }
}

fn json_line(entry: &LogEntry) -> Vec<u8> {
    let text = std::str::from_utf8(&entry.bytes).ok();
    let base64 = text.is_none().then(|| base64::engine::general_purpose::STANDARD.encode(&entry.bytes));
    let entry = Entry {
        seq: entry.seq,
        time_unix_ms: entry.time_unix_ms,
        channel: entry.channel.as_str(),
        text,
        base64,
    };
    let mut line = serde_json::to_vec(&entry).expect("plain text and numbers");
    line.push(b'\n');
    line
}

/// `2026-01-02T03:04:05.678Z`.
pub fn show_time(unix_ms: u64) -> String {
    let moment = i64::try_from(unix_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    moment.map_or_else(|| unix_ms.to_string(), |moment| format!("{moment:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_that_are_no_text_keep_their_bytes_in_json() {
        let entry = |bytes: &[u8]| LogEntry {
            seq: 1,
            time_unix_ms: 2,
            channel: Channel::Stderr,
            bytes: bytes.into(),
        };
        let line = |bytes| String::from_utf8(json_line(&entry(bytes))).unwrap();
        assert_eq!(line(b"a\n"), "{\"seq\":1,\"time_unix_ms\":2,\"channel\":\"stderr\",\"text\":\"a\\n\"}\n");
        assert!(line(b"\xff").contains("\"base64\":\"/w==\""));
        assert_eq!(show_time(1_767_323_045_678), "2026-01-02T03:04:05.678Z");
    }
}
