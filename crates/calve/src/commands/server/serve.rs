//! Being the server.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use calve_core::DriverName;
use calve_node::driver::{self, Driver, Host};
use calve_server::cloud::{CloudDriver, Door, SshDriver};
use calve_server::daemon::{self, Config, IDLE_EXIT_DEFAULT, Ready, ServeError};
use calve_server::dirs::Dirs;
use calve_store::Store;

use super::Args;
use crate::client::VERSION;
use crate::failure::{ExitStatus, Failure, Outcome};
use crate::ui;

/// Serves until told to end.
pub async fn run(args: Args) -> Outcome {
    let on_demand = args.on_demand;
    match serve(args).await {
        Ok(()) => Ok(ExitStatus::Success),
        // Who started this one wants a server, not this one.
        Err(ServeError::AlreadyRunning { .. }) if on_demand => Ok(ExitStatus::Success),
        Err(error) => Err(Failure::from(error.problem())),
    }
}

async fn serve(args: Args) -> Result<(), ServeError> {
    let dirs = Dirs::from_env()?;
    daemon::init_log(&dirs)?;
    let door = Arc::new(OnceLock::new());
    let for_drivers = door.clone();
    let config = Config {
        drivers: Arc::new(move |dirs, store| drivers(dirs, store, &for_drivers)),
        listen: args.listen,
        token_file: args.token_file,
        agents: args.agents,
        idle_exit: args.idle_exit.or(args.on_demand.then_some(IDLE_EXIT_DEFAULT)),
        version: VERSION.to_owned(),
        dirs,
    };
    daemon::serve(config, |ready| {
        if let Some(opened) = door_of(ready, args.agents_address) {
            door.get_or_init(|| opened);
        }
        if !args.on_demand {
            announce(ready);
        }
    })
    .await
}

/// Where machines elsewhere dial: the address that was named, or the one on which the server listens, if that is one.
fn door_of(ready: &Ready, named: Option<String>) -> Option<Door> {
    let door = ready.agents.as_ref()?;
    let dialled = |listens: &str| !listens.parse::<SocketAddr>().is_ok_and(|addr| addr.ip().is_unspecified());
    let address = named.or_else(|| Some(door.listens.clone()).filter(|listens| dialled(listens)))?;
    Some(Door { address, fingerprint: door.fingerprint.clone() })
}

fn announce(ready: &Ready) {
    ui::note(&format!(
        "listening on {}; Ctrl-C ends the server, machines go on",
        ready.listens.join(" and ")
    ));
    if let Some(door) = &ready.agents {
        ui::note(&format!("agents dial {} and expect the fingerprint {}", door.listens, door.fingerprint));
    }
    if let Some(file) = &ready.token_file {
        ui::note(&format!("the token is in {}", file.display()));
    }
    if let Some(token) = &ready.made_token {
        ui::note(&format!("clients need CALVE_TOKEN={token}"));
    }
}

/// Every driver that this program has.
fn drivers(dirs: &Dirs, store: &Arc<Store>, door: &Arc<OnceLock<Door>>) -> Vec<Arc<dyn Driver>> {
    let path = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let host = Host {
        runtime_dir: dirs.run.clone(),
        images_dir: dirs.images(),
        agent_binary: agent_binary(),
        kernel: path("CALVE_KERNEL"),
        store: store.clone(),
    };
    let elsewhere = |name: DriverName| -> Arc<dyn Driver> {
        if name == DriverName::Ssh {
            let (data, run) = (dirs.data.clone(), dirs.run.clone());
            return Arc::new(SshDriver::new(data, run, store.clone(), host.agent_binary.clone()));
        }
        let provider = calve_provider::open(name.as_str(), &|variable| std::env::var(variable).ok());
        let provider = provider.map_err(|error| error.to_string());
        Arc::new(CloudDriver::new(name, provider, dirs.owner_key(name.as_str()), door.clone()))
    };
    DriverName::ALL
        .into_iter()
        .map(|name| driver::open(name, &host).unwrap_or_else(|| elsewhere(name)))
        .collect()
}

/// The one that `CALVE_AGENT` names, else `calve-agent` where this program lies; a path that is not there is told by the preflight.
pub fn agent_binary() -> PathBuf {
    let named = std::env::var_os("CALVE_AGENT").filter(|value| !value.is_empty());
    named.map(PathBuf::from).unwrap_or_else(|| {
        let program = std::env::current_exe().unwrap_or_default();
        program.with_file_name("calve-agent")
    })
}
