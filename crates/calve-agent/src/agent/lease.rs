//! The lease's two deadlines, by a clock that goes on while the machine sleeps (`CLOCK_BOOTTIME`).

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use calve_wire::agent::Remaining;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;

use super::descriptor::watched;

/// What a lease asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// The deadline: the workload is to be stopped with this grace.
    Stop(Duration),
    /// The grace is over as well: everything is to be destroyed.
    Destroy,
}

/// A lease with its timer.
pub struct Lease {
    timer: AsyncFd<OwnedFd>,
    /// Since boot; none where the lease has no end.
    deadline: Option<Duration>,
    grace: Duration,
    stop_told: bool,
}

impl Lease {
    /// A lease of which this much remains; call inside of the runtime.
    pub fn new(remaining: Remaining) -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = watched(timerfd_create(TimerfdClockId::Boottime, flags)?)?;
        let mut lease = Self { timer, deadline: None, grace: Duration::ZERO, stop_told: false };
        lease.set(remaining)?;
        Ok(lease)
    }

    /// Replaces the lease. A stop that was told already stays told to who was told.
    pub fn set(&mut self, remaining: Remaining) -> io::Result<()> {
        let until = remaining.until_deadline_ms.map(Duration::from_millis);
        self.deadline = until.map(|until| since_boot().saturating_add(until));
        self.grace = Duration::from_millis(remaining.grace_ms);
        self.stop_told = false;
        self.arm()
    }

    /// Waits for what is due next; for ever where the lease has no end. May be cancelled.
    pub async fn due(&mut self) -> io::Result<Due> {
        loop {
            let now = since_boot();
            if let Some(deadline) = self.deadline {
                if now >= deadline.saturating_add(self.grace) {
                    return Ok(Due::Destroy);
                }
                if now >= deadline && !self.stop_told {
                    self.stop_told = true;
                    self.arm()?;
                    return Ok(Due::Stop(self.grace));
                }
            }
            let mut guard = self.timer.readable().await?;
            let mut expirations = [0; 8];
            if let Err(rustix::io::Errno::AGAIN) = rustix::io::read(guard.get_inner(), &mut expirations) {
                guard.clear_ready();
            }
        }
    }

    /// Sets the timer to what is due next; a time of zero would disarm it, so there is a nanosecond at least.
    fn arm(&self) -> io::Result<()> {
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let at = self.deadline.map(|deadline| {
            deadline
                .saturating_add(if self.stop_told { self.grace } else { Duration::ZERO })
                .max(Duration::from_nanos(1))
        });
        let it_value = at.map_or(zero, |at| Timespec {
            tv_sec: at.as_secs().min(i64::MAX as u64).cast_signed(),
            tv_nsec: at.subsec_nanos().into(),
        });
        let timer = Itimerspec { it_interval: zero, it_value };
        timerfd_settime(self.timer.get_ref(), TimerfdTimerFlags::ABSTIME, &timer)?;
        Ok(())
    }
}

fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn the_stop_comes_first_and_the_end_after_the_grace() {
        let mut lease = Lease::new(Remaining { until_deadline_ms: Some(0), grace_ms: 20 }).expect("a timer");
        assert_eq!(lease.due().await.expect("a timer"), Due::Stop(Duration::from_millis(20)));
        assert_eq!(lease.due().await.expect("a timer"), Due::Destroy);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_renewed_lease_is_not_due() {
        let mut lease = Lease::new(Remaining { until_deadline_ms: Some(0), grace_ms: 0 }).expect("a timer");
        lease.set(Remaining { until_deadline_ms: None, grace_ms: 0 }).expect("a timer");
        let due = tokio::time::timeout(Duration::from_millis(20), lease.due()).await;
        assert!(due.is_err());
        lease.set(Remaining { until_deadline_ms: Some(u64::MAX), grace_ms: u64::MAX }).expect("a timer");
        assert!(tokio::time::timeout(Duration::from_millis(20), lease.due()).await.is_err());
    }
}
