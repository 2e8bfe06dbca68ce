//! qemu-img: create, convert, check, resize and compare images, each step on another host.

use anyhow::ensure;
use luna_tests::{Cluster, Result, io, tool};
use std::os::unix::fs::{FileExt, MetadataExt};

fn img(args: &[&str]) -> Result<String> {
    tool("qemu-img", args)
}

#[test]
fn every_format_from_every_host() -> Result {
    let c = Cluster::new("qimg")?;
    // a source with data, holes and an odd end
    let source = c.dir.join("source.raw");
    let file = io::buffered(&source)?;
    for n in 0..24u64 {
        file.write_all_at(io::Aligned::pattern(128 << 10, n).bytes(), n * (3 << 20))?;
    }
    file.set_len(100 << 20)?;
    let source = source.display().to_string();
    for (n, format) in ["raw", "qcow2", "vmdk", "vpc", "vhdx"].into_iter().enumerate() {
        let (writer, reader, third) = (n % 3, (n + 1) % 3, (n + 2) % 3);
        let at = |host: usize| c.path(host, format!("disk.{format}")).display().to_string();
        img(&["convert", "-T", "none", "-t", "none", "-f", "raw", "-O", format, &source, &at(writer)])?;
        ensure!(img(&["info", &at(reader)])?.contains(&format!("file format: {format}")), "{format}: info on another host");
        // vpc rounds the size up to its geometry, which compare takes as equal when the rest is zero
        img(&["compare", "-T", "none", "-f", "raw", "-F", format, &source, &at(reader)])?;
        if matches!(format, "qcow2" | "vmdk" | "vhdx") {
            img(&["check", "-f", format, &at(third)])?;
        }
    }
    let back = c.path(2, "back.raw").display().to_string();
    img(&["convert", "-f", "qcow2", "-O", "raw", &c.path(0, "disk.qcow2").display().to_string(), &back])?;
    img(&["compare", "-f", "raw", "-F", "raw", &source, &back])?;
    c.finish()
}

#[test]
fn resize_and_preallocation() -> Result {
    let c = Cluster::new("qsize")?;
    let at = |host: usize, name: &str| c.path(host, name).display().to_string();
    for (n, how) in ["off", "metadata", "falloc", "full"].into_iter().enumerate() {
        let name = format!("{how}.qcow2");
        img(&["create", "-q", "-f", "qcow2", "-o", &format!("preallocation={how}"), &at(n % 3, &name), "64M"])?;
        img(&["resize", "-q", &at((n + 1) % 3, &name), "96M"])?;
        ensure!(img(&["info", &at((n + 2) % 3, &name)])?.contains("96 MiB"), "{how}: the new size is not seen on another host");
        img(&["check", "-q", &at(n % 3, &name)])?;
    }
    img(&["create", "-q", "-f", "raw", "-o", "preallocation=falloc", &at(0, "fat.raw"), "256M"])?;
    let meta = std::fs::metadata(c.path(1, "fat.raw"))?;
    ensure!(meta.len() == 256 << 20 && meta.blocks() * 512 >= 256 << 20, "falloc gave {} blocks", meta.blocks());
    img(&["resize", "-q", "-f", "raw", &at(1, "fat.raw"), "+64M"])?;
    ensure!(std::fs::metadata(c.path(2, "fat.raw"))?.len() == 320 << 20, "raw resize is not seen on another host");
    c.finish()
}
