//! What hosts keep on the LUN to agree with each other, damaged, under the membership core of a host that wants in.
//!
//! [`Shell`] is the smallest shell there is: it reads and writes at once, fences by word, replays by saying so. Invariant: the core ends as
//! member, refused or still trying, and writes nothing outside of the cluster's area. Not here: other hosts (that is `sim`), messages
//! (`peers`).

use crate::damage::damage;
use crate::disk::{Blocks, GuardDisk};
use crate::scene::{Area, BLOCKS, Scene, VOLUME};
use luna_cluster::{self as cluster, Core, FenceMethod, Input, Msg, Output};
use luna_format::{BLOCK_U64, Block, Incarnation, Slot};
use luna_lun::{Disk, Durability};
use std::collections::VecDeque;

/// Steps with this many inputs each are more than any core needs for one moment.
const BURST: usize = 2000;

/// A core and its shell.
pub struct Shell {
    core: Core,
    disk: GuardDisk,
    now: u64,
    queue: VecDeque<Input>,
    members: u64,
}

impl Shell {
    /// A host that wants in, over `disk`.
    pub fn new(disk: GuardDisk) -> Self {
        let sb = Scene::get().sb;
        let config = cluster::Config {
            area: cluster::Area::of(VOLUME, &sb),
            timing: cluster::Timing::shrunk(10),
            name: "fuzzed".into(),
            host_id: [9; 16],
            nonce: 4711,
            addresses: vec!["127.0.0.1:1".into()],
            link_key: [5; 32],
        };
        Self { core: Core::new(config, 7), disk, now: 1000, queue: VecDeque::from([Input::Start]), members: 0 }
    }

    /// A host over a volume that nobody ever used.
    pub fn alone() -> Self {
        Self::new(GuardDisk::new(std::sync::Arc::default(), BLOCKS, Blocks::new()))
    }

    /// Who is in, as far as the core said: a bit for each slot.
    pub fn members(&self) -> u64 {
        self.members
    }

    /// A message arrives.
    pub fn hear(&mut self, from: Option<(Slot, Incarnation)>, msg: Msg) {
        self.queue.push_back(Input::Message { from, msg });
    }

    /// Lets so many moments go by.
    pub fn run(&mut self, moments: u32) {
        let mut out = Vec::new();
        for _ in 0..moments {
            let mut inputs = 0;
            while let Some(input) = self.queue.pop_front() {
                self.core.step(self.now, input, &mut out);
                self.perform(&mut out);
                inputs += 1;
                assert!(inputs < BURST, "the core does not come to rest");
            }
            self.now = self.core.next_wake_ms().clamp(self.now + 1, self.now + 2000);
            self.queue.push_back(Input::Tick);
        }
    }

    fn perform(&mut self, out: &mut Vec<Output>) {
        for o in out.drain(..) {
            let answer = match o {
                Output::Read { token, start, count } => {
                    assert!(count <= 4096, "{count} blocks at once");
                    let mut blocks = Block::zeroed_vec(count as usize);
                    for (n, b) in blocks.iter_mut().enumerate() {
                        let _ = self.disk.read_at(&mut b.0, (start + n as u64) * BLOCK_U64);
                    }
                    Input::ReadDone { token, result: Ok(blocks) }
                }
                Output::Write { token, block, bytes, .. } => {
                    let result = self.disk.write_at(&bytes.0, block * BLOCK_U64, Durability::Forced).map_err(|e| e.to_string());
                    Input::WriteDone { token, result }
                }
                Output::Fence { slot, incarnation, .. } => Input::FenceDone { slot, incarnation, result: Ok(FenceMethod::Operator) },
                Output::Replay { slot, incarnation, .. } => Input::ReplayDone { slot, incarnation, result: Ok(()) },
                Output::View(v) => {
                    self.members = v.members.iter().fold(0, |bits, m| bits | 1 << (m.slot % 64));
                    continue;
                }
                _ => continue,
            };
            self.queue.push_back(answer);
        }
    }
}

/// A host joins a cluster whose blocks are damaged.
pub fn join(script: &[u8]) {
    let scene = Scene::get();
    let sb = scene.sb;
    let own = sb.beat_start..sb.mail_start;
    let disk = scene.disk(damage(scene, Area::Cluster, script)).only(std::slice::from_ref(&own));
    let mut shell = Shell::new(disk);
    shell.run(400);
    shell.queue.push_back(Input::LeaveRequested);
    shell.run(40);
    shell.queue.push_back(Input::JournalClean);
    shell.run(60);
}
