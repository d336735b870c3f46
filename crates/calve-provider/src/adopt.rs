//! Taking a machine that somebody else made: it is given our tags, and with them a lease.
//!
//! ```text
//!  machine ─▶ whose is it? ─▶ calve, owner, until ─▶ its key: from here on it is ours
//! ```
//! Until it has its key it is nobody's ([`Mark::read`]): an adoption that ends before leaves tags behind that mean nothing, and a
//! machine that nobody touches. Nothing is put into it and nothing of its own is changed.

use calve_core::MachineId;

use crate::mark::{ADOPTED, KEYS, Mark, OWNERS, Owner, OwnerKey, Subject, UNTILS, Unmarked, Until};
use crate::{ErrorKind, Listed, Provider, ProviderError};

/// Why a machine is not adopted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdoptError {
    /// It is one of this server's already.
    #[error("{machine} is the machine {id} of this server already")]
    Ours {
        /// The provider's id of it.
        machine: String,
        /// The machine that it is.
        id: MachineId,
    },
    /// Another server has it.
    #[error("{machine} is a machine of another calve server, whose key is {owner}")]
    Another {
        /// The provider's id of it.
        machine: String,
        /// Whose it is.
        owner: Owner,
    },
    /// Its tags are calve's, and are no reason to take it for nobody's.
    #[error("{machine} carries the tag {tag} of another machine or server, though {why}")]
    Odd {
        /// The provider's id of it.
        machine: String,
        /// The tag.
        tag: String,
        /// What is odd.
        why: Unmarked,
    },
    /// The provider could not do it. Whether the machine has become ours is not known then, if that is so of the error.
    #[error(transparent)]
    Provider(#[from] ProviderError),
}

/// The machine with this id of the provider's, if it may become this server's: if nobody has it, or the machine `as_id` itself,
/// by an adoption whose end was not heard of.
pub async fn look(
    provider: &dyn Provider,
    machine: &str,
    owner: Owner,
    as_id: Option<MachineId>,
) -> Result<Listed, AdoptError> {
    let found = provider.machine(machine).await?.ok_or_else(|| {
        let message = format!("there is no machine {machine}");
        ProviderError::new(provider.describe().name, ErrorKind::NotFound, message)
    })?;
    judge(&found, owner, as_id)?;
    Ok(found)
}

/// Whether a machine may become this server's; see [`look`].
fn judge(machine: &Listed, owner: Owner, as_id: Option<MachineId>) -> Result<(), AdoptError> {
    let why = match Mark::read(&machine.name, &machine.tags) {
        Ok(mark) if mark.owner != owner => {
            return Err(AdoptError::Another { machine: machine.id.clone(), owner: mark.owner });
        }
        Ok(mark) if Some(mark.subject.id) == as_id => return Ok(()),
        Ok(mark) => return Err(AdoptError::Ours { machine: machine.id.clone(), id: mark.subject.id }),
        Err(why) => why,
    };
    let own_key = as_id.map(|id| format!("{KEYS}{id}:"));
    let is_odd = |tag: &&String| {
        let of_another = tag.starts_with(OWNERS) && **tag != owner.tag();
        let own = own_key.as_ref().is_some_and(|own| tag.starts_with(own));
        of_another || (tag.starts_with(KEYS) && !own)
    };
    match machine.tags.iter().find(is_odd) {
        Some(tag) => Err(AdoptError::Odd { machine: machine.id.clone(), tag: tag.clone(), why }),
        None => Ok(()),
    }
}

/// Whether the machine with this id of the provider's is there, and the machine `as_id` of this server's, now: a list may lag behind
/// an adoption that was taken back.
pub async fn is_ours(
    provider: &dyn Provider,
    machine: &str,
    owner: Owner,
    as_id: MachineId,
) -> Result<bool, ProviderError> {
    let Some(found) = provider.machine(machine).await? else { return Ok(false) };
    let mark = Mark::read(&found.name, &found.tags);
    Ok(mark.is_ok_and(|mark| mark.owner == owner && mark.subject.id == as_id))
}

/// Gives the machine with this id of the provider's our tags, as this attempt of the machine `id`, and shows it as it is then.
/// What an earlier attempt left is taken away first: a machine with two keys is nobody's.
pub async fn adopt(
    provider: &dyn Provider,
    machine: &str,
    key: &OwnerKey,
    (id, attempt): (MachineId, u32),
    until: Until,
) -> Result<Listed, AdoptError> {
    let mut found = look(provider, machine, key.owner(), Some(id)).await?;
    let subject = Subject { id, attempt, name: found.name.clone() };
    let mut wanted = key.tags(&subject, until);
    wanted.push(ADOPTED.to_owned());
    let is_left = |tag: &&String| (tag.starts_with(KEYS) || tag.starts_with(UNTILS)) && !wanted.contains(tag);
    let left: Vec<&String> = found.tags.iter().filter(is_left).collect();
    for tag in &left {
        provider.remove_tag(tag).await?;
    }
    if !left.is_empty() {
        // What it is called may follow from its key.
        found = look(provider, machine, key.owner(), Some(id)).await?;
    }
    let own = subject.key();
    let others = wanted.iter().filter(|tag| **tag != own);
    for tag in others.chain([&own]).filter(|tag| !found.tags.contains(tag)) {
        provider.add_tag(&found.id, tag).await?;
    }
    look(provider, machine, key.owner(), Some(id)).await
}
