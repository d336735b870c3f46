//! Durations as people write them: `30s`, `90m`, `2h`, `1d`, `1h30m`, `250ms`.

use std::fmt::Write;
use std::time::Duration;

use calve_core::limits::{GRACE_MAX, TTL_MAX, TTL_MIN};

/// The units, longest first, in milliseconds.
const UNITS: [(&str, u64); 6] =
    [("w", 7 * 86_400_000), ("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// Parses a duration: whole numbers, each with a unit, added up.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let mut rest = text;
    let mut total_ms: u64 = 0;
    while !rest.is_empty() {
        let (number, after) = split_where(rest, |c| !c.is_ascii_digit());
        let (unit, after) = split_where(after, |c| c.is_ascii_digit());
        if number.is_empty() {
            return Err("a duration is numbers with units, e.g. 30s, 90m, 2h, 1d or 1h30m".to_owned());
        }
        if unit.is_empty() {
            return Err(format!("{number} has no unit; write {number}s, {number}m, {number}h or {number}d"));
        }
        let unit_ms = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, ms)| *ms);
        let unit_ms =
            unit_ms.ok_or_else(|| format!("{unit:?} is no unit of time; there are ms, s, m, h, d, w"))?;
        total_ms = number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(unit_ms))
            .and_then(|ms| total_ms.checked_add(ms))
            .ok_or("this is longer than calve can count")?;
        rest = after;
    }
    if text.is_empty() {
        return Err("a duration is missing, e.g. 30s, 90m, 2h or 1d".to_owned());
    }
    Ok(Duration::from_millis(total_ms))
}

fn split_where(text: &str, stop: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(stop).unwrap_or(text.len()))
}

/// The length of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ttl {
    /// It ends after this.
    For(Duration),
    /// It has no end.
    None,
}

/// Parses the length of a lease: a duration between the shortest and the longest, or `none`.
pub fn parse_ttl(text: &str) -> Result<Ttl, String> {
    if text == "none" {
        return Ok(Ttl::None);
    }
    let ttl = parse_duration(text)?;
    if ttl < TTL_MIN {
        return Err(format!("a lease lasts at least {}", show(TTL_MIN)));
    }
    if ttl > TTL_MAX {
        return Err(format!(
            "a lease lasts at most {}; a machine without an end needs `none`",
            show(TTL_MAX)
        ));
    }
    Ok(Ttl::For(ttl))
}

impl Ttl {
    /// As requests say it, in milliseconds.
    pub fn as_ms(self) -> Option<u64> {
        match self {
            Self::For(ttl) => Some(as_ms(ttl)),
            Self::None => None,
        }
    }
}

/// Parses the time between a stop and a destruction.
pub fn parse_grace(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        grace if grace <= GRACE_MAX => Ok(grace),
        _ => Err(format!("a grace is at most {}", show(GRACE_MAX))),
    }
}

/// A duration as requests say it, in milliseconds.
pub fn as_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A duration for people, in its two largest units: `1h30m`, `45s`, `0s`.
pub fn show(duration: Duration) -> String {
    let mut shown = String::with_capacity(16);
    show_behind(duration, &mut shown);
    shown
}

/// The same behind a text.
pub fn show_behind(duration: Duration, shown: &mut String) {
    let mut rest_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut parts = 0;
    // Weeks are read, not shown: `9d` says more than `1w2d`.
    for (name, unit_ms) in &UNITS[1..] {
        let number = rest_ms / unit_ms;
        rest_ms %= unit_ms;
        if number > 0 && parts < 2 && !(*name == "ms" && parts > 0) {
            let _ = write!(shown, "{number}{name}");
            parts += 1;
        } else if parts > 0 {
            break;
        }
    }
    if parts == 0 {
        shown.push_str("0s");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_add_up_and_are_shown_in_two_units() {
        let seconds = |text| parse_duration(text).unwrap().as_secs_f64();
        assert_eq!(
            ["30s", "90m", "2h", "1d", "1h30m", "250ms"].map(seconds),
            [30.0, 5400.0, 7200.0, 86400.0, 5400.0, 0.25]
        );
        let shown = |text| show(parse_duration(text).unwrap());
        assert_eq!(
            ["90m", "45s", "0s", "25h", "250ms", "1h5s", "9d"].map(shown),
            ["1h30m", "45s", "0s", "1d1h", "250ms", "1h", "9d"]
        );
    }

    #[test]
    fn bad_durations_get_one_sentence() {
        let sentence = |text| parse_duration(text).unwrap_err();
        assert_eq!(sentence("90"), "90 has no unit; write 90s, 90m, 90h or 90d");
        assert_eq!(sentence("5 m"), "\" m\" is no unit of time; there are ms, s, m, h, d, w");
        assert!(sentence("-1h").contains("numbers with units"));
        assert!(sentence("").contains("missing"));
        assert!(sentence("99999999999999999999d").contains("longer"));
    }

    #[test]
    fn a_lease_without_an_end_must_be_said() {
        assert_eq!(parse_ttl("none"), Ok(Ttl::None));
        assert_eq!(parse_ttl("2h"), Ok(Ttl::For(Duration::from_secs(7200))));
        assert!(parse_ttl("0s").unwrap_err().contains("at least 1s"));
        assert!(parse_ttl("400d").unwrap_err().contains("`none`"));
    }
}
