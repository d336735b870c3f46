//! What a process gives up before it becomes a program of the machine.

use std::io;

/// Narrows the calling process, which is a fresh child of init, right before its `execve`.
///
/// `apply` runs between `fork` and `execve`: it must make system calls only, on memory that was prepared before
/// (signal-safety(7)); it must not allocate, lock or panic.
pub trait Confine {
    /// Narrows init itself, as far as it can do without; called once, while nobody waits for init.
    fn prepare(&self) -> io::Result<()> {
        Ok(())
    }

    /// Narrows the calling process for good.
    fn apply(&self) -> io::Result<()>;
}

/// Nothing is given up: in a guest the machine's own kernel is the wall, beside a process there is none.
#[derive(Debug, Clone, Copy)]
pub struct Unconfined;

impl Confine for Unconfined {
    fn apply(&self) -> io::Result<()> {
        Ok(())
    }
}
