//! What a process list shows of a process that learns only later whose it is (`proc_pid_cmdline(5)`).

use std::fs;
use std::path::Path;

/// The memory that holds this process's arguments, as it was given them. A copy of the process may use it as well.
#[derive(Debug, Clone, Copy)]
pub struct Title {
    start: usize,
    length: usize,
}

impl Title {
    /// That of this process; none where the kernel does not say. Arguments must not be read any more once it is set.
    pub fn of_this_process() -> Option<Self> {
        // Fields 48 and 49 of `proc_pid_stat(5)`, behind the command's name, which may hold anything.
        let text = fs::read_to_string("/proc/self/stat").ok()?;
        let mut fields = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace().skip(45);
        let start: usize = fields.next()?.parse().ok()?;
        let end: usize = fields.next()?.parse().ok()?;
        (start != 0).then_some(Self { start, length: end.checked_sub(start)? })
    }

    /// Shows the arguments of the supervisor of this run directory, or nothing new where there is no room for them.
    pub fn set(&self, run_dir: &Path) {
        let mut shown = b"calve-agent\0sandbox\0--run-dir\0".to_vec();
        shown.extend(run_dir.as_os_str().as_encoded_bytes());
        if shown.len() >= self.length {
            return;
        }
        shown.resize(self.length, 0);
        // SAFETY: the kernel gave this memory, on the stack of the first thread, to the arguments alone; it is writable, as
        // long as told, and lives as long as the process. Nobody reads it meanwhile: this process has one thread, and the
        // caller has read its arguments.
        unsafe { std::ptr::copy_nonoverlapping(shown.as_ptr(), self.start as *mut u8, self.length) }
    }
}
