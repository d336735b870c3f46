//! Which connections there are: a server with any is not idle.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use tokio::sync::watch;

use crate::api::ApiError;

/// Counts connections. Cloning gives another handle.
#[derive(Debug, Clone)]
pub struct Connections {
    count: watch::Sender<usize>,
}

/// A connection; it counts until the last clone of this is dropped, so also for the socket that it was upgraded to.
#[derive(Debug, Clone)]
pub struct Connection {
    _counted: Arc<Counted>,
}

#[derive(Debug)]
struct Counted(watch::Sender<usize>);

impl Default for Connections {
    fn default() -> Self {
        Self { count: watch::Sender::new(0) }
    }
}

impl Connections {
    /// Counts one more.
    pub fn enter(&self) -> Connection {
        self.count.send_modify(|count| *count += 1);
        Connection { _counted: Arc::new(Counted(self.count.clone())) }
    }

    /// Their number, as it changes.
    pub fn watch(&self) -> watch::Receiver<usize> {
        self.count.subscribe()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Connection {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let connection = parts.extensions.get::<Self>().cloned();
        connection.ok_or_else(|| {
            ApiError::new(calve_wire::api::ProblemKind::Internal, "the request came without a connection")
        })
    }
}
