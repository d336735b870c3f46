//! Rule: a placed machine is made; the intent is written first. A creation whose end is not known is repeated under the
//! same attempt, which changes nothing where it had succeeded; one that failed is followed by another attempt. At a provider
//! it had succeeded only if the machine is listed: one that an earlier server may have asked for waits for a list that would
//! show it, or there would be two. Adopting a machine at a provider is given up only where the very first attempt is refused:
//! an adoption that counts as failed and had succeeded would end what somebody else made.

use std::time::Duration;

use super::draft::Draft;
use super::{Action, Change, Fault, On};
use crate::limits::{ATTEMPT_PAUSE, ATTEMPTS_MAX};
use crate::{DriverName, Runs, State};

pub(super) fn create(draft: &mut Draft<'_>) {
    if !draft.wanted() {
        return;
    }
    match draft.machine.state {
        State::Placed => draft.change(Change::Creating { attempt: draft.machine.attempt + 1 }),
        State::Creating => {
            if let Some(fault) = failure(draft) {
                follow(draft, fault.clone());
            }
        }
        _ => return,
    }
    if !draft.wanted() {
        return;
    }
    let attempt = draft.machine.attempt;
    let from = draft.machine.state_since.after(pause_before(attempt));
    if draft.now < from {
        return draft.wait(On::Retry, Some(from));
    }
    if draft.driver().is_some_and(DriverName::is_provider) && draft.creation_is_in_doubt() {
        return draft.wait(On::List, None);
    }
    draft.act(Action::Create { id: draft.id(), attempt });
}

/// How this attempt failed, if it did.
fn failure<'a>(draft: &Draft<'a>) -> Option<&'a Fault> {
    let created = draft.sight.created.as_ref().filter(|created| created.attempt == draft.machine.attempt)?;
    created.result.as_ref().err()
}

/// What follows from a failed attempt: another, or the end.
fn follow(draft: &mut Draft<'_>, fault: Fault) {
    let attempt = draft.machine.attempt;
    // A host is let go of without a change, whatever became of it.
    let again = match draft.machine.runs == Runs::Adopted {
        // An earlier attempt may have succeeded unheard.
        true => fault.retry || attempt > 1,
        false => fault.retry && attempt < ATTEMPTS_MAX,
    };
    if again {
        draft.change(Change::Creating { attempt: attempt + 1 });
        draft.change(Change::Message(format!("attempt {attempt} failed: {}", fault.message)));
    } else {
        draft.fail(fault.message);
    }
}

/// Nothing before the first, then doubling.
fn pause_before(attempt: u32) -> Duration {
    match attempt {
        0 | 1 => Duration::ZERO,
        n => ATTEMPT_PAUSE * 2_u32.saturating_pow(n.min(ATTEMPTS_MAX) - 2),
    }
}
