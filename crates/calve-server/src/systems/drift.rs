//! How a host's system differs from the one that it shall have: pure.

use calve_wire::system::HostFacts;

/// Each difference in a sentence; none where there is none.
pub fn drift(desired: &str, facts: &HostFacts) -> Vec<String> {
    let mut found = Vec::new();
    let mut differs = |what: &str, is: Option<&str>| match is {
        Some(is) if is == desired => {}
        Some(is) => found.push(format!("{what} {is}, not {desired}")),
        None => {}
    };
    differs("it runs", facts.current.as_deref());
    differs("it was booted with", facts.booted.as_deref());
    differs("its profile leads to", facts.profile.as_deref());
    if facts.current.is_none() {
        found.push("it has no /run/current-system: nobody knows what it runs".to_owned());
    }
    for unit in facts.failed_units.iter().flatten() {
        found.push(format!("the unit {unit} has failed"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_difference_is_named_and_what_is_not_known_is_none() {
        let text = |text: &str| Some(text.to_owned());
        let same = HostFacts { current: text("a"), booted: text("a"), ..HostFacts::default() };
        assert!(drift("a", &same).is_empty());
        let other =
            HostFacts { profile: text("b"), failed_units: Some(vec!["x.service".into()]), ..same.clone() };
        assert_eq!(drift("a", &other), ["its profile leads to b, not a", "the unit x.service has failed"]);
        assert_eq!(drift("b", &same), ["it runs a, not b", "it was booted with a, not b"]);
        assert_eq!(drift("a", &HostFacts::default()).len(), 1);
    }
}
