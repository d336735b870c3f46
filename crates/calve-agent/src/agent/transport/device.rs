//! A virtio-serial port, or any other character device with the server at its other end.

use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use calve_wire::frame::Decoder;
use rustix::fs::{Mode, OFlags};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::agent::Agent;
use crate::agent::connection::{Broken, Preamble, await_preamble, serve as serve_connection};
use crate::agent::descriptor::watched;

/// Pause while nobody is at the other end: the port is readable (with an end of file) all that time, so only a clock keeps
/// the agent from spinning.
const HANG_UP_PAUSE: Duration = Duration::from_millis(50);

/// Serves whoever is at the other end and knows the token.
pub async fn serve(agent: &Rc<Agent>, path: &Path) -> io::Result<Infallible> {
    let mut decoder = Decoder::new(agent.token.clone());
    loop {
        let Ok(device) = Device::open(path) else {
            tokio::time::sleep(HANG_UP_PAUSE).await;
            continue;
        };
        loop {
            let broken = match await_preamble(&mut &device, &mut decoder).await {
                Ok(()) => serve_connection(agent, &device, &device, &mut decoder, Preamble::Unsent).await,
                Err(broken) => broken,
            };
            decoder.hang_up();
            tokio::time::sleep(HANG_UP_PAUSE).await;
            // A port whose other end hung up says end of file until somebody comes back; opening it again would drop what
            // came since. Any other error is the end of this descriptor.
            if matches!(broken, Broken::Io(error) if error.kind() != io::ErrorKind::UnexpectedEof) {
                break;
            }
        }
    }
}

struct Device(AsyncFd<OwnedFd>);

impl Device {
    fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let device = rustix::fs::open(path, flags, Mode::empty())?;
        make_raw(&device)?;
        Ok(Self(watched(device)?))
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
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            let read =
                guard.try_io(|device| Ok(rustix::io::read(device.get_ref(), buffer.initialize_unfilled())?));
            if let Ok(count) = read {
                buffer.advance(count?);
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for &Device {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            if let Ok(written) = guard.try_io(|device| Ok(rustix::io::write(device.get_ref(), bytes)?)) {
                return Poll::Ready(written);
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
