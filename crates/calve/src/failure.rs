//! What a user sees of an error, and the exit codes of this program.

use calve_wire::api::{Problem, ProblemKind};

/// With what the process ends. `run`, `exec` and `wait` pass on the program's own code, so the codes of calve's own
/// failures lie where `env(1)`, shells and container tools put theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// 0: done.
    Success,
    /// 1: the answer is no: `doctor` found nothing usable, no server runs.
    No,
    /// 2: the arguments make no sense.
    Usage,
    /// 3: a switch was rolled back: the host has its former system.
    RolledBack,
    /// 4: a switch failed: the host has neither system for sure.
    SwitchFailed,
    /// 125: calve, its server or a driver could not do it.
    Failed,
    /// 126: the program is there and cannot be executed.
    NotExecutable,
    /// 127: there is no such path, program or machine.
    NotFound,
    /// 141 (128 + SIGPIPE): nobody reads standard output any more.
    OutputClosed,
    /// The program's own code, or 128 + n where signal n ended it.
    Program(i32),
}

impl ExitStatus {
    /// The number for `exit(2)`.
    pub fn code(self) -> i32 {
        match self {
            Self::Success => 0,
            Self::No => 1,
            Self::Usage => 2,
            Self::RolledBack => 3,
            Self::SwitchFailed => 4,
            Self::Failed => 125,
            Self::NotExecutable => 126,
            Self::NotFound => 127,
            Self::OutputClosed => 141,
            Self::Program(code) => code,
        }
    }
}

/// An error for people: one sentence, what lies behind it, what to do.
#[derive(Debug)]
pub struct Failure {
    /// Sets the exit code.
    pub status: ExitStatus,
    /// One sentence.
    pub sentence: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// What lies behind it.
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// What a command gives.
pub type Outcome<T = ExitStatus> = Result<T, Failure>;

impl Failure {
    /// A failure with this exit status, in one sentence.
    pub fn new(status: ExitStatus, sentence: impl Into<String>) -> Self {
        Self { status, sentence: sentence.into(), hint: None, source: None }
    }

    /// Arguments that make no sense.
    pub fn usage(sentence: impl Into<String>) -> Self {
        Self::new(ExitStatus::Usage, sentence)
    }

    /// Something that is not there.
    pub fn not_found(sentence: impl Into<String>) -> Self {
        Self::new(ExitStatus::NotFound, sentence)
    }

    /// Something that calve could not do.
    pub fn failed(sentence: impl Into<String>) -> Self {
        Self::new(ExitStatus::Failed, sentence)
    }

    /// The same with what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same with what lies behind it.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// That nobody reads standard output any more: nothing to say, only a code to end with.
    pub fn output(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            return Self::new(ExitStatus::OutputClosed, "");
        }
        Self::failed("standard output cannot be written").caused_by(error)
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        let status = match problem.kind {
            ProblemKind::BadRequest => ExitStatus::Usage,
            ProblemKind::NotFound => ExitStatus::NotFound,
            ProblemKind::Unauthorized
            | ProblemKind::Conflict
            | ProblemKind::Unusable
            | ProblemKind::LimitReached
            | ProblemKind::DiskFull
            | ProblemKind::Internal => ExitStatus::Failed,
        };
        Self { status, sentence: problem.title, hint: problem.hint, source: None }
    }
}
