//! Columns of text. Rows are measured as they come, kept as one text and written once: a listing of 10,000 machines must
//! take milliseconds, which general table libraries (some 12 µs a row with eight columns) do not leave room for.

use std::borrow::Cow;

use super::{Colour, data, painted};
use crate::failure::Outcome;

/// Printed at once.
const PIECE_BYTES: usize = 64 * 1024;
/// Space between two columns.
const GAP: usize = 2;

/// Text in a colour.
#[derive(Debug, Clone)]
pub struct Cell<'a> {
    /// The text.
    pub text: Cow<'a, str>,
    /// The colour.
    pub colour: Colour,
}

impl<'a> Cell<'a> {
    /// Plain text. Control characters, which would move the cursor, are shown as dots.
    pub fn new(text: impl Into<Cow<'a, str>>) -> Self {
        Self { text: text.into(), colour: Colour::Plain }
    }

    /// The same in a colour.
    #[must_use]
    pub fn colour(mut self, colour: Colour) -> Self {
        self.colour = colour;
        self
    }
}

/// Columns of text with a heading.
pub struct Table<const N: usize> {
    /// The texts of all cells, one behind the other.
    text: String,
    rows: Vec<[Place; N]>,
    widths: [usize; N],
}

/// Where a cell's text ends, and how it is shown; small, as there are many. A table of 4 GiB would not be looked at.
#[derive(Clone, Copy)]
struct Place {
    end: u32,
    width: u32,
    colour: Colour,
}

/// A place in a text or the width of a part.
fn small(number: usize) -> u32 {
    u32::try_from(number).expect("no table has 4 GiB")
}

impl<const N: usize> Table<N> {
    /// A table with these headings.
    pub fn new(headings: [&str; N]) -> Self {
        let mut table = Self::without_headings();
        table.row(headings.map(|heading| Cell::new(heading).colour(Colour::Bold)));
        table
    }

    /// A table of rows that speak for themselves.
    pub fn without_headings() -> Self {
        Self { text: String::new(), rows: Vec::new(), widths: [0; N] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: [Cell<'_>; N]) {
        let mut row = self.begin_row();
        for cell in &cells {
            row.cell(cell.colour, |text| text.push_str(&cell.text));
        }
    }

    /// Adds a row whose cells are written one after the other, without texts of their own; those that are not are empty.
    pub fn begin_row(&mut self) -> Row<'_, N> {
        let begin = self.text.len();
        self.rows.push([Place { end: small(begin), width: 0, colour: Colour::Plain }; N]);
        Row { table: self, next: 0, begin }
    }

    /// Prints it to standard output, in pieces: memory that was used a moment ago is quicker than more of it.
    pub fn print(&self) -> Outcome<()> {
        self.render(|text| match text.len() < PIECE_BYTES {
            true => Ok(()),
            false => data(text.as_bytes()).map(|()| text.clear()),
        })
        .and_then(|rest| data(rest.as_bytes()))
    }

    /// The text; `piece` is called behind each line with what there is so far, and may take it.
    fn render(&self, mut piece: impl FnMut(&mut String) -> Outcome<()>) -> Outcome<String> {
        let line = self.widths.iter().sum::<usize>() + N * GAP + 1;
        let blanks = " ".repeat(line);
        let mut text = String::new();
        let mut begin = 0;
        for row in &self.rows {
            for (index, (place, width)) in row.iter().zip(self.widths).enumerate() {
                let end = place.end as usize;
                let cell = &self.text[begin..end];
                begin = end;
                match place.colour {
                    Colour::Plain => text.push_str(cell),
                    colour => text.push_str(&painted(cell, colour)),
                }
                // Nothing behind the last column, so that lines do not wrap for blanks.
                if index + 1 < N {
                    text.push_str(&blanks[..width - place.width as usize + GAP]);
                }
            }
            text.truncate(text.trim_end_matches(' ').len());
            text.push('\n');
            piece(&mut text)?;
        }
        Ok(text)
    }

    #[cfg(test)]
    pub(crate) fn shown(&self) -> String {
        self.render(|_| Ok(())).expect("nothing is written")
    }
}

/// A row that is being written.
pub struct Row<'a, const N: usize> {
    table: &'a mut Table<N>,
    next: usize,
    begin: usize,
}

impl<const N: usize> Row<'_, N> {
    /// Writes the next cell.
    pub fn cell(&mut self, colour: Colour, write: impl FnOnce(&mut String)) {
        let text = &mut self.table.text;
        write(text);
        let mut width = text.len() - self.begin;
        if !is_plain(&text[self.begin..]) {
            let shown = clean(text.split_off(self.begin).into());
            width = shown.chars().count();
            text.push_str(&shown);
        }
        let end = text.len();
        self.begin = end;
        let row = self.table.rows.last_mut().expect("this row");
        row[self.next] = Place { end: small(end), width: small(width), colour };
        // What is not written yet is empty.
        row[self.next + 1..].iter_mut().for_each(|place| place.end = small(end));
        let widest = &mut self.table.widths[self.next];
        *widest = width.max(*widest);
        self.next += 1;
    }
}

/// Whether every byte is a character that takes one place.
fn is_plain(text: &str) -> bool {
    text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

/// Control characters, which would move the cursor, as dots.
fn clean(text: Cow<'_, str>) -> Cow<'_, str> {
    match text.contains(char::is_control) {
        true => text.chars().map(|c| if c.is_control() { '·' } else { c }).collect(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(["NAME", "STATE", "X"]);
        table.row([Cell::new("a"), Cell::new("läuft\x1b"), Cell::new("")]);
        table.row([Cell::new("longer"), Cell::new(""), Cell::new("1")]);
        assert_eq!(table.shown(), "NAME    STATE   X\na       läuft·\nlonger          1\n");
    }
}
