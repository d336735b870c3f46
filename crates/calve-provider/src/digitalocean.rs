//! DigitalOcean: machines are droplets. Source: the reference of its API v2, docs.digitalocean.com/reference/api.
//!
//! ```text
//!  create ─▶ list by key ─▶ none: POST /droplets ─┬─ 202 ────────────▶ droplet
//!                 ▲                               ├─ 4xx ────────────▶ error
//!                 └── until it settles, then ─────┴─ 5xx, no answer
//! ```

mod answers;

use std::collections::BTreeSet;

use async_trait::async_trait;
use reqwest::Method;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::http::{Answer, Api, Repeat};
use crate::{
    Account, Credentials, CredentialsError, Description, ErrorKind, Image, Listed, Listing, Order, Pace,
    Provider, ProviderError, Region, Size,
};
use answers::{AccountAnswer, Droplet, Droplets, ImageAnswer, Images, One, Page, Regions, Sizes};

/// Its name as users type it.
pub const NAME: &str = "digitalocean";
/// Where its API is, unless [`API_VARIABLE`] says otherwise.
const API: &str = "https://api.digitalocean.com";
/// Names another address of the API.
const API_VARIABLE: &str = "DIGITALOCEAN_API_URL";
/// Holds the token.
const TOKEN_VARIABLE: &str = "DIGITALOCEAN_TOKEN";
/// Most bytes of user data (64 KiB).
const USER_DATA_MAX_BYTES: usize = 64 << 10;
/// Most entries of a page.
const PAGE_SIZE: usize = 200;
/// How often a list is begun anew that changed while its pages were read.
const LIST_ATTEMPTS: usize = 10;
/// How often a machine is asked for whose creation had no answer and which does not appear.
const CREATE_ATTEMPTS: u32 = 3;

/// Where DigitalOcean is, and with which token.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Address of the API, without `/v2`.
    pub api: String,
    /// The token.
    pub credentials: Credentials,
}

impl Settings {
    /// From `DIGITALOCEAN_TOKEN` or `DIGITALOCEAN_TOKEN_FILE`, and `DIGITALOCEAN_API_URL`.
    pub fn from_environment(variables: &dyn Fn(&str) -> Option<String>) -> Result<Self, CredentialsError> {
        let api = variables(API_VARIABLE).filter(|url| !url.is_empty()).unwrap_or_else(|| API.to_owned());
        Ok(Self { api, credentials: Credentials::find(NAME, TOKEN_VARIABLE, variables)? })
    }
}

/// The provider; see [`Provider`].
pub struct DigitalOcean {
    api: Api,
}

impl DigitalOcean {
    /// Connects with the first request.
    pub fn new(settings: Settings, pace: Pace) -> Result<Self, ProviderError> {
        Ok(Self { api: Api::new(NAME, &settings.api, &settings.credentials, pace)? })
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<Answer<T>, ProviderError> {
        self.api.ask(Method::GET, path, None, Repeat::Freely).await
    }

    /// Deletes what may be gone already.
    async fn delete(&self, path: &str) -> Result<(), ProviderError> {
        match self.api.ask::<Value>(Method::DELETE, path, None, Repeat::Freely).await {
            Ok(_) => Ok(()),
            Err(error) if error.kind == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// All pages. Pages are counted, not followed: the token goes nowhere but to the API. Entries that go while pages are read
    /// move others from the next page to one that was read already: where the pages do not agree on how many there are,
    /// all is read again.
    async fn all<P: Page + DeserializeOwned>(
        &self,
        path: &str,
        key: impl Fn(&P::Item) -> String,
    ) -> Result<Answer<Vec<P::Item>>, ProviderError> {
        for _ in 0..LIST_ATTEMPTS {
            let mut seen = BTreeSet::new();
            let mut totals = BTreeSet::new();
            let (mut items, mut unix_s) = (Vec::new(), None);
            for page in 1.. {
                let joint = if path.contains('?') { '&' } else { '?' };
                let answer: Answer<P> =
                    self.get(&format!("{path}{joint}page={page}&per_page={PAGE_SIZE}")).await?;
                // The clock of the first page: nothing that is listed is judged by a later one.
                unix_s = if page == 1 { answer.unix_s } else { unix_s };
                let (found, more, total) = answer.body.parts();
                totals.extend(total);
                let last = found.is_empty() || !more;
                items.extend(found.into_iter().filter(|item| seen.insert(key(item))));
                if last {
                    break;
                }
            }
            if totals.is_empty() || totals == BTreeSet::from([items.len()]) {
                return Ok(Answer { body: items, unix_s });
            }
        }
        let message =
            format!("the list of {path} changed each of the {LIST_ATTEMPTS} times that it was read");
        Err(self.api.error(ErrorKind::Failed, message, None))
    }

    async fn droplets(&self, tag: &str) -> Result<Answer<Vec<Droplet>>, ProviderError> {
        self.all::<Droplets>(&format!("v2/droplets?tag_name={tag}"), |droplet| droplet.id.to_string()).await
    }

    /// The machine with this key. Where an answer was lost and the list lagged, there are two: the first stays.
    async fn by_key(&self, key: &str) -> Result<Option<Listed>, ProviderError> {
        let mut found = self.droplets(key).await?.body;
        found.sort_by_key(|droplet| droplet.id);
        let mut found = found.into_iter();
        let first = found.next();
        for double in found {
            self.destroy(&double.id.to_string()).await?;
        }
        Ok(first.map(Listed::from))
    }
}

#[async_trait]
impl Provider for DigitalOcean {
    fn describe(&self) -> Description {
        Description {
            name: NAME,
            api: self.api.base().to_string(),
            user_data_max_bytes: USER_DATA_MAX_BYTES,
            lists_lag: self.api.pace().settle,
            credentials_from: "DIGITALOCEAN_TOKEN or the file that DIGITALOCEAN_TOKEN_FILE names",
        }
    }

    async fn check(&self) -> Result<Account, ProviderError> {
        let account = self.get::<AccountAnswer>("v2/account").await?.body.account;
        let name = account.team.map(|team| team.name).or(account.email).unwrap_or(account.uuid);
        Ok(Account { name, status: account.status, machines_max: account.droplet_limit })
    }

    async fn create(&self, order: &Order) -> Result<Listed, ProviderError> {
        if order.user_data.len() > USER_DATA_MAX_BYTES {
            let message = format!(
                "the user data has {} bytes, and {USER_DATA_MAX_BYTES} are allowed",
                order.user_data.len()
            );
            return Err(self.api.error(ErrorKind::Refused, message, None));
        }
        if let Some(found) = self.by_key(&order.key).await? {
            return Ok(found);
        }
        // Custom images have no slug, and are asked for by number.
        let image = order.image.parse::<u64>().map_or_else(|_| json!(order.image), |number| json!(number));
        let body = json!({
            "name": order.name, "region": order.region, "size": order.size, "image": image,
            "tags": order.tags, "user_data": order.user_data, "with_droplet_agent": false,
        });
        let mut attempt = 1;
        loop {
            let asked = self.api.ask::<One>(Method::POST, "v2/droplets", Some(&body), Repeat::OnlyIfRefused);
            let error = match asked.await {
                Ok(created) => return Ok(created.body.droplet.into()),
                Err(error) => error,
            };
            if !error.is_uncertain() {
                return Err(error);
            }
            if let Some(found) = self.api.pace().until_settled(|| self.by_key(&order.key)).await? {
                return Ok(found);
            }
            if attempt == CREATE_ATTEMPTS {
                return Err(error);
            }
            attempt += 1;
        }
    }

    async fn machine(&self, id: &str) -> Result<Option<Listed>, ProviderError> {
        // Anything else would be another path of the API.
        if id.parse::<u64>().is_err() {
            let message = format!("{id:?} is not a droplet's number");
            return Err(self.api.error(ErrorKind::Refused, message, None));
        }
        match self.get::<One>(&format!("v2/droplets/{id}")).await {
            Ok(answer) => Ok(Some(answer.body.droplet.into())),
            Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn list(&self, tag: &str) -> Result<Listing, ProviderError> {
        let Answer { body, unix_s } = self.droplets(tag).await?;
        Ok(Listing { machines: body.into_iter().map(Listed::from).collect(), unix_s })
    }

    async fn destroy(&self, id: &str) -> Result<(), ProviderError> {
        self.delete(&format!("v2/droplets/{id}")).await
    }

    async fn destroy_tagged(&self, tag: &str) -> Result<(), ProviderError> {
        self.delete(&format!("v2/droplets?tag_name={tag}")).await
    }

    async fn add_tag(&self, id: &str, tag: &str) -> Result<(), ProviderError> {
        let ask = async |path: &str, body: Value| {
            self.api.ask::<Value>(Method::POST, path, Some(&body), Repeat::Freely).await
        };
        // A tag that exists already is answered with it.
        ask("v2/tags", json!({"name": tag})).await?;
        let resources = json!({"resources": [{"resource_id": id, "resource_type": "droplet"}]});
        ask(&format!("v2/tags/{tag}/resources"), resources).await.map(drop)
    }

    async fn remove_tag(&self, tag: &str) -> Result<(), ProviderError> {
        self.delete(&format!("v2/tags/{tag}")).await
    }

    async fn sizes(&self) -> Result<Vec<Size>, ProviderError> {
        let sizes = self.all::<Sizes>("v2/sizes", |size| size.slug.clone()).await?;
        Ok(sizes.body.into_iter().map(Size::from).collect())
    }

    async fn regions(&self) -> Result<Vec<Region>, ProviderError> {
        let regions = self.all::<Regions>("v2/regions", |region| region.slug.clone()).await?;
        Ok(regions.body.into_iter().map(Region::from).collect())
    }

    async fn import_image(&self, name: &str, url: &str, region: &str) -> Result<Image, ProviderError> {
        let body = json!({
            "name": name, "url": url, "region": region, "distribution": "Unknown",
            "description": "boots calve's agent", "tags": ["calve"],
        });
        // An answer that was lost may leave an image behind, of which the newest counts.
        let asked =
            self.api.ask::<ImageAnswer>(Method::POST, "v2/images", Some(&body), Repeat::OnlyIfRefused);
        Ok(asked.await?.body.image.into())
    }

    async fn remove_image(&self, id: &str) -> Result<(), ProviderError> {
        self.delete(&format!("v2/images/{id}")).await
    }

    async fn images(&self) -> Result<Vec<Image>, ProviderError> {
        let mut images =
            self.all::<Images>("v2/images?private=true", |image| image.id.to_string()).await?.body;
        images.extend(
            self.all::<Images>("v2/images?type=distribution", |image| image.id.to_string()).await?.body,
        );
        Ok(images.into_iter().map(Image::from).collect())
    }
}
