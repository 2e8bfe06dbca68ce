//! The story, step by step, as a table. Each step proves its title and tells what it saw.
//!
//! Invariant: a step that finds something else than its title says is an error, never a remark.

use super::{
    bar, counter,
    machine::{Kind, Machine},
    spin,
    traffic::{self, Aligned, Traffic},
    world::World,
};
use crate::{cli::DemoArgs, size::human};
use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Size of the demo's LUN; sparse, so that it costs what is written.
const LUN_BYTES: u64 = 64 << 30;
/// Size of a thin disk: more than the whole LUN.
const THIN_BYTES: u64 = 1 << 40;
/// Size of a preallocated disk.
const THICK_BYTES: u64 = 2 << 30;

/// One step: what it claims, and the proof.
pub struct Step {
    /// The claim.
    pub title: &'static str,
    /// The proof; what to print below the title.
    pub run: fn(&mut Story) -> Result<String>,
}

/// The demo.
pub const STEPS: &[Step] = &[
    Step { title: "make a sparse file and serve it as a LUN", run: serve },
    Step { title: "make a file system on the LUN", run: mkfs },
    Step { title: "mount the LUN on every host", run: mount },
    Step { title: "create a dozen VM disks from all hosts", run: create_disks },
    Step { title: "every host sees the same disks and the same space", run: same_everywhere },
    Step { title: "write on one host, read on another", run: write_and_read },
    Step { title: "keep the other disks in use from every host", run: start_traffic },
    Step { title: "boot a machine on the first host", run: boot },
    Step { title: "quick-migrate: save it there, resume it on the second", run: quick_migrate },
    Step { title: "migrate it live to the third", run: live_migrate },
    Step { title: "its disk holds every record it promised, without a gap", run: prove },
    Step { title: "the other disks were never interrupted", run: stop_traffic },
    Step { title: "status", run: status },
    Step { title: "unmount everywhere and check the file system", run: check },
];

/// What the steps share.
#[derive(Debug)]
pub struct Story {
    /// The machine that moves; declared before the world so that it ends before the mounts do.
    machine: Option<Machine>,
    traffic: Option<Traffic>,
    /// Guest or process.
    pub kind: Kind,
    /// Disks other than the machine's, by (host number, path below a mount).
    disks: Vec<(usize, String)>,
    announced: u64,
    /// Processes and mounts.
    pub world: World,
}

impl Story {
    /// Everything that is needed before the first step.
    pub fn new(args: &DemoArgs) -> Result<Self> {
        let mut world = World::new(args.dir.as_deref(), args.hosts, args.plain)?;
        world.keep = args.keep;
        let kind = Kind::find(&world.local(), args.no_vm);
        Ok(Self { machine: None, traffic: None, kind, disks: Vec::new(), announced: 0, world })
    }

    fn path(&self, host: usize, below: &str) -> PathBuf {
        self.world.hosts[host].dir.join(below)
    }

    fn machine(&mut self) -> Result<&mut Machine> {
        self.machine.as_mut().context("no machine runs")
    }
}

/// The machine's disk, below a mount.
const VM_DISK: &str = "vm-moving/disk.raw";
/// Its saved state.
const VM_STATE: &str = "vm-moving/state";

fn serve(s: &mut Story) -> Result<String> {
    if s.world.plain {
        return Ok("skipped: plain directories".into());
    }
    s.world.serve(LUN_BYTES)?;
    Ok(format!("{}, {}", s.world.lun, human(LUN_BYTES)))
}

fn mkfs(s: &mut Story) -> Result<String> {
    if s.world.plain {
        return Ok("skipped: plain directories".into());
    }
    s.world.luna(&["mkfs", &s.world.lun, "--label", "demo", "--yes"])
}

fn mount(s: &mut Story) -> Result<String> {
    let mut told = String::new();
    for n in 0..s.world.hosts.len() {
        let begin = std::time::Instant::now();
        if !s.world.plain {
            s.world.mount(n)?;
        }
        told += &format!("{} on {} ({:.2} s)\n", s.world.hosts[n].name, s.world.hosts[n].dir.display(), begin.elapsed().as_secs_f64());
    }
    Ok(told)
}

fn create_disks(s: &mut Story) -> Result<String> {
    let hosts = s.world.hosts.len();
    let qcow2 = Command::new("qemu-img").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|c| c.success());
    let progress = bar("disks", 12);
    let (mut thin, mut thick, mut cow) = (0, 0, 0);
    for n in 0..12 {
        let host = n % hosts;
        let dir = format!("vm-{n:02}");
        fs::create_dir(s.path(host, &dir))?;
        let below = match n / 3 % 3 {
            1 => {
                let below = format!("{dir}/thick.raw");
                let file = new_file(&s.path(host, &below))?;
                fallocate(&file, FallocateFlags::empty(), 0, THICK_BYTES).with_context(|| format!("cannot preallocate {below}"))?;
                thick += 1;
                below
            }
            2 if qcow2 => {
                let below = format!("{dir}/disk.qcow2");
                qemu_img(&["create", "-q", "-f", "qcow2", &s.path(host, &below).display().to_string(), "40G"])?;
                cow += 1;
                below
            }
            _ => {
                let below = format!("{dir}/thin.raw");
                new_file(&s.path(host, &below))?.set_len(THIN_BYTES)?;
                thin += 1;
                below
            }
        };
        s.disks.push((host, below));
        progress.inc(1);
    }
    progress.finish_and_clear();
    let (thin_size, thick_size) = (human(THIN_BYTES), human(THICK_BYTES));
    let note = if qcow2 { "" } else { " (no qemu-img here: no qcow2 disks)" };
    Ok(format!("{thin} thin raw of {thin_size}, {thick} preallocated raw of {thick_size}, {cow} qcow2 of 40.0 GiB{note}"))
}

/// Creates a file that must not exist.
fn new_file(path: &Path) -> Result<File> {
    OpenOptions::new().write(true).create_new(true).open(path).with_context(|| format!("cannot create {}", path.display()))
}

fn qemu_img(args: &[&str]) -> Result<()> {
    let out = Command::new("qemu-img").args(args).output().context("cannot run qemu-img")?;
    ensure!(out.status.success(), "qemu-img {}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr).trim());
    Ok(())
}

/// Every path below `dir` with size and allocated bytes.
fn listing(dir: &Path) -> Result<Vec<(String, u64, u64)>> {
    let mut found = Vec::new();
    let mut todo = vec![dir.to_path_buf()];
    while let Some(d) = todo.pop() {
        for entry in fs::read_dir(&d).with_context(|| format!("cannot list {}", d.display()))? {
            let path = entry?.path();
            let meta = fs::symlink_metadata(&path)?;
            let below = path.strip_prefix(dir).unwrap_or(&path).display().to_string();
            if meta.is_dir() {
                todo.push(path);
            } else {
                found.push((below, meta.size(), meta.blocks() * 512));
            }
        }
    }
    found.sort();
    Ok(found)
}

fn same_everywhere(s: &mut Story) -> Result<String> {
    let first = listing(&s.world.hosts[0].dir)?;
    let space = |dir: &Path| statvfs(dir).map(|v| v.f_blocks * v.f_frsize);
    let total = space(&s.world.hosts[0].dir)?;
    for host in &s.world.hosts[1..] {
        let theirs = listing(&host.dir)?;
        if let Some((mine, other)) = first.iter().zip(&theirs).find(|(a, b)| a != b) {
            bail!("{} shows {other:?} where {} shows {mine:?}", host.name, s.world.hosts[0].name);
        }
        ensure!(first.len() == theirs.len(), "{} shows {} files, {} shows {}", host.name, theirs.len(), s.world.hosts[0].name, first.len());
        ensure!(s.world.plain || space(&host.dir)? == total, "{} sees another size of the volume", host.name);
    }
    ensure!(first.len() >= 12, "only {} of 12 disks are there", first.len());
    let size: u64 = first.iter().map(|f| f.1).sum();
    let taken: u64 = first.iter().map(|f| f.2).sum();
    Ok(format!("{} disks of {} together on a volume of {}, taking {}", first.len(), human(size), human(total), human(taken)))
}

fn write_and_read(s: &mut Story) -> Result<String> {
    const PIECE: usize = 1 << 20;
    const PIECES: u64 = 16;
    let disk = &s.disks[0].1;
    let hosts = s.world.hosts.len();
    let progress = bar("MiB", PIECES * hosts as u64);
    let (mut wrote, mut read) = (Aligned::new(PIECE), Aligned::new(PIECE));
    for writer in 0..hosts {
        let reader = (writer + 1) % hosts;
        // O_DIRECT as QEMU does it on the writer; both kinds of reading on the other host
        let out = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(s.path(writer, disk))?;
        let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(s.path(reader, disk))?;
        let buffered = File::open(s.path(reader, disk))?;
        for piece in 0..PIECES {
            let offset = (piece << 30) + ((writer as u64) << 20);
            traffic::pattern(wrote.bytes_mut(), 99, piece, writer as u64);
            out.write_all_at(wrote.bytes(), offset)?;
            let from = if piece % 2 == 0 { &direct } else { &buffered };
            from.read_exact_at(read.bytes_mut(), offset)?;
            let (w, r) = (&s.world.hosts[writer].name, &s.world.hosts[reader].name);
            ensure!(wrote.bytes() == read.bytes(), "{r} reads other bytes at {offset} of {disk} than {w} wrote");
            progress.inc(1);
        }
    }
    progress.finish_and_clear();
    Ok(format!("{PIECES} MiB from each host, read by the next one right after each write"))
}

fn start_traffic(s: &mut Story) -> Result<String> {
    let hosts = &s.world.hosts;
    let raw = |host: usize| s.disks.iter().find(|(h, d)| *h == host && d.ends_with(".raw") && *d != s.disks[0].1);
    let disks = (0..hosts.len()).filter_map(|h| raw(h).map(|(_, d)| (hosts[h].name.clone(), hosts[h].dir.join(d)))).collect::<Vec<_>>();
    let n = disks.len();
    s.traffic = Some(Traffic::start(disks));
    Ok(format!("{n} writers that verify what they wrote, {} at a time", human(traffic::UNIT as u64)))
}

fn boot(s: &mut Story) -> Result<String> {
    let disk = s.path(0, VM_DISK);
    fs::create_dir(s.path(0, "vm-moving"))?;
    new_file(&disk)?.set_len((counter::MAX + 1) * counter::BLOCK as u64)?;
    let mut machine = s.kind.boot(&s.world.hosts[0].name, &disk)?;
    s.announced = spin("booting", || machine.wait_for(100))?;
    s.machine = Some(machine);
    Ok(format!("on {}, its disk is {VM_DISK} there; its counter stands at {}", s.world.hosts[0].name, s.announced))
}

fn quick_migrate(s: &mut Story) -> Result<String> {
    let machine = s.machine.take().context("no machine runs")?;
    let (state, resumed_state) = (s.path(0, VM_STATE), s.path(1, VM_STATE));
    let last = spin("saving", || machine.save(&state))?;
    let size = fs::metadata(&resumed_state).context("the saved state is not there on the second host")?.len();
    let mut machine = spin("resuming", || s.kind.resume(&s.world.hosts[1].name, &s.path(1, VM_DISK), &resumed_state))?;
    let now = spin("counting on", || machine.wait_for(last + 100))?;
    fs::remove_file(&resumed_state)?;
    s.machine = Some(machine);
    s.announced = now;
    let (a, b) = (&s.world.hosts[0].name, &s.world.hosts[1].name);
    Ok(format!("saved on {a} at {last} ({} on the LUN), resumed on {b}, counting on to {now}", human(size)))
}

fn live_migrate(s: &mut Story) -> Result<String> {
    let before = s.machine()?.announced()?;
    let machine = s.machine.take().context("no machine runs")?;
    let (mut machine, last) = spin("moving", || s.kind.migrate(machine, &s.world.hosts[2].name, &s.path(2, VM_DISK)))?;
    let now = spin("counting on", || machine.wait_for(last.max(before) + 100))?;
    s.machine = Some(machine);
    s.announced = now;
    let (b, c) = (&s.world.hosts[1].name, &s.world.hosts[2].name);
    Ok(format!("left {b} at {last} while it ran, counting on to {now} on {c}"))
}

fn prove(s: &mut Story) -> Result<String> {
    let machine = s.machine.take().context("no machine runs")?;
    let last = spin("shutting down", || machine.quit())?.max(s.announced);
    let mut found = 0;
    for host in &s.world.hosts {
        let records = counter::check(&host.dir.join(VM_DISK), last).with_context(|| format!("as seen from {}", host.name))?;
        ensure!(records >= last, "{} sees {records} records of {last}", host.name);
        found = records;
    }
    Ok(format!("promised 1 to {last}, found 1 to {found}, the same from every host"))
}

fn stop_traffic(s: &mut Story) -> Result<String> {
    let traffic = s.traffic.take().context("nothing was in use")?;
    let summary = traffic.stop()?;
    ensure!(summary.blocks > 0, "not a single block was written");
    let bytes = human(summary.blocks * traffic::UNIT as u64);
    Ok(format!("{bytes} written and verified meanwhile; the longest write and read took {} ms", summary.longest.as_millis()))
}

fn status(s: &mut Story) -> Result<String> {
    if s.world.plain {
        return Ok("skipped: plain directories".into());
    }
    s.world.luna(&["status", &s.world.hosts[0].dir.display().to_string()])
}

fn check(s: &mut Story) -> Result<String> {
    if s.world.plain {
        return Ok("skipped: plain directories".into());
    }
    for n in 0..s.world.hosts.len() {
        s.world.umount(n)?;
    }
    let (code, out, err) = s.world.luna_code(&["fsck", "-n", &s.world.lun])?;
    ensure!(code == 0, "fsck -n ends with {code}: {}", err.lines().chain(out.lines()).next().unwrap_or("it said nothing"));
    if s.world.keep {
        mount(s)?;
    }
    Ok(out)
}
