//! `cargo +nightly fuzz run plugin_line`; built without `cfg(fuzzing)`, it takes one input from standard input.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| calve_fuzz::run("plugin_line", bytes));

#[cfg(not(fuzzing))]
fn main() -> std::io::Result<()> {
    calve_fuzz::run_on_stdin("plugin_line")
}
