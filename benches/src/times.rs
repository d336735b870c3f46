//! Many measurements of one thing.

use std::time::Duration;

/// Durations, sorted once they are asked about.
#[derive(Default, Clone)]
pub struct Times(Vec<Duration>);

impl Times {
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    pub fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    pub fn median(&self) -> Duration {
        self.quantile(50)
    }

    /// The time that `percent` of the measurements do not exceed (nearest rank).
    pub fn quantile(&self, percent: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort();
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted[rank - 1]
    }
}

impl From<Vec<Duration>> for Times {
    fn from(times: Vec<Duration>) -> Self {
        Self(times)
    }
}

/// In milliseconds, for people.
pub fn millis(time: Duration) -> String {
    let millis = time.as_secs_f64() * 1000.0;
    if millis < 100.0 { format!("{millis:.2} ms") } else { format!("{millis:.0} ms") }
}
