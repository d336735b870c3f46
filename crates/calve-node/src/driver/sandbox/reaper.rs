//! Takes note of the ends of supervisors that this process started. Those that an earlier process started are no children
//! of this one, and somebody else's to reap.

use std::process::Child;
use std::sync::{Arc, Mutex, Once, PoisonError};

use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};

/// The supervisors that may still be alive.
#[derive(Debug)]
pub struct Reaper {
    children: Arc<Mutex<Vec<Child>>>,
    watching: Once,
}

impl Default for Reaper {
    fn default() -> Self {
        Self { children: Arc::default(), watching: Once::new() }
    }
}

impl Reaper {
    /// Sees to it that the child leaves no zombie. Call it in the context of a runtime, whose first task it starts.
    pub fn adopt(&self, child: Child) {
        self.children.lock().unwrap_or_else(PoisonError::into_inner).push(child);
        self.watching.call_once(|| {
            // It ends with the runtime; whoever ends a machine reaps as well.
            let children = Arc::downgrade(&self.children);
            if let Ok(runtime) = Handle::try_current() {
                runtime.spawn(async move {
                    let Ok(mut died) = signal(SignalKind::child()) else { return };
                    while died.recv().await.is_some() {
                        let Some(children) = children.upgrade() else { return };
                        reap(&children);
                    }
                });
            }
        });
        // It may have ended before anybody watched.
        self.reap();
    }

    /// Reaps every child that has ended.
    pub fn reap(&self) {
        reap(&self.children);
    }
}

fn reap(children: &Mutex<Vec<Child>>) {
    let mut children = children.lock().unwrap_or_else(PoisonError::into_inner);
    children.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
}
