//! From an answer to words. What an answer lacks is shown as `-`, never made up.

use hedgerow_model::Wall;
use serde_json::Value;

use crate::table::clean;
use crate::time::utc;

/// Returns a field as text: strings as they are, numbers and booleans spelt, absent as `-`.
pub(crate) fn text(value: &Value, key: &str) -> String {
    plain(value.get(key).unwrap_or(&Value::Null))
}

/// Returns a value as text.
pub(crate) fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => clean(text),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Number(number) => number.to_string(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(plain).collect();
            items.join(", ")
        }
        Value::Object(_) => labels(value),
    }
}

/// Returns an object as `key=value,key=value`; a string as it is.
pub(crate) fn labels(value: &Value) -> String {
    let Some(map) = value.as_object() else {
        return plain(value);
    };
    let pairs: Vec<String> = map
        .iter()
        .map(|(key, v)| format!("{}={}", clean(key), plain(v)))
        .collect();
    if pairs.is_empty() {
        "-".to_owned()
    } else {
        pairs.join(",")
    }
}

/// Returns a flag; absent is no.
pub(crate) fn flag(value: &Value, key: &str) -> bool {
    value.get(key).and_then(Value::as_bool) == Some(true)
}

/// Returns the list under `key`, or the value itself when it is a list; absent is empty.
pub(crate) fn list<'v>(value: &'v Value, key: &str) -> &'v [Value] {
    let list = value
        .as_array()
        .or_else(|| value.get(key).and_then(Value::as_array));
    list.map_or(&[], Vec::as_slice)
}

/// Returns the instant under `<key>_ms`, `<key>_secs` or, spelt out already, `key`.
pub(crate) fn instant(value: &Value, key: &str) -> String {
    let number = |suffix: &str| value.get(format!("{key}_{suffix}")).and_then(Value::as_u64);
    match (number("ms"), number("secs")) {
        (Some(ms), _) => utc(Wall(ms)),
        (None, Some(secs)) => utc(Wall::from_secs(secs)),
        (None, None) => text(value, key),
    }
}

/// Returns `name.site`.
pub(crate) fn full_name(device: &Value) -> String {
    match (device.get("name"), device.get("site")) {
        (Some(name), Some(site)) if !name.is_null() && !site.is_null() => {
            format!("{}.{}", plain(name), plain(site))
        }
        (Some(name), _) if !name.is_null() => plain(name),
        _ => text(device, "id"),
    }
}

/// Returns one finding of a refusal as `file:line:column: field: message; remedy`, as far as it has these.
pub(crate) fn detail(detail: &Value) -> String {
    let Some(map) = detail.as_object() else {
        return plain(detail);
    };
    let has = |key: &str| map.get(key).filter(|v| !v.is_null() && *v != "").map(plain);
    let place: Vec<String> = ["file", "line", "column"]
        .into_iter()
        .filter_map(has)
        .collect();
    let warning = has("severity")
        .filter(|s| s == "warning")
        .map(|_| "warning".to_owned());
    let words = ["field", "test", "message", "detail"]
        .into_iter()
        .filter_map(has);
    let mut parts: Vec<String> = Vec::new();
    if !place.is_empty() {
        parts.push(place.join(":"));
    }
    parts.extend(warning);
    parts.extend(words);
    let line = parts.join(": ");
    match has("remedy") {
        Some(remedy) => format!("{line}; {remedy}"),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn findings_read_like_a_compilers() {
        let finding = json!({"file": "p.yaml", "line": 3, "column": 7, "severity": "error",
            "field": "rules[0].from", "message": "unknown label `rol`", "remedy": "did you mean role?"});
        assert_eq!(
            detail(&finding),
            "p.yaml:3:7: rules[0].from: unknown label `rol`; did you mean role?"
        );
        assert_eq!(
            detail(&json!({"line": 4, "test": "a reaches b", "detail": "refused"})),
            "4: a reaches b: refused"
        );
        assert_eq!(detail(&json!("plain\u{7}")), "plain\u{fffd}");
    }

    #[test]
    fn what_is_absent_is_not_made_up() {
        let value = json!({"a": null, "b": "", "at_ms": 1000, "c_secs": 1});
        assert_eq!(text(&value, "a"), "-");
        assert_eq!(text(&value, "zz"), "-");
        assert_eq!(instant(&value, "at"), "1970-01-01T00:00:01Z");
        assert_eq!(instant(&value, "c"), "1970-01-01T00:00:01Z");
        assert_eq!(instant(&value, "d"), "-");
    }
}
