//! The key table as a JSON Schema (draft 2020-12), with which editors check and complete guest files.

use serde_json::{Map, Value, json};

use super::fleet::keys::FLEET_KEYS;
use super::host_keys::HOST_KEYS;
use super::key::{Key, KeyTable, Kind};
use super::keys::GUEST_KEYS;
use crate::choices::Support;

/// Returns the schema of a guest file or template.
pub fn guest_schema() -> Value {
    let mut schema = object(&GUEST_KEYS, "");
    head(&mut schema, "vmctl guest file", "One guest of vmctl, or a template for guests; see vmctl.toml(5).");
    schema
}

/// Returns the schema of the host file.
pub fn host_schema() -> Value {
    let mut schema = object(&HOST_KEYS, "");
    schema["properties"]["defaults"] = object(&GUEST_KEYS, "");
    head(&mut schema, "vmctl host file", "What vmctl knows about this host; see vmctl.toml(5).");
    schema
}

/// Returns the schema of a fleet file, which includes the keys of guest files where they are allowed.
pub fn fleet_schema() -> Value {
    let mut schema = object(&FLEET_KEYS, "");
    let guest = object(&GUEST_KEYS, "");
    schema["properties"]["defaults"] = guest.clone();
    for class in ["templates", "guests"] {
        let items = &mut schema["properties"][class]["items"]["properties"];
        for (key, property) in guest["properties"].as_object().expect("an object has its properties") {
            if items[key].is_null() || key == "name" {
                items[key] = property.clone();
            }
        }
    }
    let plain = json!({ "type": ["string", "integer", "boolean"] });
    schema["properties"]["templates"]["items"]["properties"]["parameters"]["items"]["properties"]["default"] = plain;
    schema["properties"]["guests"]["items"]["properties"]["for_each"] =
        json!({ "type": "array", "items": { "type": ["string", "integer", "boolean", "object"] } });
    head(&mut schema, "vmctl fleet file", "Many guests of vmctl as one declaration; see vmctl.toml(5).");
    schema
}

fn head(schema: &mut Value, title: &str, description: &str) {
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
    schema["title"] = title.into();
    schema["description"] = description.into();
}

/// Returns a table as an object. Keys and values that this build refuses are left out, so that editors do not offer
/// them.
fn object(keys: &'static KeyTable, parent: &str) -> Value {
    let mut properties = Map::new();
    for key in keys.children(parent).filter(|key| key.support.on(None)) {
        properties.insert(key.leaf().to_owned(), property(key, keys));
    }
    json!({ "type": "object", "properties": properties, "additionalProperties": false })
}

fn property(key: &Key, keys: &'static KeyTable) -> Value {
    let expression = || json!({ "type": "string", "pattern": "\\{\\{" });
    let text = |pattern: &str| json!({ "type": "string", "pattern": format!("{pattern}|\\{{\\{{") });
    let mut schema = match key.kind {
        Kind::Table { short: None } => object(keys, key.path),
        Kind::Table { short: Some(leaf) } => {
            let inner = keys.children(key.path).find(|key| key.leaf() == leaf).expect("a short form names a key");
            json!({ "anyOf": [property(inner, keys), object(keys, key.path)] })
        }
        Kind::Entries => json!({ "type": "array", "items": object(keys, key.path) }),
        Kind::Text | Kind::Path => json!({ "type": "string" }),
        Kind::Name => text("^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$"),
        Kind::Flag => json!({ "anyOf": [{ "type": "boolean" }, expression()] }),
        Kind::Integer { min, max } => {
            json!({ "anyOf": [{ "type": "integer", "minimum": min, "maximum": max }, expression()] })
        }
        Kind::Size => text("^[0-9][0-9_.]* *([Bb]|[KkMmGgTtPp]([Ii][Bb])?)$"),
        Kind::Duration => text("^([0-9]+ *(ms|s|sec|m|min|h|d) *)+$"),
        Kind::OneOf(choices) => {
            let values: Vec<Value> = choices
                .iter()
                .filter(|choice| choice.support.on(None))
                .map(|choice| json!({ "const": choice.value, "description": said(choice.doc, choice.support) }))
                .chain([expression()])
                .collect();
            json!({ "anyOf": values })
        }
        Kind::Texts { one: false } | Kind::Paths => json!({ "type": "array", "items": { "type": "string" } }),
        Kind::Texts { one: true } => {
            json!({ "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }] })
        }
        Kind::Map => json!({ "type": "object" }),
        Kind::Mac => text("^[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}$"),
        Kind::Uuid => text("^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"),
        Kind::Address => text("^[0-9a-fA-F.:]+$"),
        Kind::Slot => text("^[0-9]+(:[0-9]+){0,2}$"),
        Kind::Network => text("^[0-9.]+/[0-9]+$"),
    };
    schema["description"] = said(key.doc, key.support).into();
    if let Some(default) = key.default {
        schema["default"] = serde_json::from_str(default).expect("a default is written alike in TOML and JSON");
    }
    schema
}

/// Returns a description, with the engines that support it.
fn said(doc: &str, support: Support) -> String {
    format!("{doc} {}", support.words()).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_of_a_fleet_has_its_own_keys_and_those_of_a_guest() {
        let schema = fleet_schema();
        for path in ["/guests/items/properties/count", "/guests/items/properties/disks", "/templates/items/properties/with"] {
            assert!(schema["properties"].pointer(path).is_some(), "{path}");
        }
        assert!(schema.pointer("/properties/defaults/properties/memory").is_some());
    }

    #[test]
    fn the_schema_holds_every_key_that_is_accepted_and_no_other() {
        let schema = guest_schema();
        for key in GUEST_KEYS.iter() {
            let mut at = &schema;
            for part in key.path.split('.') {
                at = [&at["properties"], &at["items"]["properties"], &at["anyOf"][1]["properties"]]
                    .into_iter()
                    .map(|properties| &properties[part])
                    .find(|property| !property.is_null())
                    .unwrap_or(&Value::Null);
            }
            assert_eq!(at.is_null(), !key.support.on(None), "{}", key.path);
        }
    }
}
