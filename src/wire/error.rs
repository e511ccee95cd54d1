//! An error or notice in the protocol's own form (PostgreSQL manual, 55.8).

use bytes::BytesMut;
use pgwire::messages::Message;
use pgwire::messages::response::ErrorResponse;

use super::frame::cstr;

/// How bad it is: an `Error` leaves the session open, a `Fatal` ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    Error,
    Fatal,
}

impl Severity {
    fn text(self) -> &'static str {
        match self {
            Severity::Error => "ERROR",
            Severity::Fatal => "FATAL",
        }
    }
}

/// What a client is told, or what a backend told us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PgError {
    pub severity: Severity,
    pub code: String,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

impl PgError {
    pub fn error(code: &str, message: impl Into<String>) -> Self {
        Self::new(Severity::Error, code, message)
    }

    pub fn fatal(code: &str, message: impl Into<String>) -> Self {
        Self::new(Severity::Fatal, code, message)
    }

    fn new(severity: Severity, code: &str, message: impl Into<String>) -> Self {
        PgError { severity, code: code.to_owned(), message: message.into(), detail: None, hint: None }
    }

    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same with another severity: at login everything is fatal, later the session may go on.
    pub fn with_severity(mut self, severity: Severity) -> Self {
        self.severity = severity;
        self
    }

    /// The whole ErrorResponse message.
    pub fn encode(&self) -> BytesMut {
        let severity = self.severity.text().to_owned();
        let mut fields = vec![
            (b'S', severity.clone()),
            (b'V', severity),
            (b'C', self.code.clone()),
            (b'M', without_nul(&self.message)),
        ];
        fields.extend(self.detail.as_deref().map(|detail| (b'D', without_nul(detail))));
        fields.extend(self.hint.as_deref().map(|hint| (b'H', without_nul(hint))));
        let mut out = BytesMut::new();
        ErrorResponse::new(fields).encode(&mut out).expect("an error text of ours stays below pgwire's 2 GiB bound");
        out
    }

    /// Reads the payload of an ErrorResponse; unknown fields are passed over, a cut-off end is tolerated.
    pub fn decode(mut payload: &[u8]) -> Self {
        let mut read = PgError::error("XX000", "");
        while let Some((&field, rest)) = payload.split_first() {
            let Some((value, rest)) = cstr(rest) else { break };
            let text = || String::from_utf8_lossy(value).into_owned();
            match field {
                b'V' if matches!(value, b"FATAL" | b"PANIC") => read.severity = Severity::Fatal,
                b'C' => read.code = text(),
                b'M' => read.message = text(),
                b'D' => read.detail = Some(text()),
                b'H' => read.hint = Some(text()),
                _ => {}
            }
            payload = rest;
        }
        read
    }
}

impl std::fmt::Display for PgError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} (SQLSTATE {})", self.severity.text(), self.message, self.code)?;
        match &self.detail {
            Some(detail) => write!(f, "; {detail}"),
            None => Ok(()),
        }
    }
}

/// A C string cannot hold a NUL: one in a name that a client chose would cut the message off.
fn without_nul(text: &str) -> String {
    text.replace('\0', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_what_it_encodes() {
        let error = PgError::fatal("28P01", "no \0 luck").with_detail("why").with_hint("try");
        let bytes = error.encode();
        assert_eq!(bytes[0], b'E');
        assert_eq!(PgError::decode(&bytes[5..]), PgError { message: "no   luck".into(), ..error });
    }

    #[test]
    fn a_cut_off_payload_is_read_as_far_as_it_goes() {
        assert_eq!(PgError::decode(b"C57014\0Mcancel"), PgError::error("57014", ""));
        assert_eq!(PgError::decode(b""), PgError::error("XX000", ""));
    }
}
