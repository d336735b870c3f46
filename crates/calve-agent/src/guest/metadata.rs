//! What the provider says to a machine: the metadata service at a link-local address, in DigitalOcean's form
//! (docs.digitalocean.com/reference/api/metadata-api).

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use serde::Deserialize;

use super::sources::{Found, Plan};

/// Where every provider has it (RFC 3927 leaves the address to nobody else).
const SERVICE: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// All of it in one document.
const DOCUMENT: &str = "/metadata/v1.json";
/// Time for the connection: the service is next door, and where there is none, other sources are to be looked at.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// Time for the answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Most bytes of the document: user data have at most 64 KiB.
const DOCUMENT_MAX_BYTES: u64 = 1 << 20;

/// What is wanted of the document.
#[derive(Debug, Deserialize)]
struct Metadata {
    /// What the creator of the machine wrote.
    #[serde(default)]
    pub user_data: String,
    /// Network cards.
    #[serde(default)]
    interfaces: Interfaces,
    /// Name servers.
    #[serde(default)]
    pub dns: Dns,
    /// The provider's clock when it answered, as in the header `Date`.
    #[serde(skip)]
    pub date: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Interfaces {
    #[serde(default)]
    public: Vec<Interface>,
}

#[derive(Debug, Deserialize)]
struct Interface {
    ipv4: Option<Ipv4>,
}

/// An address with what belongs to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
struct Ipv4 {
    /// The address.
    pub ip_address: Ipv4Addr,
    /// Which addresses are its neighbours'.
    pub netmask: Ipv4Addr,
    /// Through whom others are reached.
    pub gateway: Ipv4Addr,
}

/// Name servers.
#[derive(Debug, Default, Deserialize)]
struct Dns {
    /// Their addresses.
    #[serde(default)]
    pub nameservers: Vec<std::net::IpAddr>,
}

impl Metadata {
    /// The public address of the first card that has one.
    fn public(&self) -> Option<Ipv4> {
        self.interfaces.public.iter().find_map(|interface| interface.ipv4)
    }
}

/// What the service says.
pub(super) fn ask() -> anyhow::Result<Found> {
    let metadata = fetch()?;
    anyhow::ensure!(!metadata.user_data.is_empty(), "the metadata service knows no user data");
    let plan = metadata.public().map(|public| Plan {
        address: public.ip_address,
        netmask: public.netmask,
        gateway: Some(public.gateway),
        name_servers: metadata.dns.nameservers,
    });
    let unix_ms = metadata.date.as_deref().and_then(unix_ms);
    Ok(Found { user_data: metadata.user_data, plan, unix_ms })
}

fn fetch() -> anyhow::Result<Metadata> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((SERVICE, 80)), CONNECT_MAX)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    // Of version 1.0, whose answers end with the connection and are not cut into chunks.
    stream.write_all(format!("GET {DOCUMENT} HTTP/1.0\r\nHost: {SERVICE}\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.take(DOCUMENT_MAX_BYTES).read_to_end(&mut answer)?;
    parse(&answer)
}

fn parse(answer: &[u8]) -> anyhow::Result<Metadata> {
    let broken = || io::Error::new(io::ErrorKind::InvalidData, "the answer has no end of its head");
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").ok_or_else(broken)?;
    let head = std::str::from_utf8(&answer[..end])?;
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    anyhow::ensure!(status.split(' ').nth(1) == Some("200"), "the metadata service answers {status:?}");
    let date = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("date").then(|| value.trim().to_owned())
    });
    let metadata: Metadata = serde_json::from_slice(&answer[end + 4..])?;
    Ok(Metadata { date, ..metadata })
}

/// Milliseconds since the epoch of a date as HTTP writes it (RFC 9110, 5.6.7), e.g. `Sun, 06 Nov 1994 08:49:37 GMT`.
fn unix_ms(date: &str) -> Option<u64> {
    const MONTHS: &str = "JanFebMarAprMayJunJulAugSepOctNovDec";
    let words: Vec<&str> = date.split_ascii_whitespace().collect();
    let [_, day, month, year, time, "GMT"] = words[..] else { return None };
    let mut clock = time.split(':').map(str::parse::<i64>);
    let (hour, minute, second) = (clock.next()?.ok()?, clock.next()?.ok()?, clock.next()?.ok()?);
    let month = i64::try_from(MONTHS.find(month).filter(|at| at % 3 == 0)? / 3 + 1).ok()?;
    let (year, day): (i64, i64) = (year.parse().ok()?, day.parse().ok()?);
    // Days since the epoch in the Gregorian calendar, with years that begin in March so that the odd day comes last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year.div_euclid(4) - year.div_euclid(100)
        + year.div_euclid(400)
        + (153 * month + 2) / 5
        + day
        - 719_469;
    u64::try_from(((days * 24 + hour) * 60 + minute) * 60 + second).ok()?.checked_mul(1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_is_read_with_the_clock() {
        let body = r#"{"droplet_id":1,"hostname":"x","user_data":"u","interfaces":{"public":[
            {"ipv4":{"ip_address":"203.0.113.9","netmask":"255.255.240.0","gateway":"203.0.113.1"},"mac":"02:00","type":"public"}]},
            "dns":{"nameservers":["67.207.67.3"]}}"#;
        let answer = |head: &str| format!("{head}\r\ndate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n{body}");
        let read = parse(answer("HTTP/1.0 200 OK").as_bytes()).unwrap();
        assert_eq!(read.public().unwrap().netmask, Ipv4Addr::new(255, 255, 240, 0));
        assert_eq!((read.user_data.as_str(), read.dns.nameservers.len()), ("u", 1));
        assert_eq!(unix_ms(&read.date.unwrap()), Some(784_111_777_000));
        assert!(parse(answer("HTTP/1.0 503 Later").as_bytes()).is_err());
        assert!(parse(b"HTTP/1.0 200 OK\r\n").is_err());
    }

    #[test]
    fn dates_are_read_and_nonsense_is_none() {
        assert_eq!(unix_ms("Thu, 01 Jan 1970 00:00:01 GMT"), Some(1000));
        assert_eq!(unix_ms("Thu, 29 Feb 2024 23:59:59 GMT"), Some(1_709_251_199_000));
        for bad in ["", "Thu, 01 Jan 1970 00:00 GMT", "Thu, 01 anF 1970 00:00:01 GMT", "1, 2 3 4 5 GMT"] {
            assert_eq!(unix_ms(bad), None, "{bad}");
        }
    }
}
