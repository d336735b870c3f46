//! What the allocator keeps of the memory that was given back to it: little in a server, which is idle for most of its time, and
//! all of it in a program that moves much and ends.

use std::time::Duration;

/// Blocks of at least so many bytes are mapped by themselves and go back to the system when they are freed. Left to itself,
/// glibc raises this to the size of the largest block that was ever freed (mallopt(3)): each list of ten thousand machines
/// would stay in the process.
const MAPPED_MIN_BYTES: libc::c_int = 256 * 1024;
/// Heaps of the process. By default there are eight for each processor, each of which keeps what its threads freed; our
/// threads mostly wait for disks and processes, or compress and hash.
const ARENAS_MAX: libc::c_int = 2;
/// Blocks up to this size are kept in a program that moves much: what is read at once of a cache has less.
const KEPT_BLOCK_BYTES: libc::c_int = 4 << 20;
/// And so much of them at the end of a heap: more than there ever is.
const KEPT_BYTES: libc::c_int = 256 << 20;

/// When a server that has just started has taken over what there is, which leaves memory behind.
const TRIM_FIRST: Duration = Duration::from_secs(3);
/// How often memory is given back from then on: it takes a millisecond or so.
const TRIM_EVERY: Duration = Duration::from_secs(20);

/// Gives back what was freed, now and then.
pub(crate) async fn keep_trimmed() {
    let mut pause = TRIM_FIRST;
    loop {
        tokio::time::sleep(pause).await;
        if tokio::task::spawn_blocking(trim).await.is_err() {
            return;
        }
        pause = TRIM_EVERY;
    }
}

/// Has freed memory given back to the system: an idle server is small.
#[cfg(target_env = "gnu")]
pub(crate) fn give_back() {
    set([(libc::M_MMAP_THRESHOLD, MAPPED_MIN_BYTES), (libc::M_ARENA_MAX, ARENAS_MAX)]);
}

/// Has freed memory kept for whoever needs some next, in a program that moves closures and ends: the system clears what it gives,
/// and a virtual machine's host may first have to find it, which takes longer than what is done with it.
#[cfg(target_env = "gnu")]
pub fn keep() {
    set([
        (libc::M_MMAP_THRESHOLD, KEPT_BLOCK_BYTES),
        (libc::M_TRIM_THRESHOLD, KEPT_BYTES),
        (libc::M_ARENA_MAX, ARENAS_MAX),
    ]);
}

#[cfg(target_env = "gnu")]
fn set<const N: usize>(settings: [(libc::c_int, libc::c_int); N]) {
    for (parameter, value) in settings {
        // SAFETY: mallopt changes the allocator's own settings under its own lock and reads no memory of ours.
        if unsafe { libc::mallopt(parameter, value) } == 0 {
            tracing::debug!(parameter, "the allocator does not take a setting");
        }
    }
}

/// Gives back what was freed in between blocks that are in use; for after something big.
#[cfg(target_env = "gnu")]
pub fn trim() {
    // SAFETY: malloc_trim works under the allocator's own lock and takes nothing but free memory.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators give back by themselves.
#[cfg(not(target_env = "gnu"))]
pub fn trim() {}

/// Other allocators give back by themselves.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn give_back() {}

/// Other allocators have no such settings.
#[cfg(not(target_env = "gnu"))]
pub fn keep() {}
