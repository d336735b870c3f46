//! Providers that are programs of their own: plugins, which speak JSON lines on standard input and output. The protocol is in
//! `docs/plugins.md`.
//!
//! ```text
//!  a call ─▶ the plugin is started ─▶ one line in, one line out ─▶ it ends
//!                     │ too late, garbage, dead: an error that says so; of a creation it is looked up what became of it
//! ```
//! All plugins together are one provider: the region says which, and ids bear the plugin's name. Whatever a plugin claims is held
//! against what was asked for: a machine that lacks its tags, or is listed twice, is an error and not a machine.

mod call;
mod config;
mod protocol;

/// What the fuzz target reads: the lines of plugins, of which nothing else outside of this module knows.
#[doc(hidden)]
pub mod lines {
    use super::call::Plugin;
    use super::config::Command;
    use super::protocol::{Described, Made, Seen, SeenImage, SeenRegion, SeenSize, Things};

    /// Reads a line as the answer to the first request, whichever that was.
    pub fn read(line: &[u8]) {
        let plugin = Plugin::new("fuzzed".to_owned(), Command { program: "/".into(), arguments: Vec::new() });
        let _ = plugin.read::<Described>("describe", 1, line);
        let _ = plugin.read::<Things<SeenSize>>("sizes", 1, line);
        let _ = plugin.read::<Things<SeenRegion>>("regions", 1, line);
        let _ = plugin.read::<Things<SeenImage>>("images", 1, line);
        let made = plugin.read::<Made>("create", 1, line).map(|made| vec![made.machine]);
        let seen = plugin.read::<Things<Seen>>("list", 1, line).map(|things| things.machines);
        for machine in made.into_iter().chain(seen).flatten() {
            if machine.check(&[]).is_ok() {
                let id = machine.id.clone();
                assert_eq!(machine.listed("fuzzed").id, format!("fuzzed/{id}"));
            }
        }
    }
}

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_trait::async_trait;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{
    Account, Description, ErrorKind, Image, Listed, Listing, Order, Pace, Provider, ProviderError, Region,
    Size,
};
use call::Plugin;
pub use config::ConfigError;
use protocol::{Described, Made, Seen, SeenImage, SeenRegion, SeenSize, Things};

/// Its name as users type it.
pub const NAME: &str = "exec";
/// Most bytes of user data (64 KiB), as at other providers.
const USER_DATA_MAX_BYTES: usize = 64 << 10;
/// How long a creation may take: a plugin may start a machine and wait for it.
const CREATE_MAX: Duration = Duration::from_secs(300);
/// How often a machine is asked for whose creation was left open and which does not appear.
const CREATE_ATTEMPTS: u32 = 3;

/// The plugins of a configuration.
#[derive(Debug, Clone)]
pub struct Settings {
    plugins: BTreeMap<String, config::Command>,
    file: std::path::PathBuf,
}

impl Settings {
    /// From the file that `CALVE_PROVIDERS` names, else `calve/providers` in the user's configuration.
    pub fn from_environment(variables: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let file = config::file(variables)?;
        Ok(Self { plugins: config::read(&file)?, file })
    }
}

/// The provider; see [`Provider`].
pub struct Exec {
    plugins: BTreeMap<String, Plugin>,
    pace: Pace,
    file: String,
}

impl Exec {
    /// Starts nothing before the first call.
    pub fn new(settings: Settings, pace: Pace) -> Self {
        let file = settings.file.display().to_string();
        let plugins = settings.plugins.into_iter();
        let plugins = plugins.map(|(name, command)| (name.clone(), Plugin::new(name, command))).collect();
        Self { plugins, pace, file }
    }

    /// The plugin of a name, and what follows the name behind a slash.
    fn plugin<'a>(&'a self, text: &'a str) -> Result<(&'a Plugin, &'a str), ProviderError> {
        let (name, rest) = text.split_once('/').unwrap_or((text, ""));
        let plugin = self.plugins.get(name).ok_or_else(|| {
            let names: Vec<&str> = self.plugins.keys().map(String::as_str).collect();
            let message = format!("there is no plugin {name:?}; {} has: {}", self.file, names.join(", "));
            ProviderError::new(NAME, ErrorKind::Refused, message)
        })?;
        Ok((plugin, rest))
    }

    /// Asks again where that can change nothing and may help.
    async fn ask<T: DeserializeOwned>(
        &self,
        plugin: &Plugin,
        what: &str,
        with: Value,
    ) -> Result<T, ProviderError> {
        let (mut attempt, mut backoff) = (1, self.pace.backoff);
        loop {
            let error = match plugin.call(what, &with, self.pace.answer).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            // What is late once is late again, and holds up everything else.
            let again =
                matches!(error.kind, ErrorKind::Failed | ErrorKind::Unreachable | ErrorKind::RateLimited(_));
            if !again || attempt == self.pace.attempts {
                return Err(error);
            }
            tokio::time::sleep(backoff).await;
            (attempt, backoff) = (attempt + 1, backoff * 2);
        }
    }

    async fn describe_plugin(&self, plugin: &Plugin) -> Result<Described, ProviderError> {
        self.ask(plugin, "describe", json!({})).await
    }

    /// The machines of one plugin that carry a tag.
    async fn seen(&self, plugin: &Plugin, tag: &str) -> Result<(Vec<Listed>, Option<u64>), ProviderError> {
        let seen: Things<Seen> = self.ask(plugin, "list", json!({"tag": tag})).await?;
        let mut ids = BTreeSet::new();
        let mut machines = Vec::new();
        for machine in seen.machines {
            machine.check(&[tag.to_owned()]).map_err(|why| plugin.lie(&why))?;
            if !ids.insert(machine.id.clone()) {
                return Err(plugin.lie(&format!("it lists the machine {:?} twice", machine.id)));
            }
            machines.push(machine.listed(plugin.name()));
        }
        Ok((machines, seen.unix_s))
    }

    /// The machine with this key. Of twins the one with the least id stays, as [`crate::reap::judge`] has it.
    async fn by_key(&self, plugin: &Plugin, key: &str) -> Result<Option<Listed>, ProviderError> {
        let mut found = self.seen(plugin, key).await?.0;
        found.sort_by_key(|machine| (machine.id.len(), machine.id.clone()));
        let mut found = found.into_iter();
        let first = found.next();
        for double in found {
            self.destroy(&double.id).await?;
        }
        Ok(first)
    }

    /// The things of one kind that each plugin has.
    async fn things<T: DeserializeOwned, U>(
        &self,
        what: &str,
        take: impl Fn(&str, Things<T>) -> Vec<U>,
    ) -> Result<Vec<U>, ProviderError> {
        let mut all = Vec::new();
        for plugin in self.plugins.values() {
            if self.describe_plugin(plugin).await?.does(what) {
                all.extend(take(plugin.name(), self.ask(plugin, what, json!({})).await?));
            }
        }
        Ok(all)
    }

    async fn retag(&self, id: &str, add: &[&str], remove: &[&str]) -> Result<(), ProviderError> {
        let (plugin, id) = self.plugin(id)?;
        if !self.describe_plugin(plugin).await?.does("tag") {
            let message =
                format!("the plugin {} cannot change tags, so that no lease can be renewed", plugin.name());
            return Err(ProviderError::new(NAME, ErrorKind::Refused, message));
        }
        self.ask::<Value>(plugin, "tag", json!({"id": id, "add": add, "remove": remove})).await.map(drop)
    }
}

#[async_trait]
impl Provider for Exec {
    fn describe(&self) -> Description {
        Description {
            name: NAME,
            api: self.file.clone(),
            user_data_max_bytes: USER_DATA_MAX_BYTES,
            lists_lag: self.pace.settle,
            credentials_from: "the plugins' own configuration",
        }
    }

    async fn check(&self) -> Result<Account, ProviderError> {
        let mut names = Vec::new();
        for plugin in self.plugins.values() {
            let described = self.describe_plugin(plugin).await?;
            names.push(format!("{} ({})", plugin.name(), described.about));
        }
        Ok(Account { name: names.join(", "), status: "active".to_owned(), machines_max: None })
    }

    async fn create(&self, order: &Order) -> Result<Listed, ProviderError> {
        if order.user_data.len() > USER_DATA_MAX_BYTES {
            let bytes = order.user_data.len();
            let message = format!("the user data has {bytes} bytes, and {USER_DATA_MAX_BYTES} are allowed");
            return Err(ProviderError::new(NAME, ErrorKind::Refused, message));
        }
        let (plugin, region) = self.plugin(&order.region)?;
        if let Some(found) = self.by_key(plugin, &order.key).await? {
            return Ok(found);
        }
        let with = json!({
            "name": order.name, "key": order.key, "tags": order.tags, "region": region, "size": order.size,
            "image": order.image, "user_data": order.user_data,
        });
        let mut attempt = 1;
        loop {
            let made = plugin.call::<Made>("create", &with, CREATE_MAX.max(self.pace.answer)).await;
            let checked = made.and_then(|Made { machine }| {
                machine.check(&order.tags).map_err(|why| plugin.lie(&why))?;
                Ok(machine.listed(plugin.name()))
            });
            let error = match checked {
                Ok(machine) => return Ok(machine),
                Err(error) => error,
            };
            if !error.is_uncertain() {
                return Err(error);
            }
            if let Some(found) = self.pace.until_settled(|| self.by_key(plugin, &order.key)).await? {
                return Ok(found);
            }
            if attempt == CREATE_ATTEMPTS {
                return Err(error);
            }
            attempt += 1;
        }
    }

    async fn list(&self, tag: &str) -> Result<Listing, ProviderError> {
        let (mut machines, mut clocks) = (Vec::new(), Vec::new());
        for plugin in self.plugins.values() {
            let (found, unix_s) = self.seen(plugin, tag).await?;
            machines.extend(found);
            clocks.push(unix_s);
        }
        // The slowest clock, and none where one plugin tells none: no lease ends too early.
        let unix_s =
            clocks.into_iter().collect::<Option<Vec<u64>>>().and_then(|clocks| clocks.into_iter().min());
        Ok(Listing { machines, unix_s })
    }

    async fn destroy(&self, id: &str) -> Result<(), ProviderError> {
        let (plugin, id) = self.plugin(id)?;
        match self.ask::<Value>(plugin, "destroy", json!({"id": id})).await {
            Err(error) if error.kind != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    async fn destroy_tagged(&self, tag: &str) -> Result<(), ProviderError> {
        for machine in self.list(tag).await?.machines {
            self.destroy(&machine.id).await?;
        }
        Ok(())
    }

    async fn add_tag(&self, id: &str, tag: &str) -> Result<(), ProviderError> {
        self.retag(id, &[tag], &[]).await
    }

    async fn remove_tag(&self, tag: &str) -> Result<(), ProviderError> {
        for machine in self.list(tag).await?.machines {
            self.retag(&machine.id, &[], &[tag]).await?;
        }
        Ok(())
    }

    async fn sizes(&self) -> Result<Vec<Size>, ProviderError> {
        self.things("sizes", |_, things: Things<SeenSize>| things.sizes.into_iter().map(Size::from).collect())
            .await
    }

    async fn regions(&self) -> Result<Vec<Region>, ProviderError> {
        let mut regions = Vec::new();
        for plugin in self.plugins.values() {
            let described = self.describe_plugin(plugin).await?;
            let seen: Things<SeenRegion> = match described.does("regions") {
                true => self.ask(plugin, "regions", json!({})).await?,
                false => Things::default(),
            };
            if seen.regions.is_empty() {
                regions.push(Region {
                    slug: plugin.name().to_owned(),
                    name: described.about,
                    area: None,
                    available: true,
                });
            }
            regions.extend(seen.regions.into_iter().map(|region| region.region(plugin.name())));
        }
        Ok(regions)
    }

    async fn images(&self) -> Result<Vec<Image>, ProviderError> {
        self.things("images", |plugin, things: Things<SeenImage>| {
            things.images.into_iter().map(|image| image.image(plugin)).collect()
        })
        .await
    }
}
