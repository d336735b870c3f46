//! A cache behind HTTP: the messages of `/calve/v1`, and the client that speaks them.
//!
//! ```text
//! POST /calve/v1/info                            ─▶ CacheInfo
//! POST /calve/v1/directory                       ─▶ Directory, to whoever may push
//! POST /calve/v1/missing-paths    Paths          ─▶ Paths
//! POST /calve/v1/missing-chunks   Ids            ─▶ Ids
//! POST /calve/v1/chunks           Ids            ─▶ frame frame frame …     (in the order of the ids)
//! POST /calve/v1/recipes          Ids            ─▶ frame frame frame …
//! POST /calve/v1/upload           frame frame …  ─▶ nothing
//! POST /calve/v1/ahead            path, parts …  ─▶ nothing, once its archive is hashed   (sent while it is cut)
//! POST /calve/v1/commit           Commit, frames ─▶ beats while the cache works, then Manifests or a problem
//! POST /calve/v1/closure          Paths          ─▶ Manifests
//! ```
//! Lists are [`message`]s, chunks and recipes travel as [`frame`]s, and what went wrong is a [`Problem`].

mod address;
pub mod ahead;
mod client;
mod connect;
pub mod frame;
pub mod message;
mod pool;
mod problem;
mod remote;
mod tls;

pub use address::{Address, AddressError, redacted};
pub use client::{Answer, AnswerBody, Client, Sent};
pub use problem::{Problem, ProblemKind};
pub use remote::{HttpRemote, pack_recipe, unpack_recipe};

/// Path under which the protocol lies, behind the cache's own prefix; its number changes with anything that an older
/// party would misread.
pub const PREFIX: &str = "/calve/v1";
/// Media type of messages and frames.
pub const MEDIA_TYPE: &str = "application/vnd.calve.v1";
/// Most bytes of one message (a list of [`crate::remote::ITEMS_MAX`] manifests) as it travels.
pub const MESSAGE_MAX_BYTES: usize = 64 << 20;
/// Most bytes of one message when it is unpacked.
pub const MESSAGE_PLAIN_MAX_BYTES: usize = 128 << 20;
/// Most bytes of a recipe as it travels and when it is unpacked: some 1.8 million chunks, 100 GiB of one path.
pub const RECIPE_FRAME_MAX_BYTES: u32 = 64 << 20;
/// Most bytes of one commit: its manifests and recipes.
pub const COMMIT_MAX_BYTES: usize = 128 << 20;
/// Most bytes that tell of one archive: that of [`RECIPE_FRAME_MAX_BYTES`], with as much again for what stands around.
pub const AHEAD_MAX_BYTES: usize = 128 << 20;
/// What a commit's answer begins with: a byte [`COMMIT_BEAT`] now and then while the cache works, so that a busy cache
/// is told from one that stalls.
pub const COMMIT_BEAT: u8 = 0;
/// Behind the beats of a commit's answer: the manifests follow.
pub const COMMIT_DONE: u8 = 1;
/// Behind the beats of a commit's answer: a problem follows.
pub const COMMIT_REFUSED: u8 = 2;
