//! Letting go of machines whose lease has ended, from nothing but their tags.

use std::collections::BTreeMap;

use crate::mark::{KEYS, Mark, Owner, TAG, UNTILS, Unmarked, Until};
use crate::{Listed, Listing, Provider, ProviderError};

/// Whose machines are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// Those of one server.
    Owner(Owner),
    /// Those of every server.
    Anybody,
}

/// What is to become of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Its lease goes on.
    Lives(Mark),
    /// Its lease ended so many seconds ago.
    Expired(Mark, u64),
    /// The same creation of the same machine is there under this id: an answer was lost, and it was made twice.
    Doubled(Mark, String),
    /// It is another server's.
    Another(Owner),
    /// Its tags say nothing that counts: it is never touched.
    Unmarked(Unmarked),
}

impl Verdict {
    /// Whether the machine is to be destroyed.
    pub fn is_destroyed(&self) -> bool {
        matches!(self, Self::Expired(..) | Self::Doubled(..))
    }
}

/// Judges machines at this moment, in the order in which they are listed.
///
/// Of machines that were made twice the one with the least id stays, so that everybody who looks decides alike.
pub fn judge(machines: &[Listed], whose: Whose, unix_s: u64) -> Vec<Verdict> {
    let marks: Vec<_> = machines.iter().map(|machine| Mark::read(&machine.name, &machine.tags)).collect();
    let mut kept: BTreeMap<(Owner, String), &str> = BTreeMap::new();
    for (machine, mark) in machines.iter().zip(&marks) {
        let Ok(mark) = mark else { continue };
        let kept = kept.entry((mark.owner, mark.subject.key())).or_insert(&machine.id);
        if order(&machine.id) < order(kept) {
            *kept = &machine.id;
        }
    }
    let verdict = |(machine, mark): (&Listed, Result<Mark, Unmarked>)| {
        let mark = match mark {
            Ok(mark) => mark,
            Err(unmarked) => return Verdict::Unmarked(unmarked),
        };
        if let Whose::Owner(owner) = whose
            && owner != mark.owner
        {
            return Verdict::Another(mark.owner);
        }
        let first = kept[&(mark.owner, mark.subject.key())];
        match mark.until {
            Until::Unix(end) if end <= unix_s => Verdict::Expired(mark, unix_s - end),
            _ if first != machine.id => Verdict::Doubled(mark, first.to_owned()),
            _ => Verdict::Lives(mark),
        }
    };
    machines.iter().zip(marks).map(verdict).collect()
}

/// Ids that are numbers in their order.
fn order(id: &str) -> (usize, &str) {
    (id.len(), id)
}

/// A machine, what is to become of it, and how its destruction went where it was tried.
#[derive(Debug)]
pub struct Judged {
    /// The machine.
    pub machine: Listed,
    /// What is to become of it.
    pub verdict: Verdict,
    /// None where it was not to be destroyed, or nothing was to be done.
    pub destroyed: Option<Result<(), ProviderError>>,
}

/// Lists the machines of calve and destroys those whose lease has ended, unless `dry`. `local_unix_s` is this host's clock,
/// which counts only where the provider does not tell its own.
pub async fn reap(
    provider: &dyn Provider,
    whose: Whose,
    local_unix_s: u64,
    dry: bool,
) -> Result<Vec<Judged>, ProviderError> {
    let tag = match whose {
        Whose::Owner(owner) => owner.tag(),
        Whose::Anybody => TAG.to_owned(),
    };
    let Listing { machines, unix_s } = provider.list(&tag).await?;
    let verdicts = judge(&machines, whose, unix_s.unwrap_or(local_unix_s));
    let mut judged: Vec<Judged> = Vec::new();
    for (machine, verdict) in machines.into_iter().zip(verdicts) {
        let destroyed = match verdict.is_destroyed() && !dry {
            true => Some(provider.destroy(&machine.id).await),
            false => None,
        };
        judged.push(Judged { machine, verdict, destroyed });
    }
    let gone = |it: &&Judged| matches!(it.destroyed, Some(Ok(())));
    for machine in judged.iter().filter(gone).map(|it| &it.machine) {
        // A twin that is still there is known by the same tags.
        let shared = |it: &Judged| {
            !gone(&it) && it.machine.tags.iter().any(|tag| machine.tags.contains(tag) && is_of_one(tag))
        };
        if !judged.iter().any(shared) {
            forget_tags(provider, &machine.tags).await;
        }
    }
    Ok(judged)
}

/// Removes the tags that only this machine carried. The machine is gone: that one stays behind costs nothing.
pub async fn forget_tags(provider: &dyn Provider, tags: &[String]) {
    for tag in tags.iter().filter(|tag| is_of_one(tag)) {
        let _ = provider.remove_tag(tag).await;
    }
}

/// Whether a tag is one that only one machine carries, and its twins.
fn is_of_one(tag: &str) -> bool {
    tag.starts_with(KEYS) || tag.starts_with(UNTILS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mark::{OwnerKey, Subject};
    use calve_core::{MachineId, Timestamp};

    fn machine(id: &str, number: u128, key: &OwnerKey, until: Until) -> Listed {
        let name = format!("run-{number}");
        let subject = Subject { id: MachineId::new(Timestamp(1), number), attempt: 1, name: name.clone() };
        Listed {
            id: id.to_owned(),
            name,
            tags: key.tags(&subject, until),
            region: String::new(),
            size: String::new(),
            status: String::new(),
            address: None,
            created_at: String::new(),
            dollars_per_hour: None,
        }
    }

    #[test]
    fn leases_end_to_the_second_and_only_marked_machines_are_judged() {
        let (ours, theirs) = (OwnerKey::from_seed(&[1; 32]), OwnerKey::from_seed(&[2; 32]));
        let mut stranger = machine("5", 5, &ours, Until::Unix(1));
        stranger.tags.truncate(2);
        let machines = [
            machine("1", 1, &ours, Until::Unix(99)),
            machine("2", 2, &ours, Until::Unix(100)),
            machine("3", 3, &ours, Until::Unix(101)),
            machine("4", 4, &theirs, Until::Unix(1)),
            stranger,
            machine("6", 6, &ours, Until::Never),
        ];
        let ends =
            |whose| -> Vec<bool> { judge(&machines, whose, 100).iter().map(Verdict::is_destroyed).collect() };
        assert_eq!(ends(Whose::Owner(ours.owner())), [true, true, false, false, false, false]);
        assert_eq!(ends(Whose::Anybody), [true, true, false, true, false, false]);
    }

    #[test]
    fn of_twins_the_one_with_the_least_number_stays() {
        let ours = OwnerKey::from_seed(&[1; 32]);
        let machines = ["10", "9", "11"].map(|id| machine(id, 1, &ours, Until::Unix(200)));
        let verdicts = judge(&machines, Whose::Anybody, 100);
        assert!(matches!(&verdicts[0], Verdict::Doubled(_, first) if first == "9"), "{verdicts:?}");
        assert!(matches!(&verdicts[1], Verdict::Lives(_)));
        assert!(verdicts[2].is_destroyed());
    }
}
