//! The calling conventions of mount(8), fsck(8) and mkfs(8), translated into Luna's own commands.
//!
//! * `mount.luna LUN DIR [-sfnvr] [-N ns] [-t type] [-o opts]`; 0 mounted, 1 wrong usage, 32 the mount failed.
//! * `fsck.luna [-apynfvrCMRTV] [-C fd] LUN`; the codes of fsck(8).
//! * `mkfs.luna [mkfs flags] LUN`: the flags are those of `luna mkfs`, and `-V`/`-v` are accepted.
//!
//! Invariant: an option that only steers mount(8) or fsck(8) themselves never reaches a command, and an unknown letter is
//! a usage error, not silence. Not here: the meaning of mount options (the node judges them).

use crate::{
    cli::{FsckArgs, MkfsArgs, MountArgs},
    cmd,
};
use clap::Parser;
use std::ffi::OsString;

/// mount(8): wrong invocation or permissions.
const MOUNT_USAGE: u8 = 1;
/// mount(8): mount failure.
const MOUNT_FAILED: u8 = 32;

/// What `mount.luna` was asked to do.
#[derive(Debug)]
struct MountCall {
    args: MountArgs,
    fake: bool,
}

/// Runs as `mount.luna`.
pub fn mount(args: &[OsString]) -> u8 {
    match parse_mount(args) {
        Ok(call) if call.fake => 0,
        Ok(call) => match cmd::mount::run(call.args) {
            Ok(()) => 0,
            Err(e) => {
                eprintln!("mount.luna: {}", crate::one_line(&e));
                MOUNT_FAILED
            }
        },
        Err(e) => {
            eprintln!("mount.luna: {e}; usage: mount.luna LUN DIR [-sfnv] [-o OPTIONS]");
            MOUNT_USAGE
        }
    }
}

fn parse_mount(args: &[OsString]) -> Result<MountCall, String> {
    let mut places = Vec::new();
    let mut options = Vec::new();
    let mut fake = false;
    let mut words = args.iter().skip(1).map(|a| a.to_string_lossy().into_owned());
    while let Some(word) = words.next() {
        let Some(letters) = word.strip_prefix('-').filter(|l| !l.is_empty()) else {
            places.push(word);
            continue;
        };
        let mut rest = letters.chars();
        while let Some(letter) = rest.next() {
            let mut value = || {
                let glued: String = rest.by_ref().collect();
                if glued.is_empty() { words.next().ok_or_else(|| format!("-{letter} needs a value")) } else { Ok(glued) }
            };
            match letter {
                'o' => options.extend(value()?.split(',').map(str::to_owned)),
                't' | 'N' => drop(value()?),
                'f' => fake = true,
                'r' => options.push("ro".into()),
                'w' => options.push("rw".into()),
                's' | 'n' | 'v' => {}
                _ => return Err(format!("unknown option -{letter}")),
            }
        }
    }
    let [lun, dir] = places.try_into().map_err(|p: Vec<String>| format!("a LUN and a directory are wanted, not {} words", p.len()))?;
    let args = MountArgs { lun, dir: dir.into(), name: None, listen: None, options, foreground: false, log: None, daemon: false };
    Ok(MountCall { args, fake })
}

/// Runs as `fsck.luna`.
pub fn fsck(args: &[OsString]) -> u8 {
    match parse_fsck(args) {
        Ok(a) => cmd::fsck::run(&a),
        Err(e) => {
            eprintln!("fsck.luna: {e}; usage: fsck.luna [-a | -p | -y | -n] LUN");
            cmd::fsck::USAGE
        }
    }
}

fn parse_fsck(args: &[OsString]) -> Result<FsckArgs, String> {
    let mut call = FsckArgs { lun: String::new(), no_write: false, preen: false, yes: false, json: false };
    let mut words = args.iter().skip(1).map(|a| a.to_string_lossy().into_owned()).peekable();
    while let Some(word) = words.next() {
        if word == "--json" {
            call.json = true;
            continue;
        }
        let Some(letters) = word.strip_prefix('-').filter(|l| !l.is_empty()) else {
            if !call.lun.is_empty() {
                return Err("one LUN at a time".into());
            }
            call.lun = word;
            continue;
        };
        let mut rest = letters.chars();
        while let Some(letter) = rest.next() {
            match letter {
                'n' => call.no_write = true,
                'a' | 'p' => call.preen = true,
                'y' => call.yes = true,
                // -C takes the file descriptor of a progress bar, glued or as the next word
                'C' => {
                    let glued: String = rest.by_ref().collect();
                    if glued.is_empty() {
                        words.next_if(|w| w.parse::<i32>().is_ok());
                    }
                }
                'f' | 'v' | 'r' | 'M' | 'R' | 'T' | 'V' => {}
                _ => return Err(format!("unknown option -{letter}")),
            }
        }
    }
    let chosen = [call.no_write, call.preen, call.yes].iter().filter(|f| **f).count();
    match (call.lun.is_empty(), chosen) {
        (true, _) => Err("no LUN given".into()),
        (_, 2..) => Err("-n, -p and -y exclude each other".into()),
        _ => Ok(call),
    }
}

#[derive(Debug, Parser)]
#[command(name = "mkfs.luna", version)]
struct Mkfs {
    #[command(flatten)]
    args: MkfsArgs,
    /// Accepted for mkfs(8)
    #[arg(short = 'v', hide = true, action = clap::ArgAction::Count)]
    _verbose: u8,
}

/// Runs as `mkfs.luna`.
pub fn mkfs(args: &[OsString]) -> u8 {
    match Mkfs::try_parse_from(args) {
        Ok(m) => crate::finish(cmd::mkfs::run(&m.args)),
        Err(e) => {
            let _ = e.print();
            if e.exit_code() == 0 { 0 } else { 2 }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn mount_conventions() {
        let call = parse_mount(&words("mount.luna nbd://h/e /mnt -o rw,discard,_netdev -s -v -n -t fuse.luna")).expect("parses");
        assert_eq!(call.args.lun, "nbd://h/e");
        assert_eq!(call.args.options, ["rw", "discard", "_netdev"]);
        assert!(!call.fake);
        let call = parse_mount(&words("mount.luna -fsv -oro /dev/x /mnt")).expect("parses");
        assert!(call.fake);
        assert_eq!(call.args.options, ["ro"]);
        for bad in ["mount.luna", "mount.luna /x", "mount.luna /x /y /z", "mount.luna /x /y -Q", "mount.luna /x /y -o"] {
            assert!(parse_mount(&words(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn fsck_conventions() {
        let a = parse_fsck(&words("fsck.luna -a -C0 /dev/x")).expect("parses");
        assert!(a.preen && !a.yes && !a.no_write);
        let a = parse_fsck(&words("fsck.luna -n -C 5 /dev/x")).expect("parses");
        assert!(a.no_write);
        assert_eq!(a.lun, "/dev/x");
        assert_eq!(parse_fsck(&words("fsck.luna -C /dev/x")).expect("parses").lun, "/dev/x");
        for bad in ["fsck.luna", "fsck.luna -y -n /x", "fsck.luna -q /x", "fsck.luna /x /y"] {
            assert!(parse_fsck(&words(bad)).is_err(), "{bad}");
        }
    }
}
