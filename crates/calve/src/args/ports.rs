//! Ports: `8080:80`, `0.0.0.0:8080:80`, `[::1]:8080:80`; for `forward` also `80`.

use std::net::{IpAddr, Ipv4Addr};

use calve_wire::machine::PortMapping;

/// Parses `[addr:]host:machine`; host port 0 lets the node choose.
pub fn parse_port_mapping(text: &str) -> Result<PortMapping, String> {
    let form = "a published port looks like 8080:80 or 127.0.0.1:8080:80 (on the host : in the machine)";
    let (rest, machine) = text.rsplit_once(':').ok_or(form)?;
    let (addr, host) = match rest.rsplit_once(':') {
        Some((addr, host)) => (parse_addr(addr)?, host),
        None => (IpAddr::V4(Ipv4Addr::LOCALHOST), rest),
    };
    Ok(PortMapping { host_addr: addr, host_port: port_or_zero(host)?, machine_port: parse_port(machine)? })
}

fn parse_addr(text: &str) -> Result<IpAddr, String> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let parsed = bare.map_or_else(|| text.parse().ok().filter(IpAddr::is_ipv4), |text| text.parse().ok());
    parsed
        .ok_or_else(|| format!("{text:?} is no IP address; IPv6 addresses stand in brackets: [::1]:8080:80"))
}

fn port_or_zero(text: &str) -> Result<u16, String> {
    text.parse().map_err(|_| format!("{text:?} is no port; ports are 1 to 65535"))
}

/// Parses a port above 0.
fn parse_port(text: &str) -> Result<u16, String> {
    port_or_zero(text).and_then(|port| match port {
        0 => Err("port 0 is no port of a machine; ports are 1 to 65535".to_owned()),
        port => Ok(port),
    })
}

/// What `forward` connects: a port here and a port of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// Port here; 0 takes any free one.
    pub local: u16,
    /// Port of the machine.
    pub remote: u16,
}

/// Parses `[local:]remote`; without a local port the same number is taken.
pub fn parse_forward(text: &str) -> Result<Forward, String> {
    let Some((local, remote)) = text.split_once(':') else {
        let port = parse_port(text)?;
        return Ok(Forward { local: port, remote: port });
    };
    Ok(Forward { local: port_or_zero(local)?, remote: parse_port(remote)? })
}

/// What `--health-http` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpProbe {
    /// Port of the machine.
    pub port: u16,
    /// Path, beginning with a slash.
    pub path: String,
}

/// Parses `port[/path]`.
pub fn parse_http_probe(text: &str) -> Result<HttpProbe, String> {
    let (port, path) = text.split_at(text.find('/').unwrap_or(text.len()));
    let path = if path.is_empty() { "/" } else { path };
    if path.bytes().any(|c| c <= b' ' || c == 0x7f) {
        return Err("a path of a health check holds no blanks; write them as %20".to_owned());
    }
    Ok(HttpProbe { port: parse_port(port)?, path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        parse_port_mapping(text)
            .map_or_else(|error| error, |p| format!("{} {} {}", p.host_addr, p.host_port, p.machine_port))
    }

    #[test]
    fn ports_bind_to_the_loopback_unless_told_otherwise() {
        assert_eq!(shown("8080:80"), "127.0.0.1 8080 80");
        assert_eq!(shown("0.0.0.0:8080:80"), "0.0.0.0 8080 80");
        assert_eq!(shown("[::1]:0:80"), "::1 0 80");
        assert_eq!(parse_forward("80"), Ok(Forward { local: 80, remote: 80 }));
        assert_eq!(parse_forward("0:80"), Ok(Forward { local: 0, remote: 80 }));
        assert_eq!(parse_http_probe("80/a?b"), Ok(HttpProbe { port: 80, path: "/a?b".to_owned() }));
        assert_eq!(parse_http_probe("80").unwrap().path, "/");
    }

    #[test]
    fn bad_ports_get_one_sentence() {
        assert!(shown("80").contains("looks like 8080:80"));
        assert_eq!(shown("8080:0"), "port 0 is no port of a machine; ports are 1 to 65535");
        assert_eq!(shown("8080:99999"), "\"99999\" is no port; ports are 1 to 65535");
        assert!(shown("localhost:1:2").contains("no IP address"));
        assert!(shown("::1:1:2").contains("brackets"));
        assert!(parse_forward("a:b").is_err() && parse_forward("0").is_err());
        assert!(parse_http_probe("x/").is_err() && parse_http_probe("80/a b").is_err());
    }
}
