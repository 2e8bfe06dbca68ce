//! The fencing ladder: how this host makes sure that a dead one writes no more, and what its own mount promises the others.
//!
//! | rung | how | promise |
//! |---|---|---|
//! | target | the NBD target raises the victim's minimum incarnation, cuts and drains it, and refuses it for good; at `qemu-storage-daemon` (`-o fence_qmp=`) the victim's own export is deleted (`qmp`) | exact |
//! | command | the administrator's program (`-o fence_cmd=`): slot, host, incarnation; exit 0 means off; then D is waited | as good as the program |
//! | lease | nothing: the membership core waits W after the last sign of life | only under the bounds of the timing |
//!
//! A host can be fenced at the target only if everything it sends goes under its own name. So after it has joined it opens its
//! connections anew as `VOLUME-sSLOT#INCARNATION`, lets the nameless ones go, and only then says so in its beat. The name is that of
//! the slot, not of the machine: the minimum incarnation then keeps a slot's whole past out.
//!
//! Invariant: a method is reported only after it worked. Not here: the order of a takeover (the membership core).

use crate::host::{Host, In};
use crate::qmp::Exports;
use luna_cluster::{FenceMethod, Input, Timing};
use luna_format::{Incarnation, Slot, VolumeId};
use luna_lun::LunSpec;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How long the administrator's program may take.
const PROGRAM: Duration = Duration::from_secs(120);

/// The name under which an incarnation of a slot speaks to the target.
pub fn client_name(volume: &VolumeId, slot: Slot) -> String {
    format!("{}-s{slot}", volume_name(volume))
}

/// What begins every name at a target.
pub fn volume_name(volume: &VolumeId) -> String {
    volume.iter().take(8).map(|b| format!("{b:02x}")).collect()
}

/// The best rung of this host, as `status` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rung {
    /// The target refuses who was fenced.
    Target,
    /// The administrator's program.
    Command,
    /// Time.
    Lease,
}

impl Rung {
    /// Number and name in the ladder of the plan.
    pub fn title(self) -> (u32, &'static str) {
        match self {
            Self::Target => (2, "target"),
            Self::Command => (2, "command"),
            Self::Lease => (3, "lease"),
        }
    }

    /// What it promises.
    pub fn promise(self) -> &'static str {
        match self {
            Self::Target => "exact: the target refuses and has drained the dead host",
            Self::Command => "as good as the fence_cmd program",
            Self::Lease => "holds under the timing bounds; a stopped or migrated machine can break it",
        }
    }

    /// How long a takeover takes at worst, from the last sign of life: a host whose machine died has no link to reset.
    pub fn worst_takeover_ms(self, t: &Timing) -> u64 {
        let noticed = t.lease_ms + 2 * t.beat_ms;
        match self {
            Self::Target => noticed + 1000,
            Self::Command => noticed + PROGRAM.as_millis() as u64 + t.request_ms,
            Self::Lease => t.wait_ms().max(noticed) + 1000,
        }
    }
}

/// What is needed to fence.
#[derive(Clone)]
pub struct Ladder {
    /// The router.
    pub host: Arc<Host>,
    /// The target.
    pub spec: LunSpec,
    /// The volume.
    pub volume: VolumeId,
    /// Bounds.
    pub timing: Timing,
    /// The target is a `qemu-storage-daemon`, with this control socket.
    pub exports: Option<Exports>,
    /// The administrator's program.
    pub program: Option<PathBuf>,
    /// What the self-test found.
    pub rung: Arc<OnceLock<Rung>>,
}

impl Ladder {
    /// Finds out whether the target fences, by fencing what may never come back anyway: the incarnations of this host's slot before its
    /// own. Prints what was found.
    pub fn self_test(&self, slot: Slot, incarnation: Incarnation) -> Rung {
        let rung = match self.at_target(slot, incarnation.saturating_sub(1)) {
            Ok(()) => Rung::Target,
            Err(why) => {
                tracing::info!(why, "the target can not fence");
                if self.program.is_some() { Rung::Command } else { Rung::Lease }
            }
        };
        let rung = *self.rung.get_or_init(|| rung);
        let (worst_ms, promise) = (rung.worst_takeover_ms(&self.timing), rung.promise());
        tracing::info!(rung = rung.title().1, promise, worst_ms, "how a dead host is fenced");
        rung
    }

    /// What this host's connections are opened with: the LUN as it is called for this incarnation, and a client name. Makes it first
    /// where that is needed.
    pub fn own_name(&self, slot: Slot, incarnation: Incarnation) -> Result<(LunSpec, Option<String>), String> {
        let Some(exports) = &self.exports else {
            return Ok((self.spec.clone(), Some(format!("{}#{incarnation}", client_name(&self.volume, slot)))));
        };
        let mut spec = self.spec.clone();
        let (LunSpec::Nbd { export, .. } | LunSpec::NbdUnix { export, .. }) = &mut spec else {
            return Err("fence_qmp is for NBD exports of a qemu-storage-daemon".into());
        };
        exports.add(export, slot, incarnation)?;
        *export = exports.name(slot, incarnation);
        Ok((spec, None))
    }

    /// This host has left and needs its name no more.
    pub fn give_up_name(&self, slot: Slot, incarnation: Incarnation) {
        if let Some(exports) = &self.exports
            && let Err(e) = exports.fence(slot, incarnation)
        {
            tracing::warn!(error = e, "this host's export was left behind; the next mount in the slot removes it");
        }
    }

    fn at_target(&self, slot: Slot, incarnation: Incarnation) -> Result<(), String> {
        if let Some(exports) = &self.exports {
            return exports.fence(slot, incarnation);
        }
        let name = client_name(&self.volume, slot);
        luna_lun::serve::client_fence(&self.spec, &name, incarnation).map(drop).map_err(|e| e.to_string())
    }

    /// Fences an incarnation, on a thread of its own; the core hears how.
    pub fn fence(&self, slot: Slot, incarnation: Incarnation, at_target: bool) {
        let me = self.clone();
        let work = move || {
            let begun = Instant::now();
            let result = me.climb(slot, incarnation, at_target);
            let ms = begun.elapsed().as_millis() as u64;
            match &result {
                Ok(FenceMethod::Lease) => {
                    tracing::warn!(slot, incarnation, wait_ms = me.timing.wait_ms(), "a host is gone: waiting until its lease has run out");
                }
                Ok(method) => tracing::warn!(slot, incarnation, ?method, ms, "a host is gone and fenced"),
                Err(e) => {
                    let advice = "make the fence work, or switch the host off and say so: luna confirm-dead DIR SLOT --yes";
                    tracing::error!(
                        slot,
                        incarnation,
                        error = e,
                        advice,
                        "a host is gone and could not be fenced; what it held stays blocked"
                    );
                }
            }
            me.host.post(In::Cluster(Input::FenceDone { slot, incarnation, result }));
        };
        if let Err(e) = std::thread::Builder::new().name("luna-fence".into()).spawn(work) {
            self.host.queue(In::Cluster(Input::FenceDone { slot, incarnation, result: Err(e.to_string()) }));
            self.host.ring();
        }
    }

    /// The strongest rung that works.
    fn climb(&self, slot: Slot, incarnation: Incarnation, at_target: bool) -> Result<FenceMethod, String> {
        if at_target {
            match self.at_target(slot, incarnation) {
                Ok(()) => return Ok(FenceMethod::Target),
                Err(e) => tracing::warn!(slot, incarnation, error = e, "the target did not fence; trying the next rung"),
            }
        }
        let Some(program) = &self.program else { return Ok(FenceMethod::Lease) };
        let name = self.host.look(|c, _, _| c.name_of(slot, incarnation));
        run_program(program, slot, &name, incarnation)?;
        // what the target had received before the machine went off still lands
        std::thread::sleep(Duration::from_millis(self.timing.request_ms));
        Ok(FenceMethod::Command)
    }
}

/// Runs `PROGRAM SLOT HOST INCARNATION`; exit status 0 is the promise that the host is off.
fn run_program(program: &PathBuf, slot: Slot, name: &str, incarnation: Incarnation) -> Result<(), String> {
    let mut command = Command::new(program);
    command.args([slot.to_string(), name.to_owned(), incarnation.to_string()]).stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = command.spawn().map_err(|e| format!("fence_cmd {}: {e}", program.display()))?;
    let begun = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(format!("fence_cmd {} for slot {slot} ({name}): {status}", program.display())),
            Ok(None) if begun.elapsed() < PROGRAM => std::thread::sleep(Duration::from_millis(20)),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("fence_cmd {} did not end within {} s", program.display(), PROGRAM.as_secs()));
            }
            Err(e) => return Err(format!("fence_cmd {}: {e}", program.display())),
        }
    }
}
