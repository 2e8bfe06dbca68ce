//! Hosts in network namespaces, joined by a bridge in a namespace of its own. Removed when dropped.

use crate::{Result, proc::tool};
use std::sync::atomic::{AtomicU32, Ordering};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Namespaces with one veth each, in `10.77.0.0/24`: host `n` (from 0) has `10.77.0.(n+1)`.
#[derive(Debug)]
pub struct Net {
    hub: String,
    /// The hosts' namespaces.
    pub namespaces: Vec<String>,
}

impl Net {
    /// `hosts` namespaces around a bridge.
    pub fn new(hosts: usize) -> Result<Self> {
        let id = format!("lt{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let hub = format!("{id}-hub");
        let namespaces = (0..hosts).map(|n| format!("{id}-{n}")).collect();
        let net = Self { hub, namespaces };
        ip(&["netns", "add", &net.hub])?;
        ip(&["-n", &net.hub, "link", "add", "br0", "type", "bridge"])?;
        ip(&["-n", &net.hub, "link", "set", "br0", "up"])?;
        for (n, ns) in net.namespaces.iter().enumerate() {
            let port = format!("p{n}");
            ip(&["netns", "add", ns])?;
            ip(&["-n", ns, "link", "add", "eth0", "type", "veth", "peer", "name", &port, "netns", &net.hub])?;
            ip(&["-n", ns, "addr", "add", &format!("10.77.0.{}/24", n + 1), "dev", "eth0"])?;
            ip(&["-n", ns, "link", "set", "eth0", "up"])?;
            ip(&["-n", ns, "link", "set", "lo", "up"])?;
            ip(&["-n", &net.hub, "link", "set", &port, "master", "br0", "up"])?;
        }
        Ok(net)
    }

    /// Cuts host `n` off, at the switch: its own interface stays up, packets just vanish.
    pub fn cut(&self, n: usize) -> Result {
        ip(&["-n", &self.hub, "link", "set", &format!("p{n}"), "nomaster"])
    }

    /// Joins host `n` again.
    pub fn heal(&self, n: usize) -> Result {
        ip(&["-n", &self.hub, "link", "set", &format!("p{n}"), "master", "br0"])
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for ns in self.namespaces.iter().chain([&self.hub]) {
            let _ = ip(&["netns", "del", ns]);
        }
    }
}

fn ip(args: &[&str]) -> Result {
    tool("ip", args).map(drop)
}
