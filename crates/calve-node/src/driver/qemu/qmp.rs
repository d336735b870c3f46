//! The little of QMP that a driver needs (QEMU `docs/interop/qmp-spec.rst`): one line of JSON a message.

use std::io;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

use super::socket_path;

/// Longest message that is read; answers to the commands here are below 1 kB.
const MESSAGE_MAX_BYTES: u64 = 64 * 1024;
/// QEMU answers in milliseconds unless its threads starve; then a signal does what the command was for.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection to a running QEMU.
#[derive(Debug)]
pub(super) struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects and leaves the capabilities negotiation behind.
    pub(super) async fn connect(socket: &Path) -> io::Result<Self> {
        let (path, _dir) = socket_path(socket)?;
        let mut qmp = Self { stream: BufReader::new(UnixStream::connect(path).await?) };
        in_time(async {
            qmp.message().await?;
            qmp.execute("qmp_capabilities").await
        })
        .await?;
        Ok(qmp)
    }

    /// Ends QEMU at once.
    pub(super) async fn quit(&mut self) -> io::Result<()> {
        in_time(self.execute("quit")).await
    }

    async fn execute(&mut self, command: &str) -> io::Result<()> {
        let line = format!("{}\n", json!({ "execute": command }));
        self.stream.get_mut().write_all(line.as_bytes()).await?;
        loop {
            let message = self.message().await?;
            // Events come in between.
            if let Some(error) = message.get("error") {
                return Err(io::Error::other(format!("QEMU refuses {command}: {error}")));
            }
            if message.get("return").is_some() {
                return Ok(());
            }
        }
    }

    async fn message(&mut self) -> io::Result<Value> {
        let mut line = Vec::new();
        (&mut self.stream).take(MESSAGE_MAX_BYTES).read_until(b'\n', &mut line).await?;
        if line.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        serde_json::from_slice(&line).map_err(io::Error::from)
    }
}

async fn in_time<T>(future: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(ANSWER_TIMEOUT, future).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    #[tokio::test(flavor = "current_thread")]
    async fn events_between_answers_are_passed_over() {
        let dir = std::env::temp_dir().join(format!("calve-qmp-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let socket = dir.join("qmp.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let answers = "{\"QMP\": {}}\n{\"return\": {}}\n{\"event\": \"RESUME\"}\n{\"return\": {}}\n";
            stream.write_all(answers.as_bytes()).await.unwrap();
            let mut asked = String::new();
            stream.read_to_string(&mut asked).await.unwrap();
            asked
        });
        let mut qmp = Qmp::connect(&socket).await.unwrap();
        qmp.quit().await.unwrap();
        drop(qmp);
        assert_eq!(server.await.unwrap(), "{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"quit\"}\n");
        std::fs::remove_dir_all(dir).unwrap();
    }
}
