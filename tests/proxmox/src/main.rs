//! `proxmox-emulator [--listen ADDR:PORT] [--latency-ms N] [--task-ms N] [--clone-ms N]`: serves until it is ended; says its
//! address, its token and its certificate's fingerprint as the variables that calve reads.

use std::time::Duration;

use anyhow::{Context, bail};
use proxmox_emulator::{Emulator, Options, TOKEN};

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
            "--task-ms" => options.task = time()?,
            "--clone-ms" => options.clone = time()?,
            _ => bail!("{name} is not known"),
        }
    }
    let emulator = Emulator::start(options).await?;
    println!("PROXMOX_API_URL={}", emulator.url);
    println!("PROXMOX_TOKEN='{TOKEN}'");
    println!("PROXMOX_FINGERPRINT={}", emulator.fingerprint);
    emulator.serve().await;
    Ok(())
}
