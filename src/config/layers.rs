//! Lays the environment and `--set` over `proxy.toml`; neither can make a tenant or an instance.

use std::collections::HashMap;

use config::{Config, Environment, Map, Source, Value, ValueKind};

use super::document::{Document, ENVIRONMENT, OVERRIDE, PREFIX};
use super::problem::{Gathered, Problem};
use super::unknown;

/// The document with the values of both layers; what they may not set is reported and left out.
pub(super) fn merge(mut document: Document, overrides: &[(String, String)], gathered: &mut Gathered<'_>) -> Document {
    let ValueKind::Table(table) = &mut document.values.kind else {
        return document;
    };
    // The environment's names arrive in lower case: tenants never pass through these layers.
    let tenants = table.remove("tenants");
    let instances: Vec<String> = match table.get("instances").map(|value| &value.kind) {
        Some(ValueKind::Table(instances)) => instances.keys().cloned().collect(),
        _ => Vec::new(),
    };

    let variables = gathered.environment.iter().filter(|(name, _)| name.starts_with(PREFIX));
    let (mut environment, mut problems) = (HashMap::new(), Vec::new());
    for (name, value) in variables {
        let key = name[PREFIX.len()..].to_lowercase().replace("__", ".");
        match forbidden(&key, &instances) {
            Some(message) => problems.push(Problem { place: name.clone(), key, line: None, message }),
            None => _ = environment.insert(name.clone(), value.clone()),
        }
    }
    let environment =
        Environment::with_prefix("PGTENANT").prefix_separator("__").separator("__").source(Some(environment));
    let mut builder = Config::builder().add_source(Base(document.values.clone())).add_source(environment);
    for (key, value) in overrides {
        let problem = |message| Problem { place: OVERRIDE.to_owned(), key: key.clone(), line: None, message };
        if let Some(message) = forbidden(key, &instances) {
            problems.push(problem(message));
            continue;
        }
        let value = Value::new(Some(&OVERRIDE.to_owned()), ValueKind::String(value.clone()));
        builder = builder.set_override(key, value).expect("`forbidden` lets only dotted keys pass");
    }
    problems.sort_by(|a, b| a.place.cmp(&b.place));
    problems.into_iter().for_each(|problem| gathered.add(problem));

    match builder.build() {
        Ok(merged) => document.values.kind = merged.cache.kind,
        Err(error) => gathered.add(Problem::of_file(ENVIRONMENT.as_ref(), error.to_string())),
    }
    if let (ValueKind::Table(table), Some(tenants)) = (&mut document.values.kind, tenants) {
        table.insert("tenants".to_owned(), tenants);
    }
    document
}

/// Why a key may not be set outside of files, if so.
fn forbidden(key: &str, instances: &[String]) -> Option<String> {
    let word = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
    if !key.split('.').all(word) {
        return Some("not a key; write e.g. pool.max_backends".to_owned());
    }
    let mut parts = key.split('.');
    match (parts.next(), parts.next()) {
        (Some("tenants"), _) => Some("tenants are set in their files only".to_owned()),
        (Some("instances"), Some(name)) if !instances.iter().any(|known| known == name) => {
            let known = instances.iter().map(String::as_str);
            Some(format!("{} (instances are named in proxy.toml only)", unknown::name("instance", name, known)))
        }
        _ => None,
    }
}

/// The file's values as the lowest layer.
#[derive(Debug, Clone)]
struct Base(Value);

impl Source for Base {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, config::ConfigError> {
        self.0.clone().into_table()
    }

    // The default takes top-level names apart at dots; here they stay as they are written.
    fn collect_to(&self, cache: &mut Value) -> Result<(), config::ConfigError> {
        *cache = self.0.clone();
        Ok(())
    }
}
