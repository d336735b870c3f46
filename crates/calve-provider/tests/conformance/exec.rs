//! Plugins: the example, which keeps its machines in a directory. What holds for plugins alone is in `plugins.rs`.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use calve_provider::exec::{Exec, Settings};
use calve_provider::{Pace, Provider};
use digitalocean_emulator::faults::FaultKind;
use serde::Deserialize;

use crate::stage::{Behind, Call, There};

const PLUGIN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/conformance/plugin.py");
const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/plugins/directory.py");

/// A directory with the example's machines and the faults to come.
pub struct ExecBehind {
    dir: tempfile::TempDir,
    faults: AtomicU32,
}

/// A machine as the example keeps it.
#[derive(Deserialize)]
struct Kept {
    id: String,
    name: String,
    tags: Vec<String>,
    user_data: String,
}

impl ExecBehind {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("faults")).unwrap();
        Self { dir, faults: AtomicU32::new(0) }
    }

    fn with_token(&self, token: &str, pace: Pace) -> Arc<dyn Provider> {
        let (config, here) = (self.dir.path().join(format!("providers-{token}")), self.dir.path().display());
        fs::write(&config, format!("lab /usr/bin/env python3 {PLUGIN} {EXAMPLE} {here} {token}\n")).unwrap();
        fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).unwrap();
        let variables = |name: &str| (name == "CALVE_PROVIDERS").then(|| config.display().to_string());
        Arc::new(Exec::new(Settings::from_environment(&variables).unwrap(), pace))
    }

    fn kept(&self) -> Vec<Kept> {
        let files = fs::read_dir(self.dir.path().join("machines")).into_iter().flatten().flatten();
        let files =
            files.map(|file| file.path()).filter(|path| path.extension().is_some_and(|it| it == "json"));
        // One that goes in this moment is none.
        let texts = files.filter_map(|path| fs::read(path).ok());
        let mut all: Vec<Kept> = texts.map(|text| serde_json::from_slice(&text).unwrap()).collect();
        all.sort_by_key(|machine| machine.id.parse::<u32>().unwrap());
        all
    }
}

impl Behind for ExecBehind {
    fn provider(&self, pace: Pace) -> Arc<dyn Provider> {
        self.with_token("known", pace)
    }

    fn with_wrong_token(&self, pace: Pace) -> Arc<dyn Provider> {
        self.with_token("wrong", pace)
    }

    fn created(&self) -> usize {
        let last = fs::read_to_string(self.dir.path().join("machines/last-id"));
        last.map_or(0, |last| last.parse().unwrap())
    }

    fn machines(&self) -> Vec<There> {
        let there = |kept: Kept| There { name: kept.name, told: kept.user_data.into_bytes() };
        self.kept().into_iter().map(there).collect()
    }

    fn tags(&self) -> BTreeSet<String> {
        self.kept().into_iter().flat_map(|kept| kept.tags).collect()
    }

    fn fault(&self, call: Call, kind: FaultKind, times: u32) {
        let what = match call {
            Call::Create => "create",
            Call::Destroy => "destroy",
            Call::Tag => "tag",
        };
        let words = match kind {
            FaultKind::FailBefore(code) => format!("before {code}"),
            FaultKind::FailAfter(code) => format!("after {code}"),
            FaultKind::LoseReply => "lose 0".to_owned(),
            FaultKind::RateLimited(seconds) => format!("rate {seconds}"),
        };
        for _ in 0..times {
            let number = self.faults.fetch_add(1, Ordering::Relaxed);
            fs::write(self.dir.path().join(format!("faults/{what}-{number:04}")), &words).unwrap();
        }
    }

    fn place(&self) -> [&'static str; 3] {
        ["lab", "small", ""]
    }

    fn dollars_per_hour(&self) -> Option<f64> {
        Some(0.0)
    }

    /// Each call is a process of Python.
    fn many(&self) -> usize {
        20
    }

    /// Exit codes.
    fn failures(&self) -> &'static [u16] {
        &[1, 3]
    }

    fn request(&self) -> &'static str {
        "exec: the plugin lab "
    }
}
