//! What the table shows of a machine, read where it lies in the answer: a copy of each text of 10,000 machines would take as
//! long as everything else. What the server writes, without blanks and mostly without escapes, is read by [`Scan`] in a
//! third of serde's time; whatever that does not know, serde reads.

use std::borrow::Cow;
use std::str::FromStr;

use calve_core::{DriverName, State};
use calve_wire::api::Condition;
use calve_wire::machine::{Exit, PortMapping};
use memchr::memchr2;
use serde::{Deserialize, Deserializer, de};

/// The part of a [`calve_wire::api::MachineSummary`].
#[derive(Debug, Deserialize, PartialEq)]
pub struct Row<'a> {
    #[serde(borrow)]
    pub name: Cow<'a, str>,
    #[serde(borrow)]
    pub kind: Cow<'a, str>,
    #[serde(deserialize_with = "word")]
    pub state: State,
    pub ready: Option<bool>,
    #[serde(default)]
    pub condition: Option<Condition>,
    #[serde(default)]
    pub restarts: u32,
    #[serde(deserialize_with = "optional_word")]
    pub driver: Option<DriverName>,
    #[serde(borrow)]
    pub runs: Cow<'a, str>,
    pub created_unix_ms: u64,
    pub deadline_unix_ms: Option<u64>,
    pub exit: Option<Exit>,
    pub ports: Vec<PortMapping>,
}

/// Reads rows one after the other.
#[derive(Default)]
pub struct Reader {
    /// The last end of a program that was parsed, and how it was written: most are alike.
    exit: Option<(Box<[u8]>, Exit)>,
}

impl Reader {
    /// The row at the beginning of `text`, and its length in bytes.
    pub fn read<'a>(&mut self, text: &'a [u8]) -> serde_json::Result<(Row<'a>, usize)> {
        let mut scan = Scan { text, at: 0, reader: self };
        if let Some(row) = scan.row() {
            return Ok((row, scan.at));
        }
        let mut rows = serde_json::Deserializer::from_slice(text).into_iter();
        let row = rows.next().unwrap_or_else(|| Err(de::Error::custom("no machine")))?;
        Ok((row, rows.byte_offset()))
    }
}

/// A word of `calve-core`; such words need no escapes in JSON.
fn word<'de, D: Deserializer<'de>, T: FromStr<Err: std::fmt::Display>>(
    deserializer: D,
) -> Result<T, D::Error> {
    <&str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
}

fn optional_word<'de, D: Deserializer<'de>, T: FromStr<Err: std::fmt::Display>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    let word = Option::<&str>::deserialize(deserializer)?;
    word.map(|word| word.parse().map_err(de::Error::custom)).transpose()
}

/// Goes over a text. Nothing is given wherever it is other than expected, or ends.
struct Scan<'a, 'r> {
    text: &'a [u8],
    at: usize,
    reader: &'r mut Reader,
}

impl<'a> Scan<'a, '_> {
    fn row(&mut self) -> Option<Row<'a>> {
        let (mut name, mut kind, mut state, mut runs) = (None, None, None, None);
        let (mut ready, mut condition, mut restarts, mut driver) = (None, None, 0, None);
        let (mut created_unix_ms, mut deadline_unix_ms, mut exit, mut ports) = (None, None, None, None);
        self.expect(b'{')?;
        loop {
            let key = self.bytes()?;
            self.expect(b':')?;
            match key {
                b"name" => name = Some(Cow::Borrowed(self.string()?)),
                b"kind" => kind = Some(Cow::Borrowed(self.string()?)),
                b"runs" => runs = Some(Cow::Borrowed(self.string()?)),
                b"state" => state = Some(self.string()?.parse().ok()?),
                b"driver" => driver = Some(self.driver()?),
                b"created_unix_ms" => created_unix_ms = Some(self.number()?),
                b"deadline_unix_ms" if !self.is_null() => deadline_unix_ms = Some(self.number()?),
                b"restarts" => restarts = u32::try_from(self.number()?).ok()?,
                b"ready" => ready = self.parsed()?,
                b"condition" => condition = self.parsed()?,
                b"exit" => exit = self.exit()?,
                b"ports" => ports = Some(self.ports()?),
                _ => drop(self.value()?),
            }
            match self.next()? {
                b',' => {}
                b'}' => break,
                _ => return None,
            }
        }
        Some(Row {
            name: name?,
            kind: kind?,
            state: state?,
            ready,
            condition,
            restarts,
            driver: driver?,
            runs: runs?,
            created_unix_ms: created_unix_ms?,
            deadline_unix_ms,
            exit,
            ports: ports?,
        })
    }

    fn next(&mut self) -> Option<u8> {
        let byte = *self.text.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.next()? == byte).then_some(())
    }

    fn is_null(&self) -> bool {
        self.text[self.at..].starts_with(b"null")
    }

    /// A string that has no escapes.
    fn string(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.bytes()?).ok()
    }

    /// The same without a look at what its bytes are.
    fn bytes(&mut self) -> Option<&'a [u8]> {
        self.expect(b'"')?;
        let rest = &self.text[self.at..];
        let end = memchr2(b'"', b'\\', rest)?;
        self.at += end;
        self.expect(b'"')?;
        Some(&rest[..end])
    }

    fn exit(&mut self) -> Option<Option<Exit>> {
        let value = self.value()?;
        match &self.reader.exit {
            _ if value == b"null" => Some(None),
            Some((known, exit)) if **known == *value => Some(Some(*exit)),
            _ => {
                let exit = serde_json::from_slice(value).ok()?;
                self.reader.exit = Some((value.into(), exit));
                Some(Some(exit))
            }
        }
    }

    fn driver(&mut self) -> Option<Option<DriverName>> {
        if self.is_null() {
            self.value()?;
            return Some(None);
        }
        self.string()?.parse().ok().map(Some)
    }

    fn number(&mut self) -> Option<u64> {
        let digits = self.value()?;
        let all_digits = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
        all_digits.then(|| {
            let digit = |byte: u8| u64::from(byte - b'0');
            digits.iter().try_fold(0_u64, |sum, byte| sum.checked_mul(10)?.checked_add(digit(*byte)))
        })?
    }

    fn ports(&mut self) -> Option<Vec<PortMapping>> {
        match self.value()? {
            b"[]" => Some(Vec::new()),
            value => serde_json::from_slice(value).ok(),
        }
    }

    /// A value that is mostly null; parsed by serde where it is not.
    fn parsed<T: Deserialize<'a>>(&mut self) -> Option<Option<T>> {
        match self.value()? {
            b"null" => Some(None),
            value => serde_json::from_slice(value).ok().map(Some),
        }
    }

    /// Any value.
    fn value(&mut self) -> Option<&'a [u8]> {
        let begin = self.at;
        let mut depth = 0_usize;
        loop {
            match *self.text.get(self.at)? {
                b'"' => drop(self.bytes()?),
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                }
                b',' | b'}' | b']' if depth == 0 => {
                    return Some(&self.text[begin..self.at]).filter(|value| !value.is_empty());
                }
                b'}' | b']' => {
                    depth -= 1;
                    self.at += 1;
                }
                _ => self.at += 1,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use calve_wire::api::MachineSummary;

    fn summary() -> MachineSummary {
        MachineSummary {
            id: "0".repeat(32).parse().unwrap(),
            name: "web".parse().unwrap(),
            kind: "service".to_owned(),
            state: State::Running,
            ready: Some(false),
            condition: Some(Condition::BackingOff),
            restarts: 4,
            driver: Some(DriverName::Sandbox),
            node: None,
            runs: "/nix/store/x".to_owned(),
            created_unix_ms: 1000,
            deadline_unix_ms: Some(u64::MAX),
            exit: Some(Exit { code: Some(3), signal: None, cause: calve_core::ExitCause::Normal }),
            ports: Vec::new(),
        }
    }

    /// Reads a row from what the server writes, with whichever of the two; both must agree.
    fn read(summary: &MachineSummary, scanned: bool) {
        let json = serde_json::to_vec(summary).unwrap();
        let by_serde: Row<'_> = serde_json::from_slice(&json).unwrap();
        let mut reader = Reader::default();
        let mut scan = Scan { text: &json, at: 0, reader: &mut reader };
        assert_eq!(scan.row().is_some(), scanned);
        let both = [&json[..], b",{"].concat();
        assert_eq!(Reader::default().read(&both).unwrap(), (by_serde, json.len()));
        for cut in 0..json.len() {
            assert!(
                Reader::default().read(&json[..cut]).is_err_and(|error| cut == 0 || error.is_eof()),
                "{cut}"
            );
        }
    }

    #[test]
    fn a_row_is_part_of_a_summary_however_it_is_read() {
        read(&summary(), true);
        let bare = MachineSummary {
            ready: None,
            condition: None,
            driver: None,
            deadline_unix_ms: None,
            exit: None,
            runs: "/nix/store/ä".to_owned(),
            ..summary()
        };
        read(&bare, true);
        read(&MachineSummary { runs: "/nix/\"x\"\\".to_owned(), ..summary() }, false);
    }

    #[test]
    fn what_is_no_machine_is_refused() {
        let json = serde_json::to_string(&summary()).unwrap();
        for (part, other) in [
            ("\"running\"", "\"flying\""),
            ("\"created_unix_ms\":1000", "\"created_unix_ms\":-1"),
            ("\"created_unix_ms\":1000", "\"created_unix_ms\":99999999999999999999"),
            ("\"name\":\"web\",", ""),
            ("\"ports\":[]", "\"ports\":{}"),
            ("\"ports\":[]", "\"ports\":null"),
        ] {
            assert!(Reader::default().read(json.replace(part, other).as_bytes()).is_err(), "{other}");
        }
    }
}
