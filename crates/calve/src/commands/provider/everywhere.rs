use calve_provider::Listed;
use calve_provider::mark::TAG;

use super::{SetUp, refused, set_up};
use crate::failure::{Failure, Outcome};
use crate::ui;

/// The machines that carry calve's tag at every provider whose credentials are there, whoever made them.
pub async fn machines() -> Outcome<Vec<(&'static str, Listed)>> {
    let SetUp { providers, unset } = set_up()?;
    if providers.is_empty() {
        let whys: Vec<String> = unset.iter().map(|(name, why)| format!("{name}: {why}")).collect();
        return Err(Failure::failed(format!("no provider can be asked: {}", whys.join("; "))));
    }
    let mut machines = Vec::new();
    for (name, provider) in providers {
        let listed = provider.list(TAG).await.map_err(refused)?.machines;
        machines.extend(listed.into_iter().map(|machine| (name, machine)));
    }
    // Plugins are for those who write one: nobody else misses them.
    for (name, why) in unset.iter().filter(|(name, _)| *name != calve_provider::exec::NAME) {
        ui::note(&format!("{name}: {why}"));
    }
    Ok(machines)
}
