//! The values our labels may take: closed lists, so that no peer can grow the number of series.

/// A label whose values are known when the program is built.
pub trait Label: Copy + 'static {
    const ALL: &'static [Self];
    fn text(self) -> &'static str;
    /// Position in [`Label::ALL`].
    fn index(self) -> usize;
}

macro_rules! label {
    ($(#[$doc:meta])* $name:ident { $($(#[$note:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$note])* $variant,)+ }

        impl Label for $name {
            const ALL: &'static [Self] = &[$(Self::$variant,)+];

            fn text(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }

            fn index(self) -> usize {
                self as usize
            }
        }
    };
}

label! {
    /// Whether an attempt worked.
    Outcome {
        Ok = "ok",
        Failed = "failed",
    }
}

label! {
    /// What a tenant may be refused for: the keys of `[quota]`, and those of `[pool]` that are limits.
    QuotaName {
        MaxClients = "max_clients",
        MaxTransactions = "max_transactions",
        TransactionsPerSecond = "transactions_per_second",
        BytesPerSecond = "bytes_per_second",
        BackendSeconds = "backend_seconds_per_minute",
        MaxResult = "max_result",
        QueryTimeout = "query_timeout",
        TransactionTimeout = "transaction_timeout",
        IdleInTransaction = "idle_in_transaction_timeout",
        IdleSession = "idle_session_timeout",
        /// Nobody is refused for it alone: `queue_timeout` is.
        MaxBackends = "max_backends",
        QueueTimeout = "queue_timeout",
        MaxPins = "max_pins",
        MaxPinTime = "max_pin_time",
    }
}

label! {
    /// Session state that cannot be moved to another backend: who has any keeps its backend (is pinned).
    Pin {
        /// Temporary tables, views, functions, types.
        Temporary = "temporary_object",
        /// Session-level advisory locks.
        AdvisoryLock = "advisory_lock",
        /// Cursors WITH HOLD.
        Cursor = "cursor",
        Listen = "listen",
        /// SQL-level PREPARE.
        Prepared = "prepare",
        /// LOAD.
        Library = "load",
        /// `setseed`.
        Seed = "setseed",
        /// What `currval` and `lastval` tell.
        Sequence = "sequence",
        /// Connections and origins that extensions keep for a session.
        Foreign = "extension",
        /// A protocol-level statement too long to be remembered.
        Statement = "long_statement",
        /// The backend could not be asked: there may be anything.
        Unknown = "unknown",
    }
}

label! {
    /// Why a client connection was closed before its login began.
    Refusal {
        /// The cap on all clients was reached.
        Cap = "cap",
        TlsRequired = "tls_required",
    }
}

label! {
    /// The TLS version of a handshake; `none` for one that did not come so far.
    TlsVersion {
        V1_2 = "1.2",
        V1_3 = "1.3",
        None = "none",
    }
}

label! {
    /// How a client proved who it is; `none` where a login ended before that was chosen.
    AuthMethod {
        ScramSha256 = "scram-sha-256",
        ScramSha256Plus = "scram-sha-256-plus",
        Md5 = "md5",
        Cleartext = "cleartext",
        Certificate = "certificate",
        None = "none",
    }
}

label! {
    /// How a login ended. Operators are told apart here what a client must not tell apart.
    AuthResult {
        Ok = "ok",
        UnknownTenant = "unknown_tenant",
        UnknownRole = "unknown_role",
        UnknownDatabase = "unknown_database",
        WrongPassword = "wrong_password",
        WrongCertificate = "wrong_certificate",
        /// Hints name different tenants.
        Disagreement = "disagreement",
        /// The address is not on the tenant's list.
        Address = "address",
        /// Past the role's VALID UNTIL.
        Expired = "expired",
        /// Too many failures before this one.
        Backoff = "backoff",
        Suspended = "suspended",
        /// The tenant has as many clients as it may.
        TenantFull = "tenant_full",
        Timeout = "timeout",
        /// The client left or broke the protocol.
        Aborted = "aborted",
        /// The verifier could not be had, or no backend was there for the welcome.
        Unavailable = "unavailable",
    }
}

label! {
    /// Where an error came from that a client was sent.
    ErrorSource {
        Client = "client",
        Backend = "backend",
        Proxy = "proxy",
    }
}

label! {
    /// How an attempt to open a backend ended.
    ConnectResult {
        Ok = "ok",
        /// Name not found, connection refused or reset.
        Unreachable = "unreachable",
        Timeout = "timeout",
        Tls = "tls",
        /// PostgreSQL took the connection and answered with an error.
        Refused = "refused",
        /// It is not the instance or database that the record names.
        Identity = "identity",
    }
}

label! {
    /// What became of a CancelRequest.
    CancelResult {
        Forwarded = "forwarded",
        /// The key is of no live session.
        UnknownKey = "unknown_key",
        /// The session had no query running.
        Idle = "idle",
        Failed = "failed",
    }
}

label! {
    /// What a client or backend sent that the protocol does not allow.
    ProtocolViolation {
        StartupLength = "startup_length",
        StartupMalformed = "startup_malformed",
        /// Bytes in the clear behind the SSLRequest (the pattern of CVE-2021-23214).
        BytesBeforeTls = "bytes_before_tls",
        /// Direct TLS without the ALPN name `postgresql`.
        Alpn = "alpn",
        MessageLength = "message_length",
        MessageUnknown = "message_unknown",
        MessageUnexpected = "message_unexpected",
        MessageMalformed = "message_malformed",
    }
}

label! {
    /// What became of a span that was to be kept.
    SpanResult {
        Exported = "exported",
        /// Too many waited for the collector.
        Dropped = "dropped",
        /// The collector did not take it.
        Failed = "failed",
    }
}

/// The SQLSTATE classes of the PostgreSQL manual, appendix A, sorted.
const CLASSES: [&str; 44] = [
    "00", "01", "02", "03", "08", "09", "0A", "0B", "0F", "0L", "0P", "0Z", "10", "20", "21", "22", "23", "24", "25",
    "26", "27", "28", "2B", "2D", "2F", "34", "38", "39", "3B", "3D", "3F", "40", "42", "44", "53", "54", "55", "57",
    "58", "72", "F0", "HV", "P0", "XX",
];

/// The class of a SQLSTATE; `other` for those that PostgreSQL does not document, since functions may raise any.
pub(super) fn sqlstate_class(sqlstate: &str) -> &'static str {
    let class = sqlstate.get(..2).unwrap_or_default();
    match CLASSES.binary_search(&class) {
        Ok(position) => CLASSES[position],
        Err(_) => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlstates_fall_into_the_documented_classes_or_other() {
        assert!(CLASSES.is_sorted());
        for (sqlstate, class) in [("23505", "23"), ("HV00J", "HV"), ("XX000", "XX"), ("P0001", "P0")] {
            assert_eq!(sqlstate_class(sqlstate), class);
        }
        for odd in ["ZZ123", "", "4", "é2", "hv00"] {
            assert_eq!(sqlstate_class(odd), "other", "{odd:?}");
        }
    }

    #[test]
    fn label_values_are_distinct() {
        for (position, result) in AuthResult::ALL.iter().enumerate() {
            assert_eq!(result.index(), position);
            assert_eq!(AuthResult::ALL.iter().filter(|other| other.text() == result.text()).count(), 1);
        }
    }
}
