//! A piece of cable between one host and its target that a test can pull: a Unix socket that passes every byte on.
//!
//! Invariant: after [`Proxy::cut`] nothing passes until [`Proxy::heal`]; what was under way is gone as with a pulled cable. Not
//! here: delays, changed bytes.

use crate::Result;
use std::{
    io,
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

#[derive(Default)]
struct State {
    is_cut: bool,
    pairs: Vec<(UnixStream, UnixStream)>,
}

/// See the module's text.
pub struct Proxy {
    state: Arc<Mutex<State>>,
    /// Its own socket.
    pub socket: PathBuf,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Proxy {
    /// Passes what comes at `socket` on to `target`, until the process ends.
    pub fn start(socket: &Path, target: &Path) -> Result<Self> {
        let listener = UnixListener::bind(socket)?;
        let state = Arc::<Mutex<State>>::default();
        let (theirs, target) = (Arc::clone(&state), target.to_owned());
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                // whoever comes while it is cut is hung up on
                let _ = pass(&theirs, near, &target);
            }
        });
        Ok(Self { state, socket: socket.to_owned() })
    }

    /// Pulls the cable.
    pub fn cut(&self) {
        let mut s = lock(&self.state);
        s.is_cut = true;
        for (near, far) in s.pairs.drain(..) {
            let _ = near.shutdown(Shutdown::Both);
            let _ = far.shutdown(Shutdown::Both);
        }
    }

    /// Puts it back.
    pub fn heal(&self) {
        lock(&self.state).is_cut = false;
    }
}

fn pass(state: &Mutex<State>, near: UnixStream, target: &Path) -> io::Result<()> {
    let mut s = lock(state);
    if s.is_cut {
        return Ok(());
    }
    let far = UnixStream::connect(target)?;
    s.pairs.push((near.try_clone()?, far.try_clone()?));
    for (mut from, mut to) in [(near.try_clone()?, far.try_clone()?), (far, near)] {
        std::thread::spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
        });
    }
    Ok(())
}
