//! Archives read: one event a node, in the order of the archive, whatever its size in the same memory.

use std::io::{self, BufRead, Read};

use super::read_error::{Found, NarProblem, NarReadError};
use super::{DEPTH_MAX, MAGIC, NAME_MAX_BYTES, TARGET_MAX_BYTES, is_entry_name};

/// Longest tag of the format in bytes, padded: the magic string.
const TAG_MAX_BYTES: usize = 16;
/// Bytes of contents that are skipped at a time.
const SKIP_BYTES: usize = 16 * 1024;

/// One node of an archive, or the end of a directory. The root's name is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NarEvent {
    /// A directory begins; its entries follow, then its [`NarEvent::Leave`].
    Enter {
        /// Its name in the directory around it.
        name: Vec<u8>,
    },
    /// The directory that was entered last ends.
    Leave,
    /// A regular file; its bytes can be read from [`NarReader::contents`] until the next event is asked for.
    File {
        /// Its name in the directory around it.
        name: Vec<u8>,
        /// Whether it may be executed.
        executable: bool,
        /// Its size in bytes.
        size: u64,
        /// Bytes of the archive before its contents.
        offset: u64,
    },
    /// A symbolic link.
    Symlink {
        /// Its name in the directory around it.
        name: Vec<u8>,
        /// Where it points.
        target: Vec<u8>,
    },
}

/// Reads an archive node by node and refuses every one that [`super::NarWriter`] would not write byte for byte.
///
/// It reads strings of 8 bytes: hand it something buffered. Not one byte behind the archive is read before
/// [`Self::finish`], so that an archive may stand inside a longer stream.
///
/// ```text
///   Begin ──▶ Node ──▶ (Contents) ──▶ Between ──▶ … ──▶ End
///               └── a directory ──────────┘ ▲
///                                 └─ an entry: Node again
/// ```
pub struct NarReader<R: Read> {
    input: R,
    offset: u64,
    /// Size that the whole archive must have.
    size: Option<u64>,
    /// The open directories, each with the last name read in it.
    open: Vec<Vec<u8>>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Begin,
    /// In a file of `size` bytes of which `left` have not been read.
    Contents {
        size: u64,
        left: u64,
    },
    /// In a directory, before an entry or the directory's end.
    Between,
    End,
    /// An error was given; the position in the stream means nothing any more.
    Failed,
}

/// A place inside of a file's contents, from where an archive can be read on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InContents {
    /// Bytes of the archive before it.
    pub offset: u64,
    /// The last name that was read in each open directory, from the root on.
    pub open: Vec<Vec<u8>>,
    /// The file's size in bytes.
    pub size: u64,
    /// Bytes of its contents from this place on; none where it is their end.
    pub left: u64,
}

impl<R: Read> NarReader<R> {
    /// A reader that goes on at a place inside of a file's contents: `input` gives the rest of the archive, and offsets count
    /// from the archive's begin.
    pub fn inside(input: R, place: InContents) -> Self {
        let InContents { offset, open, size, left } = place;
        Self { input, offset, size: None, open, state: State::Contents { size, left } }
    }

    /// A reader of the archive that `input` begins with.
    pub fn new(input: R) -> Self {
        Self { input, offset: 0, size: None, open: Vec::new(), state: State::Begin }
    }

    /// A reader of an archive that must have exactly `size` bytes: nothing is read behind them, and a file that says to be
    /// larger than the rest of the archive is refused before any of it is read.
    pub fn with_size(input: R, size: u64) -> Self {
        Self { size: Some(size), ..Self::new(input) }
    }

    /// The next event; none after the end of the root. What was not read of a file's contents is skipped. After an error
    /// the archive cannot be read on.
    pub fn next_event(&mut self) -> Result<Option<NarEvent>, NarReadError> {
        let event = self.advance();
        if event.is_err() {
            self.state = State::Failed;
        }
        event
    }

    /// The rest of the current file's bytes; empty where the last event was no file. Reading gives `UnexpectedEof` when the
    /// stream ends before the file does, and holds a [`NarReadError`].
    pub fn contents(&mut self) -> NarContents<'_, R> {
        NarContents { reader: self }
    }

    /// Bytes of the archive read so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Reads the archive to its end, checks that the stream ends with it and gives its size in bytes.
    pub fn finish(mut self) -> Result<u64, NarReadError> {
        while self.next_event()?.is_some() {}
        loop {
            match self.input.read(&mut [0]) {
                Ok(0) => return Ok(self.offset),
                Ok(_) => return Err(self.error(NarProblem::TrailingBytes)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.error(NarProblem::Io(error))),
            }
        }
    }

    /// The stream.
    pub fn get_ref(&self) -> &R {
        &self.input
    }

    /// Gives back the stream; after the last event it stands right behind the archive.
    pub fn into_inner(self) -> R {
        self.input
    }

    fn advance(&mut self) -> Result<Option<NarEvent>, NarReadError> {
        match self.state {
            State::Begin => {
                self.expect(MAGIC, "\"nix-archive-1\"")?;
                self.node(Vec::new()).map(Some)
            }
            State::Contents { size, left } => {
                self.skip(left)?;
                self.padding(size)?;
                self.end_node()?;
                self.after_node()
            }
            State::Between => self.after_node(),
            State::End => Ok(None),
            State::Failed => Err(self.error(NarProblem::Io(io::Error::other("it failed before")))),
        }
    }

    /// The entry after a node, the end of the directory around it, or the end of all.
    fn after_node(&mut self) -> Result<Option<NarEvent>, NarReadError> {
        if self.open.is_empty() {
            self.state = State::End;
            return match self.size {
                Some(size) if size != self.offset => Err(self.error(NarProblem::WrongSize(size))),
                _ => Ok(None),
            };
        }
        let at = self.offset;
        let tag = self.tag()?;
        match tag.bytes() {
            b"entry" => {
                self.expect(b"(", "\"(\"")?;
                self.expect(b"name", "\"name\"")?;
                let name = self.name()?;
                self.expect(b"node", "\"node\"")?;
                self.node(name).map(Some)
            }
            b")" => {
                self.open.pop();
                if !self.open.is_empty() {
                    self.expect(b")", "\")\"")?;
                }
                self.state = State::Between;
                Ok(Some(NarEvent::Leave))
            }
            _ => Err(unexpected(at, "\"entry\" or \")\"", &tag)),
        }
    }

    fn node(&mut self, name: Vec<u8>) -> Result<NarEvent, NarReadError> {
        self.expect(b"(", "\"(\"")?;
        self.expect(b"type", "\"type\"")?;
        let at = self.offset;
        let tag = self.tag()?;
        match tag.bytes() {
            b"directory" => {
                if self.open.len() == DEPTH_MAX {
                    return Err(NarReadError { offset: at, problem: NarProblem::TooDeep });
                }
                self.open.push(Vec::new());
                self.state = State::Between;
                Ok(NarEvent::Enter { name })
            }
            b"regular" => self.file(name),
            b"symlink" => {
                self.expect(b"target", "\"target\"")?;
                let target = self.target()?;
                self.end_node()?;
                self.state = State::Between;
                Ok(NarEvent::Symlink { name, target })
            }
            _ => Err(unexpected(at, "\"regular\", \"directory\" or \"symlink\"", &tag)),
        }
    }

    fn file(&mut self, name: Vec<u8>) -> Result<NarEvent, NarReadError> {
        let at = self.offset;
        let tag = self.tag()?;
        let executable = tag.bytes() == b"executable";
        if executable {
            self.expect(b"", "\"\"")?;
            self.expect(b"contents", "\"contents\"")?;
        } else if tag.bytes() != b"contents" {
            return Err(unexpected(at, "\"executable\" or \"contents\"", &tag));
        }
        let at = self.offset;
        let size = self.length()?;
        // Without a size given, all that a stream can hold fits, but the padding must not overflow.
        let left = self.size.map_or(u64::MAX - 8, |size| size.saturating_sub(self.offset));
        if size > left {
            return Err(NarReadError { offset: at, problem: NarProblem::FileTooLarge { size, left } });
        }
        self.state = State::Contents { size, left: size };
        Ok(NarEvent::File { name, executable, size, offset: self.offset })
    }

    fn end_node(&mut self) -> Result<(), NarReadError> {
        self.expect(b")", "\")\"")?;
        if self.open.is_empty() { Ok(()) } else { self.expect(b")", "\")\"") }
    }

    fn name(&mut self) -> Result<Vec<u8>, NarReadError> {
        let at = self.offset;
        let fail = |problem| Err(NarReadError { offset: at, problem });
        let length = self.length()?;
        if length > NAME_MAX_BYTES as u64 {
            return fail(NarProblem::LongName(length));
        }
        let name = self.padded(length as usize)?;
        if !is_entry_name(&name) {
            return fail(NarProblem::BadName(lossy(&name)));
        }
        let previous = self.open.last_mut().expect("entries stand in a directory");
        if *previous >= name {
            let previous = lossy(previous);
            return fail(NarProblem::OutOfOrder { previous, name: lossy(&name) });
        }
        previous.clone_from(&name);
        Ok(name)
    }

    fn target(&mut self) -> Result<Vec<u8>, NarReadError> {
        let at = self.offset;
        let fail = |problem| Err(NarReadError { offset: at, problem });
        let length = self.length()?;
        if length > TARGET_MAX_BYTES as u64 {
            return fail(NarProblem::LongTarget(length));
        }
        let target = self.padded(length as usize)?;
        if target.is_empty() || target.contains(&0) {
            fail(NarProblem::BadTarget(lossy(&target)))
        } else {
            Ok(target)
        }
    }

    fn expect(&mut self, tag: &[u8], expected: &'static str) -> Result<(), NarReadError> {
        let at = self.offset;
        let found = self.tag()?;
        if found.bytes() == tag { Ok(()) } else { Err(unexpected(at, expected, &found)) }
    }

    fn tag(&mut self) -> Result<Tag, NarReadError> {
        let length = self.length()?;
        let mut bytes = [0; TAG_MAX_BYTES];
        if length <= TAG_MAX_BYTES as u64 {
            self.fill(&mut bytes[..(length as usize).next_multiple_of(8)])?;
            if bytes[length as usize..].iter().any(|byte| *byte != 0) {
                return Err(self.error(NarProblem::Padding));
            }
        }
        Ok(Tag { bytes, length })
    }

    fn padded(&mut self, length: usize) -> Result<Vec<u8>, NarReadError> {
        let mut bytes = vec![0; length.next_multiple_of(8)];
        self.fill(&mut bytes)?;
        if bytes[length..].iter().any(|byte| *byte != 0) {
            return Err(self.error(NarProblem::Padding));
        }
        bytes.truncate(length);
        Ok(bytes)
    }

    fn padding(&mut self, size: u64) -> Result<(), NarReadError> {
        let mut zeros = [0; 8];
        let zeros = &mut zeros[..(size.next_multiple_of(8) - size) as usize];
        self.fill(zeros)?;
        if zeros.iter().any(|byte| *byte != 0) { Err(self.error(NarProblem::Padding)) } else { Ok(()) }
    }

    fn length(&mut self) -> Result<u64, NarReadError> {
        let mut bytes = [0; 8];
        self.fill(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn skip(&mut self, mut left: u64) -> Result<(), NarReadError> {
        let mut sink = [0; SKIP_BYTES];
        while left > 0 {
            let most = left.min(SKIP_BYTES as u64) as usize;
            self.fill(&mut sink[..most])?;
            left -= most as u64;
        }
        Ok(())
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), NarReadError> {
        if let Some(size) = self.size.filter(|size| size.saturating_sub(self.offset) < bytes.len() as u64) {
            return Err(self.error(NarProblem::WrongSize(size)));
        }
        self.input.read_exact(bytes).map_err(|error| self.error(stream_problem(error)))?;
        self.offset += bytes.len() as u64;
        Ok(())
    }

    /// Notes that some of the `left` bytes of a file were taken; none are where the stream ends.
    fn note(&mut self, size: u64, left: u64, taken: usize) -> Result<(), NarReadError> {
        if taken == 0 {
            self.state = State::Failed;
            return Err(self.error(NarProblem::Truncated));
        }
        self.offset += taken as u64;
        self.state = State::Contents { size, left: left - taken as u64 };
        Ok(())
    }

    fn error(&self, problem: NarProblem) -> NarReadError {
        NarReadError { offset: self.offset, problem }
    }
}

impl<R: BufRead> NarReader<R> {
    /// Passes over the rest of the current file's bytes where they lie; the next event would copy them to skip them.
    pub fn pass_over(&mut self) -> Result<(), NarReadError> {
        while let State::Contents { size, left: left @ 1.. } = self.state {
            let taken = match self.input.fill_buf() {
                Ok(bytes) => usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    self.state = State::Failed;
                    return Err(self.error(stream_problem(error)));
                }
            };
            self.input.consume(taken);
            self.note(size, left, taken)?;
        }
        Ok(())
    }
}

/// The bytes of the file that [`NarReader::next_event`] gave last.
pub struct NarContents<'a, R: Read> {
    reader: &'a mut NarReader<R>,
}

impl<R: Read> NarContents<'_, R> {
    /// Bytes that have not been read yet.
    pub fn remaining(&self) -> u64 {
        match self.reader.state {
            State::Contents { left, .. } => left,
            State::Begin | State::Between | State::End | State::Failed => 0,
        }
    }

    /// Takes some of the bytes, at most `most`, by another way of the stream than reading it: `take` gets the stream and how
    /// much it may take, and `len` says how much it took. Nothing is taken where nothing is left; errors are those of
    /// reading.
    pub fn take_with<T: Default>(
        &mut self,
        most: usize,
        take: impl FnOnce(&mut R, usize) -> io::Result<T>,
        len: impl FnOnce(&T) -> usize,
    ) -> io::Result<T> {
        let State::Contents { size, left } = self.reader.state else { return Ok(T::default()) };
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(most);
        if most == 0 {
            return Ok(T::default());
        }
        let taken = take(&mut self.reader.input, most)?;
        self.reader.note(size, left, len(&taken))?;
        Ok(taken)
    }
}

impl<R: Read> Read for NarContents<'_, R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let State::Contents { size, left } = self.reader.state else { return Ok(0) };
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        if most == 0 {
            return Ok(0);
        }
        let read = self.reader.input.read(&mut bytes[..most])?;
        self.reader.note(size, left, read)?;
        Ok(read)
    }
}

struct Tag {
    bytes: [u8; TAG_MAX_BYTES],
    length: u64,
}

impl Tag {
    /// The tag; what is too long for any tag is not empty either, and equals none.
    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length as usize).unwrap_or(b"\0")
    }
}

fn unexpected(offset: u64, expected: &'static str, found: &Tag) -> NarReadError {
    let found = match found.length <= TAG_MAX_BYTES as u64 {
        true => Found::Text(lossy(found.bytes())),
        false => Found::Length(found.length),
    };
    NarReadError { offset, problem: NarProblem::UnexpectedTag { expected, found } }
}

fn stream_problem(error: io::Error) -> NarProblem {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => NarProblem::Truncated,
        _ => NarProblem::Io(error),
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
