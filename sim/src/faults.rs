//! Faults, one after the other, while the first phase lasts; and the end of them.
//!
//! Every fault that is not a death ends by itself after a while; [`World::heal_all`] ends them all. Any number of hosts may be
//! down at once, all of them too.

use crate::world::{Fallible, Happening, World};

impl World {
    pub(crate) fn fault(&mut self) -> Fallible {
        if !self.faulty {
            return Ok(());
        }
        let next = if self.setup.calm { self.rng.u64(30_000..690_000) } else { self.rng.u64(50..1500) };
        self.at(next, Happening::Fault);
        self.report.faults += 1;
        let n = self.hosts.len();
        let (i, j) = (self.rng.usize(0..n), self.rng.usize(0..n));
        if self.fs.is_some() && self.rng.u8(0..2) == 0 {
            return self.fs_fault(i);
        }
        match self.rng.u8(0..10) {
            0 | 1 => self.kill(i),
            2 | 3 => self.stop(i),
            4 | 5 => self.cut(i, j),
            6 => {
                self.say(format!("the connections of host {i} are reset"));
                self.reset_all_of(i);
            }
            7 => {
                // one side of the cluster no longer hears the other
                let all: Vec<(usize, usize)> = (0..=i).flat_map(|a| (i + 1..n).map(move |b| (a, b))).collect();
                all.into_iter().for_each(|(a, b)| self.cut(a, b));
            }
            8 => {
                self.say("the LUN has a bad time".to_owned());
                self.lun.calm = false;
                let late = self.rng.u64(200..4000);
                self.at(self.paced(late), Happening::CalmLun);
            }
            _ => return self.leave(i),
        }
        Ok(())
    }

    /// SIGSTOP for a while: shorter and longer than the lease.
    fn stop(&mut self, i: usize) {
        let ms = if self.rng.bool() { self.rng.u64(10..600) } else { self.rng.u64(600..4000) };
        let ms = self.paced(ms);
        self.say(format!("host {i} stops for {ms} ms"));
        let h = &mut self.hosts[i];
        h.stopped_until = h.stopped_until.max(self.now + ms);
        let late = h.stopped_until - self.now;
        self.at(late, Happening::Wake { host: i });
    }

    fn cut(&mut self, i: usize, j: usize) {
        if i == j {
            return;
        }
        self.net.cut(i, j);
        // sometimes the ends hear of it at once, sometimes only their silence tells
        if self.rng.bool() {
            self.net.between(i, j).into_iter().for_each(|c| self.reset(c));
        }
        let late = self.rng.u64(100..6000);
        let late = self.paced(late);
        self.say(format!("hosts {i} and {j} are cut for {late} ms"));
        self.at(late, Happening::Heal { pair: (i, j) });
    }

    /// Faults are over; the dead come back by themselves.
    pub(crate) fn heal_all(&mut self) {
        self.faulty = false;
        self.net.heal(None);
        self.lun.calm = true;
        for host in 0..self.hosts.len() {
            self.hosts[host].stopped_until = self.now;
            self.hosts[host].away_until = 0;
            self.fs_calm(host);
            self.at(0, Happening::Wake { host });
        }
        self.say("all is healed".to_owned());
    }
}
