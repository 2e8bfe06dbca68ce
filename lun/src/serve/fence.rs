//! Who is connected, and who may not be any more.
//!
//! For each client name there is a smallest incarnation that is let in. `fence NAME I` raises it above `I`, **first on disk,
//! then in memory, then closes the connections of that name up to `I` and waits until their threads have ended**; only then
//! is it answered. A connection is registered under the same lock that a fence takes, so none slips in between. It never
//! goes down again; there is no unfence. A client without a name can not be fenced; a name without an incarnation counts
//! as incarnation 0.
//!
//! The file is text, one `NAME MINIMUM` per line, replaced as a whole (write, sync, rename, sync the directory).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::stream::Stream;
use crate::{LunError, Result};

/// A running request that does not end within this time leaves the fence unanswered (with an error, to be repeated).
const DRAIN: Duration = Duration::from_secs(60);
/// Names are short.
const NAME_MAX: usize = 64;
/// More fenced names than any cluster has hosts.
const NAMES_MAX: usize = 65_536;

/// Who a client says it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) name: String,
    pub(super) incarnation: u64,
}

impl Identity {
    /// Reads `NAME` or `NAME#INCARNATION`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (name, incarnation) = match text.split_once('#') {
            Some((name, incarnation)) => (name, incarnation.parse().ok()?),
            None => (text, 0),
        };
        valid_name(name).then(|| Self { name: name.to_owned(), incarnation })
    }
}

fn valid_name(name: &str) -> bool {
    (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

struct Client {
    identity: Option<Identity>,
    stream: Arc<Stream>,
    cut: Arc<AtomicBool>,
}

#[derive(Default)]
struct State {
    minimum: BTreeMap<String, u64>,
    clients: BTreeMap<u64, Client>,
    next: u64,
    closed: bool,
    /// There is no power: nobody is let in for the moment.
    dark: bool,
}

/// The connections and the fences.
pub(super) struct Registry {
    state: Mutex<State>,
    left: Condvar,
    path: PathBuf,
}

/// A registered connection; dropping it says that nothing of it runs any more.
pub(super) struct Ticket<'a> {
    registry: &'a Registry,
    id: u64,
    /// Set when this connection must not start another request.
    pub(super) cut: Arc<AtomicBool>,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.registry.state.lock().clients.remove(&self.id);
        self.registry.left.notify_all();
    }
}

impl Registry {
    /// Reads the fences; a file that can not be understood stops the server rather than let a fenced host in.
    pub(super) fn load(path: &Path) -> Result<Self> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(LunError::Refused(format!("{}: the fences can not be read: {error}", path.display()))),
        };
        let mut minimum = BTreeMap::new();
        for (number, line) in text.lines().enumerate() {
            let entry = line.split_once(' ').and_then(|(name, value)| Some((name, value.parse::<u64>().ok()?)));
            match entry {
                Some((name, value)) if valid_name(name) => minimum.insert(name.to_owned(), value),
                _ => {
                    let place = format!("{}: line {} is not a fence ('NAME MINIMUM')", path.display(), number + 1);
                    return Err(LunError::Refused(format!("{place}; repair the file, removing it would let fenced hosts in")));
                }
            };
        }
        let state = State { minimum, ..State::default() };
        Ok(Self { state: Mutex::new(state), left: Condvar::new(), path: path.to_owned() })
    }

    /// Lets a connection in, or says why not.
    pub(super) fn enter(&self, identity: Option<Identity>, stream: &Arc<Stream>) -> std::result::Result<Ticket<'_>, String> {
        let mut state = self.state.lock();
        if state.closed || state.dark {
            return Err("the server stops".into());
        }
        if let Some(identity) = &identity {
            let minimum = state.minimum.get(&identity.name).copied().unwrap_or(0);
            if identity.incarnation < minimum {
                let (name, incarnation) = (&identity.name, identity.incarnation);
                return Err(format!("{name} incarnation {incarnation} is fenced, {minimum} or higher is let in"));
            }
        }
        state.next += 1;
        let id = state.next;
        let cut = Arc::new(AtomicBool::new(false));
        state.clients.insert(id, Client { identity, stream: Arc::clone(stream), cut: Arc::clone(&cut) });
        Ok(Ticket { registry: self, id, cut })
    }

    /// Tells a registered connection's name when it is learnt later; the same check as at the door.
    pub(super) fn rename(&self, ticket: &Ticket<'_>, identity: Identity) -> std::result::Result<(), String> {
        let mut state = self.state.lock();
        let minimum = state.minimum.get(&identity.name).copied().unwrap_or(0);
        if identity.incarnation < minimum {
            let (name, incarnation) = (&identity.name, identity.incarnation);
            return Err(format!("{name} incarnation {incarnation} is fenced, {minimum} or higher is let in"));
        }
        if let Some(client) = state.clients.get_mut(&ticket.id) {
            client.identity = Some(identity);
        }
        Ok(())
    }

    /// Fences `name` up to and including `incarnation`.
    pub(super) fn fence(&self, name: &str, incarnation: u64) -> Result<String> {
        if !valid_name(name) {
            return Err(LunError::Usage(format!("'{name}' is not a client name (1 to {NAME_MAX} of A-Z a-z 0-9 . _ -)")));
        }
        let minimum = incarnation.checked_add(1).ok_or_else(|| LunError::Usage("this incarnation is too high to be fenced".into()))?;
        let mut state = self.state.lock();
        let known = state.minimum.get(name).copied().unwrap_or(0);
        if known < minimum {
            let mut next = state.minimum.clone();
            next.insert(name.to_owned(), minimum);
            if next.len() > NAMES_MAX {
                return Err(LunError::Refused(format!("more than {NAMES_MAX} fenced names")));
            }
            self.save(&next).map_err(|error| {
                LunError::Refused(format!("{}: the fence can not be kept, so it is not made: {error}", self.path.display()))
            })?;
            state.minimum = next;
        }
        let victim = |client: &Client| client.identity.as_ref().is_some_and(|who| who.name == name && who.incarnation <= incarnation);
        let victims: Vec<u64> = state.clients.iter().filter(|(_, client)| victim(client)).map(|(id, _)| *id).collect();
        for id in &victims {
            if let Some(client) = state.clients.get(id) {
                client.cut.store(true, Ordering::SeqCst);
                client.stream.shutdown();
            }
        }
        let deadline = Instant::now() + DRAIN;
        while victims.iter().any(|id| state.clients.contains_key(id)) {
            if self.left.wait_until(&mut state, deadline).timed_out() && victims.iter().any(|id| state.clients.contains_key(id)) {
                return Err(LunError::Refused(format!("{name}: a request still runs after {} s, fence again", DRAIN.as_secs())));
            }
        }
        Ok(format!("ok fenced {name} {incarnation} drained {}", victims.len()))
    }

    fn save(&self, minimum: &BTreeMap<String, u64>) -> io::Result<()> {
        let mut fresh = self.path.clone().into_os_string();
        fresh.push(".new");
        let fresh = PathBuf::from(fresh);
        let mut file = File::create(&fresh)?;
        let text: String = minimum.iter().map(|(name, value)| format!("{name} {value}\n")).collect();
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&fresh, &self.path)?;
        let parent = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        File::open(parent)?.sync_all()
    }

    /// Cuts every connection and lets none in any more.
    pub(super) fn cut_all(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        for client in state.clients.values() {
            client.cut.store(true, Ordering::SeqCst);
            client.stream.shutdown();
        }
    }

    /// Cuts every connection, waits until nothing of them runs any more, and does this before another one is let in.
    pub(super) fn without_clients<T>(&self, work: impl FnOnce() -> io::Result<T>) -> Result<T> {
        let mut state = self.state.lock();
        state.dark = true;
        for client in state.clients.values() {
            client.cut.store(true, Ordering::SeqCst);
            client.stream.shutdown();
        }
        let deadline = Instant::now() + DRAIN;
        let timed_out = |state: &mut _| self.left.wait_until(state, deadline).timed_out();
        while !state.clients.is_empty() && !timed_out(&mut state) {}
        let done = if state.clients.is_empty() {
            work().map_err(|error| LunError::io("power cut", 0, error))
        } else {
            Err(LunError::Refused(format!("a request still runs after {} s", DRAIN.as_secs())))
        };
        state.dark = false;
        done
    }

    /// One line per connection.
    pub(super) fn list(&self) -> String {
        let state = self.state.lock();
        let line = |(id, client): (&u64, &Client)| match &client.identity {
            Some(who) => format!("{id} {} {}\n", who.name, who.incarnation),
            None => format!("{id} - -\n"),
        };
        state.clients.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn stream() -> Arc<Stream> {
        Arc::new(Stream::Unix(UnixStream::pair().unwrap().0))
    }

    fn who(text: &str) -> Option<Identity> {
        Identity::parse(text)
    }

    #[test]
    fn a_fence_is_kept_and_only_goes_up() {
        let path = std::env::temp_dir().join(format!("luna-fence-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let registry = Registry::load(&path).unwrap();
        drop(registry.enter(who("a#3"), &stream()).ok().unwrap());
        assert_eq!(registry.fence("a", 3).unwrap(), "ok fenced a 3 drained 0");
        registry.fence("a", 1).unwrap();
        for registry in [registry, Registry::load(&path).unwrap()] {
            assert!(registry.enter(who("a#3"), &stream()).is_err());
            assert!(registry.enter(who("a"), &stream()).is_err());
            assert!(registry.enter(who("a#4"), &stream()).is_ok());
            assert!(registry.enter(who("b#1"), &stream()).is_ok());
            let ticket = registry.enter(None, &stream()).ok().unwrap();
            assert!(registry.rename(&ticket, who("a#2").unwrap()).is_err());
        }
        std::fs::write(&path, "a x\n").unwrap();
        assert!(Registry::load(&path).is_err(), "a damaged file lets nobody in");
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn it_waits_for_what_runs() {
        let path = std::env::temp_dir().join(format!("luna-fence-wait-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let registry = Registry::load(&path).unwrap();
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let ticket = registry.enter(who("v#1"), &stream()).ok().unwrap();
            let newer = registry.enter(who("v#2"), &stream()).ok().unwrap();
            let ended = &ended;
            scope.spawn(move || {
                while !ticket.cut.load(Ordering::SeqCst) {
                    std::thread::yield_now();
                }
                std::thread::sleep(Duration::from_millis(50));
                ended.store(true, Ordering::SeqCst);
                drop(ticket);
            });
            assert_eq!(registry.fence("v", 1).unwrap(), "ok fenced v 1 drained 1");
            assert!(ended.load(Ordering::SeqCst));
            assert!(!newer.cut.load(Ordering::SeqCst), "a higher incarnation goes on");
        });
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn names_are_checked() {
        for bad in ["", "a b", "a/b", "a#", "a#x", "a#-1", &"x".repeat(65)] {
            assert!(who(bad).is_none(), "{bad}");
        }
        assert_eq!(who("host-a#7"), Some(Identity { name: "host-a".into(), incarnation: 7 }));
    }
}
