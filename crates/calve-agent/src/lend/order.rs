//! Making a machine on the host.

use std::fs::{self, File};
use std::io::{self, BufRead, Read};

use calve_agent::seed;
use calve_wire::agent::{SandboxFailure, SandboxFailureKind, StoreMount};
use calve_wire::lend::{LEND_LINE_MAX_BYTES, LEND_VERSION, LendOrder, Lent};

use super::base::{Base, Machine, is_plain};
use super::{end, failed, keeper, say};
use crate::agent::unix_ms;

/// Takes the order and the missing store paths from standard input, and makes the machine. On failure nothing is left.
pub fn lend(base: &Base) -> Result<(), SandboxFailure> {
    let mut input = io::stdin().lock();
    let mut order = read(&mut input)?;
    // The lease counts from here on, by this host's clock.
    order.spec.written_unix_ms = unix_ms();
    let machine = base.machine(&order.spec.machine_id)?;
    let Some(lock) = claim(base, &machine, &order)? else { return Ok(()) };
    let made = base.keep_agent().and_then(|()| bring(base, &order, &mut input)).and_then(|spec_order| {
        let json = serde_json::to_vec(&spec_order.spec).expect("names and numbers");
        fs::write(machine.dir.join("sandbox.json"), json)
            .map_err(failed("the machine's directory cannot be written"))?;
        keeper::keep(base, &machine, &lock)
    });
    if made.is_err() {
        // The keeper has done so already, where it was there.
        drop(lock);
        base.vacate(base.count()?);
    }
    made
}

fn read(input: &mut impl BufRead) -> Result<LendOrder, SandboxFailure> {
    let mut line = Vec::new();
    input
        .take(LEND_LINE_MAX_BYTES as u64)
        .read_until(b'\n', &mut line)
        .map_err(failed("the order cannot be read"))?;
    let order: LendOrder = serde_json::from_slice(&line)
        .map_err(|error| unusable(format!("the order makes no sense: {error}")))?;
    if order.version != LEND_VERSION {
        return Err(unusable(format!(
            "the order has version {}, this agent takes {LEND_VERSION}",
            order.version
        )));
    }
    match order.spec.store_paths.iter().find(|path| !is_plain(&path.base_name)) {
        Some(bad) => Err(unusable(format!("{:?} is no name of a store path", bad.base_name))),
        None => Ok(order),
    }
}

fn unusable(message: String) -> SandboxFailure {
    SandboxFailure { kind: SandboxFailureKind::Unusable, message, hint: None }
}

/// Takes note of the machine; another attempt at it is ended before. None where it is there already.
fn claim(base: &Base, machine: &Machine, order: &LendOrder) -> Result<Option<File>, SandboxFailure> {
    let unwritable = || failed("the machine's directory cannot be written");
    loop {
        let counting = base.count()?;
        base.sweep(&counting);
        if machine.dir.exists() {
            let there = machine.order().is_some_and(|there| there.attempt == order.attempt);
            if there && machine.dir.join(keeper::READY).exists() {
                return Ok(None);
            }
            drop(counting);
            end::end(base, machine)?;
            continue;
        }
        let lock = machine.make().map_err(unwritable())?;
        keeper::note(machine, "keeper.json", std::process::id().cast_signed()).map_err(unwritable())?;
        let json = serde_json::to_vec(&order).expect("names and numbers");
        fs::write(machine.dir.join("lend.json"), json).map_err(unwritable())?;
        return Ok(Some(lock));
    }
}

/// Gets the store paths that are not there. Gives the order with the places where they lie.
fn bring(base: &Base, order: &LendOrder, input: &mut impl Read) -> Result<LendOrder, SandboxFailure> {
    let names = order.spec.store_paths.iter().map(|path| &path.base_name);
    let missing: Vec<String> =
        names.filter(|name| fs::symlink_metadata(base.store_path(name)).is_err()).cloned().collect();
    say(&Lent::Missing { paths: missing.clone() });
    let prefix = format!(".{}.", order.spec.machine_id);
    seed::receive(&base.path().join("store"), &prefix, input)
        .map_err(failed("the closure cannot be unpacked"))?;
    if let Some(name) = missing.iter().find(|name| fs::symlink_metadata(base.store_path(name)).is_err()) {
        return Err(unusable(format!("the closure came without {name}")));
    }
    let mut order = order.clone();
    for path in &mut order.spec.store_paths {
        let lies = base.store_path(&path.base_name);
        let source = lies.to_str().ok_or_else(|| unusable(format!("{} is no UTF-8", lies.display())))?;
        *path = StoreMount { source: source.to_owned(), base_name: path.base_name.clone() };
    }
    Ok(order)
}
