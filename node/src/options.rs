//! What a host is told when it mounts, and what it finds out by itself: its name and the addresses peers can reach it at.
//!
//! There is no config file: peers find these addresses in this host's beat on the LUN.

use luna_lun::LunSpec;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::PathBuf;

/// Options of a mount.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// The LUN.
    pub lun: LunSpec,
    /// Where to mount.
    pub dir: PathBuf,
    /// This host's name; unique among the hosts that mount the volume.
    pub name: String,
    /// Where to listen for peers. An unspecified address (`0.0.0.0`) announces every address of this host.
    pub listen: SocketAddr,
    /// Discard freed blocks on the LUN.
    pub discard: bool,
    /// Refuse `setuid` programs of the volume.
    pub nosuid: bool,
    /// Refuse device nodes of the volume.
    pub nodev: bool,
    /// Mount read-only.
    pub read_only: bool,
    /// Data connections to an NBD target; 0 chooses.
    pub connections: usize,
    /// A program that makes sure that a host is off: called with slot, host name and incarnation, exit 0 means done.
    pub fence_cmd: Option<PathBuf>,
    /// Control socket of the `qemu-storage-daemon` that serves the LUN.
    pub fence_qmp: Option<PathBuf>,
    /// Timing of the cluster, milliseconds; every host of a volume must use the same.
    pub timing: luna_cluster::Timing,
}

impl MountOptions {
    /// Defaults for `lun` at `dir`.
    pub fn new(lun: LunSpec, dir: PathBuf) -> Self {
        Self {
            lun,
            dir,
            name: host_name(),
            listen: SocketAddr::from(([0, 0, 0, 0], 0)),
            discard: false,
            nosuid: true,
            nodev: true,
            read_only: false,
            connections: 0,
            fence_cmd: None,
            fence_qmp: None,
            timing: luna_cluster::Timing::default(),
        }
    }
}

/// How long a host must have been silent until it writes no more, milliseconds: W of the lease arithmetic (`docs/recovery.md`). What
/// works without being a member (a repair) waits for it.
pub fn silence_ms() -> u64 {
    luna_cluster::Timing::default().wait_ms()
}

/// This machine's host name.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The same for each process of this machine and name, different on others: who may take its old slot again.
pub fn host_id(name: &str) -> [u8; 16] {
    let machine = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let text = format!("{}/{name}", machine.trim());
    let (mut a, mut b) = (0xcbf2_9ce4_8422_2325_u64, 0x8422_2325_cbf2_9ce4_u64);
    for byte in text.bytes() {
        // FNV-1a, twice from different starts: an identity, not a secret
        a = (a ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        b = (b ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3).rotate_left(17);
    }
    let mut id = [0; 16];
    id[..8].copy_from_slice(&a.to_le_bytes());
    id[8..].copy_from_slice(&b.to_le_bytes());
    id
}

/// The addresses to announce for a bound listener, at most four; loopback only when it was asked for or there is nothing else.
pub fn announced(listener: &TcpListener) -> std::io::Result<Vec<String>> {
    let bound = listener.local_addr()?;
    if !bound.ip().is_unspecified() {
        return Ok(vec![bound.to_string()]);
    }
    let mut all: Vec<IpAddr> = Vec::new();
    for i in nix::ifaddrs::getifaddrs()? {
        let Some(a) = i.address else { continue };
        let ip = a.as_sockaddr_in().map(|s| IpAddr::V4(s.ip())).or_else(|| a.as_sockaddr_in6().map(|s| IpAddr::V6(s.ip())));
        let usable = |ip: &IpAddr| !ip.is_loopback() && !matches!(ip, IpAddr::V6(v) if v.segments()[0] & 0xffc0 == 0xfe80);
        all.extend(ip.filter(|ip| usable(ip) && (ip.is_ipv4() || bound.is_ipv6())));
    }
    all.sort_by_key(|ip| !ip.is_ipv4());
    all.truncate(4);
    if all.is_empty() {
        all.push(IpAddr::from([127, 0, 0, 1]));
    }
    Ok(all.into_iter().map(|ip| SocketAddr::new(ip, bound.port()).to_string()).collect())
}
