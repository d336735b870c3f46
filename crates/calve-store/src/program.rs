//! Whether a program can be started with nothing but its closure around it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use calve_nix::StorePath;
use calve_tree::is_executable;
use object::Endianness;
use object::elf::{self, FileHeader64};
use object::read::ReadCache;
use object::read::elf::{FileHeader, ProgramHeader};

use crate::Closure;
use crate::locate::logical;
use crate::resolve::{End, Inside, LINKS_MAX, ResolveError, World, resolve};

/// Longest path of an interpreter in bytes (`PATH_MAX`).
const INTERPRETER_MAX_BYTES: u64 = 4096;
/// Bytes of a script's first line that the kernel looks at (`BINPRM_BUF_SIZE`).
const SCRIPT_LINE_MAX_BYTES: usize = 256;
/// Most interpreters in a row that are scripts themselves; the kernel gives up at the fifth (execve(2)).
const SCRIPTS_MAX: usize = 4;

/// Why a program could not be started; each is one sentence, [`ProgramError::hint`] says what helps.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It lies in a store path that the closure does not hold.
    #[error("{} lies outside of the closure, which does not hold {missing}", program.display())]
    NotInClosure {
        /// The program.
        program: PathBuf,
        /// The store path in which it lies.
        missing: StorePath,
    },
    /// It, or where its links lead, is in no store path.
    #[error("{} leads out of its closure, to {}", program.display(), target.display())]
    LeadsOut {
        /// The program.
        program: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// There is no such file.
    #[error("{} does not exist", program.display())]
    NotFound {
        /// The program.
        program: PathBuf,
    },
    /// Its links lead in a circle.
    #[error("{} leads through more than {LINKS_MAX} symbolic links", program.display())]
    TooManyLinks {
        /// The program.
        program: PathBuf,
    },
    /// It could not be read.
    #[error("cannot read {}", program.display())]
    Io {
        /// The program.
        program: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// It is a directory.
    #[error("{} is a directory, not a program", program.display())]
    Directory {
        /// The directory.
        program: PathBuf,
    },
    /// It has no permission to be executed.
    #[error("{} is not executable", program.display())]
    NotExecutable {
        /// The file.
        program: PathBuf,
    },
    /// It is neither an ELF program nor a script.
    #[error("{} is not in an executable format: {why}", program.display())]
    Format {
        /// The file.
        program: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// It was made for other processors.
    #[error("{} is made for {machine}, and this host is {host}", program.display(), host = std::env::consts::ARCH)]
    Machine {
        /// The program.
        program: PathBuf,
        /// What it is made for.
        machine: String,
    },
    /// It is dynamically linked and its loader is not there.
    #[error("{} is dynamically linked against {}, which its closure does not hold", program.display(), loader.display())]
    Loader {
        /// The program.
        program: PathBuf,
        /// The loader that it asks for.
        loader: PathBuf,
    },
    /// It is a script and its interpreter is not there.
    #[error("{} is a script for {}, which its closure does not hold", program.display(), interpreter.display())]
    Interpreter {
        /// The script.
        program: PathBuf,
        /// The interpreter that it asks for.
        interpreter: PathBuf,
    },
}

impl ProgramError {
    /// What to do about it, where there is something to do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotInClosure { missing, .. } => Some(format!("run it from {missing} instead")),
            Self::Directory { .. } => Some("name a program in it, such as …/bin/hello".to_owned()),
            Self::NotExecutable { program } => {
                let name = program.file_name().unwrap_or_default().display();
                Some(format!("if {name} is a program, run chmod +x on the original and add it again"))
            }
            Self::NotFound { .. } => {
                Some("check the spelling; ls shows what the store path holds".to_owned())
            }
            Self::LeadsOut { .. } => Some("a machine sees its closure alone: build it with Nix".to_owned()),
            Self::Loader { .. } => Some("link it statically, or build it with Nix".to_owned()),
            Self::Interpreter { .. } => {
                Some("build it with Nix, which puts the interpreter into the closure".to_owned())
            }
            Self::Machine { .. } => Some(format!("build it for {}", std::env::consts::ARCH)),
            Self::TooManyLinks { .. } | Self::Io { .. } | Self::Format { .. } => None,
        }
    }
}

/// Checks that the program at the logical path `program` (`/nix/store/…/bin/hello`) can be started in a machine that holds
/// `closure` and nothing else: it exists, is executable, is made for this host's processor, and its loader or
/// interpreter lies in the closure too.
pub fn check_program(closure: &Closure, program: &Path) -> Result<(), ProgramError> {
    let mut program = program.to_owned();
    for _ in 0..=SCRIPTS_MAX {
        let file = open(closure, &program)?;
        match interpreter_of_script(&file, &program)? {
            None => return check_elf(closure, &program, file),
            Some(interpreter) => {
                find(closure, &interpreter).map_err(|error| match error {
                    ResolveError::TooManyLinks => ProgramError::TooManyLinks { program: interpreter.clone() },
                    _ => ProgramError::Interpreter { program, interpreter: interpreter.clone() },
                })?;
                program = interpreter;
            }
        }
    }
    Err(ProgramError::Format {
        why: format!("more than {SCRIPTS_MAX} scripts interpret each other"),
        program,
    })
}

/// Whether the file begins as a program does: as ELF or as a script, `#!`. Errors are the file's that cannot be read.
pub fn is_program_format(file: &Path) -> io::Result<bool> {
    let mut start = Vec::with_capacity(elf::ELFMAG.len());
    File::open(file)?.take(elf::ELFMAG.len() as u64).read_to_end(&mut start)?;
    Ok(start.starts_with(&elf::ELFMAG) || start.starts_with(b"#!"))
}

/// Finds a file in the world of a machine, which holds store paths alone.
fn find(closure: &Closure, path: &Path) -> Result<(Inside, PathBuf), ResolveError> {
    let world = World {
        store_dirs: &[],
        host_path_of: &|path| closure.host_path_of(path).map(Path::to_owned),
        has_outside: false,
    };
    match resolve(path, &world)?.end {
        End::Inside(inside, host) => Ok((inside, host)),
        End::Outside(path) => Err(ResolveError::LeadsOut(path)),
    }
}

fn open(closure: &Closure, program: &Path) -> Result<File, ProgramError> {
    let owned = || program.to_owned();
    let (inside, host) = find(closure, program).map_err(|error| match error {
        ResolveError::NotHeld(missing) => ProgramError::NotInClosure { program: owned(), missing },
        ResolveError::LeadsOut(target) => ProgramError::LeadsOut { program: owned(), target },
        ResolveError::TooManyLinks => ProgramError::TooManyLinks { program: owned() },
        ResolveError::Io(_, source) => read_error(program, source),
    })?;
    let metadata = host.symlink_metadata().map_err(|source| read_error(program, source))?;
    if metadata.is_dir() {
        return Err(ProgramError::Directory { program: owned() });
    }
    if !metadata.is_file() {
        return Err(ProgramError::Format { program: owned(), why: "it is no regular file".to_owned() });
    }
    if !is_executable(&metadata) {
        return Err(ProgramError::NotExecutable { program: logical(&inside) });
    }
    File::open(&host).map_err(|source| read_error(program, source))
}

fn read_error(program: &Path, source: io::Error) -> ProgramError {
    let program = program.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ProgramError::NotFound { program },
        _ => ProgramError::Io { program, source },
    }
}

/// The interpreter in a script's first line; none where the file is no script.
fn interpreter_of_script(file: &File, program: &Path) -> Result<Option<PathBuf>, ProgramError> {
    let mut start = Vec::with_capacity(SCRIPT_LINE_MAX_BYTES);
    let mut head = file.take(SCRIPT_LINE_MAX_BYTES as u64);
    head.read_to_end(&mut start).map_err(|source| read_error(program, source))?;
    let Some(line) = start.strip_prefix(b"#!") else { return Ok(None) };
    let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let mut words = line.split(|byte| matches!(byte, b' ' | b'\t')).filter(|word| !word.is_empty());
    match words.next() {
        Some(word) if word.starts_with(b"/") => Ok(Some(OsStr::from_bytes(word).into())),
        Some(_) => {
            let why = "the interpreter in its first line is no absolute path".to_owned();
            Err(ProgramError::Format { program: program.to_owned(), why })
        }
        None => {
            let why = "its first line names no interpreter".to_owned();
            Err(ProgramError::Format { program: program.to_owned(), why })
        }
    }
}

fn check_elf(closure: &Closure, program: &Path, file: File) -> Result<(), ProgramError> {
    let format = |why: &str| ProgramError::Format { program: program.to_owned(), why: why.to_owned() };
    let data = ReadCache::new(file);
    let data = &data;
    let ident =
        object::ReadRef::read_bytes_at(data, 0, 20).map_err(|()| format("it is neither ELF nor a script"))?;
    if !ident.starts_with(&elf::ELFMAG) {
        return Err(format("it is neither ELF nor a script"));
    }
    if let Some(machine) = foreign_machine(ident) {
        return Err(ProgramError::Machine { program: program.to_owned(), machine });
    }
    let damaged = |error: object::read::Error| format(&format!("its ELF header is damaged ({error})"));
    let header = FileHeader64::<Endianness>::parse(data).map_err(damaged)?;
    let endian = header.endian().map_err(damaged)?;
    let mut loader = None;
    for segment in header.program_headers(endian, data).map_err(damaged)? {
        // Read only once it is known to be short: the size is the file's word.
        if segment.p_type(endian) == elf::PT_INTERP {
            if segment.p_filesz(endian) > INTERPRETER_MAX_BYTES {
                return Err(format("the path of its loader is too long"));
            }
            loader = segment.interpreter(endian, data).map_err(damaged)?;
        }
    }
    let is_program = match header.e_type(endian) {
        elf::ET_EXEC => true,
        elf::ET_DYN => loader.is_some() || header.e_entry(endian) != 0,
        _ => false,
    };
    if !is_program {
        return Err(format("it is a library or an object file"));
    }
    let Some(loader) = loader else { return Ok(()) };
    let loader = PathBuf::from(OsStr::from_bytes(loader));
    let held = loader.is_absolute() && find(closure, &loader).is_ok_and(|(_, host)| host.is_file());
    if held { Ok(()) } else { Err(ProgramError::Loader { program: program.to_owned(), loader }) }
}

/// What the program is made for, if not for this host; from the first 20 bytes of an ELF file (elf(5)).
fn foreign_machine(ident: &[u8]) -> Option<String> {
    let little_endian = ident[5] == elf::ELFDATA2LSB.0;
    let machine = [ident[18], ident[19]];
    let machine =
        elf::Machine(if little_endian { u16::from_le_bytes(machine) } else { u16::from_be_bytes(machine) });
    let host = match std::env::consts::ARCH {
        "x86_64" => elf::EM_X86_64,
        "aarch64" => elf::EM_AARCH64,
        "riscv64" => elf::EM_RISCV,
        // Not a host that calve is built for: the kernel will tell.
        _ => return None,
    };
    if machine == host && little_endian && ident[4] == elf::ELFCLASS64.0 {
        return None;
    }
    Some(match machine {
        elf::EM_X86_64 => "x86_64 with 32-bit pointers".to_owned(),
        elf::EM_386 => "i386".to_owned(),
        elf::EM_AARCH64 => "aarch64".to_owned(),
        elf::EM_ARM => "arm".to_owned(),
        elf::EM_RISCV => "riscv".to_owned(),
        elf::Machine(number) => format!("processors of ELF machine type {number}"),
    })
}
