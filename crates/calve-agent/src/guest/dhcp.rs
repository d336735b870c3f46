//! An address by DHCP (RFC 2131), for the first network card, where no source says a fixed one; kept for as long as the machine
//! lives.

mod message;

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::sources::Plan;
use message::{ACK, NAK, OFFER, Reply, Term, Wish, parse, question};

/// Time for all of it: networks may take half a minute to let a new card speak.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause before it is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(2);
const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
/// Shortest pause before it is asked for more again, where that is not too long (RFC 2131, 4.4.5).
const RENEW_PAUSE_MIN: Duration = Duration::from_secs(60);

/// An address that was granted to a card.
#[derive(Debug)]
pub struct Lease {
    card: String,
    hardware: [u8; 6],
    granted: Reply,
    /// When it was asked for.
    since: Instant,
}

impl Lease {
    /// Asks for an address for the card with this name and hardware address, which is up and has none.
    pub fn ask(card: &str, hardware: [u8; 6]) -> anyhow::Result<Self> {
        let line = Line::open(card, hardware)?;
        let until = Instant::now() + PATIENCE;
        let mut offered: Option<Reply> = None;
        while Instant::now() < until {
            let since = Instant::now();
            let wish = offered.as_ref().map_or(Wish::Any, Wish::Offered);
            line.send(wish, Ipv4Addr::BROADCAST);
            offered = match line.hear(since + ASK_AGAIN)? {
                Some(granted) if granted.kind == ACK => {
                    return Ok(Self { card: card.to_owned(), hardware, granted, since });
                }
                Some(reply) if reply.kind == OFFER => Some(reply),
                // An offer that was taken back, or nobody's answer: from the beginning.
                Some(_) | None => None,
            };
        }
        bail!("nobody offers an address to {card} by DHCP")
    }

    /// What was granted.
    pub fn plan(&self) -> &Plan {
        &self.granted.plan
    }

    /// Keeps the address for as long as the machine lives, and gets another where that cannot be. `take` gives the card
    /// what is granted, or nothing any more. Returns where the lease has no end.
    pub fn keep(mut self, mut take: impl FnMut(Option<&Plan>)) {
        while let Some(term) = self.granted.term {
            std::thread::sleep((self.since + term.renew).saturating_duration_since(Instant::now()));
            match self.renewed(term) {
                Some((granted, since)) => {
                    if granted.plan != self.granted.plan {
                        take(Some(&granted.plan));
                    }
                    self = Self { granted, since, ..self };
                }
                None => {
                    take(None);
                    self = loop {
                        match Self::ask(&self.card, self.hardware) {
                            Ok(lease) => break lease,
                            Err(error) => eprintln!("calve-agent: {error:#}"),
                        }
                        std::thread::sleep(ASK_AGAIN);
                    };
                    take(Some(self.plan()));
                }
            }
        }
    }

    /// Asks for more time: the server that granted the address, later any. What was granted, and when that was asked for;
    /// none where the address is lost.
    fn renewed(&self, term: Term) -> Option<(Reply, Instant)> {
        let (rebind, end) = (self.since + term.rebind, self.since + term.end);
        loop {
            let since = Instant::now();
            if since >= end {
                return None;
            }
            let (to, limit) = match self.granted.server {
                Some(server) if since < rebind => (server, rebind),
                _ => (Ipv4Addr::BROADCAST, end),
            };
            let left = limit - since;
            let until = since + (left / 2).max(RENEW_PAUSE_MIN).min(left);
            let heard = Line::open(&self.card, self.hardware).and_then(|line| {
                line.send(Wish::Longer(self.plan().address), to);
                Ok(line.hear(until)?)
            });
            match heard {
                Ok(Some(granted)) if granted.kind == ACK => return Some((granted, since)),
                Ok(Some(refused)) if refused.kind == NAK => return None,
                Ok(_) => {}
                Err(error) => {
                    eprintln!("calve-agent: the address of {} is not renewed: {error:#}", self.card)
                }
            }
            std::thread::sleep(until.saturating_duration_since(Instant::now()));
        }
    }
}

/// Through which a card speaks with servers of DHCP, in one exchange.
struct Line {
    socket: UdpSocket,
    hardware: [u8; 6],
    exchange: [u8; 4],
}

impl Line {
    fn open(card: &str, hardware: [u8; 6]) -> anyhow::Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, CLIENT_PORT))?;
        socket.set_broadcast(true)?;
        bind_to(&socket, card).with_context(|| format!("{card} cannot be spoken through"))?;
        let [a, b, c, d, ..] = crate::agent::key::random()?;
        Ok(Self { socket, hardware, exchange: [a, b, c, d] })
    }

    fn send(&self, wish: Wish<'_>, to: Ipv4Addr) {
        // A card that is not up yet refuses; that passes.
        let _ = self.socket.send_to(&question(self.exchange, self.hardware, wish), (to, SERVER_PORT));
    }

    /// The first reply that is ours, until then.
    fn hear(&self, until: Instant) -> io::Result<Option<Reply>> {
        let mut bytes = [0; 1500];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.set_read_timeout(Some(left))?;
            match self.socket.recv(&mut bytes) {
                Ok(length) => {
                    if let Some(reply) = parse(&bytes[..length], self.exchange, self.hardware) {
                        return Ok(Some(reply));
                    }
                }
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) => return Err(error),
            }
        }
    }
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

#[cfg(test)]
mod tests;
