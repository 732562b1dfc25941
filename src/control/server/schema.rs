//! What may be said on the control socket, as a JSON Schema made from the types that say it.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::Serialize;
use serde_json::{Value, json};

use super::protocol::PROTOCOL;
use crate::{Command, Event, Happening, Reply, State};

/// What a client may give a request to find it in the answer.
#[derive(JsonSchema, Serialize)]
#[serde(untagged)]
#[expect(dead_code, reason = "its schema alone is used")]
enum Id {
    Number(f64),
    Text(String),
}

/// The first line of the VM.
#[derive(JsonSchema, Serialize)]
struct Greeting {
    /// What it is.
    vmm: String,
    /// Its version.
    version: String,
    /// The version of the protocol.
    protocol: u32,
    /// The process.
    pid: u32,
}

/// A command, and the request's id.
#[derive(JsonSchema, Serialize)]
struct Request {
    #[serde(flatten)]
    command: Command,
    id: Option<Id>,
}

/// Why a request was not carried out.
#[derive(JsonSchema, Serialize)]
struct Refusal {
    /// `request`, `state`, `ended`, `device` or `host`; there may be others.
    kind: String,
    /// For people.
    message: String,
    /// The state in which the command makes no sense.
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<State>,
}

/// A JSON Schema (draft 2020-12) of every line that may be on the control socket, of either side. Its definitions
/// `Request`, `Subscription`, `Greeting`, `Answer` and `Event` are the kinds of lines.
///
/// What a client says has the fields that are there and no others. What the VM says may get more fields, and more
/// kinds of events and errors, in later versions.
#[must_use]
pub fn control_schema() -> Value {
    let mut generator = SchemaSettings::draft2020_12().into_generator();
    let request = generator.root_schema_for::<Request>();
    let greeting = generator.subschema_for::<Greeting>();
    let event = generator.subschema_for::<Event>();
    let reply = generator.subschema_for::<Reply>();
    let refusal = generator.subschema_for::<Refusal>();
    let id = generator.subschema_for::<Id>();
    let mut definitions = generator.take_definitions(true);
    let mut request = request.to_value();
    if let Some(object) = request.as_object_mut() {
        object.remove("$schema");
        object.remove("$defs");
        // What the derived schema says of each command alone.
        object.insert("unevaluatedProperties".to_owned(), json!(false));
    }
    definitions.insert("Request".to_owned(), request);
    definitions.insert(
        "Subscription".to_owned(),
        json!({
            "description": "Asks for events from then on: of these kinds, or of all if none is named.",
            "type": "object",
            "properties": {
                "id": { "anyOf": [&id, { "type": "null" }] },
                "subscribe": { "type": "array", "items": { "enum": Happening::NAMES } },
            },
            "required": ["subscribe"],
            "additionalProperties": false,
        }),
    );
    definitions.insert(
        "Answer".to_owned(),
        json!({
            "description": "To a request: it has the request's id, and says what came of it.",
            "type": "object",
            "properties": {
                "id": &id,
                "ok": { "anyOf": [
                    &reply,
                    {
                        "description": "To a subscription.",
                        "type": "object",
                        "properties": { "subscribed": { "const": true } },
                        "required": ["subscribed"],
                    },
                ] },
                "error": &refusal,
            },
            "oneOf": [{ "required": ["ok"] }, { "required": ["error"] }],
        }),
    );
    let mut schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": format!("The control socket of vmm-reference, protocol {PROTOCOL}"),
        "description": "A line of a client is a Request or a Subscription; a line of the VM is its Greeting, then \
            Answers and Events. docs/control.md says what they mean.",
        "anyOf": [
            { "$ref": "#/$defs/Request" },
            { "$ref": "#/$defs/Subscription" },
            &greeting,
            { "$ref": "#/$defs/Answer" },
            &event,
        ],
        "$defs": definitions,
    });
    without_links(&mut schema);
    schema
}

/// Descriptions are comments of the sources, with links that are none elsewhere.
fn without_links(schema: &mut Value) {
    match schema {
        Value::String(text) => *text = text.replace("[`", "`").replace("`]", "`"),
        Value::Array(values) => values.iter_mut().for_each(without_links),
        Value::Object(values) => values.values_mut().for_each(without_links),
        _ => {}
    }
}
