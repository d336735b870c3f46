//! `--on any`: of all places where the machine can be made, the cheapest.

use std::sync::Arc;

use calve_core::DriverName;
use calve_provider::{Provider, ProviderError, Region, Size};
use calve_server::cloud::place::{self, On};
use calve_wire::machine::Place;

use crate::commands::provider;
use crate::failure::{ExitStatus, Failure, Outcome};
use crate::ui::{self, Progress};

/// Most places whose image is looked for: each takes a request.
const PLACES_MAX: usize = 20;

/// What the machine must be.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// A region's slug, a part of its name, or a part of the world such as `eu`.
    pub region: Option<String>,
    /// Most dollars for an hour.
    pub max_price: Option<f64>,
    /// The size, by the provider's name.
    pub size: Option<String>,
    /// Its image, by the provider's name.
    pub image: Option<String>,
    /// Least processors, in thousandths.
    pub cpus_milli: Option<u32>,
    /// Least memory in bytes.
    pub memory_bytes: Option<u64>,
}

/// A place where the machine can be made.
#[derive(Debug, Clone, PartialEq)]
pub struct Offer {
    /// The provider and its region.
    pub on: On,
    /// The size, by the provider's name.
    pub size: String,
    /// Its price.
    pub dollars_per_hour: f64,
    memory_mib: u64,
}

/// Asks every provider that can be used. Says what was chosen, on standard error.
pub async fn choose(wanted: &Wanted) -> Outcome<Offer> {
    let providers = provider::set_up()?.providers;
    if providers.is_empty() {
        return Err(Failure::failed("no provider has credentials here").hint("see `calve doctor`"));
    }
    let progress = Progress::new("asking the providers");
    let (mut offers, mut unasked) = (Vec::new(), Vec::new());
    for (name, provider) in &providers {
        match of_provider(&**provider).await {
            Ok((regions, sizes)) => offers.extend(wanted.offered(driver(name), &regions, &sizes)),
            Err(error) => unasked.push(format!("{name}: {error}")),
        }
    }
    drop(progress);
    for why in &unasked {
        ui::note(&format!("left out: {why}"));
    }
    offers.sort_by(|a, b| {
        let price = a.dollars_per_hour.total_cmp(&b.dollars_per_hour);
        price.then(a.memory_mib.cmp(&b.memory_mib)).then_with(|| a.on.region.cmp(&b.on.region))
    });
    let affordable = |offer: &&Offer| wanted.max_price.is_none_or(|most| offer.dollars_per_hour <= most);
    let Some(_) = offers.iter().find(affordable) else { return Err(nothing(wanted, offers.first())) };
    bootable(&providers, wanted, offers.iter().filter(affordable)).await
}

async fn of_provider(provider: &dyn Provider) -> Result<(Vec<Region>, Vec<Size>), ProviderError> {
    Ok((provider.regions().await?, provider.sizes().await?))
}

fn driver(provider: &str) -> DriverName {
    provider.parse().expect("every provider is a driver")
}

/// The first of the offers that has an image to boot.
async fn bootable(
    providers: &[(&str, Arc<dyn Provider>)],
    wanted: &Wanted,
    offers: impl Iterator<Item = &Offer>,
) -> Outcome<Offer> {
    let mut refused = None;
    for offer in offers.take(PLACES_MAX) {
        let Some((_, provider)) = providers.iter().find(|(name, _)| driver(name) == offer.on.driver) else {
            continue;
        };
        let place = Place {
            region: offer.on.region.clone(),
            size: offer.size.clone(),
            image: wanted.image.clone(),
            host_key: None,
        };
        match place::image(&**provider, &place).await {
            Ok(_) => {
                ui::note(&format!(
                    "chose {}/{}, {}, ${:.5} an hour",
                    offer.on.driver, offer.on.region, offer.size, offer.dollars_per_hour
                ));
                return Ok(offer.clone());
            }
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    let failure = Failure::failed("there is no image to boot where the machine could be made");
    Err(match refused {
        Some(error) => failure.hint(error.hint.clone().unwrap_or_default()).caused_by(error),
        None => failure,
    })
}

fn nothing(wanted: &Wanted, cheapest: Option<&Offer>) -> Failure {
    let Some(cheapest) = cheapest else {
        return Failure::new(ExitStatus::Failed, "no provider has such a machine")
            .hint("`calve provider sizes` and `calve provider regions` list what there is");
    };
    let most = wanted.max_price.unwrap_or_default();
    Failure::failed(format!("no provider has such a machine for ${most} an hour")).hint(format!(
        "the cheapest is {}/{}, {}, at ${:.5}",
        cheapest.on.driver, cheapest.on.region, cheapest.size, cheapest.dollars_per_hour
    ))
}

impl Wanted {
    /// What a provider has of what is wanted, whatever it costs.
    fn offered(&self, driver: DriverName, regions: &[Region], sizes: &[Size]) -> Vec<Offer> {
        let mut offers = Vec::new();
        for region in regions.iter().filter(|region| region.available) {
            // A plugin's sizes are those of all of its regions, which begin with its name.
            let plugin = region.slug.split('/').next().unwrap_or_default();
            let has = |size: &&Size| {
                size.available && size.regions.iter().any(|slug| *slug == region.slug || slug == plugin)
            };
            let fitting = sizes.iter().filter(has).filter(|size| self.fits(region, size));
            offers.extend(fitting.map(|size| Offer {
                on: On { driver, region: region.slug.clone() },
                size: size.slug.clone(),
                dollars_per_hour: size.dollars_per_hour,
                memory_mib: size.memory_mib,
            }));
        }
        offers
    }

    /// Whether the size in the region is what is wanted, whatever it costs.
    fn fits(&self, region: &Region, size: &Size) -> bool {
        let place = self.region.as_deref().is_none_or(|text| {
            let name = region.name.to_lowercase().contains(&text.to_lowercase());
            name || region.slug == text || region.area == Some(text)
        });
        place
            && self.size.as_ref().is_none_or(|slug| *slug == size.slug)
            && self.cpus_milli.is_none_or(|milli| size.cpus.saturating_mul(1000) >= milli)
            && self.memory_bytes.is_none_or(|bytes| size.memory_mib.saturating_mul(1 << 20) >= bytes)
    }
}

/// Parses a price: `0.02/h`, `0.02`, `$0.02/h`.
pub fn parse_price(text: &str) -> Result<f64, String> {
    let number = text.strip_prefix('$').unwrap_or(text);
    let number = number.strip_suffix("/h").unwrap_or(number);
    match number.parse::<f64>() {
        Ok(price) if price.is_finite() && price >= 0.0 => Ok(price),
        _ => Err("a price is dollars for an hour, e.g. 0.02/h".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_are_dollars_for_an_hour() {
        assert_eq!(["0.02/h", "$1", "0"].map(|text| parse_price(text).unwrap()), [0.02, 1.0, 0.0]);
        for bad in ["-1", "x/h", "", "NaN", "inf", "5/d"] {
            assert!(parse_price(bad).unwrap_err().contains("e.g. 0.02/h"), "{bad}");
        }
    }
}
