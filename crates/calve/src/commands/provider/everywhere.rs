use calve_provider::mark::TAG;
use calve_provider::{Listed, OpenError};

use super::{environment, failure_of, refused};
use crate::failure::{Failure, Outcome};
use crate::ui;

/// The machines that carry calve's tag at every provider whose credentials are there, whoever made them.
pub async fn machines() -> Outcome<Vec<(&'static str, Listed)>> {
    let (mut machines, mut missing) = (Vec::new(), Vec::new());
    for name in calve_provider::NAMES {
        let provider = match calve_provider::open(name, &environment) {
            Ok(provider) => provider,
            Err(OpenError::Credentials(why)) => {
                missing.push(format!("{name}: {why}"));
                continue;
            }
            Err(error) => return Err(failure_of(name, error)),
        };
        let listed = provider.list(TAG).await.map_err(refused)?.machines;
        machines.extend(listed.into_iter().map(|machine| (name, machine)));
    }
    if missing.len() == calve_provider::NAMES.len() {
        return Err(Failure::failed(format!("no provider can be asked: {}", missing.join("; "))));
    }
    for why in missing {
        ui::note(&why);
    }
    Ok(machines)
}
