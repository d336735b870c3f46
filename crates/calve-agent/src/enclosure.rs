//! What the agent asks of the walls around its machine.

use calve_wire::machine::ExitCause;

/// What files hold of a machine's memory: they lie in file systems that are memory, and outlive the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FilesInMemory {
    /// Bytes of files.
    pub bytes: u64,
    /// The machine's limit, in bytes.
    pub limit_bytes: u64,
}

/// Memory beside the files without which a program cannot be started: the machine's first process, page tables, the program.
const START_BYTES: u64 = 4 << 20;

impl FilesInMemory {
    /// Whether they leave too little for a program to be started.
    pub fn fill_it(self) -> bool {
        self.bytes + START_BYTES.max(self.limit_bytes / 32) >= self.limit_bytes
    }

    /// Whether they hold so much that who hears of a kill for want of memory should know.
    pub fn are_many(self) -> bool {
        self.bytes >= self.limit_bytes / 2
    }

    /// A sentence for people.
    pub fn sentence(self) -> String {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        format!(
            "files in its memory (/tmp and wherever else it writes) hold {} MiB of its limit of {} MiB: raise the limit \
             (--memory), or write less",
            mib(self.bytes),
            mib(self.limit_bytes)
        )
    }
}

/// The walls around a machine, as the agent sees them: a sandbox's cgroup, a guest's kernel, or nothing.
pub trait Enclosure {
    /// What was behind the end of the program that has just ended; asked once after each end. Never `NotStarted`.
    fn exit_cause(&self) -> ExitCause;

    /// What files hold of the machine's memory; none where nothing limits it.
    fn files_in_memory(&self) -> Option<FilesInMemory> {
        None
    }

    /// Whether commands find in the machine what they need; asked again and again, but not for ever.
    fn is_ready_for_commands(&self) -> bool {
        true
    }

    /// Whether the machine ends with its lease. Where it does not, the server lets go of it then.
    fn ends_with_lease(&self) -> bool {
        true
    }

    /// Kills everything in the machine by means other than init's, which has been told already.
    fn kill_all(&self);

    /// Which limits could not be enforced and why, for people.
    fn notes(&self) -> Vec<String>;

    /// Begins an orderly end of a machine that is a workload by itself; false where there is nothing to wait for.
    fn shut_down(&self) -> bool;

    /// The last call, after the lease's end or the server's order: a guest powers off here, a sandbox cleans up. The agent ends when it returns.
    fn on_end(&self);

    /// The last call instead of [`Enclosure::on_end`] where neither the lease nor the server ended the machine: the agent was
    /// told to go by a signal, or failed.
    fn on_interrupt(&self) {
        self.on_end();
    }

    /// Whether the machine goes on without its agent, until that is started again: there is no call at all then where neither
    /// the lease nor the server ended the machine, and nobody hears of an end.
    fn outlives_agent(&self) -> bool {
        false
    }
}

/// No walls: the programs are ordinary processes beside the agent.
#[derive(Debug, Clone, Copy)]
pub struct Open;

impl Enclosure for Open {
    fn exit_cause(&self) -> ExitCause {
        ExitCause::Normal
    }

    fn kill_all(&self) {}

    fn notes(&self) -> Vec<String> {
        vec!["no limits and no walls: the program runs beside the agent".to_owned()]
    }

    fn shut_down(&self) -> bool {
        false
    }

    fn on_end(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_told_before_they_leave_no_room_for_a_start() {
        let files =
            |mib: u64, limit_mib: u64| FilesInMemory { bytes: mib << 20, limit_bytes: limit_mib << 20 };
        assert!(!files(15, 32).are_many());
        assert!(files(16, 32).are_many() && !files(27, 32).fill_it());
        assert!(files(28, 32).fill_it() && files(2, 4).fill_it());
        assert!(!files(990, 1024).fill_it() && files(992, 1024).fill_it());
        assert!(files(28, 32).sentence().contains("28 MiB of its limit of 32 MiB"));
    }
}
