//! What the host says on the kernel's command line.

use anyhow::{Context as _, bail};
use calve_wire::agent::Remaining;
use calve_wire::guard::CLOUD_PARAMETER as CLOUD;
use calve_wire::start::START_PARAMETER;

/// What this guest shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// Programs run on the first root file system.
    Bare,
    /// This toplevel's init takes over.
    System {
        /// Its store path.
        toplevel: String,
    },
    /// Tells the host that guests boot, and ends.
    Probe,
}

/// Where the closure is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Store {
    /// In an image on this block device.
    Image(String),
    /// In the host's store, shared under this tag.
    Live(String),
}

/// The host's parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameters {
    /// What this guest shall be.
    pub mode: Mode,
    /// Second half of the preamble. Every process of the guest can read it: it opens nothing but the talk with this agent.
    pub token: String,
    /// The machine's name.
    pub hostname: String,
    /// The lease, counted from the start of the kernel.
    pub remaining: Remaining,
    /// Whether there is a network card behind which QEMU answers.
    pub network: bool,
    /// Where the closure is.
    pub store: Option<Store>,
    /// Most processes of the program.
    pub pids: Option<u32>,
    /// Whether the host could not limit the processors, though it should.
    pub cpus_unlimited: bool,
    /// Whether the order to start its program came with the machine.
    pub start: bool,
    /// The host's clock when the machine was made, in milliseconds since the epoch.
    pub unix_ms: Option<u64>,
}

/// Whether this machine is at a provider, where user data take the place of parameters.
pub fn is_cloud() -> anyhow::Result<bool> {
    Ok(command_line()?.split_ascii_whitespace().any(|word| word == CLOUD))
}

fn command_line() -> anyhow::Result<String> {
    std::fs::read_to_string("/proc/cmdline").context("the kernel's command line cannot be read")
}

impl Parameters {
    /// Reads them from `/proc/cmdline`.
    pub fn read() -> anyhow::Result<Self> {
        Self::parse(&command_line()?)
    }

    /// What remains of the lease now: the kernel has been running for a while.
    pub fn remaining_now(&self) -> Remaining {
        let passed_ms = super::clock::now_ms(libc::CLOCK_BOOTTIME);
        let until_deadline_ms = self.remaining.until_deadline_ms.map(|until| until.saturating_sub(passed_ms));
        Remaining { until_deadline_ms, ..self.remaining }
    }

    fn parse(line: &str) -> anyhow::Result<Self> {
        let text = |name: &str| {
            let ours = |word: &str| {
                word.strip_prefix("calve.")?.strip_prefix(name)?.strip_prefix('=').map(str::to_owned)
            };
            line.split_ascii_whitespace().rev().find_map(ours)
        };
        let number = |name: &str| -> anyhow::Result<Option<u64>> {
            text(name)
                .map(|text| text.parse().with_context(|| format!("calve.{name}={text} is no number")))
                .transpose()
        };
        let mode = match text("mode").as_deref() {
            Some("bare") => Mode::Bare,
            Some("probe") => Mode::Probe,
            Some("system") => Mode::System { toplevel: text("system").context("calve.system= is missing")? },
            Some(other) => bail!("calve.mode={other} is not known to this agent"),
            None => bail!("calve.mode= is missing: this kernel was not started by calve"),
        };
        Ok(Self {
            mode,
            token: text("token").context("calve.token= is missing")?,
            hostname: text("name").context("calve.name= is missing")?,
            remaining: Remaining {
                until_deadline_ms: number("ttl_ms")?,
                grace_ms: number("grace_ms")?.unwrap_or(0),
            },
            network: text("net").is_some_and(|net| net == "slirp"),
            store: text("store").map(|store| match store.strip_prefix("virtiofs:") {
                Some(tag) => Store::Live(tag.to_owned()),
                None => Store::Image(store),
            }),
            cpus_unlimited: text("cpus").is_some_and(|cpus| cpus == "unlimited"),
            pids: number("pids")?.map(|pids| u32::try_from(pids).unwrap_or(u32::MAX)),
            start: line.split_ascii_whitespace().any(|word| word == START_PARAMETER),
            unix_ms: number("unix_ms")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_is_none_and_the_last_word_wins() {
        let parse = Parameters::parse;
        let bare = parse("quiet calve.mode=x calve.mode=bare calve.token=t calve.name=n calve.grace_ms=5\n")
            .unwrap();
        assert_eq!(
            (&bare.mode, bare.remaining.until_deadline_ms, bare.remaining.grace_ms),
            (&Mode::Bare, None, 5)
        );
        assert!(!bare.network && bare.store.is_none() && bare.pids.is_none());
        let all = "calve.mode=system calve.system=/nix/store/x calve.token=t calve.name=n calve.ttl_ms=7 calve.net=slirp \
                   calve.store=/dev/vda calve.pids=9 calve.unix_ms=3 calve.start=fw_cfg";
        let all = parse(all).unwrap();
        assert_eq!(all.mode, Mode::System { toplevel: "/nix/store/x".into() });
        assert!(all.network && !all.cpus_unlimited && all.start && !bare.start);
        assert_eq!(all.store, Some(Store::Image("/dev/vda".into())));
        let live = "calve.mode=bare calve.token=t calve.name=n calve.store=virtiofs:x calve.cpus=unlimited";
        let live = parse(live).unwrap();
        assert_eq!((live.store, live.cpus_unlimited), (Some(Store::Live("x".into())), true));
        assert_eq!((all.remaining.until_deadline_ms, all.pids, all.unix_ms), (Some(7), Some(9), Some(3)));
        for bad in [
            "",
            "calve.mode=y",
            "calve.mode=system",
            "calve.mode=bare calve.token=t calve.name=n calve.ttl_ms=x",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
