//! An address by DHCP (RFC 2131, RFC 2132), for the first network card, where no source says a fixed one.

use std::io;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::sources::Plan;

/// Time for all of it: networks may take half a minute to let a new card speak.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause before it is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(2);
const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
/// What options begin with.
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Bytes before the options.
const HEAD_BYTES: usize = 236;
const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACK: u8 = 5;
const NAK: u8 = 6;

/// What a server offers or grants.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Reply {
    kind: u8,
    server: Option<Ipv4Addr>,
    plan: Plan,
}

/// Asks for an address for the card with this name and hardware address, which is up and has none.
pub(super) fn ask(card: &str, hardware: [u8; 6]) -> anyhow::Result<Plan> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, CLIENT_PORT))?;
    socket.set_broadcast(true)?;
    bind_to(&socket, card).with_context(|| format!("{card} cannot be spoken through"))?;
    let [a, b, c, d, ..] = crate::agent::key::random()?;
    let exchange = [a, b, c, d];
    let until = Instant::now() + PATIENCE;
    let mut offered: Option<Reply> = None;
    while Instant::now() < until {
        let question = question(exchange, hardware, offered.as_ref());
        // A card that is not up yet refuses; that passes.
        let _ = socket.send_to(&question, (Ipv4Addr::BROADCAST, SERVER_PORT));
        let again = Instant::now() + ASK_AGAIN;
        offered = match hear(&socket, again, exchange, hardware)? {
            Some(reply) if reply.kind == ACK => return Ok(reply.plan),
            Some(reply) if reply.kind == OFFER => Some(reply),
            // An offer that was taken back, or nobody's answer: from the beginning.
            Some(_) | None => None,
        };
    }
    bail!("nobody offers an address to {card} by DHCP")
}

fn bind_to(socket: &UdpSocket, card: &str) -> io::Result<()> {
    let length = libc::socklen_t::try_from(card.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel reads so many bytes of the name (`socket(7)`, SO_BINDTODEVICE).
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_BINDTODEVICE,
            card.as_ptr().cast(),
            length,
        )
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The first reply that is ours, until then.
fn hear(
    socket: &UdpSocket,
    until: Instant,
    exchange: [u8; 4],
    hardware: [u8; 6],
) -> io::Result<Option<Reply>> {
    let mut bytes = [0; 1500];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        socket.set_read_timeout(Some(left))?;
        match socket.recv(&mut bytes) {
            Ok(length) => {
                if let Some(reply) = parse(&bytes[..length], exchange, hardware) {
                    return Ok(Some(reply));
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Asks for any address, or for the offered one.
fn question(exchange: [u8; 4], hardware: [u8; 6], offered: Option<&Reply>) -> Vec<u8> {
    let mut bytes = vec![0; HEAD_BYTES];
    // From a client, over Ethernet; answered to everybody, as this card has no address to be answered at.
    bytes[..4].copy_from_slice(&[1, 1, 6, 0]);
    bytes[4..8].copy_from_slice(&exchange);
    bytes[10] = 0x80;
    bytes[28..34].copy_from_slice(&hardware);
    bytes.extend_from_slice(&COOKIE);
    bytes.extend_from_slice(&[53, 1, if offered.is_some() { REQUEST } else { DISCOVER }]);
    if let Some(offered) = offered {
        bytes.extend_from_slice(&[50, 4]);
        bytes.extend_from_slice(&offered.plan.address.octets());
        if let Some(server) = offered.server {
            bytes.extend_from_slice(&[54, 4]);
            bytes.extend_from_slice(&server.octets());
        }
    }
    // Netmask, router, name servers are wanted; for as long as it may be, as nobody here renews it.
    bytes.extend_from_slice(&[55, 3, 1, 3, 6, 51, 4, 255, 255, 255, 255, 255]);
    bytes
}

fn parse(bytes: &[u8], exchange: [u8; 4], hardware: [u8; 6]) -> Option<Reply> {
    let options = bytes.get(HEAD_BYTES..)?.strip_prefix(&COOKIE)?;
    if bytes[0] != 2 || bytes[4..8] != exchange || bytes[28..34] != hardware {
        return None;
    }
    let option = |wanted: u8| {
        let mut rest = options;
        loop {
            match rest {
                [0, after @ ..] => rest = after,
                [kind, length, after @ ..] if *kind != 255 => {
                    let value = after.get(..usize::from(*length))?;
                    if *kind == wanted {
                        return Some(value);
                    }
                    rest = &after[value.len()..];
                }
                _ => return None,
            }
        }
    };
    let address = |bytes: &[u8]| Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(..4)?).ok()?));
    let kind = *option(53)?.first()?;
    let given = address(&bytes[16..20])?;
    if !matches!(kind, OFFER | ACK | NAK) || (kind != NAK && given.is_unspecified()) {
        return None;
    }
    let name_servers = option(6).unwrap_or_default().chunks_exact(4).filter_map(address).map(IpAddr::from);
    let plan = Plan {
        address: given,
        netmask: option(1).and_then(address).unwrap_or(Ipv4Addr::new(255, 255, 255, 0)),
        gateway: option(3).and_then(address),
        name_servers: name_servers.collect(),
    };
    Some(Reply { kind, server: option(54).and_then(address), plan })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CARD: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

    fn reply(kind: u8) -> Vec<u8> {
        let mut bytes = question([1, 2, 3, 4], CARD, None);
        bytes.truncate(HEAD_BYTES);
        bytes[0] = 2;
        bytes[16..20].copy_from_slice(&[10, 0, 2, 15]);
        bytes.extend_from_slice(&COOKIE);
        bytes.extend_from_slice(&[
            53, 1, kind, 0, 1, 4, 255, 255, 0, 0, 3, 4, 10, 0, 2, 2, 54, 4, 10, 0, 2, 2,
        ]);
        bytes.extend_from_slice(&[6, 8, 10, 0, 2, 3, 10, 0, 2, 4, 255]);
        bytes
    }

    #[test]
    fn replies_are_read_and_strange_ones_are_not_ours() {
        let offer = parse(&reply(OFFER), [1, 2, 3, 4], CARD).expect("an offer");
        assert_eq!((offer.kind, offer.server), (OFFER, Some(Ipv4Addr::new(10, 0, 2, 2))));
        assert_eq!(offer.plan.netmask, Ipv4Addr::new(255, 255, 0, 0));
        assert_eq!(
            (offer.plan.gateway, offer.plan.name_servers.len()),
            (Some(Ipv4Addr::new(10, 0, 2, 2)), 2)
        );
        assert_eq!(parse(&reply(OFFER), [1, 2, 3, 5], CARD), None);
        assert_eq!(parse(&reply(OFFER), [1, 2, 3, 4], [0; 6]), None);
        for length in 0..reply(OFFER).len() - 1 {
            // Cut off anywhere: less is known, or nothing, and nothing breaks.
            let _ = parse(&reply(OFFER)[..length], [1, 2, 3, 4], CARD);
        }
        let request = question([1, 2, 3, 4], CARD, Some(&offer));
        assert!(request.windows(6).any(|six| six == [50, 4, 10, 0, 2, 15]));
    }
}
