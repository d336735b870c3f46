//! Good clients of `/v1` beside hostile ones: their requests stay within what is promised of read verbs.

use std::net::TcpStream;

use soak::load::{Hostile, measure as ask, under_load};

use crate::Effort;
use crate::home::{Home, free_address, serve};
use crate::reads::READ_MS;
use crate::table::Table;
use crate::times::{Times, millis};

/// Hostile clients of each kind at once.
const OF_EACH: usize = 6;
/// Requests of good clients for each call of a read verb.
const REQUESTS_EACH: usize = 10;

pub fn measure(effort: Effort, table: &mut Table) -> anyhow::Result<()> {
    let home = Home::new()?;
    let address = free_address()?;
    let token_file = home.path().join("token");
    let mut command = home.command(&["server", "--listen", &address.to_string(), "--token-file"]);
    let mut server = serve(command.arg(&token_file), || TcpStream::connect(address).is_ok())?;
    let token = std::fs::read_to_string(token_file)?.trim().to_owned();
    let requests = effort.reads * REQUESTS_EACH;
    let alone = Times::from(ask(address, &token, requests));
    let (beside, done) = under_load(address, &token, OF_EACH, || ask(address, &token, requests));
    let beside = Times::from(beside);
    let p99 = beside.quantile(99);
    let clients = OF_EACH * Hostile::ALL.len();
    let ours = format!(
        "{} (p50 {}; alone {} and {})",
        millis(p99),
        millis(beside.median()),
        millis(alone.quantile(99)),
        millis(alone.median())
    );
    let what = format!("GET /v1/machines beside {clients} hostile clients with {done} attacks, p99");
    table.limit(&what, ours, p99.as_secs_f64() * 1000.0, READ_MS, "ms");
    home.calve(&["server", "stop"])?;
    server.wait()?;
    Ok(())
}
