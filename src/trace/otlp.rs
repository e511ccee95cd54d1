//! Spans on their way to a collector: OTLP over HTTP in its JSON encoding (opentelemetry.io/docs/specs/otlp).
//!
//! Written by hand, because a trace is kept or dropped only when it is over: the OpenTelemetry crates decide when a span
//! begins, or make spans for all and drop most. What is left is one JSON document and one POST.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;

use super::span::{Clock, Kind, Trace};
use crate::config::Collector;
use crate::metrics::{Metrics, SpanResult};
use crate::net::{WebTlsError, web_tls};

/// Traces in one request.
const BATCH: usize = 256;
/// Traces are sent when there are so many, or after this time.
const LINGER: Duration = Duration::from_secs(1);
/// For a request with its answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Sends what comes, until the senders are gone. One that cannot be sent is lost: the collector may be away for long.
pub(super) async fn export(mut traces: mpsc::Receiver<Trace>, road: Road, metrics: Arc<Metrics>) {
    let Road { to, tls } = road;
    let mut failing = false;
    while let Some(first) = traces.recv().await {
        let mut batch = vec![first];
        let _ = tokio::time::timeout(LINGER, async {
            while batch.len() < BATCH {
                let Some(trace) = traces.recv().await else { return };
                batch.push(trace);
            }
        })
        .await;
        let body = document(&batch, &to.service).to_string();
        let sent = tokio::time::timeout(TIMEOUT, post(&to, tls.as_ref(), &body)).await;
        let sent = sent.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time")));
        let spans = batch.iter().map(|trace| 1 + trace.parts.len() as u64).sum();
        match sent {
            Ok(()) => {
                metrics.spans(SpanResult::Exported, spans);
                failing = false;
            }
            Err(error) => {
                metrics.spans(SpanResult::Failed, spans);
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, collector = to.authority, "spans are lost (tracing.endpoint)");
                }
            }
        }
    }
}

/// A collector, and how it is reached.
pub struct Road {
    to: Collector,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Road {
    /// # Errors
    /// The certificates that vouch for the collector cannot be read, or its name can be in none.
    pub fn new(to: Collector) -> Result<Self, RoadError> {
        let host = to.authority.rsplit_once(':').map_or(&*to.authority, |(host, _)| host).trim_matches(['[', ']']);
        let name = || ServerName::try_from(host.to_owned()).map_err(|_| RoadError::Name(host.to_owned()));
        let tls = match &to.trust {
            Some(trust) => Some((TlsConnector::from(web_tls(trust)?), name()?)),
            None => None,
        };
        Ok(Road { to, tls })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum RoadError {
    #[error(transparent)]
    Tls(#[from] WebTlsError),
    #[error("`{0}` is neither a DNS name nor an IP address, so no certificate can vouch for it")]
    Name(String),
}

async fn post(to: &Collector, tls: Option<&(TlsConnector, ServerName<'static>)>, body: &str) -> io::Result<()> {
    let stream = TcpStream::connect(&to.authority).await?;
    match tls {
        Some((connector, name)) => exchange(connector.connect(name.clone(), stream).await?, to, body).await,
        None => exchange(stream, to, body).await,
    }
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, to: &Collector, body: &str) -> io::Result<()> {
    let Collector { authority, path, token, .. } = to;
    let sign = token.as_ref().map_or_else(String::new, |token| format!("Authorization: Bearer {}\r\n", token.expose()));
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: {authority}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         {sign}Connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.flush().await?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await?;
    match &answer {
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', _, b' ', b'2', ..] => Ok(()),
        other => Err(io::Error::other(format!("the collector answers {:?}", String::from_utf8_lossy(other)))),
    }
}

fn attribute(key: &str, value: &str) -> Value {
    json!({ "key": key, "value": { "stringValue": value } })
}

fn document(traces: &[Trace], service: &str) -> Value {
    let clock = Clock::now();
    let spans: Vec<Value> = traces.iter().flat_map(|trace| spans(trace, &clock)).collect();
    json!({ "resourceSpans": [{
        "resource": { "attributes": [
            attribute("service.name", service),
            attribute("service.version", env!("CARGO_PKG_VERSION")),
        ] },
        "scopeSpans": [{ "scope": { "name": "pgtenant" }, "spans": spans }],
    }] })
}

fn spans(trace: &Trace, clock: &Clock) -> Vec<Value> {
    let id = trace.parent.map_or_else(random::<16>, |parent| parent.trace);
    let root = random::<8>();
    let span = |span: [u8; 8], parent: Option<[u8; 8]>, name: &str, kind: Kind, begin, end| {
        let mut span = json!({
            "traceId": hex(&id), "spanId": hex(&span), "name": name, "kind": kind as u8,
            "startTimeUnixNano": clock.nanos(begin), "endTimeUnixNano": clock.nanos(end),
        });
        if let Some(parent) = parent {
            span["parentSpanId"] = hex(&parent).into();
        }
        span
    };
    let parent = trace.parent.map(|parent| parent.span);
    let mut first = span(root, parent, trace.name, Kind::Server, trace.begin, trace.end);
    first["attributes"] = trace.attributes.iter().map(|(key, value)| attribute(key, value)).collect();
    if let Some(failure) = &trace.failure {
        first["status"] = json!({ "code": 2, "message": failure });
    }
    let parts = trace.parts.iter().map(|part| span(random(), Some(root), part.name, part.kind, part.begin, part.end));
    std::iter::once(first).chain(parts).collect()
}

/// Ids tell spans apart and keep no secret: where the system has no random bytes, the clock's are good enough.
fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [1; N];
    if getrandom::fill(&mut bytes).is_err() {
        let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        bytes.iter_mut().zip(clock.as_nanos().to_le_bytes()).for_each(|(byte, clock)| *byte = clock);
    }
    bytes
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::parent::Parent;
    use super::super::span::Part;
    use super::*;

    #[test]
    fn a_trace_is_written_as_the_protocol_has_it() {
        let begin = Instant::now() - Duration::from_millis(10);
        let end = begin + Duration::from_millis(5);
        let trace = Trace {
            name: "transaction",
            parent: Some(Parent { trace: [0xab; 16], span: [0xcd; 8], sampled: true }),
            begin,
            end,
            parts: vec![Part { name: "queue", kind: Kind::Internal, begin, end }],
            attributes: vec![("pgtenant.tenant", "acme".to_owned())],
            failure: Some("53300".to_owned()),
        };
        let document = document(&[trace], "proxy");
        let of = &document["resourceSpans"][0];
        assert_eq!(of["resource"]["attributes"][0]["value"]["stringValue"], "proxy");
        let spans = &of["scopeSpans"][0]["spans"];
        let (root, queue) = (&spans[0], &spans[1]);
        assert_eq!((&root["traceId"], &root["parentSpanId"]), (&"ab".repeat(16).into(), &"cd".repeat(8).into()));
        assert_eq!((&queue["traceId"], &queue["parentSpanId"]), (&root["traceId"], &root["spanId"]));
        assert_eq!((root["status"]["code"].as_u64(), root["kind"].as_u64()), (Some(2), Some(2)));
        assert_eq!(root["attributes"][0]["key"], "pgtenant.tenant");
        let nanos = |key: &str| root[key].as_str().unwrap().parse::<u64>().unwrap();
        assert_eq!(nanos("endTimeUnixNano") - nanos("startTimeUnixNano"), 5_000_000);
    }
}
