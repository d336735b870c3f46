//! The host side: makes machines with drivers, and says what a host lacks for each.
//!
//! *Invariant*: knows no records, no API and no leases beyond what an order carries; everything that it makes is found
//! again by listing run directories, so that a host without any memory can adopt or destroy it.

pub mod cloud_image;
pub mod disk_image;
pub mod driver;
mod images;
pub mod initrd;
pub mod kernel;
pub mod kvm;
pub mod lazy;
pub mod preflight;
pub mod run_dir;

pub use driver::{Driver, DriverError, DriverErrorKind, Found, Order};
