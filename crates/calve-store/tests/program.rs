//! Which programs can be started with nothing but their closure around them.

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use calve_nix::StorePath;
use calve_store::{Closure, ClosurePath, ProgramError, check_program};
use support::{base, file};
use tempfile::TempDir;

const X86_64: u16 = 62;
const AARCH64: u16 = 183;

/// A closure of one path with a `bin`, in a directory of its own.
struct Fixture {
    dir: TempDir,
    closure: Closure,
    path: StorePath,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = StorePath::from_base_name(&base(1, "app")).unwrap();
        fs::create_dir(dir.path().join("bin")).unwrap();
        let closure = Closure::new(vec![ClosurePath { path: path.clone(), host_path: dir.path().into() }]);
        Self { dir, closure, path }
    }

    fn add(&self, name: &str, bytes: &[u8]) -> PathBuf {
        file(&self.dir.path().join("bin").join(name), bytes, 0o555);
        self.logical(name)
    }

    fn logical(&self, name: &str) -> PathBuf {
        format!("{}/bin/{name}", self.path).into()
    }

    fn check(&self, program: &Path) -> Result<(), ProgramError> {
        check_program(&self.closure, program)
    }

    /// What is said of a file with these bytes, without the file's own name.
    fn said(&self, bytes: &[u8]) -> String {
        let program = self.add("program", bytes);
        let error = self.check(&program).unwrap_err();
        error.to_string().replace(program.to_str().unwrap(), "it")
    }
}

fn host_machine() -> u16 {
    if cfg!(target_arch = "aarch64") { AARCH64 } else { X86_64 }
}

/// A 64-bit ELF file with a header and, where a loader is named, one segment (elf(5)).
fn elf(machine: u16, file_type: u16, loader: Option<&str>) -> Vec<u8> {
    let mut bytes = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    bytes.extend(file_type.to_le_bytes());
    bytes.extend(machine.to_le_bytes());
    bytes.extend(1u32.to_le_bytes());
    bytes.extend(u64::from(file_type == 2).to_le_bytes()); // entry
    bytes.extend(64u64.to_le_bytes()); // program headers
    bytes.extend([0; 8 + 4]);
    for half in [64, 56, u16::from(loader.is_some()), 64, 0, 0] {
        bytes.extend(half.to_le_bytes());
    }
    if let Some(loader) = loader {
        bytes.extend(3u32.to_le_bytes()); // PT_INTERP
        bytes.extend(4u32.to_le_bytes());
        let size = loader.len() as u64 + 1;
        for word in [120, 0, 0, size, size, 1] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(loader.bytes());
        bytes.push(0);
    }
    bytes
}

#[test]
fn static_programs_and_those_with_their_loader_pass() {
    let fixture = Fixture::new();
    let fixed = fixture.add("static", &elf(host_machine(), 2, None));
    fixture.check(&fixed).unwrap();
    symlink("static", fixture.dir.path().join("bin/alias")).unwrap();
    fixture.check(&fixture.logical("alias")).unwrap();
    let loader = fixed.to_str().unwrap();
    fixture.check(&fixture.add("dynamic", &elf(host_machine(), 3, Some(loader)))).unwrap();
    let script = fixture.add("script", format!("#! {loader} -e\necho\n").as_bytes());
    fixture.check(&script).unwrap();
    fixture.check(&fixture.add("outer", format!("#!{}", script.display()).as_bytes())).unwrap();
    // This very test is a real program, linked statically.
    let own = fs::read(std::env::current_exe().unwrap()).unwrap();
    fixture.check(&fixture.add("own", &own)).unwrap();
}

#[test]
fn each_reason_has_its_sentence() {
    let fixture = Fixture::new();
    let loader = "/lib64/ld-linux-x86-64.so.2";
    let dynamic = fixture.said(&elf(host_machine(), 3, Some(loader)));
    assert_eq!(
        dynamic,
        format!("it is dynamically linked against {loader}, which its closure does not hold")
    );
    assert_eq!(fixture.said(b"#!/bin/sh\n"), "it is a script for /bin/sh, which its closure does not hold");
    assert!(fixture.said(b"#!sh\n").contains("no absolute path"));
    assert!(fixture.said(b"#! \n").contains("names no interpreter"));
    for bytes in [&b""[..], b"text", b"\x7fELF"] {
        assert_eq!(fixture.said(bytes), "it is not in an executable format: it is neither ELF nor a script");
    }
    assert!(fixture.said(&elf(host_machine(), 1, None)).ends_with("it is a library or an object file"));
    assert!(fixture.said(&elf(host_machine(), 3, None)).ends_with("it is a library or an object file"));
    assert!(fixture.said(&elf(host_machine(), 2, None)[..40]).contains("damaged"));
    let foreign = if host_machine() == X86_64 { AARCH64 } else { X86_64 };
    assert!(fixture.said(&elf(foreign, 2, None)).starts_with("it is made for"));
    assert!(fixture.said(&elf(9999, 2, None)).contains("ELF machine type 9999"));
    let itself = format!("#!{}\n", fixture.logical("program").display());
    assert!(fixture.said(itself.as_bytes()).contains("scripts interpret each other"));
}

#[test]
fn files_that_are_no_programs_are_told_apart() {
    let fixture = Fixture::new();
    let bin = fixture.dir.path().join("bin");
    fs::write(bin.join("data"), b"x").unwrap();
    symlink("/bin/sh", bin.join("out")).unwrap();
    symlink("loop", bin.join("loop")).unwrap();
    let check = |name: &str| fixture.check(&fixture.logical(name)).unwrap_err();
    assert!(matches!(check("data"), ProgramError::NotExecutable { .. }));
    assert!(matches!(check("."), ProgramError::Directory { .. }));
    assert!(matches!(check("none"), ProgramError::NotFound { .. }));
    assert!(matches!(check("data/x"), ProgramError::NotFound { .. }));
    assert!(matches!(check("loop"), ProgramError::TooManyLinks { .. }));
    assert!(matches!(check("out"), ProgramError::LeadsOut { .. }));
    assert!(matches!(check("../../x"), ProgramError::LeadsOut { .. }));
    assert!(matches!(fixture.check(Path::new("/bin/sh")), Err(ProgramError::LeadsOut { .. })));
    let other = format!("/nix/store/{}/bin/x", base(2, "other"));
    assert!(matches!(fixture.check(Path::new(&other)), Err(ProgramError::NotInClosure { .. })));
    assert!(check("data").hint().unwrap().contains("chmod +x"));
}
