//! The words of the cluster core: what goes in, what comes out, what it is told at construction. Pure data.
//!
//! Times are milliseconds of one monotonic clock that goes on while the machine sleeps (CLOCK_BOOTTIME). Not here: behaviour.

use luna_format::cluster::{Beat, TEXT_BYTES, text, untext};
use luna_format::superblock::Superblock;
use luna_format::{Block, BlockNo, Epoch, Incarnation, Slot, VolumeId};
use serde::{Deserialize, Serialize};

/// A monotonic time in milliseconds.
pub type Ms = u64;

/// All time bounds of the protocol. The same on all hosts of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How often a member beats.
    pub beat_ms: Ms,
    /// L: silent for longer means dead.
    pub lease_ms: Ms,
    /// M: a host stops acting this long before L.
    pub margin_ms: Ms,
    /// D: life of a request that was handed over to the LUN.
    pub request_ms: Ms,
    /// P: longest pause between the lease check and the hand-over.
    pub pause_ms: Ms,
    /// Clock drift in thousandths.
    pub drift_permille: u64,
    /// How long a claim on a slot rests before it holds, where no member is alive to let a host in.
    pub claim_ms: Ms,
    /// How often a host that waits for something reads the log.
    pub poll_ms: Ms,
    /// One raft tick.
    pub raft_tick_ms: Ms,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            beat_ms: 400,
            lease_ms: 12_000,
            margin_ms: 4000,
            request_ms: 5000,
            pause_ms: 2000,
            drift_permille: 10,
            claim_ms: 300,
            poll_ms: 20,
            raft_tick_ms: 100,
        }
    }
}

impl Timing {
    /// The same protocol with every bound divided by `n`: for tests and demonstrations.
    pub fn shrunk(n: u64) -> Self {
        let d = Self::default();
        Self {
            beat_ms: (d.beat_ms / n).max(20),
            lease_ms: (d.lease_ms / n).max(120),
            margin_ms: (d.margin_ms / n).max(40),
            request_ms: (d.request_ms / n).max(50),
            pause_ms: (d.pause_ms / n).max(20),
            ..d
        }
    }

    /// How long a host acts after its last good beat was sent.
    pub fn act_ms(&self) -> Ms {
        self.lease_ms - self.margin_ms
    }

    /// W: `((L - M)(1 + rho) + P + D) / (1 - rho)`, rounded up to half a beat. Whoever was silent for W writes no more.
    pub fn wait_ms(&self) -> Ms {
        let rho = self.drift_permille;
        let scaled = self.act_ms() * (1000 + rho) + (self.pause_ms + self.request_ms) * 1000;
        scaled.div_ceil(1000 - rho).next_multiple_of((self.beat_ms / 2).max(1))
    }
}

/// Where the cluster's blocks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// The volume.
    pub volume: VolumeId,
    /// Slots.
    pub slots: Slot,
    /// First beat block.
    pub beat_start: BlockNo,
    /// First Paxos block.
    pub px_start: BlockNo,
    /// First block of the log.
    pub log_start: BlockNo,
    /// Blocks of the log.
    pub log_blocks: u64,
}

impl Area {
    /// The areas of a superblock.
    pub fn of(volume: VolumeId, sb: &Superblock) -> Self {
        Self {
            volume,
            slots: sb.slots as Slot,
            beat_start: sb.beat_start,
            px_start: sb.px_start,
            log_start: sb.log_start,
            log_blocks: sb.log_blocks,
        }
    }

    /// Beat block of a slot.
    pub fn beat(&self, s: Slot) -> BlockNo {
        self.beat_start + u64::from(s)
    }

    /// Paxos block of a slot.
    pub fn px(&self, s: Slot) -> BlockNo {
        self.px_start + u64::from(s)
    }

    /// Block of record `k`.
    pub fn log(&self, k: Epoch) -> BlockNo {
        self.log_start + k % self.log_blocks
    }
}

/// What a core is told once.
#[derive(Clone, Debug)]
pub struct Config {
    /// The areas on the LUN.
    pub area: Area,
    /// Bounds.
    pub timing: Timing,
    /// Name of this host, unique among the mounts (at most 64 bytes).
    pub name: String,
    /// Identity of this host; two mounts on one machine need two.
    pub host_id: [u8; 16],
    /// Random; differs for each process.
    pub nonce: u64,
    /// Where it listens (at most 4, at most 64 bytes each).
    pub addresses: Vec<String>,
    /// Public key of its links.
    pub link_key: [u8; 32],
}

/// How an old incarnation was stopped. The numbers are permanent (they are in records).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum FenceMethod {
    /// It said itself that it is drained.
    Acknowledged = 0,
    /// SCSI persistent reservation.
    Reservation = 1,
    /// The target refuses it.
    Target = 2,
    /// An agent (power switch), which waited for the target as well.
    Command = 3,
    /// Nothing but time: the core waits W after the last sign of life.
    Lease = 4,
    /// An operator says that it is dead.
    Operator = 5,
}

/// What one host tells another about membership. The shell frames, authenticates and encodes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Msg {
    /// The log grew: read it.
    Nudge {
        /// Newest record.
        index: Epoch,
    },
    /// Let me in. The only message that a host may send without being a member.
    JoinRequest {
        /// Identity of the host.
        host_id: [u8; 16],
        /// Its name.
        name: String,
        /// Which attempt.
        nonce: u64,
    },
    /// A raft message of the group of one view.
    Raft {
        /// Epoch of the view.
        view: Epoch,
        /// Encoded raft message.
        bytes: Vec<u8>,
    },
}

/// Number by which an answer is matched to a request.
pub type Token = u64;

/// How the link to a slot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkNow {
    /// It is there.
    Up,
    /// The other end let it go: its process died, or a kernel says that nobody is there.
    Reset,
    /// This end gave it up, because nothing came for too long. That says nothing about the process: a stopped one looks like that.
    GivenUp,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// Begin to join. Once.
    Start,
    /// Time passed (`now_ms` says how much).
    Tick,
    /// A read came back.
    ReadDone {
        /// Of which request.
        token: Token,
        /// The blocks, or why not.
        result: Result<Vec<Block>, String>,
    },
    /// A write came back.
    WriteDone {
        /// Of which request.
        token: Token,
        /// Done, or why not (then it may still land).
        result: Result<(), String>,
    },
    /// A message from another host, or from one that is not a member yet (`None`).
    Message {
        /// The authenticated sender.
        from: Option<(Slot, Incarnation)>,
        /// What it says.
        msg: Msg,
    },
    /// The link to a slot came up, or ended.
    PeerLink {
        /// The slot.
        slot: Slot,
        /// How it is now.
        now: LinkNow,
    },
    /// Somebody says that the log grew.
    Nudge,
    /// Somebody calls whose beat was not read yet, and waits for that: it may have joined, or written its first beat, just now.
    Stranger,
    /// This host may or can not use the volume any more: the target refuses it, or it withdrew by itself. It stops beating, so that
    /// the others take over.
    ShutOut {
        /// Why.
        reason: String,
    },
    /// Answer to [`Output::Fence`].
    FenceDone {
        /// The slot.
        slot: Slot,
        /// Its incarnation.
        incarnation: Incarnation,
        /// How, or why not (it is tried again). `Lease` needs no wait in the shell: the core waits.
        result: Result<FenceMethod, String>,
    },
    /// Answer to [`Output::Replay`].
    ReplayDone {
        /// The slot.
        slot: Slot,
        /// Its incarnation.
        incarnation: Incarnation,
        /// Done, or why not (it is tried again).
        result: Result<(), String>,
    },
    /// From now on every request of this host reaches the target under its slot and incarnation, and nothing of it that went
    /// without a name is under way any more.
    NamedAtTarget,
    /// This host wants to leave. The shell then stops the file system and closes the journal.
    LeaveRequested,
    /// The own journal is closed and clean: the LEAVE record may be chosen.
    JournalClean,
    /// After [`Output::Evicted`]: all own I/O is answered and none will be submitted.
    Drained,
}

/// One member of a view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its slot.
    pub slot: Slot,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// Its name; empty until its beat was read.
    pub name: String,
    /// Where it listens; empty until its beat was read.
    pub addresses: Vec<String>,
    /// Public key of its links.
    pub link_key: [u8; 32],
}

/// A host that died and is not recovered yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dead {
    /// Its slot.
    pub slot: Slot,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// Epoch of its EVICT record.
    pub died_epoch: Epoch,
    /// Members of the last view it was in (bit = slot).
    pub last_members: u64,
    /// Whether FENCED was chosen.
    pub fenced: bool,
}

/// Who is in, at one epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Index of the newest record.
    pub epoch: Epoch,
    /// Index of the record that last changed the members.
    pub view_epoch: Epoch,
    /// Members in order of slots.
    pub members: Vec<Member>,
    /// Evicted or fenced, not recovered.
    pub dead: Vec<Dead>,
}

/// What is to be done. In this order.
#[derive(Clone, Debug)]
pub enum Output {
    /// Read blocks, answer with [`Input::ReadDone`].
    Read {
        /// For the answer.
        token: Token,
        /// First block.
        start: BlockNo,
        /// How many.
        count: u64,
    },
    /// Write one block, answer with [`Input::WriteDone`]. Never retry it.
    Write {
        /// For the answer.
        token: Token,
        /// Where.
        block: BlockNo,
        /// What.
        bytes: Box<Block>,
        /// Durable when answered.
        forced: bool,
    },
    /// Send to a member, by TCP or by mail.
    Send {
        /// Its slot.
        to: Slot,
        /// What.
        msg: Msg,
    },
    /// A new view; also repeated with the same epoch when a member's name or addresses became known.
    View(View),
    /// Make it impossible for this incarnation to write; answer with [`Input::FenceDone`]. May be repeated.
    Fence {
        /// The slot.
        slot: Slot,
        /// Its incarnation.
        incarnation: Incarnation,
        /// Whether its beats said that the target knows it by name: then the target can fence it.
        at_target: bool,
    },
    /// FENCED is chosen and it is this host's turn: plan and apply the journal; answer with [`Input::ReplayDone`].
    Replay {
        /// The slot.
        slot: Slot,
        /// Its incarnation.
        incarnation: Incarnation,
        /// Epoch of the FENCED record: with it the shell makes the proof.
        fenced_epoch: Epoch,
    },
    /// RECOVERED is chosen: what this incarnation held thaws.
    Recovered {
        /// The slot.
        slot: Slot,
        /// Its incarnation.
        incarnation: Incarnation,
    },
    /// This host is a member.
    Joined {
        /// Its slot.
        slot: Slot,
        /// Its incarnation.
        incarnation: Incarnation,
        /// Who still has to be recovered.
        needs_replay_of: Vec<Dead>,
    },
    /// The lease ran out: submit nothing until [`Output::Resumed`].
    Paused,
    /// Go on.
    Resumed,
    /// This host was shut out: close the gate, reset links, drop locks and caches, answer EIO; then [`Input::Drained`].
    Evicted {
        /// Why.
        reason: String,
    },
    /// The LEAVE record is chosen and the slot is free.
    Left,
    /// This host cannot come in.
    Refused {
        /// One line for the user.
        reason: String,
    },
    /// A line for the log.
    Log(String),
}

/// May this host act?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Until this time.
    Active {
        /// Submit nothing at or after it.
        until_ms: Ms,
    },
    /// Not now.
    Paused,
    /// Never again as this incarnation (also before joining and after leaving).
    Evicted,
}

/// Name of the host that beats.
pub(crate) fn beat_name(b: &Beat) -> String {
    untext(&b.name)
}

/// Addresses of the host that beats.
pub(crate) fn beat_addresses(b: &Beat) -> Vec<String> {
    b.addresses.iter().map(|a| untext(a)).filter(|a| !a.is_empty()).collect()
}

/// Addresses as fields.
pub(crate) fn address_fields(from: &[String]) -> [[u8; TEXT_BYTES]; luna_format::cluster::MAX_ADDRESSES] {
    let mut out = [[0; TEXT_BYTES]; luna_format::cluster::MAX_ADDRESSES];
    for (to, a) in out.iter_mut().zip(from) {
        *to = text(a);
    }
    out
}
