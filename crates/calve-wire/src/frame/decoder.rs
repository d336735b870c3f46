//! Bytes in, preambles and frames out: what both ends of the agent protocol read with.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;

use memchr::memmem::Finder;

use super::{Frame, FrameError, PREAMBLE_MAGIC};

/// Length of a machine's token in bytes.
pub const TOKEN_BYTES: usize = 32;
/// Length of a preamble in bytes: the magic and the token.
pub const PREAMBLE_BYTES: usize = PREAMBLE_MAGIC.len() + TOKEN_BYTES;

/// Most memory that a decoder keeps between two bursts: a server has a thousand of them.
const IDLE_MAX_BYTES: usize = 4 * 1024;

/// A machine's token: the agent speaks only with who knows it. 32 hexadecimal digits; never printed.
#[derive(Clone)]
pub struct Token([u8; TOKEN_BYTES]);

/// A text that is no token. It does not repeat the text, which may be a secret with a typing error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a token has {TOKEN_BYTES} hexadecimal digits")]
pub struct TokenError;

impl FromStr for Token {
    type Err = TokenError;
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let digits: [u8; TOKEN_BYTES] = text.as_bytes().try_into().map_err(|_| TokenError)?;
        if digits.iter().all(u8::is_ascii_hexdigit) { Ok(Self(digits)) } else { Err(TokenError) }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Token {
    /// The token in what a connection begins with, for an agent that takes whoever speaks for its server.
    pub fn of_preamble(preamble: &[u8; PREAMBLE_BYTES]) -> Result<Self, TokenError> {
        let token = preamble.strip_prefix(&PREAMBLE_MAGIC).ok_or(TokenError)?;
        std::str::from_utf8(token).map_err(|_| TokenError)?.parse()
    }

    /// What a connection begins with, in either direction.
    pub fn preamble(&self) -> [u8; PREAMBLE_BYTES] {
        let mut bytes = [0; PREAMBLE_BYTES];
        bytes[..PREAMBLE_MAGIC.len()].copy_from_slice(&PREAMBLE_MAGIC);
        bytes[PREAMBLE_MAGIC.len()..].copy_from_slice(&self.0);
        bytes
    }

    /// Compares in a time that does not depend on where the two differ.
    fn is(&self, other: &[u8]) -> bool {
        let difference = self.0.iter().zip(other).fold(0, |acc, (a, b)| acc | (a ^ b));
        other.len() == TOKEN_BYTES && std::hint::black_box(difference) == 0
    }
}

/// What a [`Decoder`] found in the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming {
    /// The preamble with the right token: a new connection begins here, whatever was before it.
    Connected,
    /// A frame of the connection.
    Frame(Frame),
}

/// Finds preambles and frames in a stream of bytes that came in pieces of any size.
///
/// ```text
///             preamble                     frame error, hang_up
///  unconnected ──────▶ connected (frames) ──────▶ unconnected (bytes are dropped)
///                        └─ preamble: connected anew ─┘
/// ```
/// A preamble counts wherever it begins, also inside of a frame, and also where the frame's claimed length swallowed its
/// first bytes. The magic with another token is nothing special: it may be part of a file that is being copied.
#[derive(Debug)]
pub struct Decoder {
    token: Token,
    magic: Finder<'static>,
    /// Bytes from `kept_from` on: up to `PREAMBLE_BYTES` - 1 that were used already, then the ones that were not.
    bytes: Vec<u8>,
    /// How many of `bytes` were used for frames or dropped.
    used: usize,
    /// Where in `bytes` the next magic may begin: everything before was looked at.
    scanned: usize,
    /// Ends of the preambles in `bytes` that were found and not yet announced.
    preambles: VecDeque<usize>,
    connected: bool,
}

impl Decoder {
    /// A decoder that waits for the preamble with this token.
    pub fn new(token: Token) -> Self {
        static MAGIC: [u8; 16] = PREAMBLE_MAGIC;
        Self {
            token,
            magic: Finder::new(&MAGIC),
            bytes: Vec::new(),
            used: 0,
            scanned: 0,
            preambles: VecDeque::new(),
            connected: false,
        }
    }

    /// Whether a preamble came and the connection did not end since.
    pub fn is_connected(&self) -> bool {
        self.connected
    }

    /// Takes bytes as they came; [`Decoder::next`] is to be called until it has nothing before more are given.
    pub fn push(&mut self, bytes: &[u8]) {
        self.forget_used();
        self.bytes.extend_from_slice(bytes);
        self.find_preambles();
        if !self.connected && self.preambles.is_empty() {
            self.used = self.bytes.len();
        }
    }

    /// The next preamble or frame; none where more bytes are needed. After an error everything up to the next preamble is
    /// dropped.
    #[allow(clippy::should_implement_trait, reason = "an iterator would end where this only pauses")]
    pub fn next(&mut self) -> Result<Option<Incoming>, FrameError> {
        let preamble_end = self.preambles.front().copied();
        let before_preamble = preamble_end.map_or(self.bytes.len(), |end| end.saturating_sub(PREAMBLE_BYTES));
        if self.connected && self.used < before_preamble {
            match Frame::decode(&self.bytes[self.used..before_preamble]) {
                Ok(Some((frame, length))) => {
                    self.used += length;
                    return Ok(Some(Incoming::Frame(frame)));
                }
                Ok(None) => {}
                Err(error) => {
                    self.connected = false;
                    self.used = before_preamble;
                    return Err(error);
                }
            }
        }
        let Some(end) = preamble_end else { return Ok(None) };
        self.preambles.pop_front();
        self.used = end;
        self.connected = true;
        Ok(Some(Incoming::Connected))
    }

    /// The connection has ended below: forgets what is left of it and waits for the next preamble.
    pub fn hang_up(&mut self) {
        self.bytes.clear();
        self.preambles.clear();
        (self.used, self.scanned, self.connected) = (0, 0, false);
    }

    /// Drops used bytes, but for those that a preamble may have begun in.
    fn forget_used(&mut self) {
        let spare = self.used.saturating_sub(PREAMBLE_BYTES - 1).min(self.scanned);
        self.bytes.drain(..spare);
        if self.bytes.len() <= PREAMBLE_BYTES && self.bytes.capacity() > IDLE_MAX_BYTES {
            self.bytes.shrink_to(IDLE_MAX_BYTES);
        }
        self.used -= spare;
        self.scanned -= spare;
        self.preambles.iter_mut().for_each(|end| *end -= spare);
    }

    fn find_preambles(&mut self) {
        while let Some(at) = self.magic.find(&self.bytes[self.scanned..]) {
            let start = self.scanned + at;
            let end = start + PREAMBLE_BYTES;
            let Some(token) = self.bytes.get(start + PREAMBLE_MAGIC.len()..end) else {
                self.scanned = start;
                return;
            };
            if self.token.is(token) {
                self.preambles.push_back(end);
                self.scanned = end;
            } else {
                self.scanned = start + 1;
            }
        }
        let undecided = self.bytes.len().saturating_sub(PREAMBLE_MAGIC.len() - 1);
        self.scanned = self.scanned.max(undecided);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Channel;

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";

    fn token() -> Token {
        TOKEN.parse().expect("32 digits")
    }

    #[test]
    fn a_preamble_tells_its_token_and_nothing_else_does() {
        let preamble = token().preamble();
        assert_eq!(Token::of_preamble(&preamble).expect("it is one").preamble(), preamble);
        for at in [0, PREAMBLE_MAGIC.len()] {
            let mut other = preamble;
            other[at] = b'?';
            assert_eq!(Token::of_preamble(&other).unwrap_err(), TokenError, "{at}");
        }
    }

    fn data(byte: u8, count: usize) -> Frame {
        Frame::Data { stream: 1, channel: Channel::Stdin, bytes: vec![byte; count] }
    }

    fn encoded(frame: &Frame) -> Vec<u8> {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        bytes
    }

    /// What comes out when the bytes arrive in pieces of `size`.
    fn decode(bytes: &[u8], size: usize) -> Vec<Result<Incoming, FrameError>> {
        let mut decoder = Decoder::new(token());
        let mut found = Vec::new();
        for piece in bytes.chunks(size) {
            decoder.push(piece);
            while let Some(incoming) = decoder.next().transpose() {
                found.push(incoming);
            }
        }
        found
    }

    #[test]
    fn frames_come_behind_the_preamble_in_pieces_of_any_size() {
        let bytes = [b"stale".as_slice(), &token().preamble(), &encoded(&data(1, 9)), &encoded(&data(2, 99))]
            .concat();
        let expected =
            [Incoming::Connected, Incoming::Frame(data(1, 9)), Incoming::Frame(data(2, 99))].map(Ok);
        for size in 1..=bytes.len() {
            assert_eq!(decode(&bytes, size), expected, "pieces of {size}");
        }
    }

    #[test]
    fn a_preamble_inside_of_a_frame_is_a_new_connection() {
        let whole = encoded(&data(1, 500));
        let bytes = [&token().preamble(), &whole[..200], &token().preamble(), &encoded(&data(2, 3))].concat();
        let expected = [Incoming::Connected, Incoming::Connected, Incoming::Frame(data(2, 3))].map(Ok);
        for size in 1..=bytes.len() {
            assert_eq!(decode(&bytes, size), expected, "pieces of {size}");
        }
    }

    #[test]
    fn a_preamble_whose_first_bytes_a_half_frame_swallowed_still_counts() {
        let whole = encoded(&data(1, 500));
        for missing in 1..PREAMBLE_BYTES {
            let stale = &whole[..whole.len() - missing];
            let bytes = [&token().preamble(), stale, &token().preamble(), &encoded(&data(2, 3))].concat();
            for size in [1, 7, 48, 100] {
                let found = decode(&bytes, size);
                let end = [Incoming::Connected, Incoming::Frame(data(2, 3))].map(Ok);
                assert_eq!(found[found.len() - 2..], end, "{missing} missing, pieces of {size}");
            }
        }
    }

    #[test]
    fn the_magic_with_another_token_is_data() {
        let other: Token = "ffffffffffffffffffffffffffffffff".parse().expect("32 digits");
        assert_eq!(decode(&other.preamble(), 5), []);
        let file = Frame::Data { stream: 1, channel: Channel::Stdin, bytes: other.preamble().repeat(3) };
        let bytes = [token().preamble().as_slice(), &encoded(&file)].concat();
        assert_eq!(decode(&bytes, 11), [Ok(Incoming::Connected), Ok(Incoming::Frame(file))]);
    }

    #[test]
    fn after_a_broken_frame_only_a_preamble_counts() {
        let broken = [255; 60];
        let bytes = [
            token().preamble().as_slice(),
            &broken,
            &encoded(&data(1, 1)),
            &token().preamble(),
            &encoded(&data(2, 1)),
        ]
        .concat();
        for size in 1..=bytes.len() {
            let found = decode(&bytes, size);
            let error = Err(FrameError::BadLength(0xffff_ffff));
            let rest = [Ok(Incoming::Connected), Ok(Incoming::Frame(data(2, 1)))];
            assert_eq!(
                found,
                [[Ok(Incoming::Connected), error].as_slice(), &rest].concat(),
                "pieces of {size}"
            );
        }
    }

    #[test]
    fn memory_does_not_grow_before_a_preamble() {
        let mut decoder = Decoder::new(token());
        for _ in 0..1000 {
            decoder.push(&[7; 4096]);
            assert_eq!(decoder.next(), Ok(None));
        }
        assert!(decoder.bytes.capacity() < 64 * 1024);
    }

    #[test]
    fn tokens_are_digits_and_stay_secret() {
        assert_eq!("xyz".parse::<Token>().map(|_| ()), Err(TokenError));
        assert_eq!(format!("{:?}", token()), "Token(…)");
    }
}
