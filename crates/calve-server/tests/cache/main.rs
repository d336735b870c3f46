//! A cache behind HTTP: calve's protocol, Nix's, tokens, upstream caches, and clients that mean no good.

mod full_disk;
mod hostile;
mod nix_protocol;
mod protocol;
mod same_host;
#[path = "../../../calve-store/tests/small_disk/mod.rs"]
mod small_disk;
mod support;
mod upstream;
