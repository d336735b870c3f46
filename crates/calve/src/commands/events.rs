use std::time::Duration;

use calve_wire::event::{Event, What};
use http_body_util::BodyExt;

use super::{logs, ps};
use crate::args::parse_duration;
use crate::client::{Client, with_query};
use crate::failure::{ExitStatus, Outcome};
use crate::ui;

/// Events that are shown where nobody says how many: what a person can look through. A server keeps a hundred times as many.
const LAST_DEFAULT: u64 = 1000;

/// Pause between two looks for the next server, of who follows events and needs none of its own.
const LOOK_PAUSE: Duration = Duration::from_millis(250);

/// Shows what happened, in order, and who caused it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Go on with what happens, until interrupted.
    #[arg(short, long)]
    follow: bool,
    /// Only what happened in this time until now, e.g. 10m.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    since: Option<Duration>,
    /// Of what happened already, only the last N. [default: 1000; with --since all of that time]
    #[arg(long, short = 'n', value_name = "N")]
    last: Option<u64>,
    /// Print an array of objects; with --follow one object a line.
    #[arg(long)]
    json: bool,
}

pub async fn run(args: Args) -> Outcome {
    let client = Client::connect().await?;
    let since_ms = args.since.map(|since| ps::now().0.saturating_sub(since.as_millis() as u64).to_string());
    let last = args.last.or(since_ms.is_none().then_some(LAST_DEFAULT));
    let asked = |seen: Option<u64>| {
        with_query(
            "/v1/events",
            &[
                ("follow", args.follow.then(|| "true".to_owned())),
                ("since", seen.map(|seen| seen.to_string())),
                ("since_ms", since_ms.clone()),
                ("last", last.filter(|_| seen.is_none()).map(|count| count.to_string())),
            ],
        )
    };
    if args.follow {
        return follow(client, asked, args.json).await;
    }
    let bytes = client.get_bytes(&asked(None)).await?;
    if args.json {
        ui::json(&bytes)?;
        return Ok(ExitStatus::Success);
    }
    let events: Vec<Event> = client.parse(&bytes)?;
    let text: String = events.iter().map(|event| format!("{}\n", show(event))).collect();
    ui::data(text.as_bytes())?;
    Ok(ExitStatus::Success)
}

/// Shows events as they happen, of one server after the other.
async fn follow(mut client: Client, asked: impl Fn(Option<u64>) -> String, json: bool) -> Outcome {
    let mut seen = None;
    loop {
        let mut body = client.get_stream(&asked(seen), "text/event-stream").await?;
        let mut lines = EventStream::default();
        while let Some(Ok(part)) = body.frame().await {
            let Ok(bytes) = part.into_data() else { continue };
            for data in lines.feed(&bytes) {
                let event: Event = client.parse(data.as_bytes())?;
                seen = Some(event.seq);
                ui::line(&if json { data } else { show(&event) })?;
            }
        }
        // That server has ended; one that was told to must not be started again for want of events.
        client = wait_for_next().await?;
    }
}

/// The next server, once there is one.
async fn wait_for_next() -> Outcome<Client> {
    loop {
        tokio::time::sleep(LOOK_PAUSE).await;
        if let Some(client) = Client::connect_running().await? {
            return Ok(client);
        }
    }
}

/// The `data` of a stream of server-sent events (WHATWG HTML, 9.2.6); nothing else of it is of use here.
#[derive(Default)]
struct EventStream {
    waiting: Vec<u8>,
    data: String,
}

impl EventStream {
    /// Takes bytes, gives the events that they complete.
    fn feed(&mut self, bytes: &[u8]) -> Vec<String> {
        self.waiting.extend_from_slice(bytes);
        let mut events = Vec::new();
        while let Some(end) = self.waiting.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.waiting.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches(['\r', '\n']);
            if line.is_empty() {
                if !self.data.is_empty() {
                    events.push(std::mem::take(&mut self.data));
                }
            } else if let Some(data) = line.strip_prefix("data:") {
                if !self.data.is_empty() {
                    self.data.push('\n');
                }
                self.data.push_str(data.strip_prefix(' ').unwrap_or(data));
            }
        }
        events
    }
}

fn show(event: &Event) -> String {
    let what = match &event.what {
        What::Declared => "declared".to_owned(),
        What::State { state, message: None } => state.to_string(),
        What::State { state, message: Some(message) } => format!("{state}: {message}"),
        What::Started { start: 1 } => "program started".to_owned(),
        What::Started { start } => format!("program started again (start {start})"),
        What::Exited { exit } => format!("program ended: {}", ps::show_exit(exit)),
        What::Health { healthy: true, .. } => "healthy".to_owned(),
        What::Health { healthy: false, reason: None } => "not healthy".to_owned(),
        What::Health { healthy: false, reason: Some(reason) } => format!("not healthy: {reason}"),
        What::StopRequested => "told to stop".to_owned(),
        What::Stopped => "stopped: nothing is left alive".to_owned(),
        What::Extended { deadline_unix_ms: Some(deadline) } => {
            format!("lease until {}", logs::show_time(*deadline))
        }
        What::Extended { deadline_unix_ms: None } => "lease without an end".to_owned(),
        What::Exec { argv } => format!("exec {}", argv.join(" ")),
        What::Copied { path, into: true } => format!("files copied to {path}"),
        What::Copied { path, into: false } => format!("files copied from {path}"),
        What::Joined { key } => format!("its agent joined with the key {}", key.get(..16).unwrap_or(key)),
        What::JoinRefused { from, why } => format!("a join from {from} was refused: {why}"),
        What::Removed => "record and logs removed".to_owned(),
    };
    let line = format!("{}  {}  {what}  (by {})", logs::show_time(event.time_unix_ms), event.name, event.by);
    line.chars().map(|c| if c.is_control() { '·' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_whole_however_their_bytes_are_cut() {
        let text = b": hello\n\nid: 1\ndata: {\"a\":1}\n\ndata:x\r\ndata: y\r\n\r\n";
        for cut in 0..text.len() {
            let mut stream = EventStream::default();
            let mut events = stream.feed(&text[..cut]);
            events.extend(stream.feed(&text[cut..]));
            assert_eq!(events, ["{\"a\":1}", "x\ny"]);
        }
    }
}
