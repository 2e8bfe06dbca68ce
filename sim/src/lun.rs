//! One LUN: blocks that are read and written late, fail now and then, and outlive whoever wrote them.
//!
//! A write lands when its time comes, whether its writer still lives or not; an answer reaches only the life that asked. A
//! failed write may have landed. Not here: flushes (a forced write and a plain one are the same: nothing is lost).

use crate::Broken;
use crate::fsw::medium::Shared;
use crate::world::{Event, Fallible, Happening, Sent, World};
use luna_cluster::Input;
use luna_format::cluster::{DECIDE_EVICT, DECIDE_FENCED, DECIDE_LEAVE, DECIDE_RECOVERED, read_record};
use luna_format::{BLOCK_U64, Block};
use luna_node::router::{DiskJob, In};

/// The blocks, and whether the LUN is well.
pub(crate) struct Lun {
    pub(crate) medium: Shared,
    /// No slow answers and no errors.
    pub(crate) calm: bool,
}

impl World {
    /// How long the LUN takes; never longer than a request may live.
    pub(crate) fn latency(&mut self) -> u64 {
        if self.scale.is_some() {
            // with the millisecond of the answer: 1 ms
            return 0;
        }
        let slow = if self.lun.calm { 0 } else { 10 };
        if self.rng.u8(0..100) < slow { self.rng.u64(1..self.timing.request_ms - 20) } else { self.rng.u64(1..4) }
    }

    pub(crate) fn lun_job(&mut self, host: usize, life: u64, job: DiskJob, sent: Sent) -> Fallible {
        if sent.power != self.fs.as_ref().map_or(0, |f| f.power) {
            // the target lost power with it
            return Ok(());
        }
        let refused = self.lun.medium.lock().refuses(sent.who);
        if refused {
            self.refused(host, life);
        }
        let away = self.hosts[host].away_until > self.now || refused;
        let fails = away || !self.lun.calm && self.rng.u8(0..100) < 3;
        let input = match job {
            DiskJob::Read(token, start, count) => {
                let medium = self.lun.medium.lock();
                let own = self.setup.broken == Some(Broken::ForgetsItsRegister)
                    && count == 1
                    && (self.area.px_start..self.area.log_start).contains(&start);
                let block = |b| if own { Block::zeroed() } else { medium.block(b) };
                let result = if fails { Err("EIO".to_owned()) } else { Ok((start..start + count).map(block).collect()) };
                Input::ReadDone { token, result }
            }
            DiskJob::Write(token, block, bytes, forced) => {
                // a failed write may have landed or not
                if !away && (!fails || self.rng.bool()) {
                    self.landed(block, &bytes, sent, forced)?;
                }
                let result = if fails { Err("EIO".to_owned()) } else { Ok(()) };
                Input::WriteDone { token, result }
            }
        };
        let event = Event::Input(Box::new(In::Cluster(input)));
        self.at(1, Happening::For { host, life, event });
        Ok(())
    }

    /// The target has fenced this host: it hears so from the target, whatever its core knows.
    fn refused(&mut self, host: usize, life: u64) {
        if self.hosts[host].life == life && self.hosts[host].process.as_ref().is_some_and(|p| !p.withdrawn) {
            self.say(format!("host {host} is refused by the target"));
            self.fs_withdraw(host, "the target refuses this host");
            self.withdraw(host);
            self.later(500, host, Event::Exit);
        }
    }

    fn landed(&mut self, block: u64, bytes: &Block, sent: Sent, forced: bool) -> Fallible {
        let a = self.area;
        if block >= a.log_start {
            let read = read_record(bytes, a.volume, a.log_start, a.log_blocks, block - a.log_start);
            let r = read.map_err(|e| format!("membership: a record that cannot be read was written: {e}"))?;
            let r = r.ok_or("membership: an empty record was written")?;
            if let Some((kind, who)) = self.check.members.landed(&r, bytes)? {
                self.say(format!("record {}: {kind} {who:?}", r.index));
                self.measure_record(kind, who);
                match kind {
                    DECIDE_EVICT => self.check.locks.evicted(who),
                    DECIDE_RECOVERED | DECIDE_LEAVE => self.check.locks.over(who),
                    _ => {}
                }
                self.fs_decided(kind, who)?;
            }
        }
        self.lun.medium.lock().write(sent.who, block * BLOCK_U64, &bytes.0, forced);
        self.medium_is_right()
    }

    /// A decision is on the LUN: what follows from it for files.
    fn fs_decided(&mut self, kind: u16, who: crate::check::Who) -> Fallible {
        let Some(f) = &mut self.fs else { return Ok(()) };
        match kind {
            DECIDE_FENCED => f.medium.lock().is_fenced(who),
            DECIDE_RECOVERED => f.oracle.recovered(who)?,
            DECIDE_LEAVE => f.oracle.left(who)?,
            _ => {}
        }
        Ok(())
    }
}
