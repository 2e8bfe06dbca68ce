//! The command line, declared once: parsing, `--help` and the man pages come from these definitions.
//!
//! Invariant: the forms here are the contract that scripts and tests rely on; a flag is added, never changed.
//! Not here: what a command does (see [`crate::cmd`]), and the calling conventions of mount(8) and fsck(8)
//! (see [`crate::helper`]), which are translated into these same structs.

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

const LUN_HELP: &str = "The LUN: a path to a file or block device, nbd://HOST[:PORT]/EXPORT, \
nbd+unix:///EXPORT?socket=PATH, or iscsi://[USER%PASS@]HOST[:PORT]/IQN/LUN";

/// One LUN, all hosts: a clustered shared-disk file system for virtual-machine disk files.
///
/// Make the file system once with `luna mkfs`, then `luna mount` it on every host. There is no other set-up: a mounting
/// host finds its peers through the LUN.
#[derive(Debug, Parser)]
#[command(name = "luna", version, max_term_width = 100, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a file system on a LUN
    Mkfs(MkfsArgs),
    /// Mount the file system of a LUN on this host
    Mount(MountArgs),
    /// Unmount, and wait until this host has left the cluster
    Umount(UmountArgs),
    /// Check, and repair, a file system that no host has mounted
    Fsck(FsckArgs),
    /// Show members, epoch, lease margin, space, journal and locks
    Status(StatusArgs),
    /// Say that an evicted host is switched off, when nothing else could fence it
    ConfirmDead(ConfirmDeadArgs),
    /// Print on-disk structures
    Dump(DumpArgs),
    /// Serve a file as a shared LUN over NBD
    Serve(ServeArgs),
    /// Show the whole story on this machine: one LUN, several hosts, a virtual machine that moves
    Demo(DemoArgs),
    /// Write the man pages into a directory
    #[command(hide = true)]
    Man {
        /// Where to write them
        dir: PathBuf,
    },
    /// Break one thing on a volume, to see fsck find and repair it
    #[command(hide = true)]
    Wreck(WreckArgs),
    /// The plain writer that the demo moves when there is no QEMU
    #[command(hide = true, name = "demo-writer")]
    DemoWriter(WriterArgs),
}

/// Arguments of `luna mkfs`.
#[derive(Debug, Args)]
pub struct MkfsArgs {
    #[arg(value_name = "LUN", help = LUN_HELP)]
    pub lun: String,
    /// A name for the volume, up to 63 bytes
    #[arg(long, short = 'L', default_value = "")]
    pub label: String,
    /// How many hosts may mount it at once, 1 to 64
    #[arg(long, short = 'N', default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub slots: u32,
    /// Overwrite a LUN that holds something else; twice: even a Luna volume that hosts seem to have mounted
    #[arg(long, short = 'f', action = clap::ArgAction::Count)]
    pub force: u8,
    /// Do not ask on a terminal
    #[arg(long, short = 'y')]
    pub yes: bool,
}

/// Arguments of `luna mount`.
#[derive(Clone, Debug, Args)]
pub struct MountArgs {
    #[arg(value_name = "LUN", help = LUN_HELP)]
    pub lun: String,
    /// The directory to mount on
    pub dir: PathBuf,
    /// This host's name in the cluster; the machine's host name by default
    #[arg(long, value_name = "HOST")]
    pub name: Option<String>,
    /// Where the other hosts reach this one; any address and a free port by default
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<String>,
    /// Mount options, separated by commas: ro, discard, noatime, suid, dev, name=HOST, listen=ADDR:PORT, log=FILE,
    /// fence_cmd=PROGRAM (called with slot, host and incarnation of a dead host; exit 0 means that it is off),
    /// fence_qmp=SOCKET (QMP socket of the qemu-storage-daemon that serves the LUN; each host then has an export of its own) ...
    #[arg(short = 'o', value_name = "OPTS", value_delimiter = ',')]
    pub options: Vec<String>,
    /// Stay in the foreground
    #[arg(long)]
    pub foreground: bool,
    /// Write the log here instead of to the standard place below /run/luna
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// The daemon's half of the start: report readiness on stdout
    #[arg(long, hide = true)]
    pub daemon: bool,
}

/// Arguments of `luna umount`.
#[derive(Debug, Args)]
pub struct UmountArgs {
    /// The directory it is mounted on
    pub dir: PathBuf,
    /// Detach it now even if it is in use
    #[arg(long, short)]
    pub lazy: bool,
}

/// Arguments of `luna confirm-dead`.
#[derive(Debug, Args)]
#[command(
    after_help = "The other hosts replay its journal and give its locks away as soon as this is said. If it still runs, it destroys data."
)]
pub struct ConfirmDeadArgs {
    /// A directory where a living host has the volume mounted
    pub dir: PathBuf,
    /// The slot of the dead host, as 'luna status' shows it
    pub slot: u16,
    /// I have seen that it is off
    #[arg(long)]
    pub yes: bool,
}

/// Arguments of `luna fsck`.
#[derive(Debug, Args)]
#[command(after_help = "Exit status, as fsck(8): 0 clean, 1 repaired, 4 findings left, 8 operational error, 16 usage.")]
pub struct FsckArgs {
    #[arg(value_name = "LUN", help = LUN_HELP)]
    pub lun: String,
    /// Check only, never write. On a mounted volume, if something is found, hosts change no metadata for up to 10 s while it looks again
    #[arg(short = 'n', conflicts_with_all = ["preen", "yes"])]
    pub no_write: bool,
    /// Repair what loses nothing and takes no decision; else leave everything as it is. While another host repairs, wait until it is done
    #[arg(short = 'p', visible_short_alias = 'a', conflicts_with = "yes")]
    pub preen: bool,
    /// Repair everything; what is lost by it is said
    #[arg(short = 'y')]
    pub yes: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of the hidden `luna wreck`.
#[derive(Debug, Args)]
pub struct WreckArgs {
    #[arg(value_name = "LUN", help = LUN_HELP)]
    pub lun: String,
    /// What to break: a code of docs/checks.md
    pub code: String,
    /// Which one of the things that can be broken
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// I know that this breaks the volume
    #[arg(long)]
    pub yes: bool,
}

/// Arguments of `luna status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// A mounted directory (asks the running host) or a LUN (reads what is on it)
    #[arg(value_name = "DIR|LUN")]
    pub target: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `luna dump`.
#[derive(Debug, Args)]
pub struct DumpArgs {
    #[arg(value_name = "LUN", help = LUN_HELP)]
    pub lun: String,
    /// superblock, slots, group N, inode N, journal N, block N, path P
    #[arg(required = true, num_args = 1..=2, value_name = "WHAT")]
    pub what: Vec<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `luna serve`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("where").required(true).args(["listen", "socket"]))]
pub struct ServeArgs {
    /// The file or block device to serve
    pub file: PathBuf,
    /// Listen on TCP; port 0 takes a free one and says which
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<String>,
    /// Listen on a unix socket
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// The export's name
    #[arg(long, default_value = "luna")]
    pub export: String,
    /// Create FILE sparse with this size (like 64G) when it does not exist
    #[arg(long, value_name = "SIZE", value_parser = crate::size::parse)]
    pub create: Option<u64>,
    /// Refuse writes
    #[arg(long)]
    pub read_only: bool,
    /// A unix socket for orders: ping, clients, fence NAME INCARNATION
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
    /// For tests: keep up to MIB of writes in memory until they are flushed, and lose them at the order power-cut SEED
    #[arg(long, value_name = "MIB", hide = true, requires = "control")]
    pub power_cut_cache: Option<u64>,
}

/// Arguments of `luna demo`.
#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// Where to work; a new directory below the system's temporary one by default
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// How many hosts, 3 to 16
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(3..=16))]
    pub hosts: u32,
    /// Leave everything mounted and running at the end, and say how to end it
    #[arg(long)]
    pub keep: bool,
    /// Move a plain writer process even if QEMU is installed
    #[arg(long, hide = true)]
    pub no_vm: bool,
    /// Play on one plain local directory instead of mounts: tries the demo itself
    #[arg(long, hide = true)]
    pub plain: bool,
}

/// Arguments of the hidden `luna demo-writer`.
#[derive(Debug, Args)]
pub struct WriterArgs {
    /// The disk file
    pub disk: PathBuf,
    /// The first counter to write
    pub from: u64,
}
