//! What must hold, noticed where it falls: when a write lands, when a change is acknowledged, when the next holder reads.
//!
//! Invariant: a check changes nothing but [`super::state::Broken`]. Not here: what happens next, whether or not it should have.

use super::state::{Content, State, Status};
use super::{Action, Takeover};

impl State {
    /// I2: whoever is fenced writes no more.
    pub(super) fn check_author(&mut self, h: u8) {
        self.broken.late_write |= self.is_fenced(h);
    }

    /// A home write of `h` is applied (I2, I6).
    pub(super) fn home_write_lands(&mut self, h: u8, block: u8, content: Content) {
        self.check_author(h);
        let home = &mut self.disk[usize::from(block)];
        self.broken.fell |= content.version() < home.version();
        *home = content;
    }

    /// A clean header is applied by `h`: the journal of `of` holds nothing any more (I2).
    pub(super) fn header_lands(&mut self, h: u8, of: u8) {
        self.check_author(h);
        self.host_mut(of).journal.clear();
    }

    /// A host tells its user that the change is safe (I5: two histories that both were safe cannot both be read).
    pub(super) fn acknowledge(&mut self, content: Content) {
        if content.holds(self.acked) {
            self.acked = content;
        } else {
            self.broken.lost |= !self.acked.holds(content);
        }
    }

    /// `h` gets the lock and reads (I3, I5).
    pub(super) fn check_grant(&mut self, m: &Takeover, h: u8) {
        let dead = |x: &super::state::Host| x.holds && matches!(x.status, Status::Evicted | Status::Fenced);
        self.broken.granted_early |= self.hosts.iter().enumerate().any(|(i, x)| i != usize::from(h) && dead(x));
        let read = &self.disk[..usize::from(m.blocks)];
        let whole = read.iter().all(|b| *b == self.disk[0] && b.holds(self.acked));
        self.broken.lost |= !whole;
    }
}

impl Takeover {
    /// I7: with a live host, the recovery of the dead has a next step, or waits for something that happens by itself.
    pub(super) fn gets_on(&self, s: &State) -> bool {
        let dead = s.hosts.iter().any(|h| matches!(h.status, Status::Evicted | Status::Fenced));
        if !dead || self.live(s).next().is_none() {
            return true;
        }
        let mut enabled = Vec::new();
        (0..self.hosts).for_each(|of| self.steps_of_recovery(s, of, &mut enabled));
        if !enabled.is_empty() {
            return true;
        }
        (0..self.hosts).for_each(|h| self.steps_of_host(s, h, &mut enabled));
        enabled.iter().any(|a| match a {
            Action::LeaseEnds { .. } | Action::LeaseIsBack { .. } => true,
            Action::Evict { host } => !s.host(*host).up,
            _ => false,
        })
    }
}
