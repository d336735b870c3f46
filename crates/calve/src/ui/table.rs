//! Columns of text. Rows are measured and written once: a listing of 10,000 machines must take milliseconds, which
//! general table libraries (some 12 µs a row with eight columns) do not leave room for.

use std::fmt::Write as _;

use super::{Colour, data, painted};
use crate::failure::Outcome;

/// Space between two columns.
const GAP: usize = 2;

/// Text in a colour.
#[derive(Debug, Clone)]
pub struct Cell {
    text: String,
    colour: Colour,
}

impl Cell {
    /// Plain text. Control characters, which would move the cursor, are shown as dots.
    pub fn new(text: impl Into<String>) -> Self {
        let mut text = text.into();
        if text.contains(char::is_control) {
            text = text.chars().map(|c| if c.is_control() { '·' } else { c }).collect();
        }
        Self { text, colour: Colour::Plain }
    }

    /// The same in a colour.
    #[must_use]
    pub fn colour(mut self, colour: Colour) -> Self {
        self.colour = colour;
        self
    }

    fn width(&self) -> usize {
        if self.text.is_ascii() { self.text.len() } else { self.text.chars().count() }
    }
}

/// Columns of text with a heading.
pub struct Table<const N: usize> {
    rows: Vec<[Cell; N]>,
}

impl<const N: usize> Table<N> {
    /// A table with these headings.
    pub fn new(headings: [&str; N]) -> Self {
        Self { rows: vec![headings.map(|heading| Cell::new(heading).colour(Colour::Bold))] }
    }

    /// A table of rows that speak for themselves.
    pub fn without_headings() -> Self {
        Self { rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: [Cell; N]) {
        self.rows.push(cells);
    }

    /// Prints it to standard output.
    pub fn print(&self) -> Outcome<()> {
        data(self.render().as_bytes())
    }

    fn render(&self) -> String {
        let mut widths = [0; N];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.width());
            }
        }
        let mut text = String::with_capacity(self.rows.len() * (widths.iter().sum::<usize>() + N * GAP + 1));
        for row in &self.rows {
            for (index, (cell, width)) in row.iter().zip(widths).enumerate() {
                match cell.colour {
                    Colour::Plain => text.push_str(&cell.text),
                    colour => text.push_str(&painted(&cell.text, colour)),
                }
                // Nothing behind the last column, so that lines do not wrap for blanks.
                if index + 1 < N {
                    let _ = write!(text, "{:1$}", "", width - cell.width() + GAP);
                }
            }
            text.truncate(text.trim_end_matches(' ').len());
            text.push('\n');
        }
        text
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
        assert_eq!(table.render(), "NAME    STATE   X\na       läuft·\nlonger          1\n");
    }
}
