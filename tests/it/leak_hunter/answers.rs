//! Backend messages as readable lines, without what may differ between two databases with equal contents.

use crate::harness::wire::Message;

/// A message in one line. The numbers of temporary schemas are masked: they are the backend's own.
pub fn line(message: &Message) -> String {
    let payload = &message.payload;
    let text = match message.tag {
        b'1' => "ParseComplete".to_owned(),
        b'2' => "BindComplete".to_owned(),
        b'3' => "CloseComplete".to_owned(),
        b'n' => "NoData".to_owned(),
        b's' => "PortalSuspended".to_owned(),
        b'I' => "EmptyQueryResponse".to_owned(),
        b'C' => format!("CommandComplete {}", texts(payload).join(" ")),
        b'Z' => format!("ReadyForQuery {}", message.status()),
        b'D' => format!("DataRow {:?}", row(message)),
        b'T' => format!("RowDescription {}", columns(payload).join(", ")),
        b't' => format!("ParameterDescription {:?}", oids(payload)),
        b'E' => format!("ErrorResponse {}", fields(message)),
        b'N' => format!("NoticeResponse {}", fields(message)),
        b'G' => format!("CopyInResponse {payload:?}"),
        b'H' => format!("CopyOutResponse {payload:?}"),
        b'd' => format!("CopyData {:?}", String::from_utf8_lossy(payload)),
        b'c' => "CopyDone".to_owned(),
        b'V' => format!("FunctionCallResponse {:?}", String::from_utf8_lossy(payload)),
        b'S' => format!("ParameterStatus {}", texts(payload).join("=")),
        b'K' => "BackendKeyData".to_owned(),
        _ => format!("{message:?}"),
    };
    masked(&text)
}

/// Channel and payload, and whose process id it is: payloads that begin with `pid:` and a number name the sender's.
pub fn notification(message: &Message) -> String {
    let (pid, rest) = message.payload.split_first_chunk::<4>().expect("a process id");
    let [channel, payload] = &texts(rest)[..] else { return format!("{message:?}") };
    let sender = payload.strip_prefix("pid:").and_then(|rest| rest.split(' ').next());
    let pid = u32::from_be_bytes(*pid).to_string();
    match sender {
        Some(sender) if sender == pid => format!("{channel} {:?} from its sender", payload.replace(sender, "")),
        Some(sender) => format!("{channel} {payload:?} from {pid}, which is not the sender {sender}"),
        None => format!("{channel} {payload:?}"),
    }
}

fn texts(payload: &[u8]) -> Vec<String> {
    let end = payload.len().saturating_sub(1);
    payload[..end].split(|&byte| byte == 0).map(|text| String::from_utf8_lossy(text).into_owned()).collect()
}

fn row(message: &Message) -> Vec<String> {
    message.row().into_iter().map(|column| column.unwrap_or_else(|| "NULL".to_owned())).collect()
}

/// All fields but the place in PostgreSQL's source, and the name of a statement that gets the wrong number of values: it
/// may be another that the client has given to the same text (docs/POOLING.md).
fn fields(message: &Message) -> String {
    let fields = message.error().fields;
    let told = fields.iter().filter(|(code, _)| !['F', 'L', 'R', 'S'].contains(code));
    let text = |text: &str| match text.split_once("but prepared statement \"") {
        Some((begin, name)) => {
            format!("{begin}but prepared statement {}", name.split_once('"').map_or(name, |(_, end)| end))
        }
        None => text.to_owned(),
    };
    told.map(|(code, told)| format!("{code}={:?}", text(told))).collect::<Vec<_>>().join(" ")
}

/// Name, table or none, column, type, length, modifier and format of each column.
fn columns(payload: &[u8]) -> Vec<String> {
    let (mut columns, mut rest) = (Vec::new(), &payload[2..]);
    while let Some(end) = rest.iter().position(|&byte| byte == 0) {
        let name = String::from_utf8_lossy(&rest[..end]);
        let numbers = &rest[end + 1..end + 19];
        let of_table = if numbers[..4] == [0; 4] { "" } else { " of a table" };
        let kind = u32::from_be_bytes(numbers[6..10].try_into().expect("four bytes"));
        columns.push(format!("{name}:{kind}{of_table}{:?}", [&numbers[4..6], &numbers[10..]].concat()));
        rest = &rest[end + 19..];
    }
    columns
}

fn oids(payload: &[u8]) -> Vec<u32> {
    payload[2..].chunks_exact(4).map(|oid| u32::from_be_bytes(oid.try_into().expect("four bytes"))).collect()
}

fn masked(text: &str) -> String {
    let mut parts = text.split("pg_temp_");
    let mut masked = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        masked += "pg_temp_";
        masked += match part.trim_start_matches(|c: char| c.is_ascii_digit()) {
            rest if rest.len() < part.len() => rest,
            _ => part,
        };
    }
    masked
}
