//! Mounting: from a LUN string to a usable directory, and back.
//!
//! Order: open the LUN, read the superblock, listen, join the cluster (which may mean recovering dead hosts first), open the
//! LUN again under the slot's name and find the fencing rung, open the journal, start the file system, mount. Unmounting is the reverse: the journal is closed clean before the LEAVE record.
//! Invariants: nothing of the volume but slots and records is touched before this host is a member, and nothing while a repair is under
//! way: its mark is read before, and again when this host's own beat is on the LUN. Not here: decisions.

use crate::control::Control;
use crate::error::NodeError;
use crate::fence::{self, Ladder, Rung};
use crate::host::{Host, In, Notice, now_ms};
use crate::mail::Mail;
use crate::noise::Keys;
use crate::options::{self, MountOptions};
use crate::peers::Peers;
use crate::qmp::Exports;
use crate::shell::{self, Area, Recovery};
use crossbeam_channel::{Receiver, Sender, unbounded};
use luna_cluster as cluster;
use luna_dlm::{LockCache, PosixClient};
use luna_format::superblock::Superblock;
use luna_format::{BLOCK_U64, Incarnation, Slot, VolumeId};
use luna_fs::fuse::{MountOpts, Mounted};
use luna_fs::orphan::Reaper;
use luna_fs::system::Fs;
use luna_fs::{Parts, Volume};
use luna_journal::Journal;
use luna_lun::{Disk, Lun, LunSpec, OpenOptions};
use parking_lot::Mutex;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// How often the router ticks.
const TICK: Duration = Duration::from_millis(20);
/// Beyond the takeover wait: how long joining may take.
const JOIN_SLACK: Duration = Duration::from_secs(60);
/// How often the free space of groups that others use is looked at.
const SPACE_ROUND: Duration = Duration::from_secs(20);
/// How long a target may stay away before what is under way fails. Until then a host without a lease waits.
const AWAY: Duration = Duration::from_secs(600);
/// How long leaving may take before the host just goes (its peers then recover it).
const LEAVE: Duration = Duration::from_secs(10);

/// What the file system side offers once it runs; the manager thread needs it when things happen.
struct Running {
    volume: Arc<Volume>,
    fs: Arc<Fs>,
    reaper: Arc<Reaper>,
    posix: Arc<PosixClient>,
}

/// Everything that is shared by the threads of one mount.
pub(crate) struct Site {
    pub(crate) options: MountOptions,
    pub(crate) volume_id: VolumeId,
    pub(crate) sb: Superblock,
    pub(crate) host: Arc<Host>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) place: OnceLock<(Slot, Incarnation)>,
    pub(crate) ladder: Ladder,
    area: Arc<Area>,
    /// Slots that were recovered before the file system ran.
    recovered: Mutex<Vec<Slot>>,
    named: Arc<OnceLock<Arc<dyn Disk>>>,
    running: OnceLock<Running>,
    stop: AtomicBool,
}

impl Site {
    pub(crate) fn volume(&self) -> Option<&Arc<Volume>> {
        self.running.get().map(|r| &r.volume)
    }

    pub(crate) fn fs(&self) -> Option<&Arc<Fs>> {
        self.running.get().map(|r| &r.fs)
    }
}

/// How joining ended.
enum Gate {
    In(Slot, Incarnation),
    Refused(String),
}

/// A mounted volume. Dropping it does not unmount; [`Self::wait`] returns when it is unmounted by anyone.
pub struct MountedHost {
    site: Arc<Site>,
    mounted: Mounted,
    left: Receiver<()>,
    _control: Control,
}

/// Mounts; returns when the directory is usable.
pub fn mount(options: MountOptions) -> Result<MountedHost, NodeError> {
    let nameless = open(&options, &options.lun, None, None)?;
    let (volume_id, sb) = luna_fs::mkfs::read_superblock(&*nameless.disk)?;
    not_under_repair(&options, &*nameless.disk)?;
    let disk = Arc::clone(&nameless.disk);
    let (want, have) = (sb.total_blocks * BLOCK_U64, nameless.disk.geometry().size_bytes);
    if want > have {
        return Err(NodeError::TooSmall { want, have });
    }
    let listener = TcpListener::bind(options.listen).map_err(NodeError::system("listening for peers (--listen)"))?;
    let (site, gate, left) = start_cluster(options, volume_id, sb, nameless, listener)?;
    let (slot, incarnation) = match join(&site, &gate) {
        Ok(place) => place,
        Err(e) => {
            stop_threads(&site);
            return Err(e);
        }
    };
    // again, now that this host's beat and JOIN are on the LUN: a repair sees those, or this host sees its mark
    let started = not_under_repair(&site.options, &*disk)
        .and_then(|()| named(&site, slot, incarnation))
        .and_then(|(lun, beats)| start_fs(&site, lun, &beats, slot, incarnation));
    match started {
        Ok((mounted, control)) => Ok(MountedHost { site, mounted, left, _control: control }),
        Err(e) => {
            leave(&site, &left);
            stop_threads(&site);
            site.ladder.give_up_name(slot, incarnation);
            Err(e)
        }
    }
}

/// Nobody mounts a volume that is being repaired.
fn not_under_repair(o: &MountOptions, disk: &dyn Disk) -> Result<(), NodeError> {
    if luna_fs::repair::exclusive::is_marked(disk)? {
        return Err(NodeError::UnderRepair { lun: o.lun.to_string() });
    }
    Ok(())
}

/// Opens the LUN: under a name or without, behind the gate or not.
fn open(o: &MountOptions, spec: &LunSpec, name: Option<String>, gate: Option<Arc<luna_lun::Gate>>) -> Result<Lun, NodeError> {
    let connections = if gate.is_some() { o.connections } else { 1 };
    // the cluster's own writes are never sent again: a beat is written anew, and a register that lands late breaks agreement
    let resend_ok: Option<luna_lun::ResendHook> = if gate.is_some() { None } else { Some(Arc::new(|| false)) };
    let options = OpenOptions {
        client_name: name,
        need_multi_conn: true,
        connections,
        direct: true,
        reconnect: AWAY,
        resend_ok,
        gate,
        ..OpenOptions::default()
    };
    Ok(luna_lun::open(spec, &options)?)
}

/// This host is a member: from here on everything it sends goes under its slot and incarnation, so that the target can refuse it.
/// Data and journal behind the gate; the cluster's blocks beside it.
fn named(site: &Site, slot: Slot, incarnation: Incarnation) -> Result<(Lun, Lun), NodeError> {
    let (spec, name) = site.ladder.own_name(slot, incarnation).map_err(NodeError::Fence)?;
    let lun = open(&site.options, &spec, name.clone(), Some(Arc::clone(site.host.gate())))?;
    let beats = open(&site.options, &spec, name, None)?;
    // nothing nameless is under way any more when this returns
    site.area.change(Arc::clone(&beats.disk));
    let _ = site.named.set(Arc::clone(&lun.disk));
    // a replay that began before goes on over the nameless connection, where nobody could fence it
    site.area.drain();
    if site.ladder.self_test(slot, incarnation) == Rung::Target {
        site.host.post(In::Cluster(cluster::Input::NamedAtTarget));
    }
    Ok((lun, beats))
}

type Started = (Arc<Site>, Receiver<Gate>, Receiver<()>);

/// The cores and their threads.
fn start_cluster(
    options: MountOptions,
    volume_id: VolumeId,
    sb: Superblock,
    nameless: Lun,
    listener: TcpListener,
) -> Result<Started, NodeError> {
    let addresses = options::announced(&listener).map_err(NodeError::system("finding this host's addresses"))?;
    let keys = Keys::new(volume_id, &sb.link_secret).map_err(NodeError::system("making keys for the links"))?;
    let config = cluster::Config {
        area: cluster::Area::of(volume_id, &sb),
        timing: options.timing,
        name: options.name.clone(),
        host_id: options::host_id(&options.name),
        nonce: fastrand::u64(1..),
        addresses,
        link_key: *keys.public(),
    };
    let (disk_tx, disk_rx) = unbounded();
    let (notice_tx, notice_rx) = unbounded();
    let host = Host::new(cluster::Core::new(config, fastrand::u64(..)), disk_tx, notice_tx);
    let peers = Peers::new(keys, Arc::clone(&host) as _);
    host.set_peers(Arc::clone(&peers));
    peers.listen(listener).map_err(NodeError::system("listening for peers"))?;
    let (area, named) = (Area::new(nameless.disk, &sb), Arc::<OnceLock<Arc<dyn Disk>>>::default());
    let ladder = Ladder {
        host: Arc::clone(&host),
        spec: options.lun.clone(),
        volume: volume_id,
        timing: options.timing,
        exports: options.fence_qmp.clone().map(|socket| Exports::new(socket, fence::volume_name(&volume_id))),
        program: options.fence_cmd.clone(),
        rung: Arc::default(),
    };
    let site = Arc::new(Site {
        volume_id,
        sb,
        host: Arc::clone(&host),
        peers,
        place: OnceLock::new(),
        ladder,
        area: Arc::clone(&area),
        recovered: Mutex::default(),
        named: Arc::clone(&named),
        running: OnceLock::new(),
        stop: AtomicBool::new(false),
        options,
    });
    let (gate_tx, gate_rx) = unbounded();
    let (left_tx, left_rx) = unbounded();
    let recovery = Recovery { host: Arc::clone(&host), area: Arc::clone(&area), named, sb, volume: volume_id, timing: site.options.timing };
    let h = Arc::clone(&host);
    spawn("luna-beats", move || shell::serve_disk(&h, &area, &disk_rx))?;
    let s = Arc::clone(&site);
    spawn("luna-manager", move || manage(&s, &recovery, &notice_rx, &gate_tx, &left_tx))?;
    let h = Arc::clone(&host);
    spawn("luna-router", move || h.run(TICK))?;
    host.post(In::Cluster(cluster::Input::Start));
    Ok((site, gate_rx, left_rx))
}

fn spawn(name: &str, f: impl FnOnce() + Send + 'static) -> Result<(), NodeError> {
    std::thread::Builder::new().name(name.into()).spawn(f).map_err(NodeError::system("starting a thread"))?;
    Ok(())
}

fn join(site: &Site, gate: &Receiver<Gate>) -> Result<(Slot, Incarnation), NodeError> {
    let patience = Duration::from_millis(site.options.timing.wait_ms() * 2) + JOIN_SLACK;
    match gate.recv_timeout(patience) {
        Ok(Gate::In(slot, incarnation)) => {
            let _ = site.place.set((slot, incarnation));
            Ok((slot, incarnation))
        }
        Ok(Gate::Refused(reason)) => Err(NodeError::Refused(reason)),
        Err(_) => Err(NodeError::JoinTimeout(patience.as_secs())),
    }
}

/// Does what the cores ask for outside of the router.
fn manage(site: &Arc<Site>, recovery: &Recovery, notices: &Receiver<Notice>, gate: &Sender<Gate>, left: &Sender<()>) {
    for n in notices {
        match n {
            Notice::Joined(slot, incarnation) => drop(gate.send(Gate::In(slot, incarnation))),
            Notice::Refused(reason) => drop(gate.send(Gate::Refused(reason))),
            Notice::Left => drop(left.send(())),
            Notice::Fence(slot, incarnation, at_target) => site.ladder.fence(slot, incarnation, at_target),
            Notice::Replay(slot, incarnation, epoch) => recovery.replay(slot, incarnation, epoch),
            Notice::Recovered(slot, incarnation) => {
                tracing::info!(slot, incarnation, "a dead host is recovered");
                let mut early = site.recovered.lock();
                match site.running.get() {
                    Some(r) => r.reaper.sweep(slot),
                    None => early.push(slot),
                }
            }
            Notice::Epoch(epoch) => {
                if let Some(v) = site.volume() {
                    v.epoch.store(epoch, Ordering::Relaxed);
                }
            }
            Notice::Evicted(reason) => {
                tracing::error!(reason, "this host was shut out of the volume");
                site.peers.stop();
                if let Some(r) = site.running.get() {
                    r.volume.withdraw(&reason);
                    r.posix.withdraw();
                    let fs = Arc::clone(&r.fs);
                    let _ = spawn("luna-drop-pages", move || fs.drop_pages());
                }
                say_when_drained(site);
                let _ = gate.send(Gate::Refused(reason));
                let _ = left.send(());
            }
        }
    }
}

/// An evicted host tells the others when none of its writes can land any more (rung 0): where there is only the lease they then need
/// not wait it out. The gate is shut, so nothing new is sent; if it is not certain that nothing is under way, nothing is said.
fn say_when_drained(site: &Arc<Site>) {
    let s = Arc::clone(site);
    let _ = spawn("luna-drain", move || {
        // soon, or not at all: later the slot may be another's, and with it the beat
        let until = now_ms() + s.options.timing.pause_ms;
        while let Some(r) = s.running.get().filter(|_| now_ms() < until && !s.stop.load(Ordering::Acquire)) {
            // the cluster's own requests first: after its end the core makes no more, so none can break after the look at the connections
            let quiet = s.host.look(|c, _, _| c.is_quiet());
            if quiet && s.area.is_drained() && r.volume.disk.is_drained() && r.volume.queue.is_drained() {
                tracing::info!("nothing of this host is under way at the LUN any more; the others are told");
                return s.host.post(In::Cluster(cluster::Input::Drained));
            }
            std::thread::sleep(TICK);
        }
    });
}

/// The file system over the LUN, now that this host is a member.
fn start_fs(site: &Arc<Site>, lun: Lun, beats: &Lun, slot: Slot, incarnation: Incarnation) -> Result<(Mounted, Control), NodeError> {
    let locks = LockCache::new(Arc::clone(&site.host) as _);
    let posix = PosixClient::new(slot, Arc::clone(&site.host) as _);
    site.host.set_locks(Arc::clone(&locks), Arc::clone(&posix));
    let (sb, id) = (site.sb, site.volume_id);
    let journal = Journal::open(Arc::clone(&lun.disk), id, sb.journal_region(slot), slot, incarnation)?;
    let epoch = site.host.look(|c, _, _| c.epoch());
    let discard = site.options.discard;
    let volume = Volume::new(Parts { sb, id, slot, epoch, disk: lun.disk, queue: lun.queue, journal, locks: Arc::clone(&locks), discard });
    let reaper = Reaper::start(Arc::clone(&volume)).map_err(NodeError::system("starting a thread"))?;
    let wake = Arc::clone(&reaper);
    let fs = Fs::new(Arc::clone(&volume), Arc::clone(&posix), Arc::new(move |ino| wake.wake(ino)));
    locks.set_hooks(fs.hooks());
    let host = Arc::clone(&site.host);
    volume.on_withdraw(Box::new(move |reason| {
        host.queue(In::Cluster(cluster::Input::ShutOut { reason: reason.to_owned() }));
        host.ring();
    }));
    let running = Running { volume: Arc::clone(&volume), fs: Arc::clone(&fs), reaper: Arc::clone(&reaper), posix };
    let _ = site.running.set(running);
    // those who were recovered before there was a file system
    for slot in std::mem::take(&mut *site.recovered.lock()) {
        reaper.sweep(slot);
    }
    let mail = Mail::new(Arc::clone(&beats.disk), sb, id, (slot, incarnation), Arc::clone(&site.peers), Arc::clone(&site.host));
    let s = Arc::clone(site);
    spawn("luna-mail", move || mail.run(&s.stop))?;
    let s = Arc::clone(site);
    spawn("luna-space", move || watch_space(&s))?;
    let o = &site.options;
    let opts = MountOpts { suid: !o.nosuid, dev: !o.nodev, read_only: o.read_only, source: o.lun.to_string(), ..MountOpts::default() };
    let mounted = luna_fs::fuse::mount(&fs, &o.dir, &opts).map_err(NodeError::system("mounting through FUSE"))?;
    let s = Arc::clone(site);
    let control = Control::start(&o.dir, Arc::new(move |line: &str, asker: &UnixStream| crate::status::answer(&s, line, asker)));
    let control = control.map_err(NodeError::system("opening the control socket in /run/luna"))?;
    Ok((mounted, control))
}

/// Looks at the free space of all groups at mount and then now and then: what the other hosts use shows in statfs.
fn watch_space(site: &Site) {
    while !site.stop.load(Ordering::Acquire) {
        if let Some(v) = site.volume() {
            luna_fs::alloc::refresh_hints(v);
        }
        for _ in 0..100 {
            if site.stop.load(Ordering::Acquire) {
                return;
            }
            std::thread::sleep(SPACE_ROUND / 100);
        }
    }
}

/// Leaves the cluster in order, as far as that is still possible.
fn leave(site: &Site, left: &Receiver<()>) {
    site.host.post(In::Cluster(cluster::Input::LeaveRequested));
    let clean = match site.running.get() {
        None => true,
        Some(r) => {
            r.reaper.stop();
            r.volume.check_active().is_ok() && r.volume.checkpoint().is_ok() && r.volume.journal.close().is_ok()
        }
    };
    if clean {
        site.host.post(In::Cluster(cluster::Input::JournalClean));
        if left.recv_timeout(LEAVE).is_err() {
            tracing::warn!("could not write the LEAVE record in time; the other hosts will recover this slot");
        }
    } else {
        tracing::warn!("the journal is not clean; the other hosts will recover this slot");
    }
}

/// An unmount does not wait for ever for a lease that does not come back.
fn bound_leaving(site: &Site, over: &AtomicBool) {
    let mut closed_since = None;
    while !over.load(Ordering::Acquire) {
        if site.host.gate().is_open() {
            closed_since = None;
        } else if now_ms() >= *closed_since.get_or_insert_with(now_ms) + LEAVE.as_millis() as u64 {
            return site.host.gate().shut("unmounted without a lease; the other hosts, or the next mount, recover this slot");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn stop_threads(site: &Site) {
    site.stop.store(true, Ordering::Release);
    site.peers.stop();
    site.host.stop();
}

impl MountedHost {
    /// Waits until the directory is unmounted, then leaves the cluster.
    pub fn wait(self) -> Result<(), NodeError> {
        let Self { site, mounted, left, _control } = self;
        mounted.join().map_err(NodeError::system("serving FUSE"))?;
        let started = now_ms();
        let done = Arc::new(AtomicBool::new(false));
        let (s, over) = (Arc::clone(&site), Arc::clone(&done));
        spawn("luna-patience", move || bound_leaving(&s, &over))?;
        if let Some(r) = site.running.get()
            && let Err(e) = r.fs.shutdown()
        {
            tracing::error!(error = %e, "could not bring everything home");
        }
        leave(&site, &left);
        done.store(true, Ordering::Release);
        stop_threads(&site);
        if let Some((slot, incarnation)) = site.place.get() {
            site.ladder.give_up_name(*slot, *incarnation);
        }
        tracing::info!(ms = now_ms() - started, "left the volume");
        Ok(())
    }

    /// This host's slot and incarnation.
    pub fn place(&self) -> Option<(Slot, Incarnation)> {
        self.site.place.get().copied()
    }
}
