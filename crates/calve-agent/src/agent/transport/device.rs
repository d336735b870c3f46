//! A virtio-serial port, or any other character device with the server at its other end.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use calve_wire::frame::Decoder;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::agent::Agent;
use crate::agent::connection::{Broken, Preamble, await_preamble, serve as serve_connection};
use crate::agent::descriptor::watched;

/// Longest time between two looks whether somebody has come to the other end; a port tells so at once, other devices may
/// not. It is the pause as well before a device that failed is opened again.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// A device that was opened, without blocking, before the agent was there.
pub struct Opened {
    /// The device.
    pub device: OwnedFd,
    /// What was read from it.
    pub received: Vec<u8>,
}

/// Serves whoever is at the other end and knows the token.
pub async fn serve(agent: &Rc<Agent>, path: &Path, mut opened: Option<Opened>) -> io::Result<Infallible> {
    let mut decoder = Decoder::new(agent.token.borrow().clone());
    loop {
        let device = match opened.take() {
            Some(Opened { device, received }) => {
                decoder.push(&received);
                Device::new(device)
            }
            None => open(path).and_then(Device::new),
        };
        let Ok(device) = device else {
            tokio::time::sleep(LOOK_INTERVAL).await;
            continue;
        };
        loop {
            let broken = match await_preamble(&mut &device, &mut decoder).await {
                Ok(()) => {
                    let preamble =
                        if agent.welcomed.get().is_some() { Preamble::Sent } else { Preamble::Unsent };
                    serve_connection(agent, &device, &device, &mut decoder, preamble).await
                }
                Err(broken) => broken,
            };
            decoder.hang_up();
            // A port whose other end hung up says end of file until somebody comes back; opening it again would drop what
            // came since. Any other error is the end of this descriptor.
            if matches!(broken, Broken::Io(error) if error.kind() != io::ErrorKind::UnexpectedEof) {
                tokio::time::sleep(LOOK_INTERVAL).await;
                break;
            }
            let _ = tokio::time::timeout(LOOK_INTERVAL, poll_fn(|cx| device.readable.poll_edge(cx))).await;
        }
    }
}

struct Device {
    device: OwnedFd,
    readable: Edges,
    writable: Edges,
}

/// Opens a device for [`Opened`].
pub fn open(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

impl Device {
    fn new(device: OwnedFd) -> io::Result<Self> {
        make_raw(&device)?;
        let (readable, writable) =
            (Edges::of(&device, EventFlags::IN)?, Edges::of(&device, EventFlags::OUT)?);
        Ok(Self { device, readable, writable })
    }
}

/// Changes of a device, seen through an epoll instance of its own: the runtime takes a hang-up for the end of a
/// descriptor and would call it ready for ever, but a port whose other end comes back goes on.
struct Edges(AsyncFd<OwnedFd>);

impl Edges {
    fn of(device: &OwnedFd, event: EventFlags) -> io::Result<Self> {
        let edges = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&edges, device, EventData::new_u64(0), event | EventFlags::ET)?;
        Ok(Self(watched(edges)?))
    }

    /// Ready when something has changed since the last time.
    fn poll_edge(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut guard = ready!(self.0.poll_read_ready(cx))?;
        let mut events = [Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }];
        epoll::wait(self.0.get_ref(), &mut events[..], Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
        guard.clear_ready();
        Poll::Ready(Ok(()))
    }
}

/// A serial line of a terminal's kind would change bytes; other devices are raw already.
fn make_raw(device: &OwnedFd) -> io::Result<()> {
    if let Ok(mut modes) = rustix::termios::tcgetattr(device) {
        modes.make_raw();
        rustix::termios::tcsetattr(device, rustix::termios::OptionalActions::Now, &modes)?;
    }
    Ok(())
}

impl AsyncRead for &Device {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            match rustix::io::read(&self.device, buffer.initialize_unfilled()) {
                Err(Errno::AGAIN | Errno::INTR) => ready!(self.readable.poll_edge(cx))?,
                read => {
                    buffer.advance(read?);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl AsyncWrite for &Device {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            match rustix::io::write(&self.device, bytes) {
                Err(Errno::AGAIN | Errno::INTR) => ready!(self.writable.poll_edge(cx))?,
                written => return Poll::Ready(Ok(written?)),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
