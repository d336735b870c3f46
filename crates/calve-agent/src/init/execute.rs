//! Becoming a program: everything is prepared before the fork, so that the child makes system calls only.

use std::collections::BTreeMap;
use std::ffi::{CString, c_char};
use std::io;
use std::ptr;

use calve_wire::limits::ARG_MAX_BYTES;

/// Where a bare name is looked up when the environment says nothing.
pub const PATH_DEFAULT: &str = "/bin:/usr/bin:/run/current-system/sw/bin";

/// A program with its arguments and environment, ready for `execve`.
#[derive(Debug)]
pub struct Executable {
    name: String,
    looked_up_in: Option<String>,
    candidates: Vec<CString>,
    _argv: Vec<CString>,
    argv_pointers: Vec<*const c_char>,
    _env: Vec<CString>,
    env_pointers: Vec<*const c_char>,
}

impl Executable {
    /// Prepares a program, which learns as its own name how it is found, or `called`; the error is a sentence for people.
    pub fn new(
        argv: &[String],
        called: Option<&str>,
        env: &BTreeMap<String, String>,
    ) -> Result<Self, String> {
        let name = argv.first().filter(|name| !name.is_empty()).ok_or("there is no program to run")?.clone();
        let file = c_string("a path", &name)?;
        let called = called.unwrap_or(&name);
        let arguments = [called].into_iter().chain(argv[1..].iter().map(String::as_str));
        let arguments = arguments.map(|text| c_string("an argument", text)).collect::<Result<Vec<_>, _>>()?;
        let variables = env
            .iter()
            .map(|(key, value)| {
                c_string(&format!("the environment variable {key:?}"), &format!("{key}={value}"))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let looked_up_in =
            (!name.contains('/')).then(|| env.get("PATH").map_or(PATH_DEFAULT, String::as_str).to_owned());
        let candidates = match &looked_up_in {
            None => vec![file],
            Some(path) => path
                .split(':')
                .map(|dir| if dir.is_empty() { "." } else { dir })
                .map(|dir| c_string("a path", &format!("{dir}/{name}")))
                .collect::<Result<_, _>>()?,
        };
        Ok(Self {
            name,
            looked_up_in,
            candidates,
            argv_pointers: pointers(&arguments),
            _argv: arguments,
            env_pointers: pointers(&variables),
            _env: variables,
        })
    }

    /// Becomes the program; returns only with the error number. Makes system calls only.
    pub fn execute(&self) -> i32 {
        let mut error = libc::ENOENT;
        for candidate in &self.candidates {
            // SAFETY: all three are NUL-terminated, and the two lists end with a null pointer.
            unsafe {
                libc::execve(candidate.as_ptr(), self.argv_pointers.as_ptr(), self.env_pointers.as_ptr())
            };
            // SAFETY: the thread's own errno.
            match unsafe { *libc::__errno_location() } {
                libc::ENOENT | libc::ENOTDIR => {}
                // Another directory of PATH may hold one that may be executed, as execvp(3) has it.
                libc::EACCES => error = libc::EACCES,
                other => return other,
            }
        }
        error
    }

    /// What to say of an error number of [`Executable::execute`].
    pub fn explain(&self, errno: i32) -> String {
        let name = &self.name;
        match (errno, &self.looked_up_in) {
            (libc::ENOENT, Some(path)) => format!("{name:?} is in no directory of PATH ({path}): give its whole path"),
            (libc::ENOENT, None) if std::fs::symlink_metadata(name).is_ok() => format!(
                "{name} is there, but the interpreter that it names is not: is its closure complete in the machine?"
            ),
            (libc::ENOENT | libc::ENOTDIR, _) => format!("{name} does not exist in the machine"),
            (libc::EACCES, _) => format!("{name} is not executable: a program file with the x permission is needed"),
            (libc::ENOEXEC, _) => {
                format!("{name} is no program for this machine: neither an ELF file for its CPU nor a #! script")
            }
            (libc::E2BIG, _) => {
                "the arguments and the environment together are larger than the kernel takes: pass a file instead"
                    .to_owned()
            }
            _ => format!("{name} cannot be executed: {}", io::Error::from_raw_os_error(errno)),
        }
    }
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

fn c_string(what: &str, text: &str) -> Result<CString, String> {
    if text.len() > ARG_MAX_BYTES {
        let size = text.len();
        return Err(format!(
            "{what} has {size} bytes, the kernel takes at most {ARG_MAX_BYTES}: pass a file instead"
        ));
    }
    CString::new(text).map_err(|_| format!("{what} holds a NUL byte, which no program can be given"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explain(program: &str) -> String {
        let executable = Executable::new(&[program.to_owned()], None, &BTreeMap::new()).expect("well-formed");
        executable.explain(executable.execute())
    }

    #[test]
    fn each_failure_has_its_own_sentence() {
        assert!(explain("/nonexistent/program").contains("does not exist"));
        assert!(explain("no-such-program").contains("in no directory of PATH"));
        assert!(explain("/etc/passwd").contains("not executable"));
    }

    #[test]
    fn what_the_kernel_would_refuse_is_refused_by_name() {
        let huge = BTreeMap::from([("BIG".to_owned(), "x".repeat(10 << 20))]);
        let error = Executable::new(&["true".to_owned()], None, &huge).expect_err("too large");
        assert!(error.contains("\"BIG\""), "{error}");
        assert!(Executable::new(&["a\0b".to_owned()], None, &BTreeMap::new()).is_err());
        assert!(Executable::new(&[], None, &BTreeMap::new()).is_err());
    }
}
