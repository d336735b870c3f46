//! The little of JSON that a listing is made of, token by token: a listing may be nested deeper than a parser's stack.

/// A token. Texts have their escapes resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    Open,
    Close,
    OpenList,
    CloseList,
    Colon,
    Comma,
    Text(String),
    Number(String),
    /// `true`, `false` or `null`.
    Word(&'static str),
}

/// The text in quotes, with escapes.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::String(text.to_owned()).to_string()
}

/// The tokens of a text.
pub(super) struct Tokens<'a> {
    text: &'a str,
    at: usize,
    just_opened: bool,
}

impl<'a> Tokens<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, at: 0, just_opened: false }
    }

    /// Bytes before the next token.
    pub(super) fn offset(&self) -> usize {
        self.at
    }

    /// Whether the last token was `{`: no comma belongs before what follows.
    pub(super) fn just_opened(&self) -> bool {
        self.just_opened
    }

    /// The next token, or none at the end; an error is the place of something that is no token.
    pub(super) fn next_token(&mut self) -> Result<Option<Token>, usize> {
        let rest = self.text[self.at..].trim_start_matches([' ', '\t', '\r', '\n']);
        self.at = self.text.len() - rest.len();
        let Some(first) = rest.bytes().next() else { return Ok(None) };
        let (token, length) = match first {
            b'{' => (Token::Open, 1),
            b'}' => (Token::Close, 1),
            b'[' => (Token::OpenList, 1),
            b']' => (Token::CloseList, 1),
            b':' => (Token::Colon, 1),
            b',' => (Token::Comma, 1),
            b'"' => {
                let length = text_length(rest).ok_or(self.at)?;
                let text = serde_json::from_str(&rest[..length]).map_err(|_| self.at)?;
                (Token::Text(text), length)
            }
            b'-' | b'0'..=b'9' => {
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && !"+-.".contains(c));
                let length = end.unwrap_or(rest.len());
                (Token::Number(rest[..length].to_owned()), length)
            }
            _ => {
                let word = ["true", "false", "null"]
                    .into_iter()
                    .find(|word| rest.starts_with(word))
                    .ok_or(self.at)?;
                (Token::Word(word), word.len())
            }
        };
        self.at += length;
        self.just_opened = token == Token::Open;
        Ok(Some(token))
    }
}

/// Bytes of the quoted text that `rest` begins with, both quotes among them.
fn text_length(rest: &str) -> Option<usize> {
    let mut escaped = false;
    let end = rest.bytes().skip(1).position(|byte| {
        let end = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        end
    });
    end.map(|end| end + 2)
}
