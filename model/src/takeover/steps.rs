//! Which steps are enabled, and what each does.
//!
//! A guard is what the protocol demands of whoever takes the step, or what the world can do; a mutant is one guard or one consequence
//! less. Invariant: what a step does depends on the state alone. Not here: what must hold (`check.rs`).

use super::state::{Content, Home, Host, Job, Lost, Record, State, Status, Step};
use super::{Action, Fence, Mutant, Skip, Takeover, Which};

impl Takeover {
    /// Steps of a host that believes itself a member, and the fate of its writes.
    pub(super) fn steps_of_host(&self, s: &State, h: u8, out: &mut Vec<Action>) {
        let host = s.host(h);
        let member = host.status == Status::Member;
        let quiet = host.record == Record::None;
        let in_place = quiet && self.homes(s, h).iter().all(|x| *x == Home::Clean);
        let others = self.live(s).any(|o| o != h);
        let mut may = |ok: bool, a: Action| {
            if ok {
                out.push(a)
            }
        };
        // the lock table grants to members only; the new holder reads under its lease
        may(s.owner.is_none() && member && host.up && host.lease && !host.holds, Action::Grant { host: h });
        // whoever was evicted goes on as long as it does not know
        if host.up && host.holds && s.can_write(self, h) {
            may(quiet && host.cache.version() < u32::from(self.changes), Action::Change { host: h });
            for block in (0..self.blocks).filter(|b| quiet && host.home[usize::from(*b)] == Home::Dirty) {
                may(true, Action::SendHome { host: h, block });
            }
        }
        let retired = in_place || quiet && self.mutant == Mutant::RetireEarly;
        may(host.up && s.can_write(self, h) && retired && !host.journal.is_empty(), Action::Retire { host: h });
        let released = in_place || quiet && self.mutant == Mutant::ReleaseEarly;
        may(host.up && host.holds && member && s.owner == Some(h) && released, Action::Release { host: h });
        may(matches!(host.record, Record::Sent(_)), Action::RecordLands { host: h });
        may(matches!(host.record, Record::Landed(_)) && host.up && host.lease, Action::RecordAnswered { host: h });
        for block in (0..self.blocks).filter(|b| matches!(host.home[usize::from(*b)], Home::Sent(_))) {
            may(true, Action::HomeLands { host: h, block });
            may(self.torn && others && !s.is_fenced(h), Action::HomeTears { host: h, block });
        }
        if self.fence == Fence::Lease {
            may(host.lease && !s.is_fenced(h), Action::LeaseEnds { host: h });
            may(!host.lease && member && host.up, Action::LeaseIsBack { host: h });
        }
        may(member && others, Action::Evict { host: h });
        may(host.status == Status::Recovered && s.joins < self.joins && others, Action::Join { host: h });
    }

    /// Steps of the takeover of `of`.
    pub(super) fn steps_of_recovery(&self, s: &State, of: u8, out: &mut Vec<Action>) {
        let host = s.host(of);
        let thawed = match host.status {
            Status::Evicted => self.mutant == Mutant::GrantBeforeFence,
            Status::Fenced => self.mutant == Mutant::GrantBeforeReplay,
            Status::Member | Status::Recovered => return,
        };
        if thawed && s.owner == Some(of) {
            out.push(Action::GrantedTooEarly { of });
        }
        if host.status == Status::Evicted {
            let over = self.fence == Fence::Exact || !host.lease || self.mutant == Mutant::NoFence;
            out.extend(self.live(s).filter(|_| over).map(|by| Action::Fence { of, by }));
            return;
        }
        let Some(job) = host.job else { return };
        let settled = s.all_fenced() || self.mutant == Mutant::ReplayBeforeAllFenced;
        let by = s.host(job.by);
        match job.step {
            Step::Ordered => {
                let alone = !self.serial || !s.hosts.iter().any(|h| h.status == Status::Fenced && h.job.is_some_and(|j| j.runs()));
                if settled && alone && by.status == Status::Member && s.can_write(self, job.by) {
                    out.push(Action::Plan { of });
                }
            }
            Step::Done if settled && by.status == Status::Member && by.up => out.push(Action::Recovered { of }),
            _ => self.steps_of_replay(s, Which::Of(of), out),
        }
        if by.status != Status::Member && settled {
            out.extend(self.live(s).map(|by| Action::Takeover { of, by }));
        }
    }

    /// Steps of a recoverer, and the fate of its writes.
    pub(super) fn steps_of_replay(&self, s: &State, replay: Which, out: &mut Vec<Action>) {
        let Some(Lost { job, .. }) = s.job(replay) else { return };
        let mut may = |ok: bool, a: Action| {
            if ok {
                out.push(a)
            }
        };
        match job.step {
            Step::At(b) => {
                let acts = s.can_replay(self, job.by);
                may(acts, Action::Look { replay, torn: false });
                let torn = self.torn_reads && b < self.blocks && s.is_being_written(b) && s.disk[usize::from(b)] != Content::TORN;
                may(acts && torn, Action::Look { replay, torn: true });
            }
            Step::Writing(_) => {
                may(true, Action::ReplayLands { replay });
                let survived = self.live(s).any(|o| o != job.by);
                may(self.torn && !s.is_fenced(job.by) && survived, Action::ReplayTears { replay });
            }
            Step::Header => may(true, Action::HeaderLands { replay }),
            Step::Ordered | Step::Done => {}
        }
    }

    /// Members whose process goes on.
    pub(super) fn live<'a>(&self, s: &'a State) -> impl Iterator<Item = u8> + use<'a> {
        (0..).zip(&s.hosts).filter(|(_, h)| h.status == Status::Member && h.up).map(|(n, _)| n)
    }

    fn homes<'a>(&self, s: &'a State, h: u8) -> &'a [Home] {
        &s.host(h).home[..usize::from(self.blocks)]
    }

    /// Carries out one step.
    pub(super) fn take(&self, s: &mut State, action: Action) {
        match action {
            Action::Grant { host } => self.grant(s, host),
            Action::Change { host } => self.change(s, host),
            Action::RecordLands { host } => self.record_lands(s, host),
            Action::RecordAnswered { host } => {
                if let Record::Landed(content) = s.host(host).record {
                    s.host_mut(host).record = Record::None;
                    s.acknowledge(content);
                }
            }
            Action::SendHome { host, block } => {
                let content = s.host(host).cache;
                s.host_mut(host).home[usize::from(block)] = Home::Sent(content);
            }
            Action::HomeLands { host, block } => self.home_lands(s, host, block),
            Action::HomeTears { host, block } => {
                s.disk[usize::from(block)] = Content::TORN;
                s.host_mut(host).home[usize::from(block)] = Home::Clean;
                Self::stops(s, host);
            }
            Action::Retire { host } => s.host_mut(host).journal.clear(),
            Action::Release { host } => Self::release(s, host),
            Action::LeaseEnds { host } => s.host_mut(host).lease = false,
            Action::LeaseIsBack { host } => s.host_mut(host).lease = true,
            Action::Evict { host } => s.host_mut(host).status = Status::Evicted,
            Action::Fence { of, by } => self.fence(s, of, by),
            Action::GrantedTooEarly { .. } => s.owner = None,
            Action::Plan { of } => {
                let image = s.host(of).journal.last().copied();
                let step = Step::At(if image.is_some() { 0 } else { self.blocks });
                s.change_job(Which::Of(of), |j| (j.image, j.step) = (image, step));
            }
            Action::Look { replay, torn } => self.look(s, replay, torn),
            Action::ReplayLands { replay } | Action::ReplayTears { replay } | Action::HeaderLands { replay } => {
                let tears = matches!(action, Action::ReplayTears { .. });
                Self::replay_lands(s, replay, tears);
            }
            Action::Takeover { of, by } => Self::takeover(s, of, by),
            Action::Recovered { of } => Self::recovered(s, of),
            Action::Join { host } => {
                s.joins += 1;
                *s.host_mut(host) = Host { is_new: true, ..Host::fresh() };
            }
        }
    }

    fn grant(&self, s: &mut State, h: u8) {
        s.check_grant(self, h);
        let content = s.disk[0];
        s.owner = Some(h);
        let host = s.host_mut(h);
        (host.holds, host.cache) = (true, content);
    }

    /// One transaction over all blocks: its record is sent.
    fn change(&self, s: &mut State, h: u8) {
        let host = s.host_mut(h);
        let content = host.cache.by(h);
        (host.cache, host.record) = (content, Record::Sent(content));
        for home in host.home.iter_mut().take(self.blocks.into()).filter(|x| **x == Home::Clean) {
            *home = Home::Dirty;
        }
        if self.mutant == Mutant::AckEarly {
            s.acknowledge(content);
        }
    }

    fn record_lands(&self, s: &mut State, h: u8) {
        let Record::Sent(content) = s.host(h).record else { return };
        s.check_author(h);
        let host = s.host_mut(h);
        host.journal.push(content);
        host.record = if host.up { Record::Landed(content) } else { Record::None };
    }

    fn home_lands(&self, s: &mut State, h: u8, block: u8) {
        let Home::Sent(content) = s.host(h).home[usize::from(block)] else { return };
        s.home_write_lands(h, block, content);
        let host = s.host_mut(h);
        let newer = host.up && host.holds && host.cache != content;
        host.home[usize::from(block)] = if newer { Home::Dirty } else { Home::Clean };
    }

    fn release(s: &mut State, h: u8) {
        s.owner = None;
        let host = s.host_mut(h);
        (host.holds, host.cache) = (false, Content::EMPTY);
        for home in host.home.iter_mut().filter(|x| **x == Home::Dirty) {
            *home = Home::Clean;
        }
    }

    /// The process does nothing more; what it has under way stays under way.
    fn stops(s: &mut State, h: u8) {
        let host = s.host_mut(h);
        (host.up, host.lease, host.cache) = (false, false, Content::EMPTY);
        if matches!(host.record, Record::Landed(_)) {
            host.record = Record::None;
        }
        for home in host.home.iter_mut().filter(|x| **x == Home::Dirty) {
            *home = Home::Clean;
        }
    }

    /// The fence of `of`, and FENCED: whatever it has under way will never land, and `by` is the recoverer.
    fn fence(&self, s: &mut State, of: u8, by: u8) {
        s.host_mut(of).status = Status::Fenced;
        s.host_mut(of).job = Some(Job::ordered(by, false));
        if matches!(self.mutant, Mutant::NoFence | Mutant::NoAbort) {
            return;
        }
        if self.mutant != Mutant::ReplayUngated {
            s.lost.retain(|l| l.job.by != of);
            for job in s.hosts.iter_mut().filter_map(|h| h.job.as_mut()).filter(|j| j.by == of && !j.is_done()) {
                *job = Job::ordered(of, job.again);
            }
        }
        let host = s.host_mut(of);
        host.record = Record::None;
        host.home.fill(Home::Clean);
        if self.mutant != Mutant::GateSkipped {
            // a process that is refused, or waits at its gate for ever, does nothing more
            Self::stops(s, of);
        }
    }

    /// A write of a replay lands, torn or whole.
    fn replay_lands(s: &mut State, replay: Which, tears: bool) {
        let Some(Lost { of, job }) = s.job(replay) else { return };
        match (job.step, job.image) {
            (Step::Header, _) => {
                s.header_lands(job.by, of);
                s.change_job(replay, |j| j.step = Step::Done);
            }
            (Step::Writing(b), _) if tears => {
                s.disk[usize::from(b)] = Content::TORN;
                s.change_job(replay, |j| j.step = Step::At(b));
                Self::stops(s, job.by);
            }
            (Step::Writing(b), Some(image)) => {
                s.home_write_lands(job.by, b, image);
                s.change_job(replay, |j| j.step = Step::At(b + 1));
            }
            _ => {}
        }
    }

    /// Reads a home block and sends the image if it must go home; behind the last block, sends the clean header.
    fn look(&self, s: &mut State, replay: Which, torn: bool) {
        let Some(Lost { of, job: Job { step: Step::At(b), image, .. } }) = s.job(replay) else { return };
        let (Some(image), true) = (image, b < self.blocks) else {
            return s.change_job(replay, |j| j.step = Step::Header);
        };
        let home = s.disk[usize::from(b)];
        let seen = if torn { Content::TORN } else { home };
        let skipped = match self.skip {
            Skip::NotHeld => !s.host(of).holds,
            Skip::HeldByLive => s.owner.is_some_and(|o| s.host(o).status == Status::Member),
            Skip::Nothing => false,
        };
        let older = seen.version() < image.version() || self.mutant == Mutant::NoVersionCheck;
        let writes = !skipped && if seen == Content::TORN { self.mutant != Mutant::TornIsLeft } else { older };
        s.change_job(replay, |j| {
            j.wrote |= writes;
            j.rebuilt |= writes && home == Content::TORN;
            j.left_out |= !writes && image.version() < home.version();
            j.step = if writes { Step::Writing(b) } else { Step::At(b + 1) };
        });
    }

    /// TAKEOVER: another recoverer begins anew.
    fn takeover(s: &mut State, of: u8, by: u8) {
        let Some(old) = s.host(of).job else { return };
        // only where a rule is left out has the old recoverer anything left to do
        if old.runs() && !old.is_done() {
            s.lost.push(Lost { of, job: old });
            s.lost.sort_unstable();
        }
        s.host_mut(of).job = Some(Job::ordered(by, true));
    }

    /// RECOVERED: the lock thaws.
    fn recovered(s: &mut State, of: u8) {
        if s.owner == Some(of) {
            s.owner = None;
        }
        let host = s.host_mut(of);
        (host.status, host.holds) = (Status::Recovered, false);
        // of interest is only that it brought something home
        host.job = host.job.map(|j| Job { wrote: j.wrote, step: Step::Done, ..Job::ordered(0, false) });
    }
}
