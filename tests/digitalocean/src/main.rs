//! `digitalocean-emulator [--listen ADDR:PORT] [--latency-ms N] [--list-lag-ms N]`: serves until it is ended; says its address
//! and its token as the variables that calve reads.

use std::time::Duration;

use anyhow::{Context, bail};
use digitalocean_emulator::{Emulator, Options, TOKEN};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut options = Options::default();
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{name} needs a value"))?;
        let time = || value.parse().map(Duration::from_millis);
        match name.as_str() {
            "--listen" => options.listen = value.parse()?,
            "--latency-ms" => options.latency = time()?,
            "--list-lag-ms" => options.list_lag = time()?,
            _ => bail!("{name} is not known"),
        }
    }
    let emulator = Emulator::start(options).await?;
    println!("DIGITALOCEAN_API_URL={}", emulator.url);
    println!("DIGITALOCEAN_TOKEN={TOKEN}");
    emulator.serve().await;
    Ok(())
}
