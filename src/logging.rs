//! Logs to standard error, as text for people or JSON for collectors.

use std::fs::File;
use std::io::{IsTerminal, stderr};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{Log, LogFormat};

/// Why logging could not begin.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("[log] filter = \"{filter}\" is not a filter: {reason}; try \"info\" or \"info,pgtenant::pool=debug\"")]
    Filter { filter: String, reason: tracing_subscriber::filter::ParseError },
    #[error("logging was set up twice in one process")]
    Twice,
}

/// Sends all events of this process, those of the `log` crate included, to standard error.
///
/// # Errors
/// When the filter does not parse, or when logging is set up already.
pub fn init(log: &Log) -> Result<(), LogError> {
    let colours = stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    subscriber(log, colours, stderr)?.try_init().map_err(|_| LogError::Twice)
}

/// Sends them to the end of a file instead, for a command whose terminal belongs to something else.
///
/// # Errors
/// As [`init`].
pub fn init_in_file(log: &Log, file: File) -> Result<(), LogError> {
    subscriber(log, false, file)?.try_init().map_err(|_| LogError::Twice)
}

fn subscriber<W>(log: &Log, colours: bool, writer: W) -> Result<Box<dyn tracing::Subscriber + Send + Sync>, LogError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter =
        EnvFilter::try_new(&log.filter).map_err(|reason| LogError::Filter { filter: log.filter.clone(), reason })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    Ok(match log.format {
        LogFormat::Text => Box::new(builder.compact().with_ansi(colours).finish()),
        // One flat object a line: collectors index the fields without unfolding.
        LogFormat::Json => Box::new(builder.json().flatten_event(true).with_current_span(true).finish()),
    })
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn log(format: LogFormat, filter: &str) -> Log {
        Log { format, filter: filter.to_owned(), ..Log::default() }
    }

    fn logged(format: LogFormat, filter: &str) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let log = log(format, filter);
        let subscriber = subscriber(&log, false, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(tenant = "acme", queries = 3, "session ended\x1b[31m\nforged");
            tracing::debug!("hidden");
        });
        let bytes = sink.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn text_is_plain_without_a_terminal() {
        let text = logged(LogFormat::Text, "info");
        assert!(text.contains("INFO") && text.contains("tenant=\"acme\"") && text.contains("queries=3"), "{text}");
        assert!(!text.contains('\x1b') && !text.contains("hidden"), "{text}");
    }

    #[test]
    fn json_is_one_flat_object_a_line() {
        let text = logged(LogFormat::Json, "info");
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(
            text.starts_with('{') && text.contains(r#""tenant":"acme""#) && text.contains(r#""queries":3"#),
            "{text}"
        );
    }

    #[test]
    fn a_bad_filter_is_named() {
        let log = log(LogFormat::Text, "info,=");
        let error = subscriber(&log, false, stderr).err().unwrap().to_string();
        assert!(error.contains("[log] filter = \"info,=\""), "{error}");
    }
}
