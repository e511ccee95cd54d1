//! Prometheus' text format 0.0.4 for the series that are not kept in a registry.

use std::fmt::{Display, Write};

/// A document under construction; samples belong to the family that was begun last.
#[derive(Default)]
pub(super) struct Text {
    out: String,
    family: &'static str,
}

impl Text {
    /// Goes on after text that is there already.
    pub(super) fn after(out: String) -> Self {
        Self { out, family: "" }
    }

    /// `help` must hold neither backslash nor line end.
    pub(super) fn family(&mut self, name: &'static str, kind: &str, help: &str) {
        self.family = name;
        self.push(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    /// `labels` as made by [`label`], joined by commas; may be empty.
    pub(super) fn sample(&mut self, labels: &str, value: impl Display) {
        let name = self.family;
        if labels.is_empty() {
            self.push(format_args!("{name} {value}\n"));
        } else {
            self.push(format_args!("{name}{{{labels}}} {value}\n"));
        }
    }

    pub(super) fn finish(self) -> String {
        self.out
    }

    fn push(&mut self, text: std::fmt::Arguments<'_>) {
        self.out.write_fmt(text).expect("writing to a String cannot fail");
    }
}

/// Appends `name="value"` to `labels`, with a comma where something stands before it.
pub(super) fn label(labels: &mut String, name: &str, value: &str) {
    if !labels.is_empty() {
        labels.push(',');
    }
    labels.push_str(name);
    labels.push_str("=\"");
    for letter in value.chars() {
        match letter {
            '\\' => labels.push_str("\\\\"),
            '"' => labels.push_str("\\\""),
            '\n' => labels.push_str("\\n"),
            letter => labels.push(letter),
        }
    }
    labels.push('"');
}

/// A number of microseconds, printed in seconds without going through a float.
pub(super) struct Micros(pub(super) u64);

impl Display for Micros {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        let mut labels = String::new();
        label(&mut labels, "tenant", "a\\b\"c\nd");
        label(&mut labels, "region", "zürich");
        assert_eq!(labels, r#"tenant="a\\b\"c\nd",region="zürich""#);
    }

    #[test]
    fn microseconds_print_as_seconds() {
        assert_eq!(Micros(0).to_string(), "0.000000");
        assert_eq!(Micros(12_000_345).to_string(), "12.000345");
    }
}
