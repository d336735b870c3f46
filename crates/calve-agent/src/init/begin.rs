//! Making the first process of a guest, before there is an agent: as [`super::spawn`] does, without a copy of init's memory
//! (clone(2), `CLONE_VM` with `CLONE_VFORK`), which takes a start in emulation longer than all the rest.

use std::ffi::{c_char, c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicU8, Ordering};

use super::packet::{NotStarted, Work};
use super::spawn::{Prepared, Step, errno, set_up};
use crate::confine_api::Confine;

/// Stack of the child until it is its program; it calls some dozen functions.
const STACK_BYTES: usize = 64 * 1024;

/// What the child becomes, as execve(2) takes it: texts end with a zero byte, lists with a null pointer.
pub struct Image<'a> {
    /// An absolute path.
    pub program: &'a [u8],
    /// Working directory.
    pub cwd: &'a [u8],
    /// Its own name and its arguments.
    pub argv: &'a [*const c_char],
    /// `K=V`.
    pub env: &'a [*const c_char],
}

struct Child<'a> {
    image: &'a Image<'a>,
    standard: [RawFd; 3],
    confine: &'a dyn Confine,
    failed_step: AtomicU8,
    failed_errno: AtomicI32,
}

/// Makes the process, with these as standard input, output and error, none of which is below 3; `work` says the same for
/// the sentence why it was not made. Call it in a process with one thread.
pub fn begin(
    image: &Image<'_>,
    standard: [BorrowedFd<'_>; 3],
    confine: &dyn Confine,
    work: impl FnOnce() -> Work,
) -> Result<i32, NotStarted> {
    let ends = |list: &[*const c_char]| list.last().is_some_and(|last| last.is_null());
    assert!(image.program.ends_with(b"\0") && image.cwd.ends_with(b"\0"));
    assert!(ends(image.argv) && ends(image.env));
    let child = Child {
        image,
        standard: standard.map(|descriptor| descriptor.as_raw_fd()),
        confine,
        failed_step: AtomicU8::new(0),
        failed_errno: AtomicI32::new(0),
    };
    let mut stack: Vec<u8> = Vec::with_capacity(STACK_BYTES);
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the stack is the child's alone, grows down from an aligned end, and lives until the child has left this memory,
    // as the caller stands still until then. The child makes system calls and writes the two atomics; `child` outlives it.
    let pid = unsafe {
        let top = stack.as_mut_ptr().add(STACK_BYTES);
        let top = top.sub(top as usize % 16);
        libc::clone(become_program, top.cast(), flags, (&raw const child).cast_mut().cast::<c_void>())
    };
    if pid < 0 {
        return Err(format!("no process can be made: {}", io::Error::last_os_error()).into());
    }
    let Some(step) = Step::of(child.failed_step.load(Ordering::Relaxed)) else { return Ok(pid) };
    let errno = child.failed_errno.load(Ordering::Relaxed);
    // SAFETY: reaps the child, which has ended; nobody else knows it.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
    Err(Prepared::new(work())?.not_started(step, errno))
}

/// The child's whole life up to its program; makes system calls only.
extern "C" fn become_program(child: *mut c_void) -> c_int {
    // SAFETY: what `begin` has passed, which stands still meanwhile.
    let child = unsafe { &*child.cast_const().cast::<Child<'_>>() };
    let (step, errno) = match child.run() {
        Ok(never) => match never {},
        Err(failed) => failed,
    };
    child.failed_errno.store(errno, Ordering::Relaxed);
    child.failed_step.store(step as u8, Ordering::Relaxed);
    // SAFETY: ends the child at once, without running what the parent has registered.
    unsafe { libc::_exit(127) }
}

impl Child<'_> {
    fn run(&self) -> Result<std::convert::Infallible, (Step, i32)> {
        set_up(self.standard, false).map_err(|errno| (Step::Setup, errno))?;
        let Image { program, cwd, argv, env } = self.image;
        // SAFETY: a path with a zero byte at its end, which `begin` has looked for.
        if unsafe { libc::chdir(cwd.as_ptr().cast()) } < 0 {
            return Err((Step::Directory, errno()));
        }
        let confined = self.confine.apply();
        confined.map_err(|error| (Step::Confine, error.raw_os_error().unwrap_or(libc::EPERM)))?;
        // SAFETY: a path with a zero byte at its end, and two lists of such texts that end with a null pointer.
        unsafe { libc::execve(program.as_ptr().cast(), argv.as_ptr(), env.as_ptr()) };
        Err((Step::Execute, errno()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read as _;
    use std::os::fd::AsFd as _;
    use std::ptr::null;

    use super::*;
    use crate::confine_api::Unconfined;

    fn work(program: &str) -> Work {
        Work::Execute { argv: vec![program.into()], name: None, env: Default::default(), cwd: None }
    }

    #[test]
    fn a_program_begins_and_one_that_is_missing_is_named() {
        let null_device = File::options().read(true).write(true).open("/dev/null").expect("it is everywhere");
        let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
        let script = c"echo $0 $A; pwd";
        let argv = [c"its name".as_ptr(), c"-c".as_ptr(), script.as_ptr(), c"zero".as_ptr(), null()];
        let env = [c"A=b".as_ptr(), null()];
        let image = |program| Image { program, cwd: b"/tmp\0", argv: &argv, env: &env };
        let standard = [null_device.as_fd(), writer.as_fd(), null_device.as_fd()];
        let pid =
            begin(&image(b"/bin/sh\0"), standard, &Unconfined, || work("/bin/sh")).expect("it is there");
        let missing = begin(&image(b"/missing\0"), standard, &Unconfined, || work("/missing"));
        let why = missing.expect_err("it is not there");
        assert_eq!((why.code, why.message.as_str()), (127, "/missing does not exist in the machine"));
        drop(writer);
        let mut said = String::new();
        File::from(reader).read_to_string(&mut said).expect("text");
        assert_eq!(said, "zero b\n/tmp\n");
        // SAFETY: a child of this test.
        assert_eq!(unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) }, pid);
    }
}
