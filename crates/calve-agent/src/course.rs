//! The course of a switch: pure decisions. Each step names one thing to do; the step is written to disk before that is
//! done, and everything that is done may be done twice.

use serde::{Deserialize, Serialize};

use calve_wire::system::{SwitchAction, SwitchOutcome, SwitchStage};

/// Tries to bring the former system back on the running host before the host is restarted into it.
const REACTIVATE_TRIES: u8 = 2;
/// Restarts into the former system before somebody has to look.
const RESTARTS_MAX: u8 = 2;
/// Tries to make a confirmed system the one that boots.
const KEEP_TRIES: u8 = 3;

/// What is to be done next.
///
/// ```text
///  switch   Begun ─▶ Profile ─▶ Install ─▶ Guard ─▶ Activate ─▶ Confirm ─▶ Keep ─▶ Ended(applied)
///  boot     Begun ─▶ Profile ─▶ Install ─▶ Guard ─▶ Arm ─▶ AwaitBoot ··boot··▶ Confirm ─▶ Keep ─▶ Ended(applied)
///  test     Begun ─▶ Activate ─▶ Confirm ─▶ Ended(applied)
///
///  any of these, by a failure, by its time being over, or by an end of this program or the host:
///           BackProfile ─▶ BackInstall ─▶ BackActivate ─▶ Ended(rolled back)
///                                    └──▶ Restart ··boot··▶ Ended(rolled back)
/// ```
/// `Profile` moves the profile's link; `Install` has the new system write its boot entry; `Guard` makes the former entry
/// the default again, so that whatever happens from there on, a restart leads back; `Arm` has the new entry tried once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Nothing has been changed.
    Begun,
    /// The profile's link is moved to the new system.
    Profile,
    /// The new system writes its boot entry.
    Install,
    /// The former system is made the one that boots.
    Guard,
    /// The new system is activated.
    Activate,
    /// Its health and the server's word are waited for.
    Confirm,
    /// The new system is made the one that boots next, once.
    Arm,
    /// The next boot is waited for.
    AwaitBoot,
    /// The new system is made the one that boots.
    Keep,
    /// The profile's link is moved back.
    BackProfile,
    /// The former system writes its boot entry.
    BackInstall,
    /// The former system is activated.
    BackActivate,
    /// The host is restarted into the former system.
    Restart,
    /// Nothing is left to do.
    Ended(SwitchOutcome),
}

/// Which system the host was found to run after this program or the host had ended in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// The host was not restarted.
    SameBoot,
    /// It was restarted into the former system.
    BootedFormer,
    /// It was restarted into the new system.
    BootedNew,
    /// It was restarted into neither.
    BootedOther,
}

/// What has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The step is done; for `Confirm` that the system is healthy and the server has said so.
    Done,
    /// It could not be done.
    Failed(String),
    /// The time to confirm is over.
    Late(String),
    /// Somebody wants the former system back.
    Recalled(String),
    /// This program was started anew.
    Resumed(Found),
}

/// The course of one switch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Course {
    /// What is done with the new system.
    pub action: SwitchAction,
    /// What is to be done next.
    pub step: Step,
    /// Whether new and former system are the same: a boot then tells nothing of which it was.
    pub same: bool,
    /// Whether the boot loader leads back to the former system, as far as it is known.
    pub guarded: bool,
    /// Whether the host was restarted into the new system: activating the former would leave the new kernel.
    pub booted_new: bool,
    /// Whether the new system was activated, or began to be, since the host was started.
    pub activated: bool,
    /// Whether profile or boot loader could not be turned back.
    pub left: bool,
    tries: u8,
    restarts: u8,
    /// Why it goes back, and what went wrong on the way.
    pub notes: Vec<String>,
}

impl Course {
    /// A switch of which nothing was done.
    pub fn new(action: SwitchAction, same: bool) -> Self {
        Self {
            action,
            step: Step::Begun,
            same,
            guarded: false,
            booted_new: false,
            activated: false,
            left: false,
            tries: 0,
            restarts: 0,
            notes: Vec::new(),
        }
    }

    /// Takes in what has happened.
    pub fn take(&mut self, event: Event) {
        match event {
            Event::Done => self.done(),
            Event::Failed(why) => self.failed(why),
            Event::Late(why) | Event::Recalled(why) => self.give_up(why),
            Event::Resumed(found) => self.resumed(found),
        }
    }

    /// Whether the switch may still become applied.
    pub fn is_forward(&self) -> bool {
        match self.step {
            Step::Begun
            | Step::Profile
            | Step::Install
            | Step::Guard
            | Step::Activate
            | Step::Confirm
            | Step::Arm
            | Step::AwaitBoot
            | Step::Keep => true,
            Step::BackProfile | Step::BackInstall | Step::BackActivate | Step::Restart | Step::Ended(_) => {
                false
            }
        }
    }

    /// How it ended.
    pub fn outcome(&self) -> Option<SwitchOutcome> {
        match self.step {
            Step::Ended(outcome) => Some(outcome),
            _ => None,
        }
    }

    /// Where it stands, in fewer words.
    pub fn stage(&self) -> SwitchStage {
        match self.step {
            Step::Begun | Step::Profile | Step::Install | Step::Guard | Step::Activate | Step::Arm => {
                SwitchStage::Applying
            }
            Step::Confirm => SwitchStage::Confirming,
            Step::AwaitBoot => SwitchStage::AwaitingBoot,
            Step::Keep => SwitchStage::Keeping,
            Step::BackProfile | Step::BackInstall | Step::BackActivate | Step::Restart => {
                SwitchStage::GoingBack
            }
            Step::Ended(_) => SwitchStage::Ended,
        }
    }

    fn go(&mut self, step: Step) {
        self.step = step;
        self.activated |= step == Step::Activate;
        self.tries = 0;
    }

    fn done(&mut self) {
        let boots = self.action == SwitchAction::Boot;
        match self.step {
            Step::Begun if self.action == SwitchAction::Test => self.go(Step::Activate),
            Step::Begun => self.go(Step::Profile),
            Step::Profile => self.go(Step::Install),
            Step::Install => self.go(Step::Guard),
            Step::Guard => self.go(if boots { Step::Arm } else { Step::Activate }),
            Step::Activate => self.go(Step::Confirm),
            Step::Confirm if self.action == SwitchAction::Test => {
                self.go(Step::Ended(SwitchOutcome::Applied))
            }
            Step::Confirm => self.go(Step::Keep),
            Step::Arm => self.go(Step::AwaitBoot),
            Step::Keep => self.go(Step::Ended(SwitchOutcome::Applied)),
            Step::BackProfile => self.go(Step::BackInstall),
            Step::BackInstall => self.way_back(),
            Step::BackActivate => self.end_back(),
            // Told by the next boot.
            Step::AwaitBoot | Step::Restart | Step::Ended(_) => {}
        }
    }

    fn failed(&mut self, why: String) {
        self.note(why.clone());
        match self.step {
            Step::Begun
            | Step::Profile
            | Step::Install
            | Step::Guard
            | Step::Activate
            | Step::Confirm
            | Step::Arm => self.turn_back(),
            Step::Keep => {
                self.tries += 1;
                if self.tries >= KEEP_TRIES {
                    self.turn_back();
                }
            }
            Step::BackProfile => {
                self.left = true;
                self.go(Step::BackInstall);
            }
            Step::BackInstall => {
                // The guard is what counts.
                self.left |= !self.guarded;
                self.way_back();
            }
            Step::BackActivate => {
                self.tries += 1;
                if self.tries >= REACTIVATE_TRIES {
                    self.go(if self.guarded { Step::Restart } else { Step::Ended(SwitchOutcome::Failed) });
                }
            }
            Step::Restart => {
                self.restarts += 1;
                if self.restarts >= RESTARTS_MAX {
                    self.go(Step::Ended(SwitchOutcome::Failed));
                }
            }
            Step::AwaitBoot | Step::Ended(_) => {}
        }
    }

    fn give_up(&mut self, why: String) {
        if self.is_forward() && self.step != Step::Keep {
            self.note(why);
            self.turn_back();
        }
    }

    fn resumed(&mut self, found: Found) {
        let found = match found {
            Found::BootedFormer | Found::BootedNew if self.same => self.same_boot_again(),
            found => found,
        };
        match (found, self.step) {
            (_, Step::Ended(_)) => {}
            (Found::SameBoot, Step::Begun) => {
                self.note("calve-switch was ended before anything was changed".to_owned());
                self.go(Step::Ended(SwitchOutcome::RolledBack));
            }
            // Nobody knows how far these came.
            (Found::SameBoot, Step::Profile | Step::Install | Step::Guard | Step::Activate | Step::Arm) => {
                self.note("calve-switch was ended while the new system was being set up".to_owned());
                self.turn_back();
            }
            (Found::SameBoot, _) => {}
            (Found::BootedFormer, _) => {
                if self.is_forward() {
                    self.note(match self.step {
                        Step::AwaitBoot => "the new system did not come up when it was tried".to_owned(),
                        _ => "the host was restarted before the new system was confirmed".to_owned(),
                    });
                }
                // It runs already; what is left are the links.
                (self.booted_new, self.activated) = (false, false);
                match self.action {
                    SwitchAction::Test => self.end_back(),
                    _ => self.go(Step::BackProfile),
                }
            }
            (Found::BootedNew, Step::AwaitBoot) => {
                self.booted_new = true;
                self.go(Step::Confirm);
            }
            (Found::BootedNew, Step::Keep) => self.booted_new = true,
            (Found::BootedNew, Step::Restart) => {
                self.booted_new = true;
                self.failed("the host came up with the new system again".to_owned());
            }
            (Found::BootedNew, _) => {
                self.booted_new = true;
                if self.is_forward() {
                    self.note("the host was restarted before the new system was confirmed".to_owned());
                }
                self.go(Step::BackProfile);
            }
            (Found::BootedOther, _) => {
                self.note(
                    "the host was restarted into a system that is neither the new nor the former one"
                        .to_owned(),
                );
                self.go(Step::Ended(SwitchOutcome::Failed));
            }
        }
    }

    /// Which of two equal systems was booted: the one that was expected.
    fn same_boot_again(&self) -> Found {
        match self.step {
            Step::AwaitBoot | Step::Keep => Found::BootedNew,
            _ => Found::BootedFormer,
        }
    }

    fn turn_back(&mut self) {
        self.go(match (self.action, self.step) {
            (_, Step::Begun) => Step::Ended(SwitchOutcome::RolledBack),
            (SwitchAction::Test, _) => Step::BackActivate,
            _ => Step::BackProfile,
        });
    }

    /// How the former system comes to run again, where it does not.
    fn way_back(&mut self) {
        match (self.booted_new, self.activated) {
            (true, _) if self.guarded => self.go(Step::Restart),
            (false, false) => self.end_back(),
            _ => self.go(Step::BackActivate),
        }
    }

    fn end_back(&mut self) {
        self.go(Step::Ended(if self.left { SwitchOutcome::Failed } else { SwitchOutcome::RolledBack }));
    }

    /// Notes are what a person reads at the end; the record has a fixed size.
    fn note(&mut self, why: String) {
        const NOTES_MAX: usize = 6;
        const NOTE_MAX_CHARS: usize = 400;
        let why: String = why.chars().take(NOTE_MAX_CHARS).collect();
        if self.notes.len() < NOTES_MAX && self.notes.last() != Some(&why) {
            self.notes.push(why);
        }
    }
}

#[cfg(test)]
mod tests;
