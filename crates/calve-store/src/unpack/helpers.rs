//! Files made by other threads while the archive is parsed and hashed: a path of many files is else made by one processor.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use super::file::Job;
use crate::processors::processors;

/// Jobs that a tree does by itself before it looks for help: most trees have fewer files.
const ALONE_JOBS: usize = 32;
/// Jobs that wait for a helper: each holds a directory open, and at most a block of the archive.
const WAITING_MAX: usize = 32;

/// Helpers of all trees that are written at once; there is no use in more than processors.
static HELPERS: AtomicUsize = AtomicUsize::new(0);

/// The helpers of one tree.
pub(super) struct Helpers {
    jobs: usize,
    line: Option<Line>,
    threads: Vec<JoinHandle<()>>,
}

/// Where jobs wait.
struct Line {
    give: SyncSender<Job>,
    take: Arc<Mutex<Receiver<Job>>>,
}

impl Helpers {
    pub fn new() -> Self {
        Self { jobs: 0, line: None, threads: Vec::new() }
    }

    /// Has a job done by whoever is free, which may be this thread. Jobs on one file wait for each other, so that this
    /// thread rather waits for a helper (`wait`) than to stand in its way.
    pub fn run(&mut self, job: Job, wait: bool) {
        self.jobs += 1;
        if self.jobs <= ALONE_JOBS {
            return job.run();
        }
        if self.threads.is_empty() && !self.hire() {
            return job.run();
        }
        let Some(line) = &self.line else { return job.run() };
        match line.give.try_send(job) {
            Ok(()) => {}
            Err(TrySendError::Full(job)) if wait => {
                if let Err(refused) = line.give.send(job) {
                    refused.0.run();
                }
            }
            Err(TrySendError::Full(job)) => {
                self.hire();
                job.run();
            }
            Err(TrySendError::Disconnected(job)) => job.run(),
        }
    }

    /// Begins a helper, if there may be one more.
    fn hire(&mut self) -> bool {
        let hired = HELPERS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
            (now < processors()).then_some(now + 1)
        });
        if hired.is_err() {
            return false;
        }
        let line = self.line.get_or_insert_with(|| {
            let (give, take) = sync_channel(WAITING_MAX);
            Line { give, take: Arc::new(Mutex::new(take)) }
        });
        let (take, leave) = (Arc::clone(&line.take), Leave);
        let begun = thread::Builder::new().name("unpack".to_owned()).spawn(move || {
            let _leave = leave;
            loop {
                let job = take.lock().unwrap_or_else(PoisonError::into_inner).recv();
                let Ok(job) = job else { return };
                job.run();
            }
        });
        self.threads.extend(begun);
        !self.threads.is_empty()
    }

    /// Waits until all jobs are done.
    pub fn finish(&mut self) {
        self.line = None;
        for thread in self.threads.drain(..) {
            if let Err(panic) = thread.join() {
                resume_unwind(panic);
            }
        }
    }
}

impl Drop for Helpers {
    fn drop(&mut self) {
        self.line = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Counts a helper out, however it ends.
struct Leave;

impl Drop for Leave {
    fn drop(&mut self) {
        HELPERS.fetch_sub(1, Ordering::Relaxed);
    }
}
