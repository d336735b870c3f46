//! The guest kernel's command line: how the host tells a guest what it shall be.
//!
//! The agent reads the `calve.` parameters. The token among them can be read by every process of the guest: it says to
//! the server only that it speaks to this very machine, and gives no rights elsewhere.

use calve_wire::agent::Remaining;
use calve_wire::guard::CPUS_UNLIMITED;
use calve_wire::start::START_PARAMETER;

use super::command::STORE_TAG;

/// Longest command line that a kernel takes (`COMMAND_LINE_SIZE` on x86).
const LINE_MAX_BYTES: usize = 2048 - 1;

/// For each guest: its console, and an end of QEMU upon panic and reboot.
const ALWAYS: &str = "console=ttyS0 panic=-1 reboot=t";
/// Saves 0.26 s of self tests.
const QUICK: &str = "cryptomgr.notests";
/// Emulation passes the host's time stamp counter through, which kernels cannot measure when they are descheduled: they
/// wait for ever for a timer that microvm has not.
const EMULATED: &str = "no_timer_check tsc=reliable";

/// What the guest shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The agent is init; programs run on its root file system.
    Bare,
    /// A system with these parameters of its own and this toplevel.
    System {
        /// What its boot loader would give.
        params: Vec<String>,
        /// Its store path.
        toplevel: String,
    },
    /// Says that it has booted, and ends.
    Probe,
}

/// Where a guest finds its closure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StorePlace {
    /// In an image.
    Image,
    /// In the host's store.
    Live,
}

/// Everything that the kernel's command line depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parameters {
    /// What the guest shall be.
    pub mode: Mode,
    /// The machine's token.
    pub token: String,
    /// Its host name.
    pub hostname: String,
    /// Its lease.
    pub remaining: Remaining,
    /// Whether it has a network card.
    pub network: bool,
    /// Where it finds its closure.
    pub store: Option<StorePlace>,
    /// Most processes of its program.
    pub pids: Option<u32>,
    /// Whether the order to start its program comes with the machine.
    pub start: bool,
    /// The host's clock, in milliseconds since the epoch.
    pub unix_ms: u64,
    /// Frequency of the host's time stamp counter in kHz, for a guest in emulation.
    pub emulated_tsc_khz: Option<u64>,
}

/// What a kernel in emulation needs to be told, on a host with a time stamp counter of this frequency.
pub(crate) fn emulated(tsc_khz: u64) -> String {
    format!("{EMULATED} tsc_early_khz={tsc_khz}")
}

impl Parameters {
    /// The command line; the error says for people why there is none.
    pub(crate) fn line(&self) -> Result<String, String> {
        let mut words = self.mode_words();
        words.extend([ALWAYS, QUICK].map(str::to_owned));
        if let Some(khz) = self.emulated_tsc_khz {
            words.push(emulated(khz));
        }
        words.push(format!("rdinit=/calve-agent calve.token={} calve.name={}", self.token, self.hostname));
        if let Some(until_deadline_ms) = self.remaining.until_deadline_ms {
            words.push(format!("calve.ttl_ms={until_deadline_ms}"));
        }
        words.push(format!("calve.grace_ms={} calve.unix_ms={}", self.remaining.grace_ms, self.unix_ms));
        if self.network {
            words.push("calve.net=slirp".into());
        }
        match self.store {
            Some(StorePlace::Image) => words.push("calve.store=/dev/vda".into()),
            Some(StorePlace::Live) => words.push(format!("calve.store=virtiofs:{STORE_TAG}")),
            None => {}
        }
        if let Some(pids) = self.pids {
            words.push(format!("calve.pids={pids}"));
        }
        if self.start {
            words.push(START_PARAMETER.into());
        }
        let line = words.join(" ");
        // The guard may add a word.
        let length = line.len() + 1 + CPUS_UNLIMITED.len();
        if length > LINE_MAX_BYTES {
            return Err(format!("the kernel parameters have {length} bytes; kernels take {LINE_MAX_BYTES}"));
        }
        Ok(line)
    }

    /// A system's own parameters come first, so that ours win. Its file systems are what we mount: `fstab=no` keeps
    /// systemd from waiting for the disks of its real installation (`systemd-fstab-generator(8)`).
    fn mode_words(&self) -> Vec<String> {
        match &self.mode {
            Mode::Bare => vec!["quiet calve.mode=bare".into()],
            Mode::Probe => vec!["quiet calve.mode=probe".into()],
            Mode::System { params, toplevel } => {
                let mut words = params.clone();
                words
                    .push(format!("init={toplevel}/init fstab=no systemd.gpt_auto=no calve.mode=system calve.system={toplevel}"));
                words
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(mode: Mode) -> Parameters {
        Parameters {
            mode,
            token: "t".into(),
            hostname: "h".into(),
            remaining: Remaining { until_deadline_ms: None, grace_ms: 5 },
            network: false,
            store: None,
            pids: None,
            start: false,
            unix_ms: 1,
            emulated_tsc_khz: None,
        }
    }

    #[test]
    fn a_bare_guest_is_told_the_least() {
        assert_eq!(
            parameters(Mode::Bare).line().unwrap(),
            "quiet calve.mode=bare console=ttyS0 panic=-1 reboot=t cryptomgr.notests rdinit=/calve-agent \
             calve.token=t calve.name=h calve.grace_ms=5 calve.unix_ms=1"
        );
    }

    #[test]
    fn each_fact_adds_its_parameter() {
        let live = Parameters { store: Some(StorePlace::Live), ..parameters(Mode::Bare) };
        assert!(live.line().unwrap().contains("calve.store=virtiofs:store"));
        let line = Parameters {
            remaining: Remaining { until_deadline_ms: Some(9), grace_ms: 0 },
            network: true,
            store: Some(StorePlace::Image),
            pids: Some(7),
            start: true,
            emulated_tsc_khz: Some(2_400_000),
            ..parameters(Mode::Probe)
        }
        .line()
        .unwrap();
        for word in [
            "calve.ttl_ms=9",
            "calve.net=slirp",
            "calve.store=/dev/vda",
            "calve.pids=7",
            "calve.start=fw_cfg",
            "tsc_early_khz=2400000",
        ] {
            assert!(line.contains(word), "{word} in {line}");
        }
    }

    #[test]
    fn a_systems_own_parameters_come_before_ours_and_may_not_overflow() {
        let system =
            |params: &str| Mode::System { params: vec![params.into()], toplevel: "/nix/store/x".into() };
        let line = parameters(system("root=fstab console=tty0")).line().unwrap();
        assert!(line.starts_with("root=fstab console=tty0 init=/nix/store/x/init fstab=no"), "{line}");
        assert!(parameters(system(&"x".repeat(2000))).line().is_err());
    }
}
