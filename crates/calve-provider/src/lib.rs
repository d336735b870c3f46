//! Where machines come from: one trait, one file a provider, one conformance suite (`tests/conformance.rs`).
//!
//! ```text
//!  Order ─▶ create ─▶ machine with tags ─▶ list ─▶ Mark::read ─▶ reap::judge ─▶ destroy
//!             │  answer lost: looked for by its key tag before it is asked for again
//! ```
//! What is known of a machine stands in its tags ([`mark`]): whoever has a provider's credentials can let go of
//! machines whose lease has ended, with every other state lost.
//!
//! *Invariant*: decides nothing about machines beyond [`reap::judge`], stores nothing, and never touches a machine that
//! does not carry our tags, but to give it those ([`mod@adopt`]). Credentials are in no `Debug`, error or argument.

pub mod adopt;
mod credentials;
pub mod digitalocean;
mod error;
pub mod exec;
mod http;
pub mod mark;
mod open;
pub mod proxmox;
pub mod reap;
pub mod ssh;

use std::time::Duration;

use async_trait::async_trait;

pub use credentials::{Credentials, CredentialsError};
pub use error::{ErrorKind, ProviderError};
pub use http::Pace;
pub use open::{NAMES, OpenError, open};

/// What a provider is, and what it takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// Its name as users type it.
    pub name: &'static str,
    /// Where its API is.
    pub api: String,
    /// Most bytes of user data.
    pub user_data_max_bytes: usize,
    /// How long after a creation or a destruction a list may still show what was before.
    pub lists_lag: Duration,
    /// Where its credentials are looked for, for people.
    pub credentials_from: &'static str,
}

/// Whose credentials these are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// How the provider calls the account.
    pub name: String,
    /// Whether it may be used, in the provider's word.
    pub status: String,
    /// Most machines at once, where the provider says so.
    pub machines_max: Option<u64>,
}

/// Everything that a provider needs to make one machine.
#[derive(Clone)]
pub struct Order {
    /// Its name at the provider, a DNS label.
    pub name: String,
    /// The tag that no other machine carries: by it a machine is found whose creation had no answer.
    pub key: String,
    /// All of its tags, the key among them.
    pub tags: Vec<String>,
    /// Where: a region's slug.
    pub region: String,
    /// How large: a size's slug.
    pub size: String,
    /// From what: an image's slug or number.
    pub image: String,
    /// Handed to the machine.
    pub user_data: String,
}

/// User data holds a token: it is not shown.
impl std::fmt::Debug for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, key, region, size, image, user_data, .. } = self;
        write!(f, "Order({name} {key} {region} {size} {image}, {} bytes of user data)", user_data.len())
    }
}

/// A machine as its provider shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed {
    /// The provider's id.
    pub id: String,
    /// The name that it was created with.
    pub name: String,
    /// Its tags.
    pub tags: Vec<String>,
    /// Where it is.
    pub region: String,
    /// How large it is.
    pub size: String,
    /// Its state, in the provider's word.
    pub status: String,
    /// A public address, once it has one.
    pub address: Option<String>,
    /// When it was made, as the provider writes it.
    pub created_at: String,
    /// What it costs.
    pub dollars_per_hour: Option<f64>,
}

/// The machines that carry a tag.
#[derive(Debug, Clone, PartialEq)]
pub struct Listing {
    /// Each of them once.
    pub machines: Vec<Listed>,
    /// The provider's clock when it answered, in seconds since the epoch, where it tells: leases are judged by it, so that a
    /// wrong clock here ends none too early.
    pub unix_s: Option<u64>,
}

/// A size of machines.
#[derive(Debug, Clone, PartialEq)]
pub struct Size {
    /// How it is asked for.
    pub slug: String,
    /// Processors.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Disk in GiB.
    pub disk_gib: u64,
    /// Price.
    pub dollars_per_hour: f64,
    /// Where it can be had.
    pub regions: Vec<String>,
    /// Whether it can be had at all.
    pub available: bool,
}

/// A place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Region {
    /// How it is asked for.
    pub slug: String,
    /// Its name for people.
    pub name: String,
    /// The part of the world in which it lies, where that is known: `eu`, `us`, `ca`, `asia`, `au`.
    pub area: Option<&'static str>,
    /// Whether machines can be made there.
    pub available: bool,
}

/// What a machine can be made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The provider's number.
    pub id: String,
    /// How it is asked for by name, where it has one.
    pub slug: Option<String>,
    /// Its name for people.
    pub name: String,
    /// Where it can be used.
    pub regions: Vec<String>,
    /// Its state, in the provider's word.
    pub status: String,
}

/// Makes machines somewhere else.
///
/// Guarantees: every call may be repeated. `create` is keyed by [`Order::key`]: while a machine with that tag is listed,
/// it makes no other, also where an earlier answer was lost. `list` shows each machine once, from all pages, but may lag
/// behind what was done. `destroy` accepts absence. A request that was refused for its rate is made again when the
/// provider allows it, others where waiting helps; [`Pace`] bounds all of it.
#[async_trait]
pub trait Provider: Send + Sync {
    /// What it is.
    fn describe(&self) -> Description;

    /// Whether the credentials are good.
    async fn check(&self) -> Result<Account, ProviderError>;

    /// Makes the machine, or finds the one that carries its key.
    async fn create(&self, order: &Order) -> Result<Listed, ProviderError>;

    /// The machine with this id, whoever made it; none where there is none. Unlike a list it does not lag. What may not be
    /// destroyed is refused.
    async fn machine(&self, id: &str) -> Result<Option<Listed>, ProviderError> {
        let _ = id;
        let message = "it shows no machines but those that calve made, so that none can be adopted";
        Err(ProviderError::new(self.describe().name, ErrorKind::Refused, message))
    }

    /// Every machine that carries this tag.
    async fn list(&self, tag: &str) -> Result<Listing, ProviderError>;

    /// Destroys the machine with this id.
    async fn destroy(&self, id: &str) -> Result<(), ProviderError>;

    /// Destroys every machine that carries this tag, known by a list or not.
    async fn destroy_tagged(&self, tag: &str) -> Result<(), ProviderError>;

    /// Gives the machine one more tag.
    async fn add_tag(&self, id: &str, tag: &str) -> Result<(), ProviderError>;

    /// Removes a tag from every machine and from the account: those with a machine's id in them would gather there.
    async fn remove_tag(&self, tag: &str) -> Result<(), ProviderError>;

    /// Sizes with their prices.
    async fn sizes(&self) -> Result<Vec<Size>, ProviderError>;

    /// Places.
    async fn regions(&self) -> Result<Vec<Region>, ProviderError>;

    /// Has the provider fetch a disk image from an address that it reaches, for one region; it can be used some minutes later.
    async fn import_image(&self, name: &str, url: &str, region: &str) -> Result<Image, ProviderError> {
        let _ = (name, url, region);
        Err(self.takes_no_images())
    }

    /// Removes an image of the account's own; absence is success.
    async fn remove_image(&self, id: &str) -> Result<(), ProviderError> {
        let _ = id;
        Err(self.takes_no_images())
    }

    /// What a provider says that has no images of its own.
    fn takes_no_images(&self) -> ProviderError {
        let message = "it takes no disk images from an address";
        ProviderError::new(self.describe().name, ErrorKind::Refused, message)
    }

    /// Images: the account's own first, then the provider's distributions.
    async fn images(&self) -> Result<Vec<Image>, ProviderError>;
}
