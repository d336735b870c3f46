//! What the probe of KVM uses of this driver.

use std::io;

pub(crate) use super::command::GuestPlan;
pub(crate) use super::emulator::Emulator;
pub(crate) use super::guard::{Guard, end, gone, write_lease};
pub(crate) use super::needs::{Devices, initrd_for, kernel_for_guests};
pub(crate) use super::parameters::{Mode, Parameters};
use crate::driver::{DriverError, DriverErrorKind};

pub(crate) fn broke_off(error: tokio::task::JoinError) -> DriverError {
    DriverError::new(DriverErrorKind::Failed, "preparing the guest broke off").caused_by(error)
}

pub(crate) fn unwritable(error: io::Error) -> DriverError {
    DriverError::new(DriverErrorKind::Failed, "the run directory cannot be written").caused_by(error)
}

pub(crate) fn unusable(message: String) -> DriverError {
    DriverError::new(DriverErrorKind::Unusable, message)
}
