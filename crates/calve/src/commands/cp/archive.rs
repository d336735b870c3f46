//! An archive of a file or directory here.

use std::io::{self, Write};
use std::path::Path;

/// Writes the file or directory at `source` as an archive in which it is called `name`. Links inside stay links; `source`
/// itself is followed.
pub fn write(out: &mut impl Write, source: &Path, name: &str, is_directory: bool) -> io::Result<()> {
    let mut archive = tar::Builder::new(out);
    archive.follow_symlinks(false);
    let source = source.canonicalize()?;
    if is_directory {
        archive.append_dir_all(name, &source)?;
    } else {
        archive.append_path_with_name(&source, name)?;
    }
    archive.finish()
}
