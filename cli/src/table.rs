//! Aligned columns that fit the terminal, and the Table objects of the API.

use serde_json::Value;

use crate::style;

/// Narrowest that a column is cut to.
const NARROW: usize = 12;

/// Rows of text under a heading.
#[derive(Clone, Debug, Default)]
pub struct Table {
    heading: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table with these columns.
    pub fn new(heading: &[&str]) -> Self {
        Self { heading: heading.iter().map(|name| (*name).to_owned()).collect(), rows: Vec::new() }
    }

    /// One more row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// A Table of the API: columns of priority 0, or all when `wide`; the namespace first when asked for.
    pub fn from_api(table: &Value, wide: bool, namespace: bool, prefix: Option<&str>) -> Self {
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let columns: Vec<(usize, String)> = list(&table["columnDefinitions"])
            .iter()
            .enumerate()
            .filter(|(_, column)| wide || column["priority"].as_i64().unwrap_or(0) == 0)
            .map(|(index, column)| (index, column["name"].as_str().unwrap_or_default().to_uppercase()))
            .collect();
        let mut heading: Vec<String> = columns.iter().map(|(_, name)| name.clone()).collect();
        if namespace {
            heading.insert(0, "NAMESPACE".to_owned());
        }
        let row = |row: &Value| {
            let mut cells: Vec<String> = columns.iter().map(|(index, _)| cell(&row["cells"][*index])).collect();
            if let (Some(prefix), Some(name)) = (prefix, cells.first_mut()) {
                *name = format!("{prefix}/{name}");
            }
            if namespace {
                cells.insert(0, cell(&row["object"]["metadata"]["namespace"]));
            }
            cells
        };
        Self { heading, rows: list(&table["rows"]).iter().map(row).collect() }
    }

    /// The text, cut to `width` columns when there is a limit.
    pub fn render(&self, width: Option<usize>) -> String {
        lines(std::iter::once(&self.heading).chain(&self.rows), width)
    }

    /// Prints it, cut to the terminal.
    pub fn print(&self) {
        anstream::print!("{}", self.render(style::width()));
    }
}

/// Rows of text, aligned.
pub fn aligned(rows: &[Vec<String>]) -> String {
    lines(rows.iter(), None)
}

fn lines<'a>(rows: impl Iterator<Item = &'a Vec<String>> + Clone, width: Option<usize>) -> String {
    let columns = rows.clone().map(Vec::len).max().unwrap_or(0);
    let longest = |column: usize| rows.clone().filter_map(|row| row.get(column)).map(|cell| length(cell)).max();
    let mut widths: Vec<usize> = (0..columns).map(|column| longest(column).unwrap_or(0)).collect();
    if let Some(limit) = width {
        fit(&mut widths, limit);
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let cell = cut(cell, *width);
            line.push_str(&cell);
            line.extend(std::iter::repeat_n(' ', width.saturating_sub(length(&cell)) + 2));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// One cell as text.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Letters that are seen: colour codes are not.
fn length(cell: &str) -> usize {
    let (mut count, mut code) = (0, false);
    for letter in cell.chars() {
        match letter {
            '\x1b' => code = true,
            'm' if code => code = false,
            _ if !code => count += 1,
            _ => {}
        }
    }
    count
}

/// Takes from the widest column until the line fits or every column is narrow.
fn fit(widths: &mut [usize], limit: usize) {
    let gaps = 2 * widths.len().saturating_sub(1);
    while widths.iter().sum::<usize>() + gaps > limit {
        let Some(widest) = widths.iter_mut().filter(|width| **width > NARROW).max() else { return };
        *widest -= 1;
    }
}

/// At most `width` letters, the last one an ellipsis when something is missing.
fn cut(cell: &str, width: usize) -> String {
    // Coloured cells are short words.
    if length(cell) <= width || cell.contains('\x1b') {
        return cell.to_owned();
    }
    let mut text: String = cell.chars().take(width.saturating_sub(1)).collect();
    text.push('…');
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn example() -> Table {
        let mut table = Table::new(&["NAME", "LONG"]);
        table.row(["a", &"x".repeat(40)]);
        table.row(["catalog", "short"]);
        table
    }

    #[test]
    fn columns_are_aligned_and_lines_have_no_blank_end() {
        let text = example().render(None);
        assert_eq!(text, format!("NAME     LONG\na        {}\ncatalog  short\n", "x".repeat(40)));
    }

    #[test]
    fn the_widest_column_is_cut_to_fit() {
        let text = example().render(Some(29));
        assert!(text.contains(&format!("a        {}…\n", "x".repeat(19))), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 29), "{text}");
        let narrow = example().render(Some(3));
        assert!(narrow.contains(&format!("{}…", "x".repeat(NARROW - 1))), "{narrow}");
    }

    #[test]
    fn colours_take_no_room() {
        let mut table = Table::new(&["A", "B"]);
        table.row([style::paint(style::GOOD, "ok"), "b".to_owned()]);
        assert!(table.render(Some(5)).ends_with("  b\n"));
        assert_eq!(length(&style::paint(style::BAD, "ERROR")), 5);
    }

    #[test]
    fn a_table_of_the_api_shows_wide_columns_and_namespaces_when_asked() {
        let table = json!({
            "columnDefinitions": [{"name": "Name"}, {"name": "Ports", "priority": 0}, {"name": "Labels", "priority": 1}],
            "rows": [{"cells": ["catalog", 80, null], "object": {"metadata": {"namespace": "shop"}}}],
        });
        assert_eq!(Table::from_api(&table, false, false, None).render(None), "NAME     PORTS\ncatalog  80\n");
        let all = Table::from_api(&table, true, true, Some("service")).render(None);
        assert_eq!(all, "NAMESPACE  NAME             PORTS  LABELS\nshop       service/catalog  80\n");
    }
}
