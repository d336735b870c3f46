//! The system's `ssh`, as processes: one that holds a connection open, and one a session in it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::task::JoinHandle;

use super::pin::{Pin, renamed};
use super::{HostKey, NAME, Target, said};
use crate::{ErrorKind, ProviderError};

/// How long a connection may take to come about, jump hosts and slow logins included.
const OPEN_MAX: Duration = Duration::from_secs(60);
/// How long the TCP connection may take, in seconds.
const CONNECT_MAX_S: u32 = 15;
/// A connection on which nothing was heard for so long is asked whether it lives, in seconds, …
const ALIVE_INTERVAL_S: u32 = 10;
/// … and broken after so many questions without an answer.
const ALIVE_COUNT_MAX: u32 = 3;
/// How long a question to the local programs may take.
const LOCAL_MAX: Duration = Duration::from_secs(10);
/// Most bytes kept of what `ssh` says.
const SAID_MAX_BYTES: usize = 16 * 1024;
/// Most bytes of a line of a host.
const LINE_MAX_BYTES: u64 = 8 << 20;
/// Most bytes of the path of a control socket: 107, less what `ssh` appends while it makes one.
const CONTROL_PATH_MAX_BYTES: usize = 85;
/// What the session says that holds a connection open.
const OPEN_WORD: &str = "calve-open";

/// Where things are.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The client, by name or path.
    pub program: PathBuf,
    /// Control sockets are made there.
    pub run_dir: PathBuf,
    /// Host keys are pinned there.
    pub pins_dir: PathBuf,
}

/// Opens connections, one a host. Cloning gives another handle.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    ssh: Ssh,
    hosts: Mutex<BTreeMap<Target, Arc<Slot>>>,
}

type Slot = tokio::sync::Mutex<Option<Arc<Host>>>;

/// The programs.
#[derive(Clone)]
pub(super) struct Ssh(Arc<Settings>);

/// What the user's configuration says of a host.
pub(super) struct Configured {
    /// Under which name its key is known.
    pub name: String,
    /// The files of known hosts that there are.
    pub known_hosts: Vec<PathBuf>,
}

impl Client {
    /// Connects with the first use.
    pub fn new(settings: Settings) -> Self {
        Self(Arc::new(Inner { ssh: Ssh(Arc::new(settings)), hosts: Mutex::default() }))
    }

    /// What `ssh -V` says; an error where it cannot be started.
    pub async fn version(&self) -> io::Result<String> {
        let mut command = self.0.ssh.command();
        let output = tokio::time::timeout(LOCAL_MAX, command.arg("-V").output()).await??;
        Ok(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }

    /// The connection to a host: the one that is open, or a new one. Its key is pinned with the first one.
    pub async fn open(&self, target: &Target, said: Option<&HostKey>) -> Result<Arc<Host>, ProviderError> {
        let slot = self.hosts().entry(target.clone()).or_default().clone();
        let mut slot = slot.lock().await;
        if let Some(host) = slot.as_ref().filter(|host| host.is_open()) {
            return Ok(host.clone());
        }
        let host = Arc::new(self.connect(target, said).await?);
        *slot = Some(host.clone());
        Ok(host)
    }

    /// A new connection to a host, which nobody else gets: that there is one says that the host lets us in now.
    pub async fn connect(&self, target: &Target, said: Option<&HostKey>) -> Result<Host, ProviderError> {
        let mut pin = Pin::find(&self.0.ssh, target, said).await?;
        let host = self.0.ssh.connect(target, &pin.file).await?;
        if let Err(error) = pin.keep() {
            let message = format!("the host key of {target} cannot be pinned: {error}");
            return Err(ProviderError::new(NAME, ErrorKind::Failed, message));
        }
        // A later session that finds the connection gone makes one of its own, and must find the key.
        host.pin.set(pin.file.clone()).expect("a connection is new");
        Ok(host)
    }

    /// Closes the connection to a host once nobody uses it any more.
    pub fn close(&self, target: &Target) {
        self.hosts().remove(target);
    }

    fn hosts(&self) -> std::sync::MutexGuard<'_, BTreeMap<Target, Arc<Slot>>> {
        self.0.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ssh {
    pub fn pins_dir(&self) -> &Path {
        &self.0.pins_dir
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.0.program);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    fn missing(&self, error: &io::Error) -> ProviderError {
        let message =
            format!("{} cannot be run: {error}; install OpenSSH's client", self.0.program.display());
        ProviderError::new(NAME, ErrorKind::Refused, message)
    }

    /// What is the same for each use. The rest is the user's own configuration.
    fn options(&self, known_hosts: &Path) -> Vec<String> {
        let mut arguments = vec!["-T".to_owned(), "-x".to_owned(), "-a".to_owned()];
        for option in [
            "BatchMode=yes",
            "StrictHostKeyChecking=yes",
            "UpdateHostKeys=no",
            "VerifyHostKeyDNS=no",
            "GlobalKnownHostsFile=/dev/null",
            "ClearAllForwardings=yes",
            "PermitLocalCommand=no",
            "RemoteCommand=none",
            "LogLevel=INFO",
            "ControlPersist=no",
        ] {
            arguments.extend(["-o".to_owned(), option.to_owned()]);
        }
        let quoted = format!("UserKnownHostsFile=\"{}\"", known_hosts.display());
        for option in [
            quoted,
            format!("ConnectTimeout={CONNECT_MAX_S}"),
            format!("ServerAliveInterval={ALIVE_INTERVAL_S}"),
            format!("ServerAliveCountMax={ALIVE_COUNT_MAX}"),
        ] {
            arguments.extend(["-o".to_owned(), option]);
        }
        arguments
    }

    /// Asks for the configuration of a host.
    pub async fn configured(&self, target: &Target) -> Result<Configured, ProviderError> {
        let mut command = self.command();
        command.arg("-G").args(target.arguments());
        let output = tokio::time::timeout(LOCAL_MAX, command.output()).await;
        let output = output.map_err(io::Error::from).flatten().map_err(|error| self.missing(&error))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let message = format!("the configuration for {target} cannot be read: {}", said.trim());
            return Err(ProviderError::new(NAME, ErrorKind::Refused, message));
        }
        Ok(read_configuration(&String::from_utf8_lossy(&output.stdout), target))
    }

    /// The lines for a host in a file of known hosts.
    pub async fn known(&self, name: &str, file: &Path) -> String {
        let mut command = Command::new("ssh-keygen");
        command
            .args(["-F", name, "-f"])
            .arg(file)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        match tokio::time::timeout(LOCAL_MAX, command.output()).await {
            Ok(Ok(output)) if output.status.success() => {
                renamed(&String::from_utf8_lossy(&output.stdout), name)
            }
            // Not there, or nothing found.
            _ => String::new(),
        }
    }

    /// The key that a host shows: asked for without logging in, so that a stranger learns nothing.
    pub async fn shown_key(&self, target: &Target) -> Result<String, ProviderError> {
        let unusable = |error: io::Error| {
            ProviderError::new(NAME, ErrorKind::Failed, format!("{}: {error}", self.0.run_dir.display()))
        };
        let file = self.control_path().map_err(unusable)?;
        let mut command = self.command();
        command.args(["-o", "StrictHostKeyChecking=accept-new", "-o", "PreferredAuthentications=none"]);
        command.args(["-o", "HashKnownHosts=no", "-o", "ControlPath=none"]);
        command.args(self.options(&file)).args(target.arguments()).arg("true");
        let asked = tokio::time::timeout(OPEN_MAX, command.output()).await;
        let shown = fs::read_to_string(&file);
        let _ = fs::remove_file(&file);
        let key = shown
            .unwrap_or_default()
            .lines()
            .next()
            .and_then(|line| Some(line.split_once(' ')?.1.to_owned()));
        match (key, asked) {
            (Some(key), _) => Ok(key),
            (None, Ok(Ok(output))) => Err(said::error(target, &String::from_utf8_lossy(&output.stderr))),
            (None, Ok(Err(error))) => Err(self.missing(&error)),
            (None, Err(_)) => Err(slow(target)),
        }
    }

    /// A new path for a socket or a file that lives as long as this process at most.
    fn control_path(&self) -> io::Result<PathBuf> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0.run_dir)?;
        let name = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        Ok(self.0.run_dir.join(name))
    }

    async fn connect(&self, target: &Target, known_hosts: &Path) -> Result<Host, ProviderError> {
        let failed =
            |error: io::Error| ProviderError::new(NAME, ErrorKind::Failed, format!("{target}: {error}"));
        let control = self.control_path().map_err(failed)?;
        // Where no socket can be made, each session has a connection of its own.
        let shared = control.as_os_str().len() <= CONTROL_PATH_MAX_BYTES;
        let control = if shared { control.display().to_string() } else { "none".to_owned() };
        let mut command = self.command();
        command.args(["-o", "ControlMaster=yes", "-o", &format!("ControlPath={control}")]);
        command.args(self.options(known_hosts)).args(target.arguments());
        command.arg(format!("sh -c {}", quote(&format!("echo {OPEN_WORD}; exec cat >/dev/null"))));
        let mut child = command.stdin(Stdio::piped()).spawn().map_err(|error| self.missing(&error))?;
        let (stdin, stdout) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        let said = gather(child.stderr.take().expect("piped"));
        let mut stdout = BufReader::new(stdout);
        let opened = async {
            while let Ok(Some(line)) = read_line(&mut stdout).await {
                if line.trim() == OPEN_WORD {
                    return true;
                }
            }
            false
        };
        match tokio::time::timeout(OPEN_MAX, opened).await {
            Ok(true) => {}
            Ok(false) => {
                let _ = child.wait().await;
                return Err(said::error(target, &said.await.unwrap_or_default()));
            }
            Err(_) => return Err(slow(target)),
        }
        Ok(Host {
            target: target.clone(),
            ssh: self.clone(),
            control,
            pin: std::sync::OnceLock::new(),
            master: Mutex::new(child),
            _open: (stdin, stdout),
        })
    }
}

fn slow(target: &Target) -> ProviderError {
    let message = format!("{target} has not let us in within {} s", OPEN_MAX.as_secs());
    ProviderError::new(NAME, ErrorKind::Unreachable, message)
}

fn read_configuration(text: &str, target: &Target) -> Configured {
    let value = |key: &str| {
        text.lines()
            .find_map(|line| line.split_once(' ').filter(|(name, _)| *name == key))
            .map(|(_, value)| value.trim())
    };
    let host = value("hostname").unwrap_or(&target.host);
    let name = match (value("hostkeyalias").filter(|alias| *alias != "none"), value("port").unwrap_or("22")) {
        (Some(alias), _) => alias.to_owned(),
        (None, "22") => host.to_owned(),
        (None, port) => format!("[{host}]:{port}"),
    };
    let home = std::env::home_dir().unwrap_or_default();
    let files = ["userknownhostsfile", "globalknownhostsfile"].into_iter().filter_map(value);
    let known_hosts = files
        .flat_map(str::split_ascii_whitespace)
        .map(|file| file.strip_prefix("~/").map_or_else(|| PathBuf::from(file), |file| home.join(file)))
        .collect();
    Configured { name: name.to_ascii_lowercase(), known_hosts }
}

/// An open connection; closed when it is dropped, or this process ends.
pub struct Host {
    target: Target,
    ssh: Ssh,
    control: String,
    pin: std::sync::OnceLock<PathBuf>,
    master: Mutex<Child>,
    /// The session that holds the connection ends with these.
    _open: (ChildStdin, BufReader<ChildStdout>),
}

/// A command that runs on a host.
pub struct Session {
    child: Child,
    /// Its standard input, until it is taken and dropped.
    pub stdin: Option<ChildStdin>,
    /// Its standard output.
    pub stdout: BufReader<ChildStdout>,
    said: JoinHandle<String>,
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The exit code; none where the connection or `ssh` itself broke.
    pub code: Option<i32>,
    /// What came over its standard error.
    pub stderr: String,
}

impl Host {
    /// Whose it is.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Whether it has not broken.
    pub fn is_open(&self) -> bool {
        let mut master = self.master.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(master.try_wait(), Ok(None))
    }

    /// Runs a command there, given as its words.
    pub fn session(&self, words: &[&str]) -> Result<Session, ProviderError> {
        let mut command = self.ssh.command();
        command.args(["-o", "ControlMaster=no", "-o", &format!("ControlPath={}", self.control)]);
        let pin = self.pin.get().map_or(Path::new("/dev/null"), PathBuf::as_path);
        command.args(self.ssh.options(pin)).args(self.target.arguments());
        command.arg(words.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" "));
        let mut child = command.stdin(Stdio::piped()).spawn().map_err(|error| self.ssh.missing(&error))?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().expect("piped"));
        let said = gather(child.stderr.take().expect("piped"));
        Ok(Session { child, stdin, stdout: BufReader::new(stdout), said })
    }

    /// Runs a command to its end with this input; its output where it succeeds.
    pub async fn run(
        &self,
        words: &[&str],
        input: &[u8],
        longest: Duration,
    ) -> Result<String, ProviderError> {
        let mut session = self.session(words)?;
        let mut stdin = session.stdin.take().expect("it is new");
        let talk = async {
            let feed = async {
                // Who reads no input says why at its end.
                let _ = stdin.write_all(input).await;
                drop(stdin);
            };
            let mut output = Vec::new();
            let mut limited = (&mut session.stdout).take(LINE_MAX_BYTES);
            let (_, _) = tokio::join!(feed, limited.read_to_end(&mut output));
            (String::from_utf8_lossy(&output).into_owned(), session.end().await)
        };
        let (output, ended) = tokio::time::timeout(longest, talk).await.map_err(|_| {
            let message = format!("{} did not answer within {} s", self.target, longest.as_secs());
            ProviderError::new(NAME, ErrorKind::NoAnswer, message)
        })?;
        match ended.code {
            Some(0) => Ok(output),
            _ => Err(self.failure(&ended)),
        }
    }

    /// The error behind the end of a session.
    pub fn failure(&self, ended: &Ended) -> ProviderError {
        match ended.code {
            None => said::error(&self.target, &ended.stderr),
            Some(code) => {
                let line =
                    ended.stderr.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no word");
                let message =
                    format!("{}: the command there ended with code {code}: {}", self.target, line.trim());
                ProviderError::new(NAME, ErrorKind::Failed, message)
            }
        }
    }
}

impl Session {
    /// The next line of its output, with its end; none where there is no more.
    pub async fn line(&mut self) -> io::Result<Option<String>> {
        read_line(&mut self.stdout).await
    }

    /// Waits for its end.
    pub async fn end(mut self) -> Ended {
        drop(self.stdin.take());
        let status = self.child.wait().await;
        let stderr = self.said.await.unwrap_or_default();
        // 255 is how `ssh` tells that it failed itself (ssh(1)).
        Ended { code: status.ok().and_then(|status| status.code()).filter(|code| *code != 255), stderr }
    }
}

async fn read_line(from: &mut BufReader<ChildStdout>) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    from.take(LINE_MAX_BYTES).read_until(b'\n', &mut line).await?;
    Ok((!line.is_empty()).then(|| String::from_utf8_lossy(&line).into_owned()))
}

/// Reads to the end, and keeps the last of it.
fn gather(mut stderr: ChildStderr) -> JoinHandle<String> {
    tokio::spawn(async move {
        let (mut said, mut piece) = (Vec::new(), vec![0; 4096]);
        while let Ok(count @ 1..) = stderr.read(&mut piece).await {
            said.extend_from_slice(&piece[..count]);
            if said.len() > 2 * SAID_MAX_BYTES {
                said.drain(..said.len() - SAID_MAX_BYTES);
            }
        }
        String::from_utf8_lossy(&said).into_owned()
    })
}

/// As one word of any login shell.
fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:@,+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_known_under_the_name_of_the_configuration() {
        let target: Target = "ssh://pi".parse().unwrap();
        let text = "user root\nhostname PI.example\nport 2222\nuserknownhostsfile ~/.ssh/a /b\nglobalknownhostsfile /c\n";
        let read = read_configuration(text, &target);
        let home = std::env::home_dir().unwrap();
        assert_eq!(read.name, "[pi.example]:2222");
        assert_eq!(read.known_hosts, [home.join(".ssh/a"), "/b".into(), "/c".into()]);
        assert_eq!(read_configuration("hostname a\nport 22\n", &target).name, "a");
        assert_eq!(read_configuration("hostname a\nhostkeyalias b\nport 7\n", &target).name, "b");
    }

    #[test]
    fn words_stay_words() {
        assert_eq!(
            (quote("/a-b.c"), quote("a b"), quote("it's"), quote("")),
            ("/a-b.c".to_owned(), "'a b'".to_owned(), r"'it'\''s'".to_owned(), "''".to_owned())
        );
    }
}
