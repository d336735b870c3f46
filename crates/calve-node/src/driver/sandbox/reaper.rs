//! The supervisors that this process started: takes note of their ends, and holds the one that stands by for the next
//! machine. Those that an earlier process started are no children of this one, and somebody else's to reap.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};

use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};

use super::start::Supervisor;

/// The supervisors that may still be alive.
#[derive(Debug)]
pub struct Reaper {
    children: Arc<Mutex<Children>>,
    watching: Once,
}

#[derive(Debug, Default)]
struct Children {
    kept: Vec<Child>,
    standby: Standby,
}

/// At most one: machines that are asked for at the same moment wait for the processors, not for namespaces.
#[derive(Debug, Default)]
enum Standby {
    #[default]
    None,
    /// Somebody is about to start one.
    Coming,
    There(Supervisor, Binary),
}

/// Tells a program from one that was put in its place.
#[derive(Debug, PartialEq, Eq)]
pub struct Binary {
    device: u64,
    inode: u64,
    changed: (i64, i64),
}

impl Binary {
    /// The program that lies there now.
    pub fn at(path: &Path) -> io::Result<Self> {
        let meta = fs::metadata(path)?;
        Ok(Self { device: meta.dev(), inode: meta.ino(), changed: (meta.ctime(), meta.ctime_nsec()) })
    }
}

impl Default for Reaper {
    fn default() -> Self {
        Self { children: Arc::default(), watching: Once::new() }
    }
}

impl Reaper {
    /// Sees to it that the child leaves no zombie. Call it in the context of a runtime, whose first task it starts.
    pub fn adopt(&self, child: Child) {
        lock(&self.children).kept.push(child);
        self.watching.call_once(|| {
            // It ends with the runtime; whoever ends a machine reaps as well.
            let children = Arc::downgrade(&self.children);
            if let Ok(runtime) = Handle::try_current() {
                runtime.spawn(async move {
                    let Ok(mut died) = signal(SignalKind::child()) else { return };
                    while died.recv().await.is_some() {
                        let Some(children) = children.upgrade() else { return };
                        lock(&children).reap();
                    }
                });
            }
        });
        // It may have ended before anybody watched.
        self.reap();
    }

    /// Reaps every child that has ended.
    pub fn reap(&self) {
        lock(&self.children).reap();
    }

    /// The supervisor that stands by, if it is alive and of this program.
    pub fn take_standby(&self, binary: &Path) -> Option<Supervisor> {
        let standby = {
            let mut children = lock(&self.children);
            children.reap();
            match std::mem::take(&mut children.standby) {
                coming @ Standby::Coming => {
                    children.standby = coming;
                    return None;
                }
                standby => standby,
            }
        };
        match standby {
            Standby::There(supervisor, of) if Binary::at(binary).is_ok_and(|now| now == of) => {
                Some(supervisor)
            }
            // One of another program ends as it is dropped here.
            Standby::There(..) | Standby::None | Standby::Coming => None,
        }
    }

    /// Whether the caller is to start one that stands by; it must say how that went with [`Reaper::set_standby`].
    pub fn wants_standby(&self) -> bool {
        let mut children = lock(&self.children);
        let wanted = matches!(children.standby, Standby::None);
        if wanted {
            children.standby = Standby::Coming;
        }
        wanted
    }

    /// What became of it.
    pub fn set_standby(&self, standby: Option<(Supervisor, Binary)>) {
        let standby = standby.map_or(Standby::None, |(supervisor, of)| Standby::There(supervisor, of));
        lock(&self.children).standby = standby;
    }
}

impl Children {
    fn reap(&mut self) {
        self.kept.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        if let Standby::There(supervisor, _) = &mut self.standby
            && supervisor.has_ended()
        {
            self.standby = Standby::None;
        }
    }
}

fn lock(children: &Mutex<Children>) -> MutexGuard<'_, Children> {
    children.lock().unwrap_or_else(PoisonError::into_inner)
}
