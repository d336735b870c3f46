//! `exec -it` on a real terminal: raw while it lasts, as before afterwards.

mod fake;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use calve_wire::frame::Channel::Stdout;
use fake::{DEADLINE, Fake, Step, eventually, exit, signal};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

struct Terminal {
    ours: File,
    theirs: OwnedFd,
}

impl Terminal {
    fn open() -> Self {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        let name = ptsname(&ours, Vec::new()).unwrap();
        let theirs =
            rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        tcsetwinsize(&ours, Winsize { ws_row: 33, ws_col: 99, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        Self { ours: ours.into(), theirs }
    }

    /// Starts a command in a session of its own, with this as its terminal.
    fn spawn(&self, command: &mut Command) -> Child {
        let stdio = || Stdio::from(self.theirs.try_clone().unwrap());
        command.stdin(stdio()).stdout(stdio()).stderr(stdio());
        command.env("TERM", "xterm").env_remove("NO_COLOR");
        // SAFETY: setsid(2) and ioctl(2) are async-signal-safe and touch no memory.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                libc::ioctl(0, libc::TIOCSCTTY, 0);
                Ok(())
            });
        }
        command.spawn().unwrap()
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(self.theirs.as_fd()).unwrap().local_modes.contains(LocalModes::ICANON)
    }

    /// Reads until `text` came.
    fn expect(&mut self, text: &str) -> String {
        let mut seen = Vec::new();
        let mut byte = [0];
        while !String::from_utf8_lossy(&seen).contains(text) {
            let mut readable = [PollFd::new(&self.ours, PollFlags::IN)];
            let ready =
                poll(&mut readable, Some(&Timespec { tv_sec: DEADLINE.as_secs() as i64, tv_nsec: 0 }));
            assert_eq!(ready, Ok(1), "{text:?} did not come, only {:?}", String::from_utf8_lossy(&seen));
            self.ours.read_exact(&mut byte).unwrap();
            seen.push(byte[0]);
        }
        String::from_utf8(seen).unwrap()
    }
}

#[test]
fn keys_and_sizes_reach_the_command_and_the_terminal_is_as_before() {
    let fake = Fake::start();
    fake.socket([Step::Send(Stdout, b"$ ".to_vec()), Step::AwaitStdin(3), Step::AwaitControls(2), exit(5)]);
    let mut terminal = Terminal::open();
    let mut child = terminal.spawn(&mut fake.calve(&["exec", "-it", "web", "--", "sh"]));
    terminal.expect("$ ");
    assert!(terminal.is_raw());
    // Ctrl-C is a key like any other.
    terminal.ours.write_all(b"a\x03\r").unwrap();
    eventually("the keys", || fake.heard().stdin == b"a\x03\r");
    tcsetwinsize(&terminal.ours, Winsize { ws_row: 40, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(5));
    assert!(!terminal.is_raw());
    let texts = fake.heard().texts;
    assert!(texts[0].contains(r#""tty":{"rows":33,"columns":99}"#), "{texts:?}");
    assert_eq!(texts[1], r#"{"type":"resize","size":{"rows":40,"columns":120}}"#);
}

#[test]
fn an_error_or_the_end_of_the_terminal_leaves_no_raw_mode_behind() {
    let fake = Fake::start();
    fake.socket([
        Step::AwaitControls(1),
        Step::Send(Stdout, b"up".to_vec()),
        Step::AwaitStdin(1),
        Step::Break,
    ]);
    let mut terminal = Terminal::open();
    let mut child = terminal.spawn(&mut fake.calve(&["exec", "-it", "web", "sh"]));
    terminal.expect("up");
    terminal.ours.write_all(b"x").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(125));
    assert!(!terminal.is_raw());
    // Said in the terminal's own mode: in raw mode the lines would run down the screen as stairs.
    let said = terminal.expect("\n");
    assert!(said.contains("the connection to the server broke off") && said.ends_with("\r\n"), "{said:?}");
    assert!(said.contains("\x1b[31merror:\x1b[0m"), "{said:?}");

    let fake = Fake::start();
    fake.socket([Step::Send(Stdout, b"up".to_vec()), Step::AwaitClient]);
    let mut terminal = Terminal::open();
    let mut child = terminal.spawn(&mut fake.calve(&["exec", "-it", "web", "sh"]));
    terminal.expect("up");
    signal(child.id(), libc::SIGHUP);
    assert_eq!(child.wait().unwrap().code(), Some(129));
    assert!(!terminal.is_raw());
    eventually("the server sees it", || fake.heard().gone);
}

#[test]
fn in_the_background_the_terminal_is_left_to_the_shell() {
    let fake = Fake::start();
    fake.socket([Step::Send(Stdout, b"up".to_vec()), Step::AwaitRequest("GET /go"), exit(0)]);
    let mut terminal = Terminal::open();
    // The shell stays in the foreground; its job has a group of its own.
    let script = format!(
        "set -m; {} run /bin/busybox & read line; echo shell read $line; wait $!; echo code $?",
        env!("CARGO_BIN_EXE_calve")
    );
    let mut shell = Command::new("bash");
    shell.args(["-c", &script]).env("CALVE_HOME", fake.home.path()).env_remove("CALVE_SERVER");
    let mut child = terminal.spawn(&mut shell);
    terminal.expect("up");
    terminal.ours.write_all(b"for the shell\n").unwrap();
    terminal.expect("shell read for the shell");
    get(&fake, "/go");
    terminal.expect("code 0");
    child.wait().unwrap();
    assert!(fake.heard().stdin.is_empty());
}

/// A bare request, for a step that waits for one.
fn get(fake: &Fake, path: &str) {
    let mut socket =
        std::os::unix::net::UnixStream::connect(fake.home.path().join("run/calve.sock")).unwrap();
    socket
        .write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())
        .unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).unwrap();
}
