use super::*;
use SwitchAction::{Boot, Switch, Test};
use SwitchOutcome::{Applied, Failed, RolledBack};

fn at(action: SwitchAction, dones: usize) -> Course {
    let mut course = Course::new(action, false);
    for _ in 0..dones {
        if course.step == Step::Guard {
            course.guarded = true;
        }
        match course.step {
            Step::AwaitBoot => course.take(Event::Resumed(Found::BootedNew)),
            _ => course.take(Event::Done),
        }
    }
    course
}

/// The steps from here on, where everything succeeds and a restart leads where the guard says.
fn to_the_end(course: &mut Course) -> Vec<Step> {
    let mut steps = vec![course.step];
    while course.outcome().is_none() {
        match course.step {
            Step::Restart => course.take(Event::Resumed(Found::BootedFormer)),
            Step::AwaitBoot => course.take(Event::Resumed(Found::BootedNew)),
            _ => course.take(Event::Done),
        }
        steps.push(course.step);
        assert!(steps.len() < 20, "{steps:?}");
    }
    steps
}

const STEPS: [(SwitchAction, usize); 3] = [(Switch, 7), (Boot, 8), (Test, 3)];

#[test]
fn each_action_takes_its_steps_and_ends_applied() {
    use Step::{Activate, Arm, AwaitBoot, Begun, Confirm, Guard, Install, Keep, Profile};
    let end = Step::Ended(Applied);
    for (action, steps) in [
        (Switch, vec![Begun, Profile, Install, Guard, Activate, Confirm, Keep, end]),
        (Boot, vec![Begun, Profile, Install, Guard, Arm, AwaitBoot, Confirm, Keep, end]),
        (Test, vec![Begun, Activate, Confirm, end]),
    ] {
        assert_eq!(to_the_end(&mut at(action, 0)), steps);
    }
}

#[test]
fn a_failure_or_a_late_word_at_any_step_leads_back() {
    for (action, count) in STEPS {
        for dones in 0..count {
            for event in [Event::Failed("x".into()), Event::Late("x".into()), Event::Recalled("x".into())] {
                let mut course = at(action, dones);
                if course.step == Step::Keep && !matches!(event, Event::Failed(_)) {
                    // It was confirmed: a late word changes nothing.
                    course.take(event);
                    assert_eq!(course.step, Step::Keep);
                    continue;
                }
                if course.step == Step::AwaitBoot && matches!(event, Event::Failed(_)) {
                    continue;
                }
                for _ in 0..KEEP_TRIES {
                    if course.is_forward() {
                        course.take(event.clone());
                    }
                }
                let from = course.step;
                let steps = to_the_end(&mut course);
                assert_eq!(
                    course.outcome(),
                    Some(RolledBack),
                    "{action:?} {dones} {event:?} {from:?} {steps:?}"
                );
            }
        }
    }
}

#[test]
fn an_end_of_the_program_at_any_step_resumes_or_leads_back() {
    for (action, count) in STEPS {
        for dones in 0..count {
            let mut course = at(action, dones);
            let before = course.step;
            course.take(Event::Resumed(Found::SameBoot));
            let goes_on = matches!(before, Step::Confirm | Step::AwaitBoot | Step::Keep);
            assert_eq!(course.step == before, goes_on, "{before:?}");
            to_the_end(&mut course);
            let outcome = if goes_on { Applied } else { RolledBack };
            assert_eq!(course.outcome(), Some(outcome), "{action:?} {before:?}");
        }
    }
}

#[test]
fn a_restart_at_any_step_ends_with_a_known_system() {
    for (action, count) in STEPS {
        for dones in 0..count {
            for found in [Found::BootedFormer, Found::BootedNew] {
                let mut course = at(action, dones);
                let before = course.step;
                course.take(Event::Resumed(found));
                to_the_end(&mut course);
                let applied = found == Found::BootedNew && matches!(before, Step::AwaitBoot | Step::Keep);
                let outcome = if applied { Applied } else { RolledBack };
                assert_eq!(course.outcome(), Some(outcome), "{action:?} {before:?} {found:?}");
            }
            let mut course = at(action, dones);
            course.take(Event::Resumed(Found::BootedOther));
            assert_eq!(course.outcome(), Some(Failed));
        }
    }
}

#[test]
fn the_way_back_can_be_ended_anywhere_and_goes_on() {
    let mut course = at(Switch, 5);
    course.take(Event::Late("late".into()));
    loop {
        let before = course.step;
        course.take(Event::Resumed(Found::SameBoot));
        assert_eq!(course.step, before);
        if course.outcome().is_some() {
            break;
        }
        course.take(Event::Done);
    }
    assert_eq!(course.outcome(), Some(RolledBack));
}

#[test]
fn what_was_not_activated_is_not_activated_back() {
    let mut course = at(Switch, 2);
    course.take(Event::Failed("no room on the boot partition".into()));
    let steps = to_the_end(&mut course);
    assert_eq!(steps, [Step::BackProfile, Step::BackInstall, Step::Ended(RolledBack)]);
}

#[test]
fn a_former_system_that_does_not_come_back_is_restarted_into_and_then_called_failed() {
    let mut course = at(Switch, 5);
    course.take(Event::Late("late".into()));
    (0..2).for_each(|_| course.take(Event::Done));
    assert_eq!(course.step, Step::BackActivate);
    course.take(Event::Failed("hangs".into()));
    assert_eq!(course.step, Step::BackActivate);
    course.take(Event::Failed("hangs".into()));
    assert_eq!(course.step, Step::Restart);
    course.take(Event::Failed("no restart".into()));
    course.take(Event::Failed("no restart".into()));
    assert_eq!(course.outcome(), Some(Failed));
    // Without a guard a restart might lead to the new system.
    let mut course = at(Switch, 5);
    course.guarded = false;
    course.take(Event::Late("late".into()));
    (0..2).for_each(|_| course.take(Event::Done));
    (0..2).for_each(|_| course.take(Event::Failed("hangs".into())));
    assert_eq!(course.outcome(), Some(Failed));
}

#[test]
fn links_that_cannot_be_turned_back_are_no_success() {
    let mut course = at(Switch, 5);
    course.take(Event::Late("late".into()));
    course.take(Event::Failed("read-only".into()));
    to_the_end(&mut course);
    assert_eq!(course.outcome(), Some(Failed));
    assert_eq!(course.notes, ["late", "read-only"]);
}

#[test]
fn a_system_that_replaces_itself_is_told_by_what_was_expected() {
    let mut course = Course::new(Boot, true);
    while course.step != Step::AwaitBoot {
        course.take(Event::Done);
    }
    course.take(Event::Resumed(Found::BootedFormer));
    assert_eq!(course.step, Step::Confirm);
}

/// The system that runs may be a tested one, which no restart leads to.
#[test]
fn a_restart_into_a_third_system_is_told_also_where_new_and_former_are_the_same() {
    for same in [false, true] {
        for dones in 1..5 {
            let mut course = at(Switch, dones);
            course.same = same;
            course.take(Event::Resumed(Found::BootedOther));
            assert_eq!(course.outcome(), Some(Failed), "{same} {dones}");
        }
    }
}
