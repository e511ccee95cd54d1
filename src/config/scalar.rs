//! Single values as they are written: durations, sizes, addresses and the like.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use serde::de::{Deserialize, Deserializer, Error, Visitor};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A value with a text form of its own; numbers and flags are taken by their text.
pub(super) trait Scalar: Sized {
    const EXPECTED: &'static str;

    /// Errors name the fault and how to write it.
    fn parse(text: &str) -> Result<Self, String>;
}

struct Text<T>(std::marker::PhantomData<T>);

impl<T: Scalar> Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        T::parse(text).map_err(E::custom)
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_bool<E: Error>(self, flag: bool) -> Result<T, E> {
        self.visit_str(&flag.to_string())
    }
}

/// A duration as it stands in a file: `"100ms"`, `"15s"`, `"10min"`.
///
/// # Errors
/// What is wrong with it, and how to write it.
pub fn duration(text: &str) -> Result<Duration, String> {
    Period::parse(text).map(|period| period.0)
}

macro_rules! scalar {
    ($($name:ident),*) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(Text(std::marker::PhantomData))
            }
        }
    )*};
}

/// A quota, or `"none"` for no limit, over what an outer layer says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Limit<T>(pub Option<T>);

impl<T: Scalar> Scalar for Limit<T> {
    const EXPECTED: &'static str = "a limit, or \"none\"";

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Limit(None)),
            text => T::parse(text).map(|value| Limit(Some(value))).map_err(|message| format!("{message}, or \"none\"")),
        }
    }
}

impl<'de, T: Scalar> Deserialize<'de> for Limit<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Text(std::marker::PhantomData))
    }
}

/// A whole number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Count(pub u32);

impl Scalar for Count {
    const EXPECTED: &'static str = "a whole number";

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map(Count).map_err(|_| format!("{text:?} is no whole number; write e.g. 100"))
    }
}

scalar!(Count, Period, Size, FileMode, Address, OptionalAddress, Separator, Cidr, Moment, SystemIdentifier);

/// A duration such as `15s`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Period(pub Duration);

impl Scalar for Period {
    const EXPECTED: &'static str = "a duration such as \"15s\"";

    fn parse(text: &str) -> Result<Self, String> {
        const UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1000), ("min", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = (&text[..digits], text[digits..].trim());
        let factor = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor);
        let milliseconds = number.parse::<u64>().ok().zip(factor).and_then(|(number, factor)| {
            // A hundred years: far beyond any use, and safe to add to the clock.
            number.checked_mul(factor).filter(|total| *total <= 100 * 365 * 86_400_000)
        });
        match milliseconds {
            Some(milliseconds) => Ok(Period(Duration::from_millis(milliseconds))),
            None if unit.is_empty() && digits > 0 => Err(format!("{text} has no unit; write e.g. \"{text}s\"")),
            None => Err(format!("{text:?} is no duration; write e.g. \"100ms\", \"15s\", \"10min\", \"1h\" or \"1d\"")),
        }
    }
}

/// A number of bytes: a plain number, or with `KiB`, `MiB`, `GiB`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Size(pub u64);

impl Scalar for Size {
    const EXPECTED: &'static str = "a size such as \"64KiB\"";

    fn parse(text: &str) -> Result<Self, String> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let factor: Option<u64> = match text[digits..].trim() {
            "" | "B" => Some(1),
            "KiB" => Some(1 << 10),
            "MiB" => Some(1 << 20),
            "GiB" => Some(1 << 30),
            _ => None,
        };
        let bytes =
            text[..digits].parse::<u64>().ok().zip(factor).and_then(|(number, factor)| number.checked_mul(factor));
        bytes.map(Size).ok_or_else(|| {
            format!("{text:?} is no size; write bytes as a number, or e.g. \"64KiB\", \"1MiB\", \"1GiB\"")
        })
    }
}

/// Permission bits, octal: `"0770"`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct FileMode(pub u32);

impl Scalar for FileMode {
    const EXPECTED: &'static str = "permission bits such as \"0770\"";

    fn parse(text: &str) -> Result<Self, String> {
        match u32::from_str_radix(text, 8) {
            // Without the leading zero it may as well be a decimal number.
            Ok(mode) if mode <= 0o777 && text.starts_with('0') => Ok(FileMode(mode)),
            _ => Err(format!("{text:?} are no permission bits; write them octal and quoted, e.g. \"0770\"")),
        }
    }
}

/// An IP address and port.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Address(pub SocketAddr);

impl Scalar for Address {
    const EXPECTED: &'static str = "an address such as \"127.0.0.1:6432\"";

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map(Address).map_err(|_| {
            format!(
                "{text:?} is no IP address with port; write e.g. \"127.0.0.1:6432\", \"0.0.0.0:6432\" or \"[::]:6432\""
            )
        })
    }
}

/// An IP address and port, or `off`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct OptionalAddress(pub Option<SocketAddr>);

impl Scalar for OptionalAddress {
    const EXPECTED: &'static str = "an address such as \"127.0.0.1:9930\", or \"off\"";

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "" | "off" | "false" => Ok(OptionalAddress(None)),
            text => Address::parse(text)
                .map(|address| OptionalAddress(Some(address.0)))
                .map_err(|message| format!("{message}, or \"off\"")),
        }
    }
}

/// The character between role and tenant, or `false`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Separator(pub Option<char>);

impl Scalar for Separator {
    const EXPECTED: &'static str = "one character such as \".\", or false";

    fn parse(text: &str) -> Result<Self, String> {
        let mut chars = text.chars();
        match (chars.next(), chars.next()) {
            (None, _) => Ok(Separator(None)),
            _ if text == "false" || text == "off" => Ok(Separator(None)),
            // These occur in tenant ids, so the last one would not be the separator.
            (Some(c), None) if !c.is_alphanumeric() && !c.is_whitespace() && !matches!(c, '-' | '_') => {
                Ok(Separator(Some(c)))
            }
            _ => Err(format!(
                "{text:?} cannot separate role and tenant; write one character that no tenant id has, such as \".\", or false"
            )),
        }
    }
}

/// A network such as `10.0.0.0/8`, or one address.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Cidr(pub IpNet);

impl Scalar for Cidr {
    const EXPECTED: &'static str = "a network such as \"10.0.0.0/8\"";

    fn parse(text: &str) -> Result<Self, String> {
        text.parse::<IpNet>()
            .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
            .map(Cidr)
            .map_err(|_| format!("{text:?} is no network; write e.g. \"10.0.0.0/8\", \"192.0.2.7\" or \"fd00::/8\""))
    }
}

/// A moment as RFC 3339 has it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Moment(pub OffsetDateTime);

impl Scalar for Moment {
    const EXPECTED: &'static str = "a moment such as \"2027-01-31T00:00:00Z\"";

    fn parse(text: &str) -> Result<Self, String> {
        OffsetDateTime::parse(text, &Rfc3339)
            .map(Moment)
            .map_err(|_| format!("{text:?} is no moment; write it with time and zone, e.g. \"2027-01-31T00:00:00Z\""))
    }
}

/// `system_identifier` of a cluster; larger ones than TOML's integers are quoted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct SystemIdentifier(pub u64);

impl Scalar for SystemIdentifier {
    const EXPECTED: &'static str = "a number of 64 bits";

    fn parse(text: &str) -> Result<Self, String> {
        text.parse()
            .map(SystemIdentifier)
            .map_err(|_| format!("{text:?} is no system identifier; take the number that pg_controldata prints"))
    }
}
