//! Our tags on a virtual machine.
//!
//! ```text
//!  calve:machine:<id>:1   ⇄   calve.machine.<id>.1      Proxmox VE takes no colon in a tag, and we write no dot
//! ```
//! Tags stand in the cluster's list of everything, so that one request shows them of all machines, at once. A clone cannot
//! be given tags, but a description: until it has tags, its description says them, and is emptied with the same request
//! that sets them.

use crate::mark::TAG;

/// Begins a description that says tags.
const HEAD: &str = "Being made by calve.";
/// The description of a machine that has its tags.
pub(super) const MADE: &str = "Made by calve: `calve provider ls proxmox` shows it.";

/// As Proxmox VE takes a tag.
fn written(tag: &str) -> String {
    tag.replace(':', ".")
}

/// The tags as one list.
pub(super) fn to_list(tags: &[String]) -> String {
    tags.iter().map(|tag| written(tag)).collect::<Vec<_>>().join(";")
}

/// Whether Proxmox VE takes it as a tag. It puts them into lower case, which would be another tag.
pub(super) fn is_tag(tag: &str) -> bool {
    let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"_-:".contains(&c);
    tag.bytes().all(plain) && tag.bytes().next().is_some_and(|c| c.is_ascii_alphanumeric() || c == b'_')
}

/// The tags of a list; those of others as they are.
pub(super) fn of_list(list: &str) -> Vec<String> {
    let words = list.split([';', ',', ' ']).filter(|word| !word.is_empty());
    let ours =
        |word: &str| word.strip_prefix(TAG).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    words.map(|word| if ours(word) { word.replace('.', ":") } else { word.to_owned() }).collect()
}

/// A description that says these tags, and by which key the machine is found.
pub(super) fn description(tags: &[String], key: &str) -> String {
    let mut lines = vec![HEAD, key];
    lines.extend(tags.iter().map(String::as_str).filter(|tag| *tag != key));
    lines.join("\n")
}

/// The tags that a description says; none where it says none.
pub(super) fn of_description(description: &str) -> Vec<String> {
    let mut lines = description.lines().map(str::trim).filter(|line| !line.is_empty());
    if lines.next() != Some(HEAD) {
        return Vec::new();
    }
    lines.map(str::to_owned).collect()
}

/// What a machine carries: what its description says counts until its tags name it.
pub(super) fn carried(list: &str, description: &str) -> Vec<String> {
    let mut tags = of_list(list);
    if key_of(&tags).is_none() {
        tags.extend(of_description(description));
    }
    tags.sort();
    tags.dedup();
    tags
}

/// The key among tags.
pub(super) fn key_of(tags: &[String]) -> Option<&str> {
    let is_key = |tag: &&String| tag.strip_prefix(TAG).is_some_and(|rest| rest.starts_with(":machine:"));
    tags.iter().find(is_key).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mark::{Mark, OwnerKey, Subject, Until};
    use calve_core::{MachineId, Timestamp};

    #[test]
    fn marks_stand_in_tags_and_in_descriptions_and_keep_their_signature() {
        let subject = Subject { id: MachineId::new(Timestamp(5), 7), attempt: 2, name: "run-1".to_owned() };
        let mut tags = OwnerKey::from_seed(&[7; 32]).tags(&subject, Until::Unix(u64::MAX));
        tags.sort();
        assert!(tags.iter().all(|tag| is_tag(tag)));
        let list = to_list(&tags);
        // As Proxmox VE checks each of a list.
        let allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"_-+.".contains(&c);
        assert!(list.split(';').all(|tag| tag.bytes().all(allowed)), "{list}");
        assert_eq!(of_list(&list), tags);
        assert_eq!(carried(&list.replace(';', ","), "anything"), tags);
        let description = description(&tags, &subject.key());
        assert!(description.len() < 8192);
        assert_eq!(carried("web", &description)[..4], tags);
        assert!(Mark::read("run-1", &carried("", &description)).is_ok());
        // Of two sayings the tags count: a lease may have been renewed since.
        assert_eq!(carried(&list, &description.replace("calve:until", "calve:until:1")), tags);
    }

    #[test]
    fn tags_of_others_stay_as_they_are() {
        assert_eq!(of_list("v1.2;calves.x, calve.x  calve"), ["v1.2", "calves.x", "calve:x", "calve"]);
        assert!(of_description("A note\ncalve").is_empty());
        for bad in ["", "Web", "a.b", "-a", "a b", "ä"] {
            assert!(!is_tag(bad), "{bad}");
        }
    }
}
