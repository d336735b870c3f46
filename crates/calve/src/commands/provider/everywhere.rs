use calve_provider::Listed;
use calve_provider::mark::TAG;

use super::{environment, failure_of, refused};
use crate::failure::{Failure, Outcome};
use crate::ui;

/// The machines that carry calve's tag at every provider whose credentials are there, whoever made them.
pub async fn machines() -> Outcome<Vec<(&'static str, Listed)>> {
    let (mut machines, mut missing, mut asked) = (Vec::new(), Vec::new(), 0);
    for name in calve_provider::NAMES {
        let provider = match calve_provider::open(name, &environment) {
            Ok(provider) => provider,
            Err(why) if why.is_unset() => {
                missing.push((name, why.to_string()));
                continue;
            }
            Err(error) => return Err(failure_of(name, error)),
        };
        asked += 1;
        let listed = provider.list(TAG).await.map_err(refused)?.machines;
        machines.extend(listed.into_iter().map(|machine| (name, machine)));
    }
    if asked == 0 {
        let whys: Vec<String> = missing.iter().map(|(name, why)| format!("{name}: {why}")).collect();
        return Err(Failure::failed(format!("no provider can be asked: {}", whys.join("; "))));
    }
    // Plugins are for those who write one: nobody else misses them.
    for (name, why) in missing.iter().filter(|(name, _)| *name != calve_provider::exec::NAME) {
        ui::note(&format!("{name}: {why}"));
    }
    Ok(machines)
}
