//! The form of JSON, for tests that freeze it.

use serde_json::{Value, json};

/// The types in a value, instead of what it contains; of an array those of its first element.
pub fn shape(value: &Value) -> Value {
    match value {
        Value::Null => json!("null"),
        Value::Bool(_) => json!("bool"),
        Value::Number(number) if number.is_u64() => json!("integer"),
        Value::Number(_) => json!("number"),
        Value::String(text) if text.parse::<jiff::Timestamp>().is_ok() => json!("time"),
        Value::String(text) if text.parse::<uuid::Uuid>().is_ok() => json!("uuid"),
        Value::String(_) => json!("string"),
        Value::Array(values) => values
            .first()
            .map_or_else(|| json!([]), |first| json!([shape(first)])),
        // The body is the event as it is published: docs/reference/event.md.
        Value::Object(fields) if fields.contains_key("specversion") => json!("event"),
        Value::Object(fields) => fields
            .iter()
            .map(|(name, field)| (name.clone(), shape(field)))
            .collect(),
    }
}
