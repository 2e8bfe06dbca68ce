//! The threads around one host: the LUN requests of the membership core, and replay.
//!
//! Beats have a connection and a thread of their own, so that they never wait behind data. Replays run on threads made for
//! them; their results go back to the core. Not here: the order of things (the core decides), fencing (`fence`), the mount (`mount`).

use crate::host::{DiskJob, Host, In, now_ms};
use crossbeam_channel::Receiver;
use luna_cluster::{Input, Timing};
use luna_format::superblock::Superblock;
use luna_format::{BLOCK_U64, Block, BlockNo, Incarnation, Slot, VolumeId};
use luna_journal::{Fenced, ReplayProof};
use luna_lun::{Disk, Durability};
use parking_lot::{Mutex, RwLock};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Between two looks at a block that reads as torn.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The connection of the cluster's own blocks. It is changed once, from nameless to named, between two requests.
pub struct Area {
    disk: Mutex<Arc<dyn Disk>>,
    /// Shared by whoever replays over the nameless connection.
    nameless: Arc<RwLock<()>>,
    /// The Paxos registers.
    registers: std::ops::Range<BlockNo>,
}

impl Area {
    /// Over `disk`.
    pub fn new(disk: Arc<dyn Disk>, sb: &Superblock) -> Arc<Self> {
        let registers = sb.px_start..sb.px_start + u64::from(sb.slots);
        Arc::new(Self { disk: Mutex::new(disk), nameless: Arc::default(), registers })
    }

    /// Takes another connection; no request is under way on the old one when this returns.
    pub fn change(&self, disk: Arc<dyn Disk>) {
        *self.disk.lock() = disk;
    }

    /// Whether it is certain that nothing sent over the present connection is under way.
    pub fn is_drained(&self) -> bool {
        self.disk.lock().is_drained()
    }

    /// Waits until no replay uses the nameless connection any more.
    pub fn drain(&self) {
        drop(self.nameless.write());
    }
}

/// Serves the membership core's requests to the LUN until the channel closes.
pub fn serve_disk(host: &Arc<Host>, area: &Area, jobs: &Receiver<DiskJob>) {
    let mut told = false;
    for job in jobs {
        let disk = area.disk.lock();
        let done = match job {
            DiskJob::Read(token, start, count) => Input::ReadDone { token, result: read(&**disk, start, count) },
            DiskJob::Write(token, block, bytes, forced) => {
                let durability = if forced { Durability::Forced } else { Durability::Plain };
                // it may have waited behind others: a register is written only while the lease or the claim holds
                let result = if area.registers.contains(&block) && !host.gate().is_open() && !host.claim().is_open() {
                    Err("the lease ran out before it was sent".to_owned())
                } else {
                    disk.write_at(&bytes.0, block * BLOCK_U64, durability).map_err(|e| e.to_string())
                };
                Input::WriteDone { token, result }
            }
        };
        let gone = disk.gone();
        drop(disk);
        if let Some(why) = gone.filter(|_| !std::mem::replace(&mut told, true)) {
            host.post(In::Cluster(Input::ShutOut { reason: why.to_string() }));
        }
        host.post(In::Cluster(done));
    }
}

fn read(disk: &dyn Disk, start: u64, count: u64) -> Result<Vec<Block>, String> {
    let mut bytes = vec![0; (count * BLOCK_U64) as usize];
    disk.read_at(&mut bytes, start * BLOCK_U64).map_err(|e| e.to_string())?;
    Ok(bytes.chunks_exact(BLOCK_U64 as usize).filter_map(Block::from_slice).collect())
}

/// What a shell needs to replay.
#[derive(Clone)]
pub struct Recovery {
    /// The router.
    pub host: Arc<Host>,
    /// The cluster's connection: used as long as this host is no member.
    pub area: Arc<Area>,
    /// The data connections, once this host is a member: what goes over them can be fenced.
    pub named: Arc<OnceLock<Arc<dyn Disk>>>,
    /// Bounds.
    pub timing: Timing,
    /// The shape.
    pub sb: Superblock,
    /// The volume.
    pub volume: VolumeId,
}

impl Recovery {
    /// Replays a journal, on a thread of its own.
    pub fn replay(&self, slot: Slot, incarnation: Incarnation, fenced_epoch: u64) {
        let me = self.clone();
        let spawned = std::thread::Builder::new().name("luna-replay".into()).spawn(move || {
            let started = now_ms();
            let result = me.replay_now(slot, incarnation, fenced_epoch);
            match &result {
                Ok(report) => tracing::info!(slot, incarnation, ms = now_ms() - started, ?report, "journal replayed"),
                Err(e) => tracing::error!(slot, incarnation, error = %e, "journal replay failed; it is tried again"),
            }
            let result = result.map(|_| ());
            if result.is_err() {
                std::thread::sleep(Duration::from_secs(1));
            }
            me.host.post(In::Cluster(Input::ReplayDone { slot, incarnation, result }));
        });
        if let Err(e) = spawned {
            self.host.queue(In::Cluster(Input::ReplayDone { slot, incarnation, result: Err(e.to_string()) }));
            self.host.ring();
        }
    }

    fn replay_now(&self, slot: Slot, incarnation: Incarnation, fenced_epoch: u64) -> Result<luna_journal::Report, String> {
        // the core hands out this order only after FENCED(slot, incarnation) was chosen as record `fenced_epoch`
        let proof = ReplayProof::Fenced(Fenced::attest(slot, incarnation, fenced_epoch));
        let region = self.sb.journal_region(slot);
        let nameless = Arc::clone(&self.area.nameless);
        let _under_way = nameless.read();
        let disk = self.named.get().map_or_else(|| Arc::clone(&self.area.disk.lock()), Arc::clone);
        // a recoverer that slept past its lease stops here: somebody else does it. One that began by a claim stops when it is let in
        // elsewhere too: nobody beats for that claim any more
        let (member, claim) = (self.host.gate(), self.host.claim());
        let disk = if member.is_open() { member.guard_at_once(disk) } else { claim.guard_at_once(disk) };
        // a claim may get here while a repair begins: this host's beat is on the LUN, so either it sees the mark, or the repair the beat
        if luna_fs::repair::exclusive::is_marked(&*disk).map_err(|e| e.to_string())? {
            return Err("a repair of the volume is under way".into());
        }
        let mut plan = luna_journal::plan(&*disk, self.volume, region, self.sb.homes(), slot, proof).map_err(|e| e.to_string())?;
        let until = now_ms() + self.timing.request_ms;
        let mut again = || {
            std::thread::sleep(LOOK_AGAIN);
            now_ms() < until
        };
        let torn = plan.settle(&*disk, &mut again).map_err(|e| e.to_string())?;
        if torn > 0 {
            tracing::warn!(slot, torn, "home blocks are torn; the journal has them");
        }
        plan.apply(&*disk, &|_| false).map_err(|e| e.to_string())
    }
}
