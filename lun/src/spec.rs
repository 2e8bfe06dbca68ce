//! The LUN string: how people name a shared disk.
//!
//! ```text
//! /path/to/file-or-block-device
//! nbd://HOST[:PORT]/EXPORT
//! nbd+unix:///EXPORT?socket=PATH
//! iscsi://[USER%PASS@]HOST[:PORT]/IQN/LUN
//! ```
//! Parsing touches nothing outside. Printing a spec and parsing it again gives the same spec, except that a password is
//! never printed. Anything that is not a URL is a path; an unknown scheme is an error, not a path.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::LunError;

/// The registered NBD port.
const NBD_PORT: u16 = 10809;
/// The registered iSCSI port.
const ISCSI_PORT: u16 = 3260;
/// The protocol's limit on export names.
const EXPORT_MAX: usize = 4096;

/// A parsed LUN string.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LunSpec {
    /// A file or block device of this machine.
    Path(PathBuf),
    /// An NBD export over TCP.
    Nbd {
        /// Name or address; IPv6 without brackets.
        host: String,
        /// TCP port.
        port: u16,
        /// Export name, may be empty.
        export: String,
    },
    /// An NBD export over a Unix socket.
    NbdUnix {
        /// Path of the socket.
        socket: PathBuf,
        /// Export name, may be empty.
        export: String,
    },
    /// An iSCSI logical unit.
    Iscsi {
        /// CHAP user, if any.
        user: Option<String>,
        /// CHAP password, if any; never printed.
        password: Option<String>,
        /// Name or address of the portal.
        host: String,
        /// TCP port.
        port: u16,
        /// Target name.
        target: String,
        /// Logical unit number.
        lun: u32,
    },
}

fn bad(text: &str, why: &str) -> LunError {
    LunError::Usage(format!(
        "'{text}' is not a LUN: {why}; give a path, nbd://HOST[:PORT]/EXPORT, nbd+unix:///EXPORT?socket=PATH or iscsi://HOST[:PORT]/IQN/LUN"
    ))
}

impl FromStr for LunSpec {
    type Err = LunError;

    fn from_str(text: &str) -> Result<Self, LunError> {
        if text.is_empty() {
            return Err(bad(text, "it is empty"));
        }
        if text.contains('\0') {
            return Err(bad(text, "it contains a NUL byte"));
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Ok(Self::Path(PathBuf::from(text)));
        };
        match scheme {
            "nbd" => parse_nbd(text, rest),
            "nbd+unix" => parse_nbd_unix(text, rest),
            "iscsi" => parse_iscsi(rest),
            _ if scheme.contains('/') => Ok(Self::Path(PathBuf::from(text))),
            _ => Err(bad(text, "this scheme is not known")),
        }
    }
}

fn parse_nbd(text: &str, rest: &str) -> Result<LunSpec, LunError> {
    let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
    if export.contains('?') {
        return Err(bad(text, "nbd:// takes no '?' part (write %3F in a name)"));
    }
    let (host, port) = host_port(text, authority, NBD_PORT)?;
    Ok(LunSpec::Nbd { host, port, export: export_name(text, export)? })
}

fn parse_nbd_unix(text: &str, rest: &str) -> Result<LunSpec, LunError> {
    let Some(path) = rest.strip_prefix('/') else {
        return Err(bad(text, "nbd+unix has no host, write three slashes"));
    };
    let Some((export, query)) = path.split_once('?') else {
        return Err(bad(text, "?socket=PATH is missing"));
    };
    let mut socket = None;
    for pair in query.split('&') {
        match pair.split_once('=') {
            Some(("socket", value)) if !value.is_empty() && socket.is_none() => socket = Some(decode(text, value)?),
            _ => return Err(bad(text, "only one ?socket=PATH is understood")),
        }
    }
    let socket = socket.ok_or_else(|| bad(text, "?socket=PATH is missing"))?;
    Ok(LunSpec::NbdUnix { socket: PathBuf::from(socket), export: export_name(text, export)? })
}

fn parse_iscsi(rest: &str) -> Result<LunSpec, LunError> {
    // The password must not show up in an error, so from here on errors name the text without it.
    let (credentials, rest) = match rest.rsplit_once('@') {
        Some((credentials, rest)) => (Some(credentials), rest),
        None => (None, rest),
    };
    let shown = format!("iscsi://{rest}");
    let (user, password) = match credentials {
        None => (None, None),
        Some(both) => match both.split_once('%') {
            Some((user, password)) if !user.is_empty() => (Some(user.to_owned()), Some(password.to_owned())),
            _ => return Err(bad(&shown, "credentials are USER%PASS@")),
        },
    };
    let mut parts = rest.split('/');
    let (host, port) = host_port(&shown, parts.next().unwrap_or(""), ISCSI_PORT)?;
    let (Some(target), Some(lun), None) = (parts.next(), parts.next(), parts.next()) else {
        return Err(bad(&shown, "after the host come /IQN/LUN"));
    };
    if target.is_empty() {
        return Err(bad(&shown, "the target name is empty"));
    }
    let lun = lun.parse().map_err(|_| bad(&shown, "the logical unit is a number"))?;
    Ok(LunSpec::Iscsi { user, password, host, port, target: target.to_owned(), lun })
}

fn host_port(text: &str, authority: &str, default: u16) -> Result<(String, u16), LunError> {
    let (host, port) = if let Some(inner) = authority.strip_prefix('[') {
        let (host, after) = inner.split_once(']').ok_or_else(|| bad(text, "']' is missing"))?;
        match after.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if after.is_empty() => (host, None),
            None => return Err(bad(text, "after ']' only :PORT may follow")),
        }
    } else {
        match authority.split_once(':') {
            Some((_, port)) if port.contains(':') => return Err(bad(text, "an IPv6 address needs brackets")),
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        }
    };
    if host.is_empty() {
        return Err(bad(text, "the host is missing"));
    }
    let port = match port {
        None => default,
        Some(port) => match port.parse() {
            Ok(0) | Err(_) => return Err(bad(text, "the port is not a number from 1 to 65535")),
            Ok(port) => port,
        },
    };
    Ok((host.to_owned(), port))
}

fn export_name(text: &str, raw: &str) -> Result<String, LunError> {
    let name = decode(text, raw)?;
    if name.len() > EXPORT_MAX {
        return Err(bad("nbd", "the export name is longer than 4096 bytes"));
    }
    Ok(name)
}

fn decode(text: &str, raw: &str) -> Result<String, LunError> {
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let hex = rest.get(..2).and_then(|two| std::str::from_utf8(two).ok()).filter(|two| two.bytes().all(|b| b.is_ascii_hexdigit()));
        let value = hex.and_then(|two| u8::from_str_radix(two, 16).ok()).ok_or_else(|| bad(text, "'%' needs two hex digits"))?;
        bytes.push(value);
        rest = &rest[2..];
    }
    match String::from_utf8(bytes) {
        Ok(name) if !name.contains('\0') => Ok(name),
        _ => Err(bad(text, "a name is not clean UTF-8")),
    }
}

fn encode(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' | b'@' | b':' | b'+' | b',' => {
                out.push(char::from(byte));
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

impl fmt::Display for LunSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Nbd { host, port: NBD_PORT, export } => write!(f, "nbd://{}/{}", bracketed(host), encode(export)),
            Self::Nbd { host, port, export } => write!(f, "nbd://{}:{port}/{}", bracketed(host), encode(export)),
            Self::NbdUnix { socket, export } => {
                write!(f, "nbd+unix:///{}?socket={}", encode(export), encode(&socket.to_string_lossy()))
            }
            Self::Iscsi { host, port, target, lun, .. } => {
                let port = if *port == ISCSI_PORT { String::new() } else { format!(":{port}") };
                write!(f, "iscsi://{}{port}/{target}/{lun}", bracketed(host))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(text: &str) -> LunSpec {
        let spec: LunSpec = text.parse().unwrap();
        let again: LunSpec = spec.to_string().parse().unwrap();
        assert_eq!(spec, again, "{text}");
        spec
    }

    #[test]
    fn the_forms_of_the_contract() {
        assert_eq!(round("/dev/sdb"), LunSpec::Path("/dev/sdb".into()));
        assert_eq!(round("disk.img"), LunSpec::Path("disk.img".into()));
        assert_eq!(round("./odd://name"), LunSpec::Path("./odd://name".into()));
        assert_eq!(round("nbd://store/vms"), LunSpec::Nbd { host: "store".into(), port: 10809, export: "vms".into() });
        assert_eq!(round("nbd://store"), LunSpec::Nbd { host: "store".into(), port: 10809, export: String::new() });
        assert_eq!(round("nbd://[::1]:99/a%20b%3f"), LunSpec::Nbd { host: "::1".into(), port: 99, export: "a b?".into() });
        assert_eq!(
            round("nbd+unix:///vms?socket=/run/a b.sock"),
            LunSpec::NbdUnix { socket: "/run/a b.sock".into(), export: "vms".into() }
        );
        let LunSpec::Iscsi { user, password, port, lun, .. } = "iscsi://joe%secret@h:3261/iqn.2026-01.x:y/7".parse().unwrap() else {
            panic!("not iscsi")
        };
        assert_eq!((user.as_deref(), password.as_deref(), port, lun), (Some("joe"), Some("secret"), 3261, 7));
        round("iscsi://h/iqn.2026-01.x:y/0");
    }

    #[test]
    fn a_password_is_never_shown() {
        let spec: LunSpec = "iscsi://joe%secret@h/iqn/0".parse().unwrap();
        assert!(!spec.to_string().contains("secret"));
        let error = "iscsi://joe%secret@h/iqn/x".parse::<LunSpec>().unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
    }

    #[test]
    fn nonsense_is_refused_with_a_reason() {
        for text in [
            "",
            "http://x/y",
            "nbd://",
            "nbd:///vms",
            "nbd://h:0/x",
            "nbd://h:70000/x",
            "nbd://::1/x",
            "nbd://[::1/x",
            "nbd://h/a%2",
            "nbd://h/a%zz",
            "nbd://h/a%ff",
            "nbd://h/a%00",
            "nbd://h/x?y=1",
            "nbd+unix:///x",
            "nbd+unix://h/x?socket=/a",
            "nbd+unix:///x?socket=",
            "nbd+unix:///x?socket=/a&socket=/b",
            "iscsi://h/iqn",
            "iscsi://h/iqn/a",
            "iscsi://h//1",
            "iscsi://@h/iqn/1",
        ] {
            let error = text.parse::<LunSpec>().expect_err(text);
            assert!(matches!(error, LunError::Usage(_)), "{text}: {error}");
        }
    }
}
