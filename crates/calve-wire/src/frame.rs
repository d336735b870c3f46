//! Frames: the outer form of the agent protocol, of log files and of log responses.
//!
//! ```text
//!  length: u32 BE (of what follows) │ kind: u8 │ body
//!  kind 0  control   body = JSON of ToAgent / FromAgent
//!  kind 1  log       body = seq: u64 BE │ time_unix_ms: u64 BE │ channel: u8 │ bytes
//!  kind 2  data      body = stream: u32 BE │ channel: u8 │ bytes      (no bytes: the channel is closed)
//! ```
//! A connection begins with a preamble in each direction ([`PREAMBLE_MAGIC`] and the machine's token, 48 bytes): a
//! virtio-serial port keeps bytes of a former connection, so the reader drops everything before the preamble, and takes
//! a preamble in the middle of a frame for a new connection.

mod decoder;

pub use decoder::{Decoder, Incoming, PREAMBLE_BYTES, TOKEN_BYTES, Token, TokenError};

/// Largest frame body; larger lengths mean a broken peer.
pub const FRAME_MAX_BYTES: usize = 4 * 1024 * 1024;
/// Most bytes of output in one log or data frame: keeps latency low beside bulk.
pub const CHUNK_MAX_BYTES: usize = 64 * 1024;
/// Bytes that may be under way on one stream in one direction before the receiver has granted more.
pub const STREAM_WINDOW_BYTES: usize = 256 * 1024;
/// First half of the preamble; the machine's 32-digit token is the second.
pub const PREAMBLE_MAGIC: [u8; 16] = *b"\x00\xffcalve-agent1\xff\x00";

/// What a run of bytes is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Channel {
    /// To the program.
    Stdin = 0,
    /// From the program; both outputs of a terminal.
    Stdout = 1,
    /// From the program.
    Stderr = 2,
    /// The machine's console: kernel and boot messages.
    Console = 3,
}

impl Channel {
    /// The channel of a number.
    pub fn from_u8(n: u8) -> Option<Self> {
        match n {
            0 => Some(Self::Stdin),
            1 => Some(Self::Stdout),
            2 => Some(Self::Stderr),
            3 => Some(Self::Console),
            _ => None,
        }
    }

    /// The word in `logs --json`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stdin => "stdin",
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Console => "console",
        }
    }
}

/// One run of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// Position in the machine's log; counts from 1 without gaps.
    pub seq: u64,
    /// When it was read from the program, in milliseconds since the epoch.
    pub time_unix_ms: u64,
    /// What it is.
    pub channel: Channel,
    /// The bytes as the program wrote them.
    pub bytes: Vec<u8>,
}

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// JSON of a control message.
    Control(Vec<u8>),
    /// A run of the program's output.
    Log(LogEntry),
    /// Bytes of a stream.
    Data {
        /// The stream; 0 is the program's standard input.
        stream: u32,
        /// Which way and what.
        channel: Channel,
        /// The bytes; none closes the channel.
        bytes: Vec<u8>,
    },
}

/// Why bytes are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length is over [`FRAME_MAX_BYTES`] or too short for the kind.
    #[error("a frame claims {0} bytes")]
    BadLength(usize),
    /// The kind or channel is unknown.
    #[error("a frame has the unknown kind or channel {0}")]
    BadKind(u8),
}

impl Frame {
    /// Appends the frame's bytes to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        match self {
            Self::Control(json) => {
                out.push(0);
                out.extend_from_slice(json);
            }
            Self::Log(entry) => {
                out.push(1);
                out.extend_from_slice(&entry.seq.to_be_bytes());
                out.extend_from_slice(&entry.time_unix_ms.to_be_bytes());
                out.push(entry.channel as u8);
                out.extend_from_slice(&entry.bytes);
            }
            Self::Data { stream, channel, bytes } => {
                out.push(2);
                out.extend_from_slice(&stream.to_be_bytes());
                out.push(*channel as u8);
                out.extend_from_slice(bytes);
            }
        }
        let length = u32::try_from(out.len() - start - 4).expect("a frame is below 4 GiB");
        out[start..start + 4].copy_from_slice(&length.to_be_bytes());
    }

    /// Takes one frame from the front of `bytes`: the frame and its length in bytes, or none where more is needed.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Self, usize)>, FrameError> {
        let Some((head, rest)) = bytes.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_be_bytes(*head) as usize;
        if length == 0 || length > FRAME_MAX_BYTES {
            return Err(FrameError::BadLength(length));
        }
        let Some(body) = rest.get(..length) else { return Ok(None) };
        let frame = match body[0] {
            0 => Self::Control(body[1..].to_vec()),
            1 if length >= 18 => Self::Log(LogEntry {
                seq: u64_at(body, 1),
                time_unix_ms: u64_at(body, 9),
                channel: Channel::from_u8(body[17]).ok_or(FrameError::BadKind(body[17]))?,
                bytes: body[18..].to_vec(),
            }),
            2 if length >= 6 => Self::Data {
                stream: u32::from_be_bytes([body[1], body[2], body[3], body[4]]),
                channel: Channel::from_u8(body[5]).ok_or(FrameError::BadKind(body[5]))?,
                bytes: body[6..].to_vec(),
            },
            1 | 2 => return Err(FrameError::BadLength(length)),
            kind => return Err(FrameError::BadKind(kind)),
        };
        Ok(Some((frame, 4 + length)))
    }
}

fn u64_at(body: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(body[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_round_trip_and_wait_for_their_last_byte() {
        let frames = [
            Frame::Control(b"{}".to_vec()),
            Frame::Log(LogEntry { seq: 7, time_unix_ms: 9, channel: Channel::Stderr, bytes: vec![0, 255] }),
            Frame::Data { stream: 3, channel: Channel::Stdin, bytes: vec![] },
        ];
        for frame in frames {
            let mut bytes = Vec::new();
            frame.encode(&mut bytes);
            assert_eq!(Frame::decode(&bytes), Ok(Some((frame, bytes.len()))));
            assert_eq!(Frame::decode(&bytes[..bytes.len() - 1]), Ok(None));
        }
    }

    #[test]
    fn lying_lengths_and_unknown_kinds_are_refused() {
        assert!(matches!(Frame::decode(&[255; 8]), Err(FrameError::BadLength(_))));
        assert!(matches!(Frame::decode(&[0, 0, 0, 1, 9]), Err(FrameError::BadKind(9))));
        assert!(matches!(Frame::decode(&[0, 0, 0, 2, 1, 1]), Err(FrameError::BadLength(2))));
    }
}
