//! One thing that goes wrong at one moment of one effect, of every kind of effect that there is.

use calve_core::plan::Action;

/// Kinds of actions; what the simulator does not know does not compile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are the actions of the same names")]
pub enum Which {
    Write,
    Link,
    Create,
    Start,
    SetLease,
    Stop,
    Destroy,
    Forget,
}

impl Which {
    /// The kind of an action. No wildcard: a new action has to be thought of here.
    pub fn of(action: &Action) -> Self {
        match action {
            Action::Write { .. } => Self::Write,
            Action::Link { .. } => Self::Link,
            Action::Create { .. } => Self::Create,
            Action::Start { .. } => Self::Start,
            Action::SetLease { .. } => Self::SetLease,
            Action::Stop { .. } => Self::Stop,
            Action::Destroy { .. } => Self::Destroy,
            Action::Forget { .. } => Self::Forget,
        }
    }

    /// The kind behind this one. No wildcard: a new kind has to be in the row.
    pub fn next(self) -> Option<Self> {
        match self {
            Self::Write => Some(Self::Link),
            Self::Link => Some(Self::Create),
            Self::Create => Some(Self::Start),
            Self::Start => Some(Self::SetLease),
            Self::SetLease => Some(Self::Stop),
            Self::Stop => Some(Self::Destroy),
            Self::Destroy => Some(Self::Forget),
            Self::Forget => None,
        }
    }

    /// Every kind.
    pub fn all() -> impl Iterator<Item = Self> {
        std::iter::successors(Some(Self::Write), |which| which.next())
    }
}

/// When, in an effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Nothing was done yet.
    Before,
    /// Half of it was done.
    Within,
    /// All of it was done, but nobody knows yet.
    After,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// It fails.
    Fails,
    /// It is done twice.
    Repeats,
    /// The server dies.
    Crashes,
}

/// What goes wrong, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Aim {
    /// In which effect.
    pub which: Which,
    /// At which moment of it.
    pub when: When,
    /// What.
    pub how: How,
    /// How many such moments pass before it does.
    pub skip: u32,
}
