//! The bearer token that opens the server over TCP.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// Random bytes of a made token: nobody guesses 256 bits.
const TOKEN_RANDOM_BYTES: usize = 32;
/// Shortest token that a file may hold, in characters: shorter ones can be guessed.
const TOKEN_MIN_CHARS: usize = 20;

/// A secret that a client must say.
#[derive(Clone)]
pub struct Token(Arc<str>);

/// Where a token came from.
pub struct Opened {
    /// The token.
    pub token: Token,
    /// Its text, where it was made just now: to be shown once.
    pub made: Option<String>,
}

impl Token {
    /// Reads the token of a file, or makes one and the file.
    pub fn open(path: &Path) -> io::Result<Opened> {
        match std::fs::read_to_string(path) {
            Ok(text) => {
                let text = text.trim();
                if text.len() < TOKEN_MIN_CHARS || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
                    let message =
                        format!("it holds no token of {TOKEN_MIN_CHARS} or more printable characters");
                    return Err(io::Error::new(io::ErrorKind::InvalidData, message));
                }
                Ok(Opened { token: Self(text.into()), made: None })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let text = URL_SAFE_NO_PAD.encode(crate::random::bytes::<TOKEN_RANDOM_BYTES>());
                let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
                writeln!(file, "{text}")?;
                Ok(Opened { token: Self(text.as_str().into()), made: Some(text) })
            }
            Err(error) => Err(error),
        }
    }

    /// Whether `said` is the token; takes the same time for every wrong one of the same length.
    pub fn is(&self, said: &str) -> bool {
        let differs = self.0.bytes().zip(said.bytes()).fold(0, |differs, (a, b)| differs | (a ^ b));
        self.0.len() == said.len() && differs == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let made = Token::open(&path).unwrap().made.expect("made");
        let again = Token::open(&path).unwrap();
        assert!(again.made.is_none());
        assert!(again.token.is(&made));
        assert!(!again.token.is(&made[1..]) && !again.token.is("") && !again.token.is(&made.to_lowercase()));
        std::fs::write(&path, "short").unwrap();
        assert!(Token::open(&path).is_err());
    }
}
