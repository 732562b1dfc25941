//! What every answer of the API looks like: `interface.json` says it, in a form of its own.

use std::sync::LazyLock;

use serde_json::{Map, Value};

/// `interface.json`.
static INTERFACE: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("interface.json")).unwrap());
/// The status of every error but one.
const REFUSED: u16 = 400;
/// Data of the metadata service that is too large.
const TOO_LARGE: u16 = 413;

/// What is said of a part of the interface.
pub(crate) fn part(name: &str) -> &'static Map<String, Value> {
    INTERFACE[name].as_object().unwrap()
}

/// What is wrong with an answer of the API to this request; `body` is null when it has none.
pub(crate) fn check(method: &str, path: &str, status: u16, body: &Value) -> Result<(), String> {
    let wrong = |cause: String| Err(format!("{method} {path}: {status} {body}: {cause}"));
    if status == REFUSED || status == TOO_LARGE {
        let said = body["fault_message"].as_str().unwrap_or_default();
        return match of_type("Error", body) {
            Ok(()) if !said.is_empty() => Ok(()),
            other => wrong(format!("an error says why: {other:?}")),
        };
    }
    let Some(success) = success(method, path) else {
        return wrong("there is nothing of that kind".to_owned());
    };
    let (wanted, kind) = success.split_once(' ').unwrap_or((success, ""));
    if status.to_string() != wanted {
        return wrong(format!("the status is {wanted}"));
    }
    match kind {
        "" if body.is_null() => Ok(()),
        "" => wrong("it has no body".to_owned()),
        kind => of_type(kind, body).or_else(wrong),
    }
}

/// The status of success and the type of the answer.
fn success(method: &str, path: &str) -> Option<&'static str> {
    let fits = |form: &str| {
        let mut form = form.trim_start_matches('/').split('/');
        let mut path = path.trim_start_matches('/').split('/');
        loop {
            match (form.next(), path.next()) {
                (None, None) => return true,
                (Some(form), Some(part)) if form == part || form.starts_with('{') => {}
                _ => return false,
            }
        }
    };
    let ours = INTERFACE["ours"]["paths"].as_object().unwrap();
    let found = part("paths")
        .iter()
        .chain(ours)
        .find(|(form, _)| fits(form));
    found.and_then(|(_, methods)| methods.get(method)?.as_str())
}

/// Whether a value is of this type.
fn of_type(kind: &str, value: &Value) -> Result<(), String> {
    let wrong = |cause: &str| Err(format!("{value} is no {kind}{cause}"));
    if let Some(element) = kind
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    {
        let Some(list) = value.as_array() else {
            return wrong("");
        };
        return list.iter().try_for_each(|value| of_type(element, value));
    }
    if kind.contains('|') {
        let word = value.as_str();
        return match kind.split('|').any(|known| Some(known) == word) {
            true => Ok(()),
            false => wrong(""),
        };
    }
    let (name, bounds) = kind.split_once(' ').unwrap_or((kind, ""));
    let fits = match name {
        "any" => true,
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value
            .as_i64()
            .map(i128::from)
            .or(value.as_u64().map(i128::from))
            .is_some_and(|number| {
                let (least, most) = bounds.split_once("..").unwrap_or(("", ""));
                let least: i128 = least.parse().unwrap_or(i128::MIN);
                let most: i128 = most.parse().unwrap_or(i128::MAX);
                (least..=most).contains(&number)
            }),
        name => return of_named(name, value),
    };
    if fits { Ok(()) } else { wrong("") }
}

fn of_named(name: &str, value: &Value) -> Result<(), String> {
    let ours = &INTERFACE["ours"]["types"][name];
    let fields = match part("types").get(name).unwrap_or(ours) {
        Value::String(kind) => return of_type(kind, value),
        fields => fields.as_object().unwrap(),
    };
    let Some(object) = value.as_object() else {
        return Err(format!("{value} is no {name}"));
    };
    for (field, kind) in fields {
        let known = field.trim_end_matches('!');
        let kind = kind.as_str().unwrap();
        match object.get(known) {
            None | Some(Value::Null) if known == field => {}
            None => return Err(format!("{name}: {known} is missing")),
            Some(value) => of_type(kind, value).map_err(|cause| format!("{name}: {cause}"))?,
        }
    }
    let is_known = |key: &str| {
        fields
            .keys()
            .any(|field| field.trim_end_matches('!') == key)
    };
    match object.keys().find(|key| !is_known(key)) {
        Some(key) => Err(format!("{name} has no field {key}")),
        None => Ok(()),
    }
}
