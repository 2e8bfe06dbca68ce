//! The target rung at `qemu-storage-daemon`: every incarnation has an NBD export of its own, and fencing it is deleting that export.
//!
//! The daemon's control socket speaks QMP: one JSON object per line, a greeting, capabilities, then commands whose answers carry an
//! `id`, and events in between. After JOIN a host adds `luna-VOLUME-sSLOT-iINCARNATION` over the node that is exported anyway and opens
//! its connections there. `block-export-del` with `mode: hard` cuts the clients and ends when nothing of theirs is under way, which
//! `BLOCK_EXPORT_DELETED` reports. Incarnations are never used twice, so a fence is never undone: a zombie's export does not come back.
//!
//! Invariant: [`Exports::fence`] answers only after the last export of that slot up to the incarnation is gone. Not here: when to fence.

use luna_format::{Incarnation, Slot};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long the daemon may take for one command, and to drain a client.
const PATIENCE: Duration = Duration::from_secs(20);
/// The longest line that is read.
const MAX_LINE: u64 = 4 << 20;

/// The exports of one volume at one daemon.
#[derive(Clone, Debug)]
pub struct Exports {
    socket: PathBuf,
    /// Of every name: what tells this volume from others.
    volume: String,
}

impl Exports {
    /// Of the volume whose names begin with `volume`, through the control socket `socket`.
    pub fn new(socket: PathBuf, volume: String) -> Self {
        Self { socket, volume }
    }

    /// The name of an incarnation's export, which is also its id.
    pub fn name(&self, slot: Slot, incarnation: Incarnation) -> String {
        format!("luna-{}-s{slot}-i{incarnation}", self.volume)
    }

    /// Adds this host's export over the node behind the export `lun`.
    pub fn add(&self, lun: &str, slot: Slot, incarnation: Incarnation) -> Result<(), String> {
        let mut c = self.connect()?;
        let all = c.exports()?;
        let node = node_behind(&all, lun).ok_or_else(|| {
            format!("{}: no export has the id '{lun}', and several nodes are exported; give the LUN's export its name as id", self.shown())
        })?;
        let name = self.name(slot, incarnation);
        c.execute("block-export-add", &json!({ "type": "nbd", "id": name, "name": name, "node-name": node, "writable": true })).map(drop)
    }

    /// Deletes every export of the slot up to `incarnation`, and waits until they are gone.
    pub fn fence(&self, slot: Slot, incarnation: Incarnation) -> Result<(), String> {
        let mut c = self.connect()?;
        let of = |id: &str| self.incarnation_of(slot, id).is_some_and(|i| i <= incarnation);
        for export in c.exports()?.iter().filter(|e| of(&e.id)) {
            if !export.shutting_down {
                // somebody else may have just done it
                let gone = c.execute("block-export-del", &json!({ "id": export.id, "mode": "hard" }));
                if let Err(e) = gone
                    && c.exports()?.iter().any(|x| x.id == export.id && !x.shutting_down)
                {
                    return Err(e);
                }
            }
            c.wait_deleted(&export.id)?;
        }
        Ok(())
    }

    fn incarnation_of(&self, slot: Slot, id: &str) -> Option<Incarnation> {
        id.strip_prefix(&format!("luna-{}-s{slot}-i", self.volume))?.parse().ok()
    }

    fn shown(&self) -> String {
        format!("qemu-storage-daemon at {}", self.socket.display())
    }

    fn connect(&self) -> Result<Connection, String> {
        let shown = self.shown();
        let stream = UnixStream::connect(&self.socket).map_err(|e| format!("{shown}: {e}"))?;
        let set = stream.set_read_timeout(Some(PATIENCE)).and_then(|()| stream.set_write_timeout(Some(PATIENCE)));
        set.map_err(|e| format!("{shown}: {e}"))?;
        let mut c = Connection { reader: BufReader::new(stream), shown, next: 0, deleted: Vec::new() };
        if c.line()?.get("QMP").is_none() {
            return Err(format!("{}: this is no QMP socket", c.shown));
        }
        c.execute("qmp_capabilities", &json!({}))?;
        Ok(c)
    }
}

/// The node behind the export with the id `lun`, or the only node that is exported.
fn node_behind(all: &[Export], lun: &str) -> Option<String> {
    if let Some(e) = all.iter().find(|e| e.id == lun) {
        return Some(e.node.clone());
    }
    let first = all.first()?;
    all.iter().all(|e| e.node == first.node).then(|| first.node.clone())
}

struct Export {
    id: String,
    node: String,
    shutting_down: bool,
}

struct Connection {
    reader: BufReader<UnixStream>,
    shown: String,
    next: u64,
    /// Exports whose end was reported.
    deleted: Vec<String>,
}

impl Connection {
    fn line(&mut self) -> Result<Value, String> {
        let mut text = String::new();
        let read = (&mut self.reader).take(MAX_LINE).read_line(&mut text).map_err(|e| format!("{}: {e}", self.shown))?;
        if read == 0 {
            return Err(format!("{}: it closed the connection", self.shown));
        }
        serde_json::from_str(&text).map_err(|e| format!("{}: no JSON: {e}", self.shown))
    }

    fn note(&mut self, v: &Value) {
        if v["event"] == "BLOCK_EXPORT_DELETED"
            && let Some(id) = v["data"]["id"].as_str()
        {
            self.deleted.push(id.to_owned());
        }
    }

    fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value, String> {
        self.next += 1;
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments, "id": self.next }));
        self.reader.get_mut().write_all(line.as_bytes()).map_err(|e| format!("{}: {command}: {e}", self.shown))?;
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            let v = self.line()?;
            self.note(&v);
            if v["id"] != json!(self.next) {
                continue;
            }
            return match v.get("return") {
                Some(value) => Ok(value.clone()),
                None => Err(format!("{}: {command}: {}", self.shown, v["error"]["desc"].as_str().unwrap_or("failed"))),
            };
        }
        Err(format!("{}: {command} was not answered within {} s", self.shown, PATIENCE.as_secs()))
    }

    fn exports(&mut self) -> Result<Vec<Export>, String> {
        let all = self.execute("query-block-exports", &json!({}))?;
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let one = |v: &Value| Export {
            id: text(&v["id"]),
            node: text(&v["node-name"]),
            shutting_down: v["shutting-down"].as_bool().unwrap_or(false),
        };
        Ok(all.as_array().map(|a| a.iter().map(one).collect()).unwrap_or_default())
    }

    /// Waits for the event; it may have come before this connection was made, so the list counts as well.
    fn wait_deleted(&mut self, id: &str) -> Result<(), String> {
        let until = Instant::now() + PATIENCE;
        while !self.deleted.iter().any(|d| d == id) {
            if !self.exports()?.iter().any(|e| e.id == id) {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(format!("{}: export {id} still has requests under way after {} s", self.shown, PATIENCE.as_secs()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_slots_and_incarnations() {
        let x = Exports::new("/q".into(), "00aa".into());
        assert_eq!(x.name(3, 12), "luna-00aa-s3-i12");
        assert_eq!(x.incarnation_of(3, "luna-00aa-s3-i12"), Some(12));
        for other in ["luna-00aa-s33-i12", "luna-00ab-s3-i12", "luna-00aa-s3-i", "luna-00aa-s3-i12x", "00aa-s3-i12", "lun"] {
            assert_eq!(x.incarnation_of(3, other), None, "{other}");
        }
    }

    #[test]
    fn the_node_of_the_lun_is_found_or_not_guessed() {
        let e = |id: &str, node: &str| Export { id: id.into(), node: node.into(), shutting_down: false };
        assert_eq!(node_behind(&[e("lun", "a"), e("other", "b")], "lun").as_deref(), Some("a"));
        assert_eq!(node_behind(&[e("x", "a"), e("y", "a")], "lun").as_deref(), Some("a"));
        assert_eq!(node_behind(&[e("x", "a"), e("y", "b")], "lun"), None);
        assert_eq!(node_behind(&[], "lun"), None);
    }
}
