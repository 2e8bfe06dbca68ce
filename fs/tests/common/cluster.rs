//! Several hosts in one process: real lock cores, caches and kernel mounts over one disk.

use super::Mounted;
use luna_dlm::posix::Op;
use luna_dlm::{Core, Input, LockCache, Member, Mode, Name, Output, PosixClient, PosixRequester, Requester, ValueBlock, View};
use luna_lun::{Lun, memory::MemoryDisk};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

struct Wire(Mutex<Sender<Input>>);

impl Wire {
    fn put(&self, input: Input) {
        let _ = self.0.lock().expect("no thread panics with it").send(input);
    }
}

impl Requester for Wire {
    fn lock(&self, name: Name, mode: Mode, noqueue: bool) {
        self.put(Input::Lock { name, mode, noqueue });
    }
    fn release(&self, name: Name, from: Mode, to: Mode, value: Option<ValueBlock>) {
        self.put(Input::Release { name, from, to, value });
    }
    fn busy(&self, name: Name, wanted: Mode) {
        self.put(Input::Busy { name, wanted });
    }
    fn failed(&self, reason: &str) {
        panic!("{reason}");
    }
}

impl PosixRequester for Wire {
    fn posix(&self, token: u64, name: Name, op: Op) {
        self.put(Input::Posix { token, name, op });
    }
    fn cancel(&self, token: u64) {
        self.put(Input::PosixCancel { token });
    }
}

fn serve(me: Member, cache: &Arc<LockCache>, posix: &Arc<PosixClient>, input: &Receiver<Input>, wires: &[Sender<Input>]) {
    let mut core = Core::new(me);
    let mut out = Vec::new();
    while let Ok(event) = input.recv() {
        core.step(0, event, &mut out);
        for output in out.drain(..) {
            match output {
                Output::Send { to, msg } => drop(wires[usize::from(to)].send(Input::Message { from: me.slot, msg })),
                Output::Granted { name, mode, value } => cache.granted(&name, mode, value),
                Output::Denied { name, mode } => cache.denied(&name, mode),
                Output::Bast { name, wanted, polite } => cache.bast(&name, wanted, polite),
                Output::PosixDone { token, result } => posix.done(token, result),
                Output::Evicted => return,
            }
        }
    }
}

/// `n` hosts with one volume in memory, each with its mount.
pub(crate) fn hosts(n: u16, bytes: u64) -> Option<Vec<Mounted>> {
    if !super::usable() {
        return None;
    }
    let disk = Arc::new(MemoryDisk::new(bytes));
    let lun = Lun { disk: disk.clone(), queue: disk };
    super::format(&lun);
    let (wires, inputs): (Vec<_>, Vec<_>) = (0..n).map(|_| channel()).unzip();
    let members: Vec<Member> = (0..n).map(|slot| Member { slot, incarnation: 1 }).collect();
    let mut parts = Vec::new();
    for (slot, input) in inputs.into_iter().enumerate() {
        let wire = Arc::new(Wire(Mutex::new(wires[slot].clone())));
        let me = members[slot];
        let (cache, posix) = (LockCache::new(Arc::clone(&wire) as _), PosixClient::new(me.slot, wire));
        let (c, p, w) = (Arc::clone(&cache), Arc::clone(&posix), wires.clone());
        std::thread::spawn(move || serve(me, &c, &p, &input, &w));
        parts.push((me.slot, cache, posix));
    }
    let view = View { epoch: 1, members, dead: Vec::new() };
    for w in &wires {
        let _ = w.send(Input::View(view.clone()));
    }
    Some(parts.into_iter().map(|(slot, locks, posix)| Mounted::mount(lun.clone(), slot, 1, None, locks, posix)).collect())
}
