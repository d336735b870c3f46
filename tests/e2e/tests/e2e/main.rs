//! The built binaries as a user runs them: own homes, real sandboxes, real guests, real Nix.

mod cache;
mod cache_https;
mod cache_s3;
mod cache_verify;
mod cli;
mod faults;
mod guest;
mod lazy;
mod lease;
mod nested;
mod nix;
mod program;
mod service;
mod ship;
