//! One run: starts the subjects, measures them in interleaved rounds, prints the table.
//!
//! The bare LUN and the bare door share one file; our mount has a second one of the same size on the same medium behind a
//! server of the same kind, because the door overwrites its LUN. Both exist during all rounds. Invariant: a subject that
//! fails is reported as missing and the others go on; only a failing bare LUN or door ends the run.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;

use crate::fio::{self, JOBS, SPAN_BYTES};
use crate::report::{Report, Samples, Subject};
use crate::world::{self, World};
use crate::{door, meta, product};

/// The size of a LUN file; sparse, only what is written takes space.
const LUN_BYTES: u64 = 256 << 30;
/// The size of ext4's file: large enough for its default journal, small enough to be made at once.
const EXT4_BYTES: u64 = 8 << 30;

/// Which server stands before the LUN's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ServerKind {
    /// Our own, as `luna serve`.
    Luna,
    /// `nbdkit file`.
    Nbdkit,
}

/// What to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Reads and writes.
    Data,
    /// Metadata and the other figures of our mount.
    Meta,
    /// Everything.
    All,
}

/// What was asked for.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Rounds.
    pub rounds: usize,
    /// Seconds per data figure and round.
    pub seconds: u32,
    /// Files per metadata round.
    pub files: usize,
    /// Where files go.
    pub medium: PathBuf,
    /// TCP instead of a Unix socket.
    pub tcp: bool,
    /// The server.
    pub server: ServerKind,
    /// The binary to measure.
    pub luna: Option<PathBuf>,
    /// A mount to measure instead.
    pub mount: Option<PathBuf>,
    /// Where the JSON goes.
    pub json: Option<PathBuf>,
    /// FUSE threads of the bare door.
    pub door_threads: usize,
    /// What to measure.
    pub part: Part,
}

/// Measures and prints.
pub fn run(plan: &Plan) -> anyhow::Result<()> {
    let mut world = World::new(&plan.medium)?;
    let mut report = Report {
        date: world::run(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]))?.trim().to_string(),
        kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_string(),
        cores: world::cores(),
        load: std::fs::read_to_string("/proc/loadavg")?.split(' ').next().unwrap_or("?").to_string(),
        lun: format!("{:?} over {}, file on {}", plan.server, if plan.tcp { "TCP" } else { "a Unix socket" }, plan.medium.display()),
        effort: format!("{} rounds of {} s, {} files; {}", plan.rounds, plan.seconds, plan.files, world.awake()),
        data: Samples::default(),
        meta: Samples::default(),
        extra: product::Extra::default(),
        missing: Vec::new(),
    };
    let mount = match our_mount(&mut world, plan, &mut report) {
        Ok(mount) => mount,
        Err(error) => {
            report.missing.push(format!("our mount: {error:#}"));
            None
        }
    };
    if plan.part != Part::Meta {
        data(&mut world, plan, mount.as_ref(), &mut report)?;
    }
    if plan.part != Part::Data {
        metadata(&mut world, plan, mount.as_ref(), &mut report);
    }
    if let Some(Err(error)) = mount.as_ref().map(|mount| mount.unmount(&mut world, &mut report.extra)) {
        report.missing.push(format!("umount: {error:#}"));
    }
    drop(world);
    print!("{}", report.markdown());
    if let Some(path) = &plan.json {
        let text = serde_json::to_string_pretty(&report.json())?;
        std::fs::write(path, text + "\n").with_context(|| format!("{} can not be written", path.display()))?;
    }
    Ok(())
}

fn our_mount(world: &mut World, plan: &Plan, report: &mut Report) -> anyhow::Result<Option<product::Mount>> {
    if let Some(dir) = &plan.mount {
        return Ok(Some(product::given(dir)));
    }
    let Some(binary) = plan.luna.clone().or_else(product::beside) else {
        report.missing.push("our mount: no `luna` binary beside this program; give --luna FILE or --mount DIR".into());
        return Ok(None);
    };
    let lun = serve(world, plan, "volume")?;
    product::mount(world, &binary, &lun, &mut report.extra).map(Some)
}

/// Starts a server over a new sparse file; gives the LUN string.
fn serve(world: &mut World, plan: &Plan, name: &str) -> anyhow::Result<String> {
    let image = world.dir.join(format!("{name}.img"));
    let socket = world.dir.join(format!("{name}.sock"));
    File::create(&image)?.set_len(LUN_BYTES)?;
    let port = if plan.tcp { Some(free_port()?) } else { None };
    let mut command = match plan.server {
        ServerKind::Luna => {
            let mut command = Command::new(std::env::current_exe()?);
            command.arg("serve").arg(&image);
            match port {
                Some(port) => command.arg("--listen").arg(format!("127.0.0.1:{port}")),
                None => command.arg("--socket").arg(&socket),
            };
            command
        }
        ServerKind::Nbdkit => {
            let mut command = Command::new("nbdkit");
            command.arg("-f");
            match port {
                Some(port) => command.args(["-i", "127.0.0.1", "-p", &port.to_string()]),
                None => command.arg("-U").arg(&socket),
            };
            command.arg("file").arg(&image);
            command
        }
    };
    let id = world.start(command.stdout(Stdio::null()))?;
    let up = || match port {
        Some(port) => std::net::TcpStream::connect(("127.0.0.1", port)).is_ok(),
        None => std::os::unix::net::UnixStream::connect(&socket).is_ok(),
    };
    world.wait(id, "the NBD server", up)?;
    Ok(match port {
        Some(port) => format!("nbd://127.0.0.1:{port}/"),
        None => format!("nbd+unix:///?socket={}", socket.display()),
    })
}

/// A port that is free now.
fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn start_door(world: &mut World, plan: &Plan, lun: Option<&str>) -> anyhow::Result<PathBuf> {
    let dir = world.folder(if lun.is_some() { "door" } else { "memory-door" })?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("door").arg(&dir);
    if let Some(lun) = lun {
        command.args(["--lun", lun, "--threads", &plan.door_threads.to_string()]);
    }
    let id = world.start(&mut command)?;
    world.mounted(&dir);
    let file = dir.join(door::FILE);
    world.wait(id, "the bare door", || world::is_fuse(&dir) && file.exists())?;
    Ok(file)
}

fn data(world: &mut World, plan: &Plan, mount: Option<&product::Mount>, report: &mut Report) -> anyhow::Result<()> {
    let lun = serve(world, plan, "bare")?;
    fill(&world.dir.join("bare.img"))?;
    let memory = start_door(world, plan, None)?;
    let door = start_door(world, plan, Some(&lun))?;
    let mut files = vec![(Subject::MemoryDoor, memory), (Subject::Door, door)];
    match mount.map(product::Mount::disk) {
        Some(Ok(path)) => files.push((Subject::Mount, path)),
        Some(Err(error)) => report.missing.push(format!("data of our mount: {error:#}")),
        None => {}
    }
    for round in 1..=plan.rounds {
        for job in JOBS {
            eprintln!("round {round}/{}: {}", plan.rounds, job.title);
            let millis = (u64::from(plan.seconds) * 1000).to_string();
            let rate = world::run(Command::new(std::env::current_exe()?).args(["raw", &lun, job.name, "--millis", &millis]))?;
            report.data.add(Subject::Lun, job.name, rate.trim().parse().context("the load on the bare LUN said no number")?);
            let mut broken = None;
            for (subject, path) in &files {
                match fio::on_file(path, job, plan.seconds) {
                    Ok(rate) => report.data.add(*subject, job.name, rate),
                    Err(error) if *subject == Subject::Mount => broken = Some(error),
                    Err(error) => return Err(error),
                }
            }
            if let Some(error) = broken {
                report.missing.push(format!("data of our mount from round {round} on: {error:#}"));
                files.retain(|(subject, _)| *subject != Subject::Mount);
            }
        }
    }
    Ok(())
}

/// Writes the span once, so that no figure is about pages that do not exist yet.
fn fill(image: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::FileExt;
    let file = File::options().write(true).open(image)?;
    let chunk = vec![0x3c; 1 << 20];
    for index in 0..SPAN_BYTES >> 20 {
        file.write_all_at(&chunk, index << 20).with_context(|| format!("{} can not be filled", image.display()))?;
    }
    Ok(())
}

fn metadata(world: &mut World, plan: &Plan, mount: Option<&product::Mount>, report: &mut Report) {
    let mut dirs = Vec::new();
    match meta::ext4(world, EXT4_BYTES) {
        Ok(dir) => dirs.push((Subject::Ext4, dir)),
        Err(error) => report.missing.push(format!("ext4: {error:#}")),
    }
    if let Some(mount) = mount {
        dirs.push((Subject::Mount, mount.dir.clone()));
    }
    for round in 1..=plan.rounds {
        for threads in [1, 4] {
            eprintln!("round {round}/{}: metadata, {threads} threads", plan.rounds);
            let mut broken = Vec::new();
            for (subject, dir) in &dirs {
                match meta::round(dir, threads, plan.files) {
                    Ok(figures) => figures.into_iter().for_each(|(key, rate)| report.meta.add(*subject, key, rate)),
                    Err(error) => {
                        report.missing.push(format!("metadata in {}: {error:#}", dir.display()));
                        broken.push(*subject);
                    }
                }
            }
            dirs.retain(|(subject, _)| !broken.contains(subject));
        }
    }
    if let Some(Err(error)) = mount.map(|mount| mount.extra(&mut report.extra)) {
        report.missing.push(format!("large files and memory: {error:#}"));
    }
}
