//! A real block device (a loop device over a file) as LUN: size, direct I/O, discard and zeroes through the ioctls.
//! Needs root and `losetup`; skipped with a message otherwise.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use luna_lun::{Disk, Durability, OpenOptions, file::FileDisk};

#[test]
fn a_loop_device_is_a_lun() {
    let path = std::env::temp_dir().join(format!("luna-device-{}", std::process::id()));
    std::fs::File::create(&path).unwrap().set_len(32 << 20).unwrap();
    let made = Command::new("losetup").args(["--find", "--show", "--direct-io=on"]).arg(&path).output();
    let device = match made {
        Ok(out) if out.status.success() => String::from_utf8(out.stdout).unwrap().trim().to_owned(),
        _ => {
            eprintln!("SKIPPED: no loop device can be made here (root and losetup are needed)");
            std::fs::remove_file(&path).unwrap();
            return;
        }
    };
    let result = std::panic::catch_unwind(|| {
        let disk = FileDisk::open(device.as_ref(), &OpenOptions::default()).unwrap();
        assert!(disk.is_direct());
        assert_eq!(disk.geometry().size_bytes, 32 << 20);
        let data: Vec<u8> = (0..8u32 << 20).map(|i| (i % 251) as u8 + 1).collect();
        disk.write_at(&data, 0, Durability::Forced).unwrap();
        let full = std::fs::metadata(&path).unwrap().blocks();
        disk.discard(0, 4 << 20).unwrap();
        disk.write_zeroes(4 << 20, 2 << 20).unwrap();
        disk.flush().unwrap();
        assert!(std::fs::metadata(&path).unwrap().blocks() <= full - (4 << 20) / 512, "the discard reached the file below");
        let mut back = vec![9; 4 << 20];
        disk.read_at(&mut back, 4 << 20).unwrap();
        assert!(back[..2 << 20].iter().all(|b| *b == 0));
        assert!(back[2 << 20..] == data[6 << 20..]);
    });
    assert!(Command::new("losetup").args(["-d", &device]).status().unwrap().success());
    std::fs::remove_file(&path).unwrap();
    assert!(result.is_ok());
}
