//! The `luna` binary: every command an administrator types.
//!
//! One file per command below [`cmd`], each a thin parse over a `run(args) -> exit code`; the work is done in the crates
//! below. The same binary answers to `mkfs.luna`, `fsck.luna` and `mount.luna`, so that `mkfs -t luna`, `fsck -t luna`,
//! `mount -t luna` and lines in fstab work ([`helper`] translates those programs' conventions).
//!
//! Invariant: exit status 0 on success, 1 on a failed operation, 2 on wrong usage (fsck and the mount helper have the
//! codes of fsck(8) and mount(8)); an error is one line on stderr that says what failed, where, and what to do.

#![allow(unreachable_pub, reason = "a binary has no outside: pub here means between its modules")]

mod cli;
mod cmd;
mod control;
mod demo;
mod exclusive;
mod helper;
mod mounts;
mod probe;
mod size;
mod slots;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

use clap::Parser;
use cli::{Cli, Command};
use std::{ffi::OsString, path::Path, process::ExitCode};

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    let called = args.first().map(Path::new).and_then(Path::file_name).map(|n| n.to_string_lossy().into_owned());
    ExitCode::from(match called.as_deref() {
        Some("mount.luna") => helper::mount(&args),
        Some("fsck.luna") => helper::fsck(&args),
        Some("mkfs.luna") => helper::mkfs(&args),
        _ => luna(&args),
    })
}

/// Parses and runs a `luna` command line; the exit code.
fn luna(args: &[OsString]) -> u8 {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            let fsck = args.get(1).is_some_and(|a| a == "fsck");
            return match e.exit_code() {
                0 => 0,
                _ if fsck => cmd::fsck::USAGE,
                _ => 2,
            };
        }
    };
    match cli.command {
        Command::Fsck(a) => cmd::fsck::run(&a),
        other => finish(run(other)),
    }
}

/// Runs every command whose codes are 0, 1 and 2.
fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Mkfs(a) => cmd::mkfs::run(&a),
        Command::Mount(a) => cmd::mount::run(a),
        Command::ConfirmDead(a) => cmd::confirm_dead::run(&a),
        Command::Umount(a) => cmd::umount::run(&a),
        Command::Fsck(_) => unreachable!("fsck has exit codes of its own and was taken out before"),
        Command::Status(a) => cmd::status::run(&a),
        Command::Dump(a) => cmd::dump::run(&a),
        Command::Serve(a) => cmd::serve::run(&a),
        Command::Demo(a) => demo::run(&a),
        Command::Man { dir } => cmd::man::run(&dir),
        Command::Wreck(a) => cmd::wreck::run(&a),
        Command::DemoWriter(a) => demo::writer::run(&a),
    }
}

/// One line on stderr and the exit code for it.
fn finish(result: anyhow::Result<()>) -> u8 {
    match result {
        Ok(()) => 0,
        Err(e) => {
            eprintln!("luna: {}", one_line(&e));
            1
        }
    }
}

/// An error with its causes on one line.
fn one_line(e: &anyhow::Error) -> String {
    format!("{e:#}").replace('\n', "; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_contract_parses() {
        for line in [
            "luna mkfs /dev/x --label vms --slots 4 --force --yes",
            "luna mount nbd://h:1/e /mnt --name a --listen 127.0.0.1:0 -o ro,discard --foreground --log /x",
            "luna umount /mnt",
            "luna fsck /dev/x -n --json",
            "luna fsck /dev/x -p",
            "luna fsck -y /dev/x",
            "luna wreck /dev/x D07 --seed 3 --yes",
            "luna status /mnt --json",
            "luna dump /dev/x superblock",
            "luna dump /dev/x group 3",
            "luna serve f --listen 127.0.0.1:0 --export x",
            "luna serve f --socket /s",
            "luna demo --dir /d --hosts 4 --keep",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
        for line in [
            "luna",
            "luna mkfs",
            "luna mkfs /x --slots 65",
            "luna mount /x",
            "luna fsck /x -n -y",
            "luna serve f",
            "luna serve f --socket /s --listen 1:1",
            "luna demo --hosts 2",
            "luna dump /x",
        ] {
            let e = Cli::try_parse_from(line.split(' ')).expect_err(line);
            assert_eq!(e.exit_code(), 2, "{line}");
        }
    }
}
