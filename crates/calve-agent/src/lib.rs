//! The walls of a machine on the host's own kernel: namespaces and a tree of its own, cgroups, and what a program is
//! stripped of before it runs. And what the simulator does as well: the course of a switch ([`course`]), and store paths that
//! come ([`seed`]).
//!
//! *Invariant*: one thread, no runtime, no protocol: everything here happens before the agent has any of those, or in a
//! process that it has just made. It is a library so that its tests can be launcher and program at once.

pub mod cgroup;
pub mod confine;
pub mod course;
pub mod sandbox;
pub mod seed;
