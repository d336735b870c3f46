//! Habits as tests (`tests/tidy.rs`): the edges between crates, file lengths, banned calls, docs that match the code.
