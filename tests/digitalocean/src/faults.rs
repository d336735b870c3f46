//! What goes wrong on purpose.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A fault of one kind of request.
#[derive(Debug, Clone)]
pub struct Fault {
    /// The method, in capitals.
    pub method: &'static str,
    /// What the path begins with, e.g. `/v2/droplets`.
    pub path: &'static str,
    /// What happens.
    pub kind: FaultKind,
    /// To how many requests.
    pub times: u32,
}

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// Answered with this status; nothing is done.
    FailBefore(u16),
    /// Done, and answered with this status.
    FailAfter(u16),
    /// Done, and the connection breaks in the middle of the answer.
    LoseReply,
    /// Refused for the rate for so many seconds; nothing is done.
    RateLimited(u64),
}

/// Faults to come.
#[derive(Debug, Default)]
pub struct Plans(Vec<Fault>);

impl Plans {
    /// The next requests that it fits to meet this fault.
    pub fn plan(&mut self, fault: Fault) {
        self.0.push(fault);
    }

    /// The fault that a request meets, if it does.
    pub fn of(&mut self, method: &str, path: &str) -> Option<FaultKind> {
        let at = self.0.iter().position(|plan| plan.method == method && path.starts_with(plan.path))?;
        let kind = self.0[at].kind;
        self.0[at].times -= 1;
        if self.0[at].times == 0 {
            self.0.remove(at);
        }
        Some(kind)
    }
}

/// Plans, and the rate of requests.
pub(crate) struct Faults {
    pub plans: Plans,
    rate: Option<(u32, Duration)>,
    recent: VecDeque<Instant>,
    pub refused_for_rate: usize,
    pub requests: usize,
}

/// How a request stands with the rate.
pub(crate) struct Rate {
    pub limit: u32,
    pub remaining: u32,
    pub reset_in: Duration,
    pub refused: bool,
}

impl Faults {
    pub fn new(rate: Option<(u32, Duration)>) -> Self {
        Self { plans: Plans::default(), rate, recent: VecDeque::new(), refused_for_rate: 0, requests: 0 }
    }

    /// Counts a request.
    pub fn count(&mut self) -> Rate {
        /// What DigitalOcean grants in an hour.
        const HOURLY: u32 = 5000;
        self.requests += 1;
        let Some((limit, window)) = self.rate else {
            let reset_in = Duration::from_secs(3600);
            return Rate { limit: HOURLY, remaining: HOURLY - 1, reset_in, refused: false };
        };
        let now = Instant::now();
        while self.recent.front().is_some_and(|at| now.duration_since(*at) >= window) {
            self.recent.pop_front();
        }
        let reset_in =
            self.recent.front().map_or(window, |at| window.saturating_sub(now.duration_since(*at)));
        let refused = self.recent.len() as u32 >= limit;
        if refused {
            self.refused_for_rate += 1;
        } else {
            self.recent.push_back(now);
        }
        Rate { limit, remaining: limit - self.recent.len() as u32, reset_in, refused }
    }
}
