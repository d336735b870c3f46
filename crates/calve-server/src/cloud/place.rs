//! From what a user asked for to what a provider is asked for.

use calve_node::{DriverError, DriverErrorKind};
use calve_provider::Provider;
use calve_wire::machine::Place;

use super::driver_error;

/// How the account's own image is called that boots the agent.
pub const BASE_IMAGE: &str = "calve-base";

/// The image of a machine: the one that was asked for, else the account's newest of the base image in that region.
pub(super) async fn image(provider: &dyn Provider, place: &Place) -> Result<String, DriverError> {
    if let Some(image) = &place.image {
        return Ok(image.clone());
    }
    let images = provider.images().await.map_err(driver_error)?;
    let ours = |image: &&calve_provider::Image| {
        image.slug.is_none()
            && image.name.split(' ').next_back() == Some(BASE_IMAGE)
            && image.regions.contains(&place.region)
    };
    // Numbers grow: of several the last is the newest.
    let newest = images.iter().filter(ours).max_by_key(|image| (image.id.len(), image.id.clone()));
    newest.map(|image| image.id.clone()).ok_or_else(|| {
        let name = provider.describe().name;
        let message = format!("the account at {name} has no image called {BASE_IMAGE} in {}", place.region);
        DriverError::new(DriverErrorKind::Unusable, message).hint(format!(
            "import one, name another with --image, or choose a region of `calve provider images {name}`"
        ))
    })
}
