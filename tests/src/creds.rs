//! Threads that act as somebody else: on Linux, users and groups belong to a thread, and only libraries make them the process's.
//!
//! Invariant: nothing comes back from it; a thread that has become somebody ends as that. Not here: names of users.

use rustix::thread::{Gid, Uid, set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use std::io;

/// Makes the calling thread user `uid` with the one group `gid`, without any capability.
pub fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    become_member(uid, gid, &[])
}

/// Makes the calling thread user `uid` with `gid` and more groups, without any capability.
pub fn become_member(uid: u32, gid: u32, more: &[u32]) -> io::Result<()> {
    set_thread_groups(&more.iter().map(|g| Gid::from_raw(*g)).collect::<Vec<_>>())?;
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    set_thread_res_gid(gid, gid, gid)?;
    Ok(set_thread_res_uid(uid, uid, uid)?)
}
