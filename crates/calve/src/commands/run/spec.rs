//! The options of `run`, and the machine that they ask for.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use calve_core::ids::IdError;
use calve_core::limits::TTL_DEFAULT;
use calve_core::{DriverName, Kind, MachineId, MachineName};
use calve_provider::ssh::HostKey;
use calve_server::cloud::place::{On, OnError};
use calve_wire::api::CreateMachine;
use calve_wire::machine::{
    Limits, MachineSpec, Network, Place, PortMapping, Restart, StoreDelivery, Workload,
};
use clap::ValueEnum;
use clap::builder::{PossibleValuesParser, TypedValueParser};

use super::anywhere::{self, parse_price};
use super::health::HealthArgs;
use crate::args::{
    Ttl, as_ms, gather_environment, parse_cpus, parse_grace, parse_name, parse_port_mapping, parse_size,
    parse_ttl,
};
use crate::commands::ps;
use crate::failure::{Failure, Outcome};
use crate::lazy::{self, LazyArgs};
use crate::resolve::{self, Wish};

/// Runs a closure in a machine of its own, and ends with its exit code.
///
/// What runs may be a store path, a program inside one, a link to one (./result), a plain program or directory (added to
/// the store), a Nix file (with -A for an attribute of it) or a flake reference (.#web, github:…, git+https://…?rev=…#web).
/// A system's store path is booted; at a provider a machine of an image with NixOS and calve's agent (--image) is switched to it.
/// Without anything the base guest is started, to exec into.
///
/// Ctrl-C lets go of the machine: SIGTERM to the program, SIGKILL after the grace; a second Ctrl-C kills at once.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What runs.
    #[arg(value_hint = clap::ValueHint::AnyPath)]
    what: Option<String>,
    /// Arguments of the program.
    #[arg(last = true)]
    args: Vec<String>,
    /// Build and run this attribute of a Nix file (default.nix where none is named).
    #[arg(short = 'A', long, value_name = "ATTR")]
    attr: Option<String>,
    /// Run the command behind `--` in the environment of a Nix shell, in a copy of the directory of its Nix file.
    #[arg(long)]
    shell: bool,

    /// Print the machine's name and return; otherwise output is shown until the program ends.
    #[arg(short, long)]
    pub detach: bool,
    /// With --detach, print the machine as an object.
    #[arg(long, requires = "detach")]
    pub json: bool,

    /// Its name; run-<n> with the smallest free number where none is given.
    #[arg(long, value_parser = parse_name)]
    name: Option<MachineName>,
    /// job (once), service (kept running) or system; where none is given, programs are jobs.
    #[arg(long, value_parser = words::<Kind>(Kind::ALL.iter().map(|kind| kind.as_str())))]
    kind: Option<Kind>,
    /// How long the machine may live, e.g. 30s, 90m, 2h, 1d; `none` for no end. [default: 1h]
    #[arg(long, value_name = "DURATION", value_parser = parse_ttl)]
    ttl: Option<Ttl>,
    /// Time between SIGTERM and SIGKILL when it is stopped. [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = parse_grace)]
    grace: Option<Duration>,
    /// When an ended program is started again. [default: never for jobs, always for services]
    #[arg(long, value_name = "WHEN")]
    restart: Option<RestartWord>,

    /// CPUs that it may use, e.g. 2 or 0.5.
    #[arg(long, value_name = "N", value_parser = parse_cpus, help_heading = "Limits")]
    cpus: Option<u32>,
    /// Memory that it may use, e.g. 256M or 1.5G (powers of 1024).
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = "Limits")]
    memory: Option<u64>,
    /// Processes and threads that it may have.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Limits")]
    pids: Option<u32>,

    /// Set an environment variable, or take it from yours; a program gets those that are named and no others.
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Set the variables of a file with one NAME=VALUE a line.
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Publish a TCP port of the machine: 8080:80 or 0.0.0.0:8080:80; host port 0 takes a free one.
    #[arg(short, long, value_name = "[ADDR:]HOST:MACHINE", value_parser = parse_port_mapping)]
    publish: Vec<PortMapping>,
    /// none: a loopback of its own; host: the host's network, which a guest reaches through a network card of its own.
    /// [default: none]
    #[arg(long)]
    network: Option<NetworkWord>,
    /// How the machine is made: sandbox or qemu; the first that can do it where none is given.
    #[arg(long, value_parser = words::<DriverName>([DriverName::Sandbox, DriverName::Qemu].map(DriverName::as_str)))]
    driver: Option<DriverName>,
    /// How the machine gets its store paths; image and live ask for the driver qemu. [default: image for guests]
    #[arg(long, value_name = "HOW")]
    store: Option<StoreWord>,

    /// Make the machine elsewhere: at a provider (digitalocean/ams3, or proxmox/pve1, a node; needs a server with `--agents` and
    /// the provider's credentials), by a plugin (exec/NAME), on a host that is borrowed over SSH (ssh://root@HOST[:PORT]), or where
    /// it is cheapest of all providers that have credentials here (any); then --cpus and --memory say how large it is at least.
    #[arg(
        long,
        value_name = "PROVIDER/REGION|ssh://HOST|any",
        value_parser = parse_where,
        conflicts_with_all = ["driver", "store"],
        help_heading = "Providers"
    )]
    on: Option<Where>,
    /// With --on any: only there, by a region's name or a part of it, or by a part of the world: eu, us, ca, asia or au.
    #[arg(long, value_name = "REGION", requires = "on", help_heading = "Providers")]
    region: Option<String>,
    /// With --on any: at most so many dollars for an hour, e.g. 0.02/h.
    #[arg(long, value_name = "PRICE", value_parser = parse_price, requires = "on", help_heading = "Providers")]
    max_price: Option<f64>,
    /// How large, by the provider's name, e.g. s-1vcpu-1gb or 2vcpu-4gb; `calve provider sizes` lists them. [default at
    /// proxmox: the template's]
    #[arg(long, value_name = "SIZE", requires = "on", help_heading = "Providers")]
    size: Option<String>,
    /// What it boots, by the provider's name or number; at proxmox a template. [default: the newest one called calve-base]
    #[arg(long, value_name = "IMAGE", requires = "on", help_heading = "Providers")]
    image: Option<String>,
    /// The host's key, as `TYPE BASE64` or `SHA256:FINGERPRINT`: for a host that your known_hosts does not know, or whose key
    /// has changed.
    #[arg(long, value_name = "KEY", requires = "on", help_heading = "Providers")]
    host_key: Option<HostKey>,

    #[command(flatten)]
    lazy: LazyArgs,
    #[command(flatten)]
    health: HealthArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RestartWord {
    Never,
    OnFailure,
    Always,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum StoreWord {
    /// One image of the closure, made once and kept: reads are quickest.
    Image,
    /// The host's own store paths (virtiofs), read-only: nothing is made, however large the closure.
    Live,
    /// Out of a cache (--from) while it runs: what is touched comes, verified, and the rest after it.
    Lazy,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum NetworkWord {
    None,
    Host,
}

/// Where a machine shall be.
#[derive(Debug, Clone)]
enum Where {
    /// There.
    At(On),
    /// Wherever it is cheapest.
    Any,
}

fn parse_where(text: &str) -> Result<Where, String> {
    if text == "any" {
        return Ok(Where::Any);
    }
    text.parse().map(Where::At).map_err(|error: OnError| error.to_string())
}

/// One of some words, which shells complete.
fn words<T>(words: impl IntoIterator<Item = &'static str>) -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err = IdError> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(words).try_map(|word| word.parse())
}

impl Args {
    /// The request for the machine. Builds or adds what runs; `stdin` says whether standard input can be passed on.
    pub fn to_request(&self, stdin: bool) -> Outcome<CreateMachine> {
        // What can be wrong is found before anything is built.
        let env = gather_environment(&self.env_file, &self.env, |name| std::env::var(name).ok())?;
        let health = self.health.to_check()?;
        let driver = self.driver()?;
        let wish = Wish {
            what: self.what.clone(),
            attr: self.attr.clone(),
            shell: self.shell,
            args: self.args.clone(),
        };
        let (resolved, store) = match self.store {
            Some(StoreWord::Lazy) => {
                let (resolved, lazily) = lazy::resolve(&wish, &self.lazy)?;
                (resolved, lazily.then_some(StoreDelivery::Lazy))
            }
            Some(StoreWord::Live) => (resolve::resolve(&wish)?, Some(StoreDelivery::Live)),
            Some(StoreWord::Image) => (resolve::resolve(&wish)?, Some(StoreDelivery::Image)),
            None => (resolve::resolve(&wish)?, None),
        };
        let (kind, workload) = self.workload(resolved.workload, env, stdin)?;
        let spec = MachineSpec {
            kind,
            workload,
            driver,
            restart: self.restart(kind),
            health,
            limits: Limits { cpus_milli: self.cpus, memory_bytes: self.memory, pids: self.pids },
            network: match self.network {
                // A machine at a provider has one: by it its agent dials.
                _ if self.on().is_some_and(On::is_made) => Network::Host,
                None | Some(NetworkWord::None) => Network::None,
                Some(NetworkWord::Host) => Network::Host,
            },
            store,
            place: self.place(),
            ports: self.publish.clone(),
            source: resolved.source,
        };
        Ok(CreateMachine {
            id: Some(MachineId::new(ps::now(), calve_server::random::u128())),
            name: self.name.clone(),
            spec,
            ttl_ms: self.ttl.unwrap_or(Ttl::For(TTL_DEFAULT)).as_ms(),
            grace_ms: self.grace.map(as_ms),
            hold: !self.detach,
        })
    }

    /// Chooses the place of a machine that may be anywhere.
    pub async fn settle(&mut self) -> Outcome<()> {
        if !matches!(self.on, Some(Where::Any)) {
            if self.region.is_some() || self.max_price.is_some() {
                return Err(Failure::usage(
                    "--region and --max-price are for a machine that may be anywhere",
                )
                .hint("say --on any, or the region behind the provider: digitalocean/ams3"));
            }
            return Ok(());
        }
        let wanted = anywhere::Wanted {
            region: self.region.clone(),
            max_price: self.max_price,
            size: self.size.clone(),
            image: self.image.clone(),
            // From here on its size says what they ask for.
            cpus_milli: self.cpus.take(),
            memory_bytes: self.memory.take(),
        };
        let chosen = anywhere::choose(&wanted).await?;
        self.on = Some(Where::At(chosen.on));
        self.size = Some(chosen.size);
        Ok(())
    }

    fn on(&self) -> Option<&On> {
        match &self.on {
            Some(Where::At(on)) => Some(on),
            Some(Where::Any) | None => None,
        }
    }

    /// Where a provider shall make it, or on which host.
    fn place(&self) -> Option<Place> {
        let on = self.on()?;
        Some(Place {
            region: on.region.clone(),
            size: self.size.clone().or_else(|| on.default_size().map(str::to_owned))?,
            image: self.image.clone(),
            host_key: self.host_key.as_ref().map(ToString::to_string),
        })
    }

    /// What goes with a machine that is made, and with a host that is there.
    fn check_place(&self, on: &On) -> Outcome<()> {
        let given = [
            ("--size", self.size.is_some(), false),
            ("--image", self.image.is_some(), false),
            ("--host-key", self.host_key.is_some(), true),
            ("--cpus", self.cpus.is_some(), true),
            ("--memory", self.memory.is_some(), true),
            ("--pids", self.pids.is_some(), true),
            ("--network", self.network.is_some(), true),
        ];
        if let Some((option, ..)) =
            given.iter().find(|(_, given, of_host)| *given && *of_host == on.is_made())
        {
            return Err(match (*option, on.is_made()) {
                ("--host-key", _) => Failure::usage("--host-key is for a host that is there (ssh://…)"),
                (_, true) => {
                    Failure::usage(format!("{option} is not for machines at a provider: their size says it"))
                }
                (_, false) => Failure::usage(format!(
                    "{option} is for machines that a provider makes, not for a host that is there"
                )),
            });
        }
        if self.size.is_none() && on.default_size().is_none() {
            let hint = format!("`calve provider sizes {}` lists what can follow --size", on.driver);
            return Err(
                Failure::usage(format!("{} has no size of its own; say --size", on.driver)).hint(hint)
            );
        }
        Ok(())
    }

    /// The driver that was asked for, or that goes without saying.
    fn driver(&self) -> Outcome<Option<DriverName>> {
        if self.lazy.is_given() && !matches!(self.store, Some(StoreWord::Lazy)) {
            return Err(Failure::usage("a cache and its keys are for --store lazy").hint("say --store lazy"));
        }
        if let Some(on) = self.on() {
            self.check_place(on)?;
            return Ok(Some(on.driver));
        }
        match (self.driver, self.store) {
            (driver, Some(StoreWord::Lazy)) => Ok(driver),
            (Some(DriverName::Sandbox), Some(_)) => {
                Err(Failure::usage("a sandbox always has the host's own store paths: --store is for guests")
                    .hint("leave --store out, or say --driver qemu"))
            }
            (None | Some(DriverName::Qemu), Some(_)) => Ok(Some(DriverName::Qemu)),
            (Some(other), Some(_)) => {
                Err(Failure::usage(format!("--store is for guests of this host, not for {other}")))
            }
            (driver, None) => Ok(driver),
        }
    }

    /// The kind that was asked for or that goes without saying, and the workload with its environment.
    fn workload(
        &self,
        workload: Workload,
        env: BTreeMap<String, String>,
        stdin: bool,
    ) -> Outcome<(Kind, Workload)> {
        match workload {
            Workload::Program(mut program) => {
                let kind = self.kind.unwrap_or(Kind::Job);
                if kind == Kind::System {
                    return Err(Failure::usage("a program is no system").hint(
                        "leave --kind out, or name a system's store path, which holds init and kernel",
                    ));
                }
                program.env.extend(env);
                program.stdin = stdin;
                Ok((kind, Workload::Program(program)))
            }
            system => {
                if let Some(kind @ (Kind::Job | Kind::Service)) = self.kind {
                    return Err(Failure::usage(format!("a system cannot be run as a {kind}")));
                }
                if !env.is_empty() {
                    return Err(Failure::usage("a system takes no environment")
                        .hint("`calve exec -e NAME=VALUE` gives one to a command in it"));
                }
                Ok((Kind::System, system))
            }
        }
    }

    fn restart(&self, kind: Kind) -> Restart {
        match (self.restart, kind) {
            (Some(RestartWord::Never), _) | (None, Kind::Job | Kind::System) => Restart::Never,
            (Some(RestartWord::OnFailure), _) => Restart::OnFailure,
            (Some(RestartWord::Always), _) | (None, Kind::Service) => Restart::Always,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &[&str]) -> Result<Args, String> {
        let line = std::iter::once("run").chain(line.iter().copied());
        Line::try_parse_from(line).map(|line| line.args).map_err(|error| error.to_string())
    }

    /// The request for a static program, made without a store.
    fn request(line: &[&str]) -> Outcome<(Kind, Workload)> {
        let program = resolve::program_for_tests("/nix/store/0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-x/bin/x");
        let args = parse(line).unwrap();
        let env = gather_environment(&args.env_file, &args.env, |_| None)?;
        args.workload(program, env, true)
    }

    #[test]
    fn the_issue_s_own_line_parses() {
        let line = "-d --name web --kind service --ttl 2h --cpus 1 --memory 256M --pids 64 -e K=V --env-file f \
                    -p 8080:80 --driver qemu X";
        let args = parse(&line.split_whitespace().collect::<Vec<_>>()).unwrap();
        assert_eq!(args.ttl, Some(Ttl::For(Duration::from_secs(7200))));
        assert_eq!((args.cpus, args.memory, args.pids), (Some(1000), Some(256 << 20), Some(64)));
        assert_eq!((args.driver, args.kind), (Some(DriverName::Qemu), Some(Kind::Service)));
        assert_eq!(args.restart(Kind::Service), Restart::Always);
        let args = parse(&["--shell", "-A", "env", "default.nix", "--", "make", "-j", "--name"]).unwrap();
        assert_eq!((args.what.as_deref(), args.args.len()), (Some("default.nix"), 3));
    }

    #[test]
    fn bad_options_get_one_clear_sentence() {
        for (line, sentence) in [
            (&["--ttl", "5", "X"][..], "5 has no unit"),
            (&["--ttl", "0s", "X"], "at least 1s"),
            (&["--grace", "2h", "X"], "at most 1h"),
            (&["--memory", "256MB", "X"], "\"MB\" is no unit of size"),
            (&["--cpus", "0", "X"], "needs some CPU"),
            (&["--pids", "0", "X"], "0 is not in 1.."),
            (&["--kind", "web", "X"], "possible values: system, service, job"),
            (&["--driver", "xen", "X"], "possible values: sandbox, qemu"),
            (&["--name", "Web_1", "X"], "not a machine name"),
            (&["-p", "80", "X"], "looks like 8080:80"),
            (&["--json", "X"], "--detach"),
            (&["X", "arg"], "unexpected argument 'arg'"),
            (&["--health-interval", "1s", "X"], "--health"),
            (&["--on", "digitalocean", "--size", "s", "X"], "PROVIDER/REGION"),
            (&["--on", "none/x", "--size", "s", "X"], "providers: digitalocean"),
            (&["--on", "any", "--max-price", "cheap", "X"], "e.g. 0.02/h"),
            (&["--max-price", "1", "X"], "--on"),
        ] {
            let error = parse(line).map(drop).unwrap_err();
            assert!(error.contains(sentence), "{line:?}: {error}");
        }
    }

    #[test]
    fn a_size_is_said_where_the_provider_has_none_of_its_own() {
        let refused = parse(&["--on", "digitalocean/ams3", "X"]).unwrap().driver().unwrap_err();
        assert!(refused.sentence.contains("say --size"), "{}", refused.sentence);
        let limited = parse(&["--on", "digitalocean/ams3", "--size", "s", "--cpus", "1", "X"]).unwrap();
        assert!(limited.driver().unwrap_err().sentence.contains("--cpus is not for machines at a provider"));
        let at_a_node = parse(&["--on", "proxmox/pve1", "X"]).unwrap();
        assert_eq!(at_a_node.driver().unwrap(), Some(DriverName::Proxmox));
        assert_eq!(at_a_node.place().unwrap().size, "template");
    }

    #[test]
    fn choosing_how_the_store_comes_is_choosing_a_guest() {
        let driver = |line: &[&str]| parse(line).unwrap().driver();
        assert_eq!(driver(&["--store", "live", "X"]).unwrap(), Some(DriverName::Qemu));
        assert_eq!(driver(&["--driver", "sandbox", "X"]).unwrap(), Some(DriverName::Sandbox));
        let refused = driver(&["--store", "image", "--driver", "sandbox", "X"]).unwrap_err();
        assert!(refused.sentence.contains("--store is for guests"), "{}", refused.sentence);
        assert_eq!(driver(&["--store", "lazy", "X"]).unwrap(), None);
        assert!(parse(&["--store", "tape", "X"]).is_err());
    }

    #[test]
    fn kinds_and_environments_belong_to_what_runs() {
        let (kind, workload) = request(&["-e", "A=1", "X"]).unwrap();
        assert_eq!(kind, Kind::Job);
        let Workload::Program(program) = workload else { panic!("a program") };
        assert_eq!((program.env["A"].as_str(), program.stdin), ("1", true));
        assert!(request(&["--kind", "system", "X"]).unwrap_err().sentence.contains("no system"));
        let args = parse(&["--kind", "job"]).unwrap();
        assert!(args.workload(Workload::Base, BTreeMap::new(), true).is_err());
        let env = BTreeMap::from([("A".to_owned(), String::new())]);
        assert!(parse(&[]).unwrap().workload(Workload::Base, env, true).is_err());
    }
}
