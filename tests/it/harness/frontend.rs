//! Frontend messages as bytes, built by hand so that tests can also build wrong ones.
//! PostgreSQL manual, chapter 55.7 "Message Formats".

/// Protocol 3.0 and 3.2 as in the StartupMessage.
pub const V3_0: u32 = 3 << 16;
pub const V3_2: u32 = 3 << 16 | 2;

const SSL_REQUEST: u32 = 80_877_103;
const GSS_REQUEST: u32 = 80_877_104;
const CANCEL_REQUEST: u32 = 80_877_102;

/// Any message: tag, length, body.
pub fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&[tag], &length.to_be_bytes()[..], body].concat()
}

/// Any packet without a tag, as the first one of a connection.
pub fn untagged(code: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 8).unwrap();
    [&length.to_be_bytes()[..], &code.to_be_bytes(), body].concat()
}

pub fn startup(protocol: u32, parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, value) in parameters {
        body.extend(cstr(name));
        body.extend(cstr(value));
    }
    body.push(0);
    untagged(protocol, &body)
}

pub fn ssl_request() -> Vec<u8> {
    untagged(SSL_REQUEST, &[])
}

pub fn gss_request() -> Vec<u8> {
    untagged(GSS_REQUEST, &[])
}

pub fn cancel_request(process_id: u32, key: &[u8]) -> Vec<u8> {
    untagged(CANCEL_REQUEST, &[&process_id.to_be_bytes()[..], key].concat())
}

pub fn query(sql: &str) -> Vec<u8> {
    message(b'Q', &cstr(sql))
}

/// Parse without parameter types: PostgreSQL infers them.
pub fn parse(statement: &str, sql: &str) -> Vec<u8> {
    message(b'P', &[cstr(statement), cstr(sql), vec![0, 0]].concat())
}

/// Bind with text parameters (none is NULL) and text results.
pub fn bind(portal: &str, statement: &str, parameters: &[Option<&str>]) -> Vec<u8> {
    let mut body = [cstr(portal), cstr(statement), vec![0, 0]].concat();
    body.extend(u16::try_from(parameters.len()).unwrap().to_be_bytes());
    for parameter in parameters {
        match parameter {
            Some(text) => {
                body.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
                body.extend(text.as_bytes());
            }
            None => body.extend((-1i32).to_be_bytes()),
        }
    }
    body.extend([0, 0]);
    message(b'B', &body)
}

pub fn describe_statement(name: &str) -> Vec<u8> {
    message(b'D', &[vec![b'S'], cstr(name)].concat())
}

pub fn describe_portal(name: &str) -> Vec<u8> {
    message(b'D', &[vec![b'P'], cstr(name)].concat())
}

/// Execute; 0 rows means all.
pub fn execute(portal: &str, rows: u32) -> Vec<u8> {
    message(b'E', &[cstr(portal), rows.to_be_bytes().to_vec()].concat())
}

pub fn close_statement(name: &str) -> Vec<u8> {
    message(b'C', &[vec![b'S'], cstr(name)].concat())
}

pub fn close_portal(name: &str) -> Vec<u8> {
    message(b'C', &[vec![b'P'], cstr(name)].concat())
}

pub fn sync() -> Vec<u8> {
    message(b'S', &[])
}

pub fn flush() -> Vec<u8> {
    message(b'H', &[])
}

pub fn copy_data(data: &[u8]) -> Vec<u8> {
    message(b'd', data)
}

pub fn copy_done() -> Vec<u8> {
    message(b'c', &[])
}

pub fn copy_fail(reason: &str) -> Vec<u8> {
    message(b'f', &cstr(reason))
}

/// FunctionCall with text arguments and a text result.
pub fn function_call(oid: u32, arguments: &[&str]) -> Vec<u8> {
    let mut body = [&oid.to_be_bytes()[..], &[0, 0]].concat();
    body.extend(u16::try_from(arguments.len()).unwrap().to_be_bytes());
    for argument in arguments {
        body.extend(u32::try_from(argument.len()).unwrap().to_be_bytes());
        body.extend(argument.as_bytes());
    }
    body.extend([0, 0]);
    message(b'F', &body)
}

pub fn terminate() -> Vec<u8> {
    message(b'X', &[])
}

/// PasswordMessage: cleartext, or md5 as computed.
pub fn password(text: &str) -> Vec<u8> {
    message(b'p', &cstr(text))
}

pub fn sasl_initial(mechanism: &str, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap();
    message(b'p', &[&cstr(mechanism), &length.to_be_bytes()[..], data].concat())
}

pub fn sasl_response(data: &[u8]) -> Vec<u8> {
    message(b'p', data)
}

fn cstr(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}
