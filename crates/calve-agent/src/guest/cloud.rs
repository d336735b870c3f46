//! A machine at a provider: what it shall be stands in its user data, and its agent dials the server.
//!
//! ```text
//!  link-local address ─▶ user data ─▶ clock, network, name ─▶ own key ─▶ agent dials, joins ─▶ programs, as in any bare guest
//! ```

use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::Context as _;
use calve_wire::join::UserData;

use super::bare::{self, BareGuest};
use super::{clock, files, mounts, network, power, sources};
use crate::agent::transport::Transport;
use crate::agent::{self, Config};
use crate::service::Entry;

/// In memory: with the machine's power its key is gone, and with it all that the machine was.
const KEY_FILE: &str = "/run/calve-agent.key";

/// Makes the place, and is its init until the agent has ended.
pub(super) fn run(mut notes: Vec<String>) -> anyhow::Result<()> {
    mounts::for_programs()?;
    let interfaces = network::loopback().context("the loopback cannot be brought up")?;
    network::link_local(&interfaces).context("the network card cannot be brought up")?;
    let found = sources::find()?;
    if let Some(now) = found.unix_ms {
        clock::set(now);
    }
    let data = UserData::parse(&found.user_data).context("the machine's user data")?;
    let (name_servers, lease) =
        network::by_plan(&interfaces, found.plan).context("the network card cannot be given its address")?;
    network::name_host(&data.name)?;
    files::write(&data.name, &name_servers)?;
    // Closures come over the link.
    mounts::directory("/nix/store")?;
    let entry = Entry::of(&data, Path::new(KEY_FILE))?;
    drop(interfaces);
    let confine = bare::limited(None, &mut notes);
    bare::inhabit(&confine, None, |init| {
        // Not before: init has one thread.
        if let Some(lease) = lease {
            network::keep(lease);
        }
        agent(entry, init, notes)
    })
}

fn agent(entry: Entry, init: OwnedFd, notes: Vec<String>) -> anyhow::Result<()> {
    let Entry { token, server, join, remaining } = entry;
    agent::run(Config {
        token,
        remaining,
        transport: Box::new(move || Ok(Transport::Dial(server, join))),
        init,
        enclosure: Box::new(BareGuest::new(notes, power::power_off)),
        announce: Box::new(|| Ok(())),
        run_dir: None,
        begun: None,
    })?;
    Ok(())
}
