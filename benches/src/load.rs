//! Good clients of `/v1` beside hostile ones: their requests stay within what is promised of read verbs.

use std::net::TcpListener;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::ensure;
use soak::load::{Hostile, measure as ask, under_load};

use crate::Effort;
use crate::home::Home;
use crate::reads::READ_MS;
use crate::table::Table;
use crate::times::millis;

/// Hostile clients of each kind at once.
const OF_EACH: usize = 6;
/// Requests of good clients for each call of a read verb.
const REQUESTS_EACH: usize = 10;
/// How long the server may take to listen.
const LISTENS_MAX: Duration = Duration::from_secs(30);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(20);

pub fn measure(effort: Effort, table: &mut Table) -> anyhow::Result<()> {
    let home = Home::new()?;
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let token_file = home.path().join("token");
    let mut command = home.command(&["server", "--listen", &address.to_string(), "--token-file"]);
    command.arg(&token_file).stdout(Stdio::null()).stderr(Stdio::null());
    let mut server = command.spawn()?;
    let until = Instant::now() + LISTENS_MAX;
    while std::net::TcpStream::connect(address).is_err() {
        ensure!(server.try_wait()?.is_none() && Instant::now() < until, "the server does not listen");
        std::thread::sleep(PAUSE);
    }
    let token = std::fs::read_to_string(token_file)?.trim().to_owned();
    let requests = effort.reads * REQUESTS_EACH;
    let alone = ask(address, &token, requests);
    let (beside, done) = under_load(address, &token, OF_EACH, || ask(address, &token, requests));
    let quantile = |took: &[Duration], percent: usize| took[(took.len() * percent / 100).min(took.len() - 1)];
    let (p99, p50) = (quantile(&beside, 99), quantile(&beside, 50));
    let clients = OF_EACH * Hostile::ALL.len();
    let ours = format!(
        "{} (p50 {}; alone {} and {})",
        millis(p99),
        millis(p50),
        millis(quantile(&alone, 99)),
        millis(quantile(&alone, 50))
    );
    let what = format!("GET /v1/machines beside {clients} hostile clients with {done} attacks, p99");
    table.limit(&what, ours, p99.as_secs_f64() * 1000.0, READ_MS, "ms");
    home.calve(&["server", "stop"])?;
    server.wait()?;
    Ok(())
}
