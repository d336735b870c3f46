//! What is said between a client and servers of DHCP (RFC 2131, RFC 2132).

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::super::sources::Plan;

/// What options begin with.
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Bytes before the options.
const HEAD_BYTES: usize = 236;
const DISCOVER: u8 = 1;
pub const OFFER: u8 = 2;
const REQUEST: u8 = 3;
pub const ACK: u8 = 5;
pub const NAK: u8 = 6;
/// A lease that has no end.
const FOR_EVER: u32 = u32::MAX;

/// What a server offers or grants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub kind: u8,
    pub server: Option<Ipv4Addr>,
    pub plan: Plan,
    /// For how long; none where it has no end.
    pub term: Option<Term>,
}

/// How long an address is granted, and when whom is asked for more, all from when it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Term {
    /// Then the server that granted it.
    pub renew: Duration,
    /// Then any server.
    pub rebind: Duration,
    /// Then it is somebody else's.
    pub end: Duration,
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub enum Wish<'a> {
    /// Any address.
    Any,
    /// The offered one.
    Offered(&'a Reply),
    /// The one that the card has, for longer.
    Longer(Ipv4Addr),
}

/// A client's message.
pub fn question(exchange: [u8; 4], hardware: [u8; 6], wish: Wish<'_>) -> Vec<u8> {
    let mut bytes = vec![0; HEAD_BYTES];
    // From a client, over Ethernet.
    bytes[..4].copy_from_slice(&[1, 1, 6, 0]);
    bytes[4..8].copy_from_slice(&exchange);
    match wish {
        Wish::Longer(address) => bytes[12..16].copy_from_slice(&address.octets()),
        // Answered to everybody, as this card has no address to be answered at.
        Wish::Any | Wish::Offered(_) => bytes[10] = 0x80,
    }
    bytes[28..34].copy_from_slice(&hardware);
    bytes.extend_from_slice(&COOKIE);
    bytes.extend_from_slice(&[53, 1, if let Wish::Any = wish { DISCOVER } else { REQUEST }]);
    if let Wish::Offered(offered) = wish {
        bytes.extend_from_slice(&[50, 4]);
        bytes.extend_from_slice(&offered.plan.address.octets());
        if let Some(server) = offered.server {
            bytes.extend_from_slice(&[54, 4]);
            bytes.extend_from_slice(&server.octets());
        }
    }
    // Netmask, router, name servers are wanted, and how long it lasts.
    bytes.extend_from_slice(&[55, 6, 1, 3, 6, 51, 58, 59, 255]);
    bytes
}

/// A server's message to this card, in this exchange; none where it is something else.
pub fn parse(bytes: &[u8], exchange: [u8; 4], hardware: [u8; 6]) -> Option<Reply> {
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
    let number = |kind| Some(u32::from_be_bytes(option(kind)?.try_into().ok()?));
    let seconds = |kind| Some(Duration::from_secs(number(kind)?.into()));
    // Half and seven eighths, where the server does not say (RFC 2131, 4.4.5).
    let term = number(51).filter(|end| *end != FOR_EVER).map(|end| {
        let end = Duration::from_secs(end.into());
        let rebind = seconds(59).unwrap_or(end * 7 / 8).min(end);
        Term { renew: seconds(58).unwrap_or(end / 2).min(rebind), rebind, end }
    });
    Some(Reply { kind, server: option(54).and_then(address), plan, term })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CARD: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

    fn reply(kind: u8) -> Vec<u8> {
        let mut bytes = question([1, 2, 3, 4], CARD, Wish::Any);
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
        let request = question([1, 2, 3, 4], CARD, Wish::Offered(&offer));
        assert!(request.windows(6).any(|six| six == [50, 4, 10, 0, 2, 15]));
        let renewal = question([1, 2, 3, 4], CARD, Wish::Longer(offer.plan.address));
        assert_eq!(renewal[12..16], [10, 0, 2, 15]);
        assert!(!renewal.windows(2).any(|two| two == [50, 4]));
    }

    #[test]
    fn a_term_is_what_the_server_says_or_what_follows_from_its_end() {
        let granted = |options: &[u8]| {
            let mut bytes = reply(ACK);
            bytes.pop();
            bytes.extend_from_slice(options);
            let term = parse(&bytes, [1, 2, 3, 4], CARD).expect("a grant").term?;
            Some((term.renew.as_secs(), term.rebind.as_secs(), term.end.as_secs()))
        };
        assert_eq!(granted(&[255]), None);
        assert_eq!(granted(&[51, 4, 255, 255, 255, 255, 255]), None);
        assert_eq!(granted(&[51, 4, 0, 0, 0, 80, 255]), Some((40, 70, 80)));
        let said = [51, 4, 0, 0, 0, 80, 58, 4, 0, 0, 0, 30, 59, 4, 0, 0, 0, 60, 255];
        assert_eq!(granted(&said), Some((30, 60, 80)));
        // Terms that make no sense end with the lease.
        let absurd = [51, 4, 0, 0, 0, 80, 58, 4, 0, 0, 1, 0, 59, 4, 0, 0, 1, 0, 255];
        assert_eq!(granted(&absurd), Some((80, 80, 80)));
    }
}
