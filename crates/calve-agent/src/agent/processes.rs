//! The agent's end of the link with init: processes and sockets of the machine, as futures.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use calve_wire::agent::WindowSize;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, oneshot};

use super::descriptor::watched;

use crate::init::packet::{self, End, NotStarted, Packet, Report, Request, Work};

/// What init's end says once it is gone; everything in the machine is dead then.
const GONE: &str = "the machine's init is gone";

/// Makes processes and sockets in the machine. Clones share the link.
#[derive(Clone)]
pub struct Processes(Rc<Shared>);

struct Shared {
    link: AsyncFd<OwnedFd>,
    last_id: Cell<u64>,
    waiting: RefCell<HashMap<u64, Waiting>>,
    until_empty: RefCell<Vec<oneshot::Sender<()>>>,
    unsent: RefCell<VecDeque<Packet>>,
    unsent_added: Notify,
    gone: Cell<bool>,
}

/// Who waits for what of one number.
enum Waiting {
    /// The process itself is handed over, so that it dies wherever on its way to the asker it is dropped.
    Start(oneshot::Sender<Result<Process, NotStarted>>),
    End(oneshot::Sender<End>),
    Socket(oneshot::Sender<Result<OwnedFd, String>>),
}

/// Standard input, output and error of a new process, or the size of its terminal.
pub enum Standard {
    /// Three descriptors.
    Descriptors([OwnedFd; 3]),
    /// A terminal, whose master [`Process::terminal`] is.
    Terminal(WindowSize),
}

/// A process of the machine. Dropped before it has ended, its group is killed.
pub struct Process {
    processes: Processes,
    id: u64,
    ended: oneshot::Receiver<End>,
    /// The master of its terminal, where it was given one.
    pub terminal: Option<OwnedFd>,
    killed_on_drop: bool,
}

impl Processes {
    /// Speaks over `link`, once [`Processes::run`] is polled; call inside of the runtime.
    pub fn new(link: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&link, true)?;
        Ok(Self(Rc::new(Shared {
            link: watched(link)?,
            last_id: Cell::new(0),
            waiting: RefCell::default(),
            until_empty: RefCell::default(),
            unsent: RefCell::default(),
            unsent_added: Notify::new(),
            gone: Cell::new(false),
        })))
    }

    /// Waits until init is at work.
    pub async fn ready(&self) -> io::Result<()> {
        match self.receive().await? {
            Some((Report::Ready, _)) => Ok(()),
            _ => Err(io::Error::other(GONE)),
        }
    }

    /// Carries requests and reports until init is gone; what waits then is answered so.
    pub async fn run(self) -> io::Result<()> {
        let carried = tokio::select! {
            carried = self.receive_all() => carried,
            carried = self.send_all() => carried,
        };
        self.0.gone.set(true);
        self.0.waiting.borrow_mut().clear();
        self.0.until_empty.borrow_mut().clear();
        carried
    }

    /// Makes a process.
    pub async fn spawn(
        &self,
        work: Work,
        standard: Standard,
        sweep_group: bool,
    ) -> Result<Process, NotStarted> {
        let id = self.next_id();
        let (tty, descriptors) = match standard {
            Standard::Descriptors(descriptors) => (None, descriptors.into()),
            Standard::Terminal(size) => (Some(size), Vec::new()),
        };
        let (started, start) = oneshot::channel();
        self.wait_for(id, Waiting::Start(started))?;
        self.ask(&Request::Spawn { id, work, tty, sweep_group }, descriptors)
            .map_err(|error| error.to_string())?;
        start.await.map_err(|_| GONE)?
    }

    /// A process that init has made before the agent was there, with this number.
    pub fn adopt(&self, id: u64) -> Process {
        self.0.last_id.set(self.0.last_id.get().max(id));
        let (ended, end) = oneshot::channel();
        self.0.waiting.borrow_mut().insert(id, Waiting::End(ended));
        Process { processes: self.clone(), id, ended: end, terminal: None, killed_on_drop: true }
    }

    /// Makes an unconnected TCP socket in the machine's network; it does not block.
    pub async fn socket(&self) -> io::Result<OwnedFd> {
        let id = self.next_id();
        let (made, socket) = oneshot::channel();
        self.wait_for(id, Waiting::Socket(made)).map_err(io::Error::other)?;
        self.ask(&Request::Socket { id }, Vec::new())?;
        socket.await.map_err(|_| io::Error::other(GONE))?.map_err(io::Error::other)
    }

    /// Kills everything in the machine; returns once nothing is left alive.
    pub async fn kill_all(&self) {
        let (empty, is_empty) = oneshot::channel();
        if self.0.gone.get() || self.ask(&Request::KillAll, Vec::new()).is_err() {
            return;
        }
        self.0.until_empty.borrow_mut().push(empty);
        let _ = is_empty.await;
    }

    fn wait_for(&self, id: u64, waiting: Waiting) -> Result<(), String> {
        if self.0.gone.get() {
            return Err(GONE.to_owned());
        }
        self.0.waiting.borrow_mut().insert(id, waiting);
        Ok(())
    }

    fn next_id(&self) -> u64 {
        self.0.last_id.set(self.0.last_id.get() + 1);
        self.0.last_id.get()
    }

    fn ask(&self, request: &Request, descriptors: Vec<OwnedFd>) -> io::Result<()> {
        self.0.unsent.borrow_mut().push_back(Packet::new(request, descriptors)?);
        self.0.unsent_added.notify_one();
        Ok(())
    }

    fn signal(&self, id: u64, signal: i32) {
        // Only a missing memfd can fail here, and this request is small.
        let _ = self.ask(&Request::Signal { id, signal }, Vec::new());
    }

    async fn send_all(&self) -> io::Result<()> {
        loop {
            let next = self.0.unsent.borrow_mut().pop_front();
            match next {
                None => self.0.unsent_added.notified().await,
                Some(packet) => {
                    self.0.link.async_io(Interest::WRITABLE, |link| packet.send(link.as_fd())).await?;
                }
            }
        }
    }

    async fn receive_all(&self) -> io::Result<()> {
        while let Some((report, descriptors)) = self.receive().await? {
            self.settle(report, descriptors);
        }
        Ok(())
    }

    async fn receive(&self) -> io::Result<Option<(Report, Vec<OwnedFd>)>> {
        self.0.link.async_io(Interest::READABLE, |link| packet::receive(link.as_fd())).await
    }

    /// Tells who waits. Who has gone meanwhile is no error, but its process must not stay.
    fn settle(&self, report: Report, descriptors: Vec<OwnedFd>) {
        let mut waiting = self.0.waiting.borrow_mut();
        match report {
            Report::Ready => {}
            Report::Spawned { id } => {
                if let Some(Waiting::Start(started)) = waiting.remove(&id) {
                    let (ended, end) = oneshot::channel();
                    waiting.insert(id, Waiting::End(ended));
                    let terminal = descriptors.into_iter().next();
                    let processes = self.clone();
                    let _ = started.send(Ok(Process {
                        processes,
                        id,
                        ended: end,
                        terminal,
                        killed_on_drop: true,
                    }));
                }
            }
            Report::NotSpawned { id, why } => {
                if let Some(Waiting::Start(started)) = waiting.remove(&id) {
                    let _ = started.send(Err(why));
                }
            }
            Report::Exited { id, end } => {
                if let Some(Waiting::End(ended)) = waiting.remove(&id) {
                    let _ = ended.send(end);
                }
            }
            Report::Socket { id } => {
                if let Some(Waiting::Socket(made)) = waiting.remove(&id) {
                    let _ = made.send(descriptors.into_iter().next().ok_or_else(|| GONE.to_owned()));
                }
            }
            Report::NoSocket { id, message } => {
                if let Some(Waiting::Socket(made)) = waiting.remove(&id) {
                    let _ = made.send(Err(message));
                }
            }
            Report::Empty => {
                for empty in self.0.until_empty.borrow_mut().drain(..) {
                    let _ = empty.send(());
                }
            }
        }
    }
}

impl Process {
    /// Lets it live when this is dropped.
    #[must_use]
    pub fn kept(mut self) -> Self {
        self.killed_on_drop = false;
        self
    }

    /// Sends a signal to its group.
    pub fn signal(&self, signal: i32) {
        self.processes.signal(self.id, signal);
    }

    /// Something that sends signals to its group while this waits for its end.
    pub fn signals(&self) -> Signals {
        Signals { processes: self.processes.clone(), id: self.id }
    }

    /// Waits for its end; none where init went away with it. May be cancelled and called again until it has answered.
    pub async fn end(&mut self) -> Option<End> {
        let end = (&mut self.ended).await.ok();
        self.killed_on_drop = false;
        end
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.killed_on_drop {
            self.signal(libc::SIGKILL);
        }
    }
}

/// Sends signals to a process's group.
#[derive(Clone)]
pub struct Signals {
    processes: Processes,
    id: u64,
}

impl Signals {
    /// Sends a signal; nothing where the process has ended.
    pub fn send(&self, signal: i32) {
        self.processes.signal(self.id, signal);
    }
}
