//! Caches whose process runs on the host of whoever asks.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use crate::HttpRemote;
use crate::cache::Cache;
use crate::remote::Remote;

/// How long a cache may take to say where it lies: one that is too busy is asked everything else as well.
const TOLD_WITHIN: Duration = Duration::from_secs(2);

/// The cache itself, where its directory is in the hands of whoever asks, or else the way to it that is given: on one host
/// nothing has to be sent, and nothing to be checked that was worked out here. For pushes only: a pull may want of the cache's
/// process what lies in caches behind it.
pub async fn at_hand(remote: HttpRemote) -> Arc<dyn Remote> {
    if let Ok(Some(directory)) = timeout(TOLD_WITHIN, remote.directory()).await {
        match Cache::open_at(&directory).await {
            Ok(Some(cache)) => return Arc::new(cache),
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(%error, "the cache on this host is asked, as its directory cannot be used");
            }
        }
    }
    Arc::new(remote)
}
