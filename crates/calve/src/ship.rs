//! Bringing a closure to a server that does not have it: pushed to the server's cache, from where the server takes it into
//! its own store.

use std::sync::Arc;

use calve_server::memory;
use calve_server::world::roots;
use calve_store::index::LocalIndex;
use calve_store::progress::Progress;
use calve_store::push::{PushOptions, push};
use calve_store::remote::RemoteError;
use calve_store::{StoreError, TransferError, at_hand_to_push};
use calve_wire::api::CreateMachine;
use calve_wire::machine::StoreDelivery;

use crate::args::show_size;
use crate::caches;
use crate::client::Client;
use crate::failure::{ExitStatus, Failure, Outcome};
use crate::resolve;
use crate::ui::{self, Transfer};

/// Variable that has closures shipped also to a server that has them, with the value `always`: for tests.
const FORCE: &str = "CALVE_SHIP";

/// Whether closures are shipped without asking first whether the server has them.
pub fn is_forced() -> bool {
    std::env::var_os(FORCE).is_some_and(|value| value == "always")
}

/// Whether the server refused the machine because it lacks the closure.
pub fn may_help(refusal: &Failure, request: &CreateMachine) -> bool {
    let lazy = request.spec.store == Some(StoreDelivery::Lazy);
    refusal.status == ExitStatus::NotFound && !lazy && !roots(&request.spec).is_empty()
}

/// Pushes what the machine runs to the server's cache: only what it lacks moves. `refusal` is what the server said of the
/// closure; it is the better answer where it is not here either.
pub async fn ship(client: &Client, request: &CreateMachine, refusal: Option<Failure>) -> Outcome<()> {
    memory::keep();
    let remote = at_hand_to_push(client.cache()?).await;
    let store = Arc::new(resolve::store()?);
    let index: Option<Arc<LocalIndex>> = caches::chunk_index()?;
    let progress = Arc::new(Progress::default());
    let options = PushOptions { index, ..PushOptions::default() };
    let roots = roots(&request.spec);
    let pushing = push(store, &roots, remote, options, progress.clone());
    let pushed = Transfer::show(&format!("sending to {}", client.server()), &progress, pushing).await;
    // What follows may wait for hours.
    memory::trim();
    match (pushed, refusal) {
        (Ok(pushed), _) => {
            if !pushed.is_empty() {
                let (paths, bytes) = (progress.paths.get(), show_size(progress.bytes_moved.get()));
                ui::note(&format!("sent {} of {paths} paths to {}, {bytes}", pushed.len(), client.server()));
            }
            Ok(())
        }
        (Err(TransferError::Store(StoreError::Unknown { .. })), Some(refusal)) => Err(refusal),
        (Err(TransferError::Remote(error @ RemoteError::Denied { .. })), _) => {
            Err(Failure::failed(error.to_string()).hint("set CALVE_TOKEN to the server's token"))
        }
        (Err(error), _) => Err(caches::transfer_failed(error)),
    }
}
