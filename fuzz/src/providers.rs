//! Fuzz targets of what providers say: lines of plugins, tags of machines.

use calve_provider::exec::lines;
use calve_provider::mark::Mark;

/// A target: its name, which is that of its corpus below `corpus/`, and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: &[Target] = &[("plugin_line", lines::read), ("tags", tags)];

/// Tags, one a line, of a machine that is called as the first of them.
fn tags(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let tags: Vec<String> = text.lines().map(str::to_owned).collect();
    let Some(name) = tags.first() else { return };
    if let Ok(mark) = Mark::read(name, &tags) {
        assert!(tags.contains(&mark.owner.tag()) && tags.contains(&mark.subject.key()));
    }
}
