//! What the agent asks of the walls around its machine.

use calve_wire::machine::ExitCause;

/// The walls around a machine, as the agent sees them: a sandbox's cgroup, a guest's kernel, or nothing.
pub trait Enclosure {
    /// What was behind the end of the program that has just ended; asked once after each end. Never `NotStarted`.
    fn exit_cause(&self) -> ExitCause;

    /// Kills everything in the machine by means other than init's, which has been told already.
    fn kill_all(&self);

    /// Which limits could not be enforced and why, for people.
    fn notes(&self) -> Vec<String>;

    /// Begins an orderly end of a machine that is a workload by itself; false where there is nothing to wait for.
    fn shut_down(&self) -> bool;

    /// The last call, after the lease's end or the server's order: a guest powers off here, a sandbox cleans up. The agent ends when it returns.
    fn on_end(&self);

    /// The last call instead of [`Enclosure::on_end`] where neither the lease nor the server ended the machine: the agent was
    /// told to go by a signal, or failed. A system that is more than its agent stays up here.
    fn on_interrupt(&self) {
        self.on_end();
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
