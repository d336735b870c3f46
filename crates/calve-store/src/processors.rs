//! How many processors there are to share work out to.

use std::sync::LazyLock;

/// Each answer is read anew from half a dozen files of the control groups (`cgroups(7)`), which takes as long as making a small file.
static PROCESSORS: LazyLock<usize> =
    LazyLock::new(|| std::thread::available_parallelism().map_or(1, usize::from));

/// Processors that this process might use when it was first asked; at least one.
pub fn processors() -> usize {
    *PROCESSORS
}
