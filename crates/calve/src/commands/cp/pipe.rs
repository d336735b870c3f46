//! Between archives, which are read and written by threads, and requests, which are not.

use std::io::{self, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, Incoming};
use tokio::sync::{mpsc, oneshot};

use crate::client::Body;

/// Bytes of one piece.
const PIECE_BYTES: usize = 64 * 1024;
/// Pieces that may wait between the two sides.
const WAITING_PIECES: usize = 8;

type Piece = io::Result<Bytes>;

/// A request's body that a thread writes.
pub struct Pump {
    /// The body.
    pub body: Body,
    /// How the thread ended.
    pub ended: oneshot::Receiver<io::Result<()>>,
}

/// Starts a thread that writes a body.
pub fn pump(write: impl FnOnce(&mut Writer) -> io::Result<()> + Send + 'static) -> Pump {
    let (pieces, waiting) = mpsc::channel(WAITING_PIECES);
    let (tell, ended) = oneshot::channel();
    tokio::task::spawn_blocking(move || {
        let mut writer = Writer { pieces, gathered: Vec::with_capacity(PIECE_BYTES) };
        let result = write(&mut writer).and_then(|()| writer.flush());
        if let Err(error) = &result {
            // The receiver must not take what there is for all that there is.
            let _ = writer.pieces.blocking_send(Err(io::Error::new(error.kind(), error.to_string())));
        }
        let _ = tell.send(result);
    });
    Pump { body: ChannelBody(waiting).boxed(), ended }
}

/// Copies standard input.
pub fn copy_stdin(out: &mut Writer) -> io::Result<()> {
    io::copy(&mut io::stdin().lock(), out).map(drop)
}

struct ChannelBody(mpsc::Receiver<Piece>);

impl HttpBody for ChannelBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.0.poll_recv(cx).map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }
}

/// What the thread writes to.
pub struct Writer {
    pieces: mpsc::Sender<Piece>,
    gathered: Vec<u8>,
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.gathered.extend_from_slice(bytes);
        if self.gathered.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.gathered, Vec::with_capacity(PIECE_BYTES));
        self.pieces.blocking_send(Ok(piece.into())).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// A reader for a thread, and what feeds it with an answer's body.
pub fn reader(mut body: Incoming) -> (Reader, impl Future<Output = ()>) {
    let (pieces, waiting) = mpsc::channel(WAITING_PIECES);
    let feeding = async move {
        while let Some(frame) = body.frame().await {
            let piece = match frame {
                Ok(frame) => match frame.into_data() {
                    Ok(bytes) => Ok(bytes),
                    Err(_trailers) => continue,
                },
                Err(error) => Err(io::Error::other(error)),
            };
            if pieces.send(piece).await.is_err() {
                return;
            }
        }
    };
    (Reader { waiting, piece: Bytes::new() }, feeding)
}

/// What the thread reads from.
pub struct Reader {
    waiting: mpsc::Receiver<Piece>,
    piece: Bytes,
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.waiting.blocking_recv() {
                Some(piece) => self.piece = piece?,
                None => return Ok(0),
            }
        }
        let length = self.piece.len().min(buffer.len());
        self.piece.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}
