//! Aligned columns. Width is counted in characters, before colours.

use std::io::{self, Write};

use crate::shell::{Style, Tone};

/// One cell.
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// Makes a cell that is set off.
    pub(crate) fn toned(text: impl Into<String>, tone: Tone) -> Self {
        Self {
            text: text.into(),
            tone,
        }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::toned(text, Tone::Plain)
    }
}

/// A table that is written at once.
pub(crate) struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// Begins a table.
    pub(crate) fn new(head: &[&'static str]) -> Self {
        Self {
            head: head.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    /// Writes head and rows; nothing when there are no rows.
    pub(crate) fn write(&self, style: Style, out: &mut dyn Write) -> io::Result<()> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let mut widths: Vec<usize> = self.head.iter().map(|h| h.chars().count()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.text.chars().count());
            }
        }
        let head: Vec<Cell> = self.head.iter().map(|h| Cell::from(*h)).collect();
        for row in std::iter::once(&head).chain(&self.rows) {
            write_row(row, &widths, style, out)?;
        }
        Ok(())
    }
}

fn write_row(row: &[Cell], widths: &[usize], style: Style, out: &mut dyn Write) -> io::Result<()> {
    let last = row.iter().rposition(|cell| !cell.text.is_empty());
    for (i, (cell, width)) in row.iter().zip(widths).enumerate() {
        let text = clean(&cell.text);
        let painted = style.paint(cell.tone, &text);
        if Some(i) >= last {
            return writeln!(out, "{painted}");
        }
        let gap = (width + 2).saturating_sub(text.chars().count());
        write!(out, "{painted}{:gap$}", "")?;
    }
    writeln!(out)
}

/// Replaces what could steer a terminal: names and reasons come from elsewhere.
pub(crate) fn clean(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_nothing_steers_the_terminal() {
        let mut table = Table::new(&["NAME", "STATE"]);
        table.row(vec!["é".into(), Cell::toned("held", Tone::Bad)]);
        table.row(vec!["long-name\u{1b}[2J".into(), "".into()]);
        let mut out = Vec::new();
        table.write(Style::new(true), &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(
            text,
            "NAME           STATE\n\
             é              \u{1b}[31mheld\u{1b}[0m\n\
             long-name\u{fffd}[2J\n"
        );
    }
}
