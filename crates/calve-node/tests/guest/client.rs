//! A server's side of the talk with a guest's agent.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use calve_wire::agent::{AGENT_PROTOCOL_VERSION, FromAgent, Phase, Status, ToAgent};
use calve_wire::frame::{Channel, Decoder, Frame, Incoming, Token};

use super::host::{HOUR, PATIENCE, TOKEN};

pub struct Client {
    stream: UnixStream,
    decoder: Decoder,
    pub output: Vec<(u64, Channel, Vec<u8>)>,
}

impl Client {
    /// Connects to an agent that may still be booting, says hello and waits for the welcome.
    pub fn connect(socket: &Path, log_seq: u64) -> (Self, Status) {
        let token: Token = TOKEN.parse().expect("a token");
        let mut stream = UnixStream::connect(socket).expect("QEMU listens");
        stream.set_read_timeout(Some(Duration::from_millis(100))).expect("set");
        stream.write_all(&token.preamble()).expect("written");
        let mut client = Self { stream, decoder: Decoder::new(token), output: vec![] };
        client.send(&ToAgent::Hello { version: AGENT_PROTOCOL_VERSION, log_seq, remaining: HOUR });
        let status = client.until(|message| match message {
            FromAgent::Welcome { status, .. } => Some(status.clone()),
            _ => None,
        });
        (client, status)
    }

    pub fn send(&mut self, message: &ToAgent) {
        let mut bytes = Vec::new();
        Frame::Control(serde_json::to_vec(message).expect("JSON")).encode(&mut bytes);
        self.stream.write_all(&bytes).expect("written");
    }

    /// Sends the program's standard input, and its end.
    pub fn send_input(&mut self, input: &[u8]) {
        let mut bytes = Vec::new();
        for piece in [input, b""] {
            Frame::Data { stream: 0, channel: Channel::Stdin, bytes: piece.to_vec() }.encode(&mut bytes);
        }
        self.stream.write_all(&bytes).expect("written");
    }

    /// Waits for the end of the program: its last status.
    pub fn until_ended(&mut self) -> Status {
        self.until(|message| match message {
            FromAgent::Status { status } | FromAgent::Welcome { status, .. }
                if status.phase == Phase::Ended =>
            {
                Some(status.clone())
            }
            _ => None,
        })
    }

    /// Waits until this much of the log is here.
    pub fn until_log(&mut self, seq: u64) {
        let end = Instant::now() + PATIENCE;
        while self.output.last().map_or(0, |(last, ..)| *last) < seq {
            assert!(Instant::now() < end, "the log did not come");
            self.next(&mut |_| None::<()>);
        }
    }

    pub fn stdout(&self) -> String {
        let of = |(_, channel, bytes): &(u64, Channel, Vec<u8>)| {
            (*channel == Channel::Stdout).then(|| bytes.clone())
        };
        String::from_utf8_lossy(&self.output.iter().filter_map(of).flatten().collect::<Vec<_>>()).into_owned()
    }

    pub fn until<T>(&mut self, mut wanted: impl FnMut(&FromAgent) -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < end, "the agent did not say it");
            if let Some(found) = self.next(&mut wanted) {
                return found;
            }
        }
    }

    /// Reads once and takes what came.
    fn next<T>(&mut self, wanted: &mut impl FnMut(&FromAgent) -> Option<T>) -> Option<T> {
        let mut bytes = [0; 4096];
        match self.stream.read(&mut bytes) {
            Ok(0) => panic!("the agent hung up"),
            Ok(count) => self.decoder.push(&bytes[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => panic!("{error}"),
        }
        let mut found = None;
        while let Some(incoming) = self.decoder.next().expect("frames") {
            match incoming {
                Incoming::Frame(Frame::Control(json)) => {
                    let message = serde_json::from_slice(&json).expect("a message");
                    found = found.or_else(|| wanted(&message));
                }
                Incoming::Frame(Frame::Log(entry)) => {
                    self.output.push((entry.seq, entry.channel, entry.bytes))
                }
                Incoming::Frame(Frame::Data { .. }) | Incoming::Connected => {}
            }
        }
        found
    }
}
