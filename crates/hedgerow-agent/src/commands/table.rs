//! Values as people read them, in columns.

use serde_json::Value;

/// Lays rows out in columns, two spaces between them; the first row is the heading.
pub(super) fn columns(rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row
            .iter()
            .enumerate()
            .map(|(n, cell)| format!("{cell:<width$}", width = width(n)))
            .collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Returns the text at a key, or a dash.
pub(super) fn text(value: &Value, key: &str) -> String {
    match value.get(key) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        Some(Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_)) | None => {
            "-".to_owned()
        }
    }
}

/// Spells a duration with the unit that suits it.
pub(super) fn seconds(value: &Value, key: &str) -> String {
    value
        .get(key)
        .and_then(Value::as_f64)
        .map_or_else(|| "-".to_owned(), span)
}

/// Spells seconds with the unit that suits them.
pub(super) fn span(seconds: f64) -> String {
    match seconds {
        s if s < 0.001 => format!("{:.0} us", s * 1e6),
        s if s < 0.1 => format!("{:.2} ms", s * 1e3),
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.0} h", s / 3600.0),
    }
}

/// Spells a part of one as a percentage.
pub(super) fn percent(value: &Value, key: &str) -> String {
    let ratio = value.get(key).and_then(Value::as_f64);
    ratio.map_or_else(|| "-".to_owned(), |r| format!("{:.1} %", r * 100.0))
}

/// Spells a number of bytes with the unit that suits it.
pub(super) fn bytes(value: &Value, key: &str) -> String {
    let Some(bytes) = value.get(key).and_then(Value::as_f64) else {
        return "-".to_owned();
    };
    match bytes {
        b if b < 1024.0 => format!("{b:.0} B"),
        b if b < 1_048_576.0 => format!("{:.1} KiB", b / 1024.0),
        b if b < 1_073_741_824.0 => format!("{:.1} MiB", b / 1_048_576.0),
        b => format!("{:.1} GiB", b / 1_073_741_824.0),
    }
}

/// Spells yes, no or unknown.
pub(super) fn yes(value: &Value, key: &str) -> String {
    match value.get(key) {
        Some(Value::Bool(true)) => "yes",
        Some(Value::Bool(false)) => "no",
        _ => "-",
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_have_the_unit_that_suits_them() {
        let spans = [0.000_12, 0.001_234, 0.25, 7.0, 600.0, 90_000.0].map(span);
        assert_eq!(
            spans,
            ["120 us", "1.23 ms", "250 ms", "7 s", "10 min", "25 h"]
        );
        let value = json!({ "n": 3_145_728, "r": 0.005, "b": true });
        assert_eq!(bytes(&value, "n"), "3.0 MiB");
        assert_eq!(percent(&value, "r"), "0.5 %");
        assert_eq!(
            (yes(&value, "b"), yes(&value, "x")),
            ("yes".to_owned(), "-".to_owned())
        );
        let rows = [
            vec!["A".to_owned(), "B".to_owned()],
            vec!["long".to_owned(), "x".to_owned()],
        ];
        assert_eq!(columns(&rows), "A     B\nlong  x");
    }
}
