//! A cache behind HTTP: calve's protocol, Nix's, tokens, upstream caches, and clients that mean no good.

mod hostile;
mod nix_protocol;
mod protocol;
mod support;
mod upstream;
