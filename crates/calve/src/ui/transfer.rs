//! How far a push or pull has come.

use std::future::Future;
use std::time::Duration;

use calve_store::progress::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::talks_to_people;
use crate::args::show_size;

/// Time between two pictures.
const TICK: Duration = Duration::from_millis(100);

/// A bar for a push or pull.
pub struct Transfer;

impl Transfer {
    /// Draws the progress on standard error, if that is a terminal, until `work` ends.
    pub async fn show<T>(what: &str, progress: &Progress, work: impl Future<Output = T>) -> T {
        if !talks_to_people() {
            return work.await;
        }
        let template = "{spinner} {msg} [{bar:30}] {prefix} {elapsed:.dim}";
        let style = ProgressStyle::with_template(template).expect("a valid template").progress_chars("=> ");
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr()).with_style(style);
        bar.set_message(what.to_owned());
        let mut tick = tokio::time::interval(TICK);
        let mut work = std::pin::pin!(work);
        let done = loop {
            tokio::select! {
                done = &mut work => break done,
                _ = tick.tick() => draw(&bar, progress),
            }
        };
        bar.finish_and_clear();
        done
    }
}

fn draw(bar: &ProgressBar, progress: &Progress) {
    bar.set_length(progress.archive_bytes.get());
    bar.set_position(progress.archive_bytes_done.get());
    let (done, all) = (progress.paths_done.get(), progress.paths.get() - progress.paths_present.get());
    let moved = show_size(progress.bytes_moved.get());
    bar.set_prefix(format!("{done}/{all} paths, {moved} moved"));
    bar.tick();
}
