//! Parsing a request for a machine: every limit and every contradiction is found here, before anything is written.

use std::time::Duration;

use calve_core::limits::{ARG_MAX_BYTES, ENV_MAX_BYTES, GRACE_MAX, PORTS_MAX, TTL_MAX, TTL_MIN};
use calve_core::{DriverName, Kind, MachineId, MachineName};
use calve_nix::StorePath;
use calve_provider::ssh::{HostKey, Target};
use calve_wire::api::{AdoptMachine, CreateMachine};
use calve_wire::machine::{
    HealthCheck, Limits, MachineSpec, Network, PortMapping, Probe, Program, Restart, StoreDelivery, Workload,
};

use super::problem::{ApiError, ApiResult};
use crate::state::VALUE_MAX_BYTES;

/// Room that a record needs besides its spec: ids, times, a message.
const RECORD_ROOM_BYTES: usize = 8 * 1024;
/// Least memory: below it the kernel cannot even start a small program in a cgroup of its own.
const MEMORY_MIN_BYTES: u64 = 1024 * 1024;
/// Most memory of a machine: 1 PiB, more than any host has.
const MEMORY_MAX_BYTES: u64 = 1 << 50;
/// Least CPU, in thousandths: the least quota that cgroups take (1 ms of 100 ms).
const CPUS_MIN_MILLI: u32 = 10;
/// Most CPU, in thousandths: more CPUs than any host has.
const CPUS_MAX_MILLI: u32 = 1_024_000;
/// Shortest pause between two probes: a faster one would be a load of its own.
const HEALTH_INTERVAL_MIN_MS: u64 = 100;
/// Longest pause between two probes, and longest time for one: a day.
const HEALTH_TIME_MAX_MS: u64 = 24 * 3600 * 1000;
/// Longest text for where a closure came from, in bytes: a flake reference is a few hundred.
const SOURCE_MAX_BYTES: usize = 16 * 1024;

/// Refuses what no machine can be.
pub fn check(request: &CreateMachine) -> ApiResult<()> {
    name(request.name.as_ref())?;
    lease(request.ttl_ms, request.grace_ms)?;
    let spec = &request.spec;
    workload(spec)?;
    limits(&spec.limits)?;
    ports(&spec.ports)?;
    let for_guests = matches!(spec.store, Some(StoreDelivery::Image | StoreDelivery::Live));
    if for_guests && spec.driver != Some(DriverName::Qemu) {
        return Err(ApiError::bad_request("the store is delivered as an image or live for guests only")
            .hint("ask for the driver qemu; a sandbox always has the host's own store paths"));
    }
    place(spec)?;
    if let Some(check) = &spec.health {
        health(check)?;
    }
    if spec.source.given.len() + spec.source.revision.as_ref().map_or(0, String::len) > SOURCE_MAX_BYTES {
        return Err(ApiError::bad_request(format!("`source` has over {SOURCE_MAX_BYTES} bytes")));
    }
    record_size(spec)
}

/// Refuses what cannot be adopted.
pub fn adoption(request: &AdoptMachine) -> ApiResult<()> {
    name(request.name.as_ref())?;
    lease(request.ttl_ms, request.grace_ms)?;
    if request.provider == DriverName::Ssh {
        return target(&request.machine, request.host_key.as_deref());
    }
    if !request.provider.is_provider() {
        let message = format!("the driver {} has no machines that could be adopted", request.provider);
        return Err(ApiError::bad_request(message).hint("adopt a provider's, or a host: ssh://root@HOST"));
    }
    if request.host_key.is_some() {
        return Err(ApiError::bad_request("only a host that is reached over SSH has a host key to say"));
    }
    // It stands in paths of the provider's API.
    let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    let machine = &request.machine;
    if machine.is_empty() || machine.len() > PLACE_NAME_MAX_BYTES || !machine.bytes().all(plain) {
        return Err(ApiError::bad_request(format!("{machine:?} is no provider's id of a machine"))
            .hint("its console or its own client shows it"));
    }
    Ok(())
}

fn name(name: Option<&MachineName>) -> ApiResult<()> {
    match name {
        Some(name) if name.as_str().parse::<MachineId>().is_ok() => {
            Err(ApiError::bad_request(format!("the name {name} looks like a machine's id"))
                .hint("choose a name that is not 32 hexadecimal digits"))
        }
        Some(_) | None => Ok(()),
    }
}

/// Longest name of a region, size or image, in bytes: providers' have some twenty.
const PLACE_NAME_MAX_BYTES: usize = 128;

/// What is said of a place goes with a provider, and what the provider decides is not said twice.
fn place(spec: &MachineSpec) -> ApiResult<()> {
    let at_provider = match spec.driver {
        Some(DriverName::DigitalOcean | DriverName::Proxmox | DriverName::Exec) => true,
        Some(DriverName::Ssh) => return host(spec),
        Some(DriverName::Sandbox | DriverName::Qemu) | None => false,
    };
    let Some(place) = &spec.place else {
        if at_provider {
            return Err(ApiError::bad_request(
                "a provider needs to know where and how large the machine shall be",
            )
            .hint("say `--on PROVIDER/REGION --size SIZE`"));
        }
        return Ok(());
    };
    if !at_provider {
        return Err(ApiError::bad_request("only a provider can make a machine in a region")
            .hint("leave `place` out, or ask for a provider as its driver"));
    }
    if place.host_key.is_some() {
        return Err(ApiError::bad_request("only a host that is borrowed over SSH has a host key to say"));
    }
    // A plugin is named with its region, and may have but one size.
    let plugin = spec.driver == Some(DriverName::Exec);
    let size = Some(&place.size).filter(|size| !(plugin && size.is_empty()));
    for name in [&place.region].into_iter().chain(size).chain(&place.image) {
        let plain =
            |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.') || (plugin && c == b'/');
        if name.is_empty() || name.len() > PLACE_NAME_MAX_BYTES || !name.bytes().all(plain) {
            return Err(ApiError::bad_request(format!("{name:?} is no name of a region, size or image")));
        }
    }
    if spec.store.is_some() {
        return Err(ApiError::bad_request("a machine at a provider gets its closure over its agent's link")
            .hint("leave `store` out"));
    }
    if spec.limits != Limits::default() {
        return Err(ApiError::bad_request("what a machine at a provider may use is said by its size")
            .hint("leave the limits out, or choose another size"));
    }
    if spec.network == Network::None {
        return Err(ApiError::bad_request("a machine at a provider has a network").hint("say `host`"));
    }
    Ok(())
}

/// How a host is reached, and by which key it is known.
fn target(host: &str, key: Option<&str>) -> ApiResult<()> {
    host.parse::<Target>()
        .map_err(|error| ApiError::bad_request(error.to_string()).hint("such as ssh://root@pi.example"))?;
    match key.map(str::parse::<HostKey>) {
        Some(Err(error)) => Err(ApiError::bad_request(error.to_string())),
        Some(Ok(_)) | None => Ok(()),
    }
}

/// A host that is there already has no size and no image, and what a machine may use of it is said as for a sandbox.
fn host(spec: &MachineSpec) -> ApiResult<()> {
    let Some(place) = &spec.place else {
        return Err(ApiError::bad_request("the host is not named").hint("say `--on ssh://root@HOST`"));
    };
    target(&place.region, place.host_key.as_deref())?;
    if !place.size.is_empty() || place.image.is_some() {
        return Err(ApiError::bad_request("a host that is there already has no size and no image to choose")
            .hint("leave `size` and `image` out"));
    }
    if spec.store.is_some() {
        return Err(
            ApiError::bad_request("a borrowed host gets its closure over SSH").hint("leave `store` out")
        );
    }
    Ok(())
}

/// The grace of a stop.
pub fn grace(grace_ms: u64) -> ApiResult<Duration> {
    let grace = Duration::from_millis(grace_ms);
    if grace <= GRACE_MAX {
        return Ok(grace);
    }
    Err(ApiError::bad_request(format!("a grace of {grace_ms} ms is over the longest, {}", text(GRACE_MAX)))
        .hint("give a shorter one, such as `--grace 30s`"))
}

/// The time that a lease is extended by.
pub fn extension(by_ms: u64) -> ApiResult<Duration> {
    ttl(by_ms)
}

fn split(path: &str) -> ApiResult<(StorePath, &str)> {
    let unclean = path.split('/').any(|part| part == ".." || part == ".");
    match StorePath::split(path) {
        Ok(split) if !unclean && !path.contains('\0') => Ok(split),
        Ok(_) => Err(ApiError::bad_request(format!("the program's path {path:?} is not plain"))
            .hint("give it without `.` and `..`")),
        Err(error) => Err(ApiError::bad_request(format!("the program cannot be run: {error}"))
            .hint("give a path inside a store path, such as /nix/store/…-hello-2.12/bin/hello")),
    }
}

fn lease(ttl_ms: Option<u64>, grace_ms: Option<u64>) -> ApiResult<()> {
    ttl_ms.map(ttl).transpose()?;
    grace_ms.map(grace).transpose()?;
    Ok(())
}

fn ttl(ms: u64) -> ApiResult<Duration> {
    let ttl = Duration::from_millis(ms);
    if (TTL_MIN..=TTL_MAX).contains(&ttl) {
        return Ok(ttl);
    }
    Err(ApiError::bad_request(format!(
        "a lease of {ms} ms is not between {} and {}",
        text(TTL_MIN),
        text(TTL_MAX)
    ))
    .hint("give a time such as 30m, or `none` for a machine that lives until it is removed"))
}

fn workload(spec: &MachineSpec) -> ApiResult<()> {
    match (&spec.workload, spec.kind) {
        (Workload::Program(_), Kind::System) => {
            return Err(ApiError::bad_request("a machine of kind system runs a system, not a program")
                .hint("use the kind job or service, or give a system's store path"));
        }
        (Workload::Adopted { .. }, _) => {
            return Err(ApiError::bad_request("a machine that is there already is not made but adopted")
                .hint("ask at /v1/adoptions, as `calve adopt` does"));
        }
        (Workload::System { .. } | Workload::Base, Kind::Job | Kind::Service) => {
            return Err(ApiError::bad_request(format!("a machine of kind {} runs a program", spec.kind))
                .hint("use the kind system, or name a program"));
        }
        _ => {}
    }
    if spec.kind != Kind::Service && spec.restart == Restart::Always {
        return Err(ApiError::bad_request(format!(
            "a {} is not started again after it succeeded",
            spec.kind
        ))
        .hint("use the kind service, or the restart policy on-failure"));
    }
    if spec.driver == Some(DriverName::Sandbox) && matches!(spec.workload, Workload::System { .. }) {
        return Err(ApiError::new(
            calve_wire::api::ProblemKind::Unusable,
            "a system needs a kernel of its own, which the sandbox driver does not give",
        )
        .hint("use `--driver qemu`"));
    }
    match &spec.workload {
        Workload::Program(program) => self::program(program),
        Workload::System { .. } | Workload::Base | Workload::Adopted { .. } => Ok(()),
    }
}

fn program(program: &Program) -> ApiResult<()> {
    split(&program.path)?;
    if let Some(cwd) = &program.cwd
        && !cwd.starts_with('/')
    {
        return Err(ApiError::bad_request(format!("the working directory {cwd:?} is not absolute")));
    }
    if program.work_tree.is_some() && program.cwd.is_none() {
        return Err(ApiError::bad_request("`work_tree` needs `cwd`, the directory that it is copied to"));
    }
    let mut total = 0;
    for (what, text) in texts(program) {
        if text.contains('\0') {
            return Err(ApiError::bad_request(format!(
                "{what} holds a zero byte, which no program can be given"
            )));
        }
        if text.len() > ARG_MAX_BYTES {
            return Err(ApiError::bad_request(format!(
                "{what} has {} bytes, the kernel takes at most {ARG_MAX_BYTES} in one",
                text.len()
            ))
            .hint("put it into a file of the closure"));
        }
        total += text.len() + 1;
    }
    if let Some(name) = program.env.keys().find(|name| name.is_empty() || name.contains('=')) {
        return Err(ApiError::bad_request(format!("{name:?} cannot be the name of an environment variable")));
    }
    if total > ENV_MAX_BYTES {
        return Err(ApiError::bad_request(format!(
            "the environment and arguments have {total} bytes together, at most {ENV_MAX_BYTES} can be given"
        ))
        .hint("put them into a file of the closure"));
    }
    Ok(())
}

/// Every text that the kernel takes for the program.
fn texts(program: &Program) -> impl Iterator<Item = (String, &str)> {
    let args = program.args.iter().enumerate().map(|(n, arg)| (format!("argument {}", n + 1), arg.as_str()));
    let names =
        program.env.keys().map(|name| ("the name of an environment variable".to_owned(), name.as_str()));
    let values = program
        .env
        .iter()
        .map(|(name, value)| (format!("the environment variable {}", brief(name)), value.as_str()));
    let cwd = program.cwd.iter().map(|cwd| ("the working directory".to_owned(), cwd.as_str()));
    args.chain(names).chain(values).chain(cwd)
}

/// The beginning of a name that may be of any length.
fn brief(name: &str) -> String {
    const SHOWN_CHARS: usize = 60;
    match name.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}

/// CPUs as people write them: 0.5, 2.
fn cpus(milli: u32) -> String {
    format!("{}", f64::from(milli) / 1000.0)
}

fn limits(limits: &Limits) -> ApiResult<()> {
    if let Some(milli) = limits.cpus_milli
        && !(CPUS_MIN_MILLI..=CPUS_MAX_MILLI).contains(&milli)
    {
        return Err(ApiError::bad_request(format!(
            "a machine has {} to {} CPUs, not {}",
            cpus(CPUS_MIN_MILLI),
            cpus(CPUS_MAX_MILLI),
            cpus(milli)
        )));
    }
    if let Some(bytes) = limits.memory_bytes
        && !(MEMORY_MIN_BYTES..=MEMORY_MAX_BYTES).contains(&bytes)
    {
        return Err(ApiError::bad_request(format!(
            "a machine has {} MiB to {} TiB of memory, not {bytes} bytes",
            MEMORY_MIN_BYTES >> 20,
            MEMORY_MAX_BYTES >> 40
        ))
        .hint("give a size such as 256M"));
    }
    if limits.pids == Some(0) {
        return Err(ApiError::bad_request("a machine without processes can run nothing")
            .hint("give at least one process, or no limit"));
    }
    Ok(())
}

fn ports(ports: &[PortMapping]) -> ApiResult<()> {
    if ports.len() > PORTS_MAX {
        return Err(ApiError::bad_request(format!(
            "{} ports are to be published, at most {PORTS_MAX} can be",
            ports.len()
        )));
    }
    for (n, port) in ports.iter().enumerate() {
        if port.machine_port == 0 {
            return Err(ApiError::bad_request("port 0 of a machine cannot be published"));
        }
        let same = |other: &PortMapping| {
            other.host_port == port.host_port && port.host_port != 0 && other.host_addr == port.host_addr
        };
        if ports[..n].iter().any(same) {
            return Err(ApiError::bad_request(format!(
                "port {} of {} is published twice",
                port.host_port, port.host_addr
            )));
        }
    }
    Ok(())
}

fn health(check: &HealthCheck) -> ApiResult<()> {
    let times = [("interval", check.interval_ms, HEALTH_INTERVAL_MIN_MS), ("timeout", check.timeout_ms, 1)];
    for (name, ms, least) in times {
        if !(least..=HEALTH_TIME_MAX_MS).contains(&ms) {
            return Err(ApiError::bad_request(format!(
                "a health check's {name} of {ms} ms is not between {least} and {HEALTH_TIME_MAX_MS}"
            )));
        }
    }
    if check.retries == 0 {
        return Err(ApiError::bad_request("a health check needs at least one try"));
    }
    let fault = match &check.probe {
        Probe::Command { argv } if argv.first().is_none_or(String::is_empty) => "names no command",
        Probe::Command { argv } if argv.iter().any(|arg| arg.contains('\0')) => "holds a zero byte",
        Probe::Tcp { port: 0 } | Probe::Http { port: 0, .. } => "names port 0",
        Probe::Http { path, .. } if !path.starts_with('/') => "has a path that does not begin with a slash",
        Probe::Http { path, .. } if path.bytes().any(|byte| byte <= b' ' || byte == 127) => {
            "has a path with spaces or control characters"
        }
        _ => return Ok(()),
    };
    Err(ApiError::bad_request(format!("the health check {fault}")))
}

fn record_size(spec: &MachineSpec) -> ApiResult<()> {
    let most = VALUE_MAX_BYTES - RECORD_ROOM_BYTES;
    let size = serde_json::to_vec(spec).map_or(usize::MAX, |json| json.len());
    if size <= most {
        return Ok(());
    }
    Err(ApiError::bad_request(format!(
        "the machine's description has {size} bytes, at most {most} can be stored"
    ))
    .hint("put the environment and arguments into a file of the closure"))
}

fn text(duration: Duration) -> String {
    match duration.as_secs() {
        seconds if seconds >= 48 * 3600 => format!("{} days", seconds / (24 * 3600)),
        seconds if seconds >= 7200 => format!("{} hours", seconds / 3600),
        seconds => format!("{seconds} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const HELLO: &str = "/nix/store/0c0bcb7wpc9kyvnmw8f1x0jyb9y0z8kq-hello-2.12/bin/hello";

    fn request() -> Value {
        json!({
            "spec": {
                "kind": "job", "restart": "never", "network": "none",
                "workload": {"type": "program", "path": HELLO},
            },
            "ttl_ms": 60_000,
        })
    }

    /// The refusal's sentence; empty where there is none.
    fn refusal(change: impl FnOnce(&mut Value)) -> String {
        let mut request = request();
        change(&mut request);
        let request: CreateMachine = serde_json::from_value(request).expect("of the right types");
        check(&request).err().map_or(String::new(), |error| error.0.title)
    }

    #[test]
    fn a_plain_request_passes_and_names_its_roots() {
        assert_eq!(refusal(|_| {}), "");
        let request: CreateMachine = serde_json::from_value(request()).unwrap();
        assert_eq!(crate::world::roots(&request.spec)[0].name(), "hello-2.12");
    }

    #[test]
    fn each_limit_has_its_sentence() {
        let cases: [(&str, Value, &str); 15] = [
            ("/ttl_ms", json!(999), "a lease of 999 ms is not between 1 s and 366 days"),
            ("/ttl_ms", json!(u64::MAX), "is not between"),
            ("/grace_ms", json!(3_600_001), "over the longest, 3600 s"),
            ("/name", json!("0".repeat(32)), "looks like a machine's id"),
            ("/spec/kind", json!("system"), "runs a system, not a program"),
            ("/spec/restart", json!("always"), "not started again"),
            ("/spec/workload/path", json!("/usr/bin/env"), "is not inside /nix/store"),
            ("/spec/workload/path", json!(HELLO.replace("bin", "..")), "is not plain"),
            ("/spec/workload/cwd", json!("tmp"), "is not absolute"),
            ("/spec/workload/args", json!(["a\0b"]), "argument 1 holds a zero byte"),
            (
                "/spec/workload/env",
                json!({"A": "x".repeat(200_000)}),
                "the environment variable A has 200000 bytes",
            ),
            ("/spec/workload/env", json!({"A=B": ""}), "cannot be the name"),
            ("/spec/store", json!("live"), "for guests only"),
            ("/spec/limits", json!({"pids": 0}), "without processes"),
            ("/spec/limits", json!({"memory_bytes": 1}), "1 MiB to 1024 TiB of memory"),
        ];
        for (pointer, value, sentence) in cases {
            let found = refusal(|request| set(request, pointer, value));
            assert!(found.contains(sentence), "{pointer}: {found:?} lacks {sentence:?}");
        }
    }

    #[test]
    fn many_variables_of_a_fair_size_are_too_much_together() {
        let env: serde_json::Map<_, _> =
            (0..100).map(|n| (format!("V{n}"), json!("x".repeat(100_000)))).collect();
        let found = refusal(|request| set(request, "/spec/workload/env", Value::Object(env)));
        assert!(found.contains("bytes together"), "{found}");
    }

    #[test]
    fn ports_and_probes_are_checked() {
        let port =
            |host, machine| json!({"host_addr": "127.0.0.1", "host_port": host, "machine_port": machine});
        let twice = refusal(|r| set(r, "/spec/ports", json!([port(80, 1), port(80, 2)])));
        assert_eq!(twice, "port 80 of 127.0.0.1 is published twice");
        assert_eq!(refusal(|r| set(r, "/spec/ports", json!([port(0, 1), port(0, 2)]))), "");
        let probe = |probe: Value| {
            let check = json!({"probe": probe, "interval_ms": 1000, "timeout_ms": 1, "retries": 1});
            refusal(|r| set(r, "/spec/health", check))
        };
        assert_eq!(probe(json!({"type": "tcp", "port": 80})), "");
        assert_eq!(probe(json!({"type": "tcp", "port": 0})), "the health check names port 0");
        assert!(probe(json!({"type": "http", "port": 1, "path": "x"})).contains("begin with a slash"));
        assert!(probe(json!({"type": "command", "argv": []})).contains("names no command"));
    }

    fn set(request: &mut Value, pointer: &str, value: Value) {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        request.pointer_mut(parent).unwrap().as_object_mut().unwrap().insert(key.to_owned(), value);
    }
}
