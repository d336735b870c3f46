//! A machine at a provider: what it shall be stands in its user data, and its agent dials the server.
//!
//! ```text
//!  link-local address ─▶ metadata ─▶ clock, network, name ─▶ agent dials the server ─▶ programs, as in any bare guest
//! ```

use std::os::fd::OwnedFd;

use anyhow::Context as _;
use calve_wire::agent::Remaining;
use calve_wire::join::UserData;

use super::bare::{self, BareGuest};
use super::{clock, files, metadata, mounts, network, nocloud, power};
use crate::agent::transport::Transport;
use crate::agent::transport::dial::Server;
use crate::agent::{self, Config, unix_ms};

/// Makes the place, and is its init until the agent has ended.
pub(super) fn run(mut notes: Vec<String>) -> anyhow::Result<()> {
    mounts::for_programs()?;
    let interfaces = network::loopback().context("the loopback cannot be brought up")?;
    network::link_local(&interfaces).context("the network card cannot be brought up")?;
    let metadata = match nocloud::metadata()? {
        Some(metadata) => metadata,
        None => metadata::fetch()?,
    };
    if let Some(now) = metadata.date.as_deref().and_then(metadata::unix_ms) {
        clock::set(now);
    }
    let data = UserData::parse(&metadata.user_data).context("the machine's user data")?;
    match metadata.public() {
        Some(public) => network::through(&interfaces, public.ip_address, public.netmask, public.gateway)
            .context("the network card cannot be given its address")?,
        None => notes.push("the provider gave the machine no public address".to_owned()),
    }
    network::name_host(&data.name)?;
    files::write(&data.name, &metadata.dns.nameservers)?;
    // Closures come over the link.
    mounts::directory("/nix/store")?;
    let server = Server {
        address: data.server.clone(),
        fingerprint: data.fingerprint.parse().context("the fingerprint in the machine's user data")?,
    };
    drop(interfaces);
    let confine = bare::limited(None, &mut notes);
    bare::inhabit(&confine, None, |init| agent(&data, server, init, notes))
}

fn agent(data: &UserData, server: Server, init: OwnedFd, notes: Vec<String>) -> anyhow::Result<()> {
    agent::run(Config {
        token: data.token.parse()?,
        remaining: Remaining {
            until_deadline_ms: data.deadline_unix_ms.map(|deadline| deadline.saturating_sub(unix_ms())),
            grace_ms: data.grace_ms,
        },
        transport: Box::new(move || Ok(Transport::Dial(server))),
        init,
        enclosure: Box::new(BareGuest::new(notes, power::power_off)),
        announce: Box::new(|| Ok(())),
        run_dir: None,
        begun: None,
    })?;
    Ok(())
}
