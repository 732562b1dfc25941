//! What serde says of a value, in words for people.

use devices::config::one_of;

/// What the error of a deserializer says of a value, without the names of serde's and Rust's types:
/// `it is true or false, not 3`. `called` is what the caller calls the parts of a table: a key, a field.
///
/// A front end that reads a [`VmConfig`](crate::VmConfig) or a [`Command`](crate::Command) puts the place and the
/// value's path before it.
///
/// ```
/// use vmm_reference::in_plain_words;
///
/// let text = "invalid type: integer `3`, expected a boolean";
/// assert_eq!(in_plain_words(text, "key"), "it is true or false, not 3");
/// ```
#[must_use]
pub fn in_plain_words(message: &str, called: &str) -> String {
    // How toml hands a date over, to whoever takes a table.
    if message.contains("$__toml_private") {
        return "it is a date or a time, which nothing here is".to_owned();
    }
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    if let ([unknown, known @ ..], true) = (&*quoted, message.starts_with("unknown field ")) {
        let known = match known {
            [] => "there are none".to_owned(),
            known => format!("there are {}", known.join(", ")),
        };
        return format!("there is no {called} `{unknown}`; {known}");
    }
    if let ([unknown, known @ ..], true) = (&*quoted, message.starts_with("unknown variant ")) {
        return format!("it is {}, not {unknown:?}", one_of(known));
    }
    if let Some(name) = quoted.first() {
        if message.starts_with("missing field ") {
            return format!("the {called} `{name}` is missing");
        }
        if message.starts_with("duplicate field ") {
            return format!("the {called} `{name}` stands twice");
        }
    }
    let rest = ["invalid type: ", "invalid value: "]
        .iter()
        .find_map(|start| message.strip_prefix(start));
    let Some((found, expected)) = rest.and_then(|rest| rest.rsplit_once(", expected ")) else {
        return message.to_owned();
    };
    let expected = match expected {
        "a string" | "path string" => "a text in quotes",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "a map" => "a table",
        "map with a single key" => "a table with one entry",
        "u8" => "0 to 255",
        "u16" => "0 to 65535",
        "u32" => "0 to 4294967295",
        "u64" | "usize" => "a whole number, 0 or more",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        other => other,
    };
    let found = match found {
        "sequence" => "a list",
        "map" => "a table",
        "unit value" => "nothing",
        other => ["integer `", "floating point `", "boolean `"]
            .iter()
            .find_map(|kind| other.strip_prefix(kind)?.strip_suffix('`'))
            .or_else(|| other.strip_prefix("string "))
            .unwrap_or(other),
    };
    format!("it is {expected}, not {found}")
}
