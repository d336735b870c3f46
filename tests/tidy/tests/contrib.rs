//! What is there for others to take: units for systemd, lines for cron, files for Nix. Each is held to the tool that reads it,
//! where that is there.

use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn files(dir: &str, ending: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root().join(dir)).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries.filter(|path| path.to_string_lossy().ends_with(ending)).collect();
    files.sort();
    files
}

/// Whether the program can be started at all.
fn has(program: &str) -> bool {
    let is_there = Command::new(program).arg("--version").output().is_ok();
    if !is_there {
        println!("left out: there is no {program}");
    }
    is_there
}

#[test]
fn systemd_accepts_the_units_of_the_reaper() {
    let units = files("contrib/systemd", "");
    assert_eq!(units.len(), 2, "{units:?}");
    if !has("systemd-analyze") {
        return;
    }
    let dir = std::env::temp_dir().join(format!("calve-units-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no", "--recursive-errors=no"]);
    for unit in &units {
        let text = std::fs::read_to_string(unit).unwrap();
        let to = dir.join(unit.file_name().unwrap());
        // The program need not be installed here.
        std::fs::write(&to, text.replace("/usr/local/bin/calve ", "/bin/true ")).unwrap();
        verify.arg(to);
    }
    let output = verify.output().unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && !said.contains("calve-reap"), "{said}");
}

#[test]
fn cron_lines_have_a_time_a_user_and_a_command() {
    let text = std::fs::read_to_string(root().join("contrib/cron/calve-reap")).unwrap();
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let jobs: Vec<&str> = lines.filter(|line| !line.split(' ').next().unwrap().contains('=')).collect();
    assert_eq!(jobs.len(), 1);
    let words: Vec<&str> = jobs[0].split(' ').collect();
    let is_time = |word: &&str| word.chars().all(|c| c.is_ascii_digit() || "*/,-".contains(c));
    assert!(words[..5].iter().all(is_time) && words[5] == "root", "{words:?}");
    assert!(
        jobs[0].contains("calve reap --provider") && !jobs[0].contains('%'),
        "a % is a line's end to cron"
    );
}

#[test]
fn nix_reads_every_file_of_ours() {
    let nix = files("nix", ".nix");
    assert!(nix.len() >= 4, "{nix:?}");
    if !has("nix-instantiate") {
        return;
    }
    for file in nix {
        let output = Command::new("nix-instantiate").arg("--parse").arg(&file).output().unwrap();
        assert!(output.status.success(), "{}: {}", file.display(), String::from_utf8_lossy(&output.stderr));
    }
}
