//! The NBD client: a LUN on another machine (or another process of this one).
//!
//! Two doors over the same target: `sync` for metadata, one request per connection at a time, and `queue` for the data
//! path, many requests per connection. `handshake` finds out what the server is, `wire` holds the protocol's numbers,
//! `reconnect` the rules for coming back. TCP or Unix socket, fixed newstyle negotiation, simple replies; no TLS yet.

use std::sync::Arc;
use std::time::Duration;

use crate::{Lun, LunSpec, OpenOptions, Result};

pub(crate) mod handshake;
pub(crate) mod queue;
pub(crate) mod reconnect;
pub(crate) mod split;
pub(crate) mod sync;
pub(crate) mod table;
pub(crate) mod wire;

/// Opens an NBD export with both doors.
pub(crate) fn open(spec: &LunSpec, options: &OpenOptions) -> Result<Lun> {
    let (target, first) = reconnect::Target::open(spec, options)?;
    let target = Arc::new(target);
    let disk = sync::NbdDisk::new(Arc::clone(&target), first)?;
    let queue = queue::NbdQueue::new(target)?;
    Ok(Lun { disk: Arc::new(disk), queue: Arc::new(queue) })
}

/// Sends one line to the `luna serve` behind `spec` and gives its answer; `None` if another server is there.
pub(crate) fn command(spec: &LunSpec, line: &str, timeout: Duration) -> Result<Option<String>> {
    let what = spec.to_string();
    let stream = reconnect::dial_raw(spec, &what, timeout)?;
    handshake::Talk::begin(&stream, &what)?.luna(line)
}
