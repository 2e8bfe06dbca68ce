//! The machine that moves: a QEMU guest, or a plain writer process where there is no QEMU.
//!
//! Both write the same counter to the same disk and can be saved on one host and resumed on another; only the guest can
//! also move while it runs. Not here: which host is which (the story knows).

use super::{
    initramfs,
    vm::{Image, QEMU, Vm},
    writer::Writer,
};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// What kind of machine this demo has, found before the first step.
#[derive(Debug)]
pub enum Kind {
    /// A real guest.
    Guest(Image),
    /// A process; the text says why.
    Process { work: PathBuf, why: String },
}

/// A running machine.
#[derive(Debug)]
pub enum Machine {
    /// A QEMU process.
    Guest(Vm),
    /// A writer process.
    Process(Writer),
}

impl Kind {
    /// A guest if this machine can run one.
    pub fn find(work: &Path, no_vm: bool) -> Self {
        let why = |why: &str| Self::Process { work: work.into(), why: why.into() };
        if no_vm {
            return why("--no-vm was given");
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        if !std::env::split_paths(&path).any(|d| d.join(QEMU).exists()) {
            return why("qemu-system-x86_64 is not installed");
        }
        let Some(kernel) = initramfs::find_kernel() else {
            return why("there is no kernel for the guest (make demo gets one)");
        };
        let initrd = work.join("initrd");
        match initramfs::build(&kernel, &initrd) {
            Ok(()) => Self::Guest(Image { kernel, initrd, work: work.into() }),
            Err(e) => why(&format!("{e:#}")),
        }
    }

    /// Starts the machine for the first time, with `disk` as seen from `host`.
    pub fn boot(&self, host: &str, disk: &Path) -> Result<Machine> {
        Ok(match self {
            Self::Guest(image) => Machine::Guest(Vm::boot(image, &format!("boot-{host}"), disk)?),
            Self::Process { work, .. } => Machine::Process(Writer::start(disk, 1, &work.join(format!("writer-{host}")))?),
        })
    }

    /// Resumes a saved machine on `host` from `state`.
    pub fn resume(&self, host: &str, disk: &Path, state: &Path) -> Result<Machine> {
        match self {
            Self::Guest(image) => {
                let mut vm = Vm::incoming(image, &format!("resume-{host}"), disk, &format!("exec:cat '{}'", state.display()))?;
                vm.resume()?;
                Ok(Machine::Guest(vm))
            }
            Self::Process { work, .. } => {
                let text = std::fs::read_to_string(state).with_context(|| format!("cannot read {}", state.display()))?;
                let last: u64 = text.trim().parse().context("the saved state is not a number")?;
                Ok(Machine::Process(Writer::start(disk, last + 1, &work.join(format!("writer-{host}")))?))
            }
        }
    }

    /// Moves a running guest to `host`; a process is saved and resumed.
    pub fn migrate(&self, machine: Machine, host: &str, disk: &Path) -> Result<(Machine, u64)> {
        match (self, machine) {
            (Self::Guest(image), Machine::Guest(vm)) => {
                let uri = format!("unix:{}", image.work.join("migrate").display());
                let mut target = Vm::incoming(image, &format!("live-{host}"), disk, &uri)?;
                let last = vm.migrate_to(&mut target, &uri)?;
                Ok((Machine::Guest(target), last))
            }
            (Self::Process { work, .. }, machine) => {
                let state = work.join("state");
                let last = machine.save(&state)?;
                Ok((self.resume(host, disk, &state)?, last))
            }
            (Self::Guest(_), Machine::Process(_)) => unreachable!("a machine is of the kind that started it"),
        }
    }
}

impl Machine {
    /// The last record it announced.
    pub fn announced(&self) -> Result<u64> {
        match self {
            Self::Guest(vm) => vm.announced(),
            Self::Process(w) => w.announced(),
        }
    }

    /// Waits until it has announced more than `past`.
    pub fn wait_for(&mut self, past: u64) -> Result<u64> {
        match self {
            Self::Guest(vm) => vm.wait_for(past),
            Self::Process(w) => w.wait_for(past),
        }
    }

    /// Writes its state to `state` and ends it.
    pub fn save(self, state: &Path) -> Result<u64> {
        match self {
            Self::Guest(vm) => vm.save(state),
            Self::Process(w) => {
                let last = w.save()?;
                std::fs::write(state, last.to_string()).with_context(|| format!("cannot write {}", state.display()))?;
                Ok(last)
            }
        }
    }

    /// Ends it for good; its disk is flushed and closed.
    pub fn quit(self) -> Result<u64> {
        match self {
            Self::Guest(mut vm) => {
                vm.quit()?;
                vm.announced()
            }
            Self::Process(w) => w.save(),
        }
    }
}
