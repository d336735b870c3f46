//! Being the server.

use std::path::PathBuf;
use std::sync::Arc;

use calve_core::DriverName;
use calve_node::driver::{self, Driver, Host};
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
    let config = Config {
        drivers: Arc::new(drivers),
        listen: args.listen,
        token_file: args.token_file,
        agents: args.agents,
        idle_exit: args.idle_exit.or(args.on_demand.then_some(IDLE_EXIT_DEFAULT)),
        version: VERSION.to_owned(),
        dirs,
    };
    daemon::serve(config, |ready| {
        if !args.on_demand {
            announce(ready);
        }
    })
    .await
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
fn drivers(dirs: &Dirs, store: &Arc<Store>) -> Vec<Arc<dyn Driver>> {
    let path = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let host = Host {
        runtime_dir: dirs.run.clone(),
        images_dir: dirs.images(),
        agent_binary: path("CALVE_AGENT").unwrap_or_else(beside_this_program),
        kernel: path("CALVE_KERNEL"),
        store: store.clone(),
    };
    DriverName::ALL.into_iter().map(|name| driver::open(name, &host)).collect()
}

/// `calve-agent` where this program lies; a path that is not there is told by the preflight.
fn beside_this_program() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    program.with_file_name("calve-agent")
}
