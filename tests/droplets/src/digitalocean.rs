//! Droplets: what they shall be is told by the metadata service.

use std::net::TcpListener;

use axum::Router;
use axum::routing::get;
use digitalocean_emulator::{Backing, Droplet};
use serde_json::json;
use tokio::task::JoinHandle;

use crate::{Guests, HOST_FROM_GUEST, Source};

impl Backing for Guests {
    fn created(&self, droplet: &Droplet) {
        let (port, serving) =
            self.serve(droplet).unwrap_or_else(|error| panic!("droplet {}: {error:#}", droplet.id));
        self.start(droplet.id, Source::Metadata { port, serving });
    }

    fn destroyed(&self, id: u64) {
        self.end(id);
    }
}

impl Guests {
    /// Serves a droplet's metadata.
    fn serve(&self, droplet: &Droplet) -> anyhow::Result<(u16, JoinHandle<()>)> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let router = metadata(droplet);
        let serving = self.runtime.spawn(async move {
            if let Ok(listener) = tokio::net::TcpListener::from_std(listener) {
                let _ = axum::serve(listener, router).await;
            }
        });
        Ok((port, serving))
    }
}

/// What the metadata service says to one droplet.
fn metadata(droplet: &Droplet) -> Router {
    let document = json!({
        "droplet_id": droplet.id, "hostname": droplet.name, "region": droplet.region, "user_data": droplet.user_data,
        "public_keys": [], "tags": [], "features": {}, "dns": {"nameservers": ["169.254.2.3"]},
        "interfaces": {"public": [{"type": "public", "mac": "52:54:00:12:34:56", "ipv4": {
            "ip_address": "169.254.0.16", "netmask": "255.255.0.0", "gateway": HOST_FROM_GUEST,
        }}]},
    })
    .to_string();
    let (id, user_data) = (droplet.id.to_string(), droplet.user_data.clone());
    Router::new()
        .route("/metadata/v1.json", get(async move || document))
        .route("/metadata/v1/id", get(async move || id))
        .route("/metadata/v1/user-data", get(async move || user_data))
}
