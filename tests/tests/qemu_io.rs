//! qemu-io: patterns written on one host are verified on another, through QEMU's own block layer.

use luna_tests::{Cluster, Result, tool};

fn io(path: &std::path::Path, format: &str, cache: &str, commands: &[&str]) -> Result<String> {
    let mut args = vec!["-f".to_owned(), format.into(), "-t".into(), cache.into(), "-d".into(), "unmap".into()];
    for c in commands {
        args.extend(["-c".to_owned(), (*c).to_owned()]);
    }
    args.push(path.display().to_string());
    tool("qemu-io", &args)
}

#[test]
fn patterns_across_hosts() -> Result {
    let c = Cluster::new("qio")?;
    for (name, format) in [("disk.raw", "raw"), ("disk.qcow2", "qcow2")] {
        tool("qemu-img", &["create", "-q", "-f", format, &c.path(0, name).display().to_string(), "1G"])?;
        for (n, cache) in ["none", "writeback", "directsync"].into_iter().enumerate() {
            let (writer, reader) = (c.path(n % 3, name), c.path((n + 1) % 3, name));
            let place = n * 100;
            let (a, b, gone) = (format!("{place}M 1M"), format!("{}M 4M", place + 10), format!("{}M 2M", place + 11));
            io(
                &writer,
                format,
                cache,
                &[&format!("write -P 0x{n}a {a}"), &format!("write -P 0x5a {b}"), &format!("write -z -u {gone}"), "flush"],
            )?;
            let checks = [
                format!("read -P 0x{n}a {a}"),
                format!("read -P 0x5a {}M 1M", place + 10),
                format!("read -P 0 {gone}"),
                format!("read -P 0x5a {}M 1M", place + 13),
                format!("read -P 0 {}M 1M", place + 50),
            ];
            io(&reader, format, "none", &checks.each_ref().map(String::as_str))?;
            io(&c.path((n + 2) % 3, name), format, "writeback", &checks.each_ref().map(String::as_str))?;
        }
    }
    c.finish()
}

#[test]
fn unaligned_and_discarded() -> Result {
    let c = Cluster::new("qodd")?;
    let name = "odd.raw";
    tool("qemu-img", &["create", "-q", "-f", "raw", &c.path(0, name).display().to_string(), "64M"])?;
    io(&c.path(0, name), "raw", "writeback", &["write -P 1 0 1M", "write -P 2 1000 3000", "write -P 3 4095 2", "flush"])?;
    io(
        &c.path(1, name),
        "raw",
        "writeback",
        &["read -P 1 0 1000", "read -P 2 1000 3000", "read -P 1 4000 95", "read -P 3 4095 2", "read -P 1 4097 4095"],
    )?;
    io(&c.path(1, name), "raw", "none", &["discard 512k 256k", "flush"])?;
    io(&c.path(2, name), "raw", "none", &["read -P 0 512k 256k", "read -P 1 768k 256k", "read -P 1 256k 256k"])?;
    c.finish()
}
