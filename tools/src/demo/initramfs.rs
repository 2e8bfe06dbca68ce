//! Builds the demo guest's initramfs: busybox, five kernel modules, one script. Everything comes from this machine.
//!
//! The guest numbers records and writes them to its virtio disk, each with O_DIRECT and followed by a flush, and prints a
//! number only after its record is durable. So the serial console is a list of promises and the disk shows whether they
//! were kept. Record `n` lies in block `n`, blocks are 4 KiB.
//!
//! Not here: running it (see [`super::vm`]) and judging the disk (see [`super::counter`]).

use super::counter;
use anyhow::{Context, Result, bail};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// A kernel image and the directory with its modules.
#[derive(Debug, PartialEq, Eq)]
pub struct Kernel {
    /// The bzImage.
    pub image: PathBuf,
    /// `lib/modules/VERSION`.
    pub modules: PathBuf,
}

/// Finds a kernel: `$LUNA_GUEST_DIR`, `target/guest` beside this binary (where `make demo` puts one), then the machine's.
pub fn find_kernel() -> Option<Kernel> {
    let exe = std::env::current_exe().ok();
    let beside = exe.as_deref().and_then(Path::parent).and_then(Path::parent).map(|t| t.join("guest"));
    let named = std::env::var_os("LUNA_GUEST_DIR").map(PathBuf::from);
    for dir in named.into_iter().chain(beside) {
        if let Some(kernel) = kernels_in(&dir, &dir.join("modules")).pop() {
            return Some(kernel);
        }
    }
    kernels_in(Path::new("/boot"), Path::new("/lib/modules")).pop()
}

/// Kernels of `boot` whose modules lie in `modules`, oldest name first.
fn kernels_in(boot: &Path, modules: &Path) -> Vec<Kernel> {
    let mut found: Vec<Kernel> = fs::read_dir(boot)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| {
            let version = e.file_name().to_string_lossy().strip_prefix("vmlinuz-")?.to_owned();
            let modules = modules.join(version);
            modules.is_dir().then(|| Kernel { image: e.path(), modules })
        })
        .collect();
    found.sort_by(|a, b| a.image.cmp(&b.image));
    found
}

/// Writes the initramfs for `kernel` to `out`.
pub fn build(kernel: &Kernel, out: &Path) -> Result<()> {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].map(Path::new).into_iter().find(|p| is_static(p));
    let busybox = busybox.context("no statically linked busybox here; install the package busybox-static")?;
    let mut archive = Cpio::default();
    for dir in ["bin", "dev", "proc", "lib", "tmp"] {
        archive.dir(dir);
    }
    archive.file("bin/busybox", 0o755, &fs::read(busybox).context("cannot read busybox")?);
    let mut order = Vec::new();
    for name in ["virtio_pci", "virtio_blk"] {
        with_dependencies(&kernel.modules, name, &mut BTreeSet::new(), &mut order)?;
    }
    let mut insmods = String::new();
    for (name, bytes) in &order {
        archive.file(&format!("lib/{name}.ko"), 0o644, bytes);
        insmods += &format!("$b insmod /lib/{name}.ko\n");
    }
    archive.file("init", 0o755, script(&insmods).as_bytes());
    fs::write(out, archive.finish()).with_context(|| format!("cannot write {}", out.display()))
}

/// The guest's whole user space.
fn script(insmods: &str) -> String {
    format!(
        "#!/bin/busybox sh\n\
         b=/bin/busybox\n\
         $b mount -t devtmpfs dev /dev\n\
         {insmods}\
         while [ ! -b /dev/vda ]; do $b usleep 20000; done\n\
         n=0\n\
         while [ $n -lt {max} ]; do\n\
         n=$((n+1))\n\
         printf '%-{block}s' \"{tag} $n\" > /tmp/r\n\
         $b dd if=/tmp/r of=/dev/vda bs={block} seek=$n count=1 oflag=direct conv=notrunc,fsync 2>/tmp/e ||\n\
         {{ $b cat /tmp/e; echo \"{tag} failed $n\"; $b poweroff -f; }}\n\
         echo \"{tag} $n\"\n\
         done\n",
        max = counter::MAX,
        block = counter::BLOCK,
        tag = counter::TAG,
    )
}

/// Puts `name` behind everything it depends on. A module that is not there is built into the kernel.
fn with_dependencies(modules: &Path, name: &str, seen: &mut BTreeSet<String>, order: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
    if !seen.insert(name.to_owned()) || order.iter().any(|(n, _)| n == name) {
        return Ok(());
    }
    let Some(path) = find_module(&modules.join("kernel/drivers"), name) else { return Ok(()) };
    let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    if !bytes.starts_with(b"\x7fELF") {
        bail!("{} is compressed; the demo's guest cannot load it", path.display());
    }
    for dependency in depends(&bytes) {
        with_dependencies(modules, &dependency, seen, order)?;
    }
    order.push((name.to_owned(), bytes));
    Ok(())
}

fn find_module(dir: &Path, name: &str) -> Option<PathBuf> {
    ["virtio", "block"].iter().flat_map(|sub| fs::read_dir(dir.join(sub)).into_iter().flatten().flatten()).map(|e| e.path()).find(|p| {
        let file = p.file_name().map(|f| f.to_string_lossy().replace('-', "_")).unwrap_or_default();
        file.split_once(".ko").is_some_and(|(stem, _)| stem == name)
    })
}

/// The `depends=` line of a module's `.modinfo`.
fn depends(module: &[u8]) -> Vec<String> {
    let key = b"\0depends=";
    let Some(start) = module.windows(key.len()).position(|w| w == key).map(|p| p + key.len()) else { return Vec::new() };
    let end = module[start..].iter().position(|b| *b == 0).map_or(module.len(), |n| start + n);
    String::from_utf8_lossy(&module[start..end]).split(',').filter(|n| !n.is_empty()).map(|n| n.replace('-', "_")).collect()
}

/// Whether `path` is an ELF program that needs no interpreter.
fn is_static(path: &Path) -> bool {
    const PT_INTERP: u32 = 3;
    let Ok(elf) = fs::read(path) else { return false };
    let u16_at = |o: usize| elf.get(o..o + 2).map_or(0, |b| usize::from(u16::from_le_bytes([b[0], b[1]])));
    let u32_at = |o: usize| elf.get(o..o + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    // 64-bit little-endian: program headers at e_phoff (offset 32), e_phentsize (54), e_phnum (56)
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return false;
    }
    (0..u16_at(56)).all(|n| u32_at(u32_at(32) as usize + n * u16_at(54)) != PT_INTERP)
}

/// A cpio archive in the `newc` form that the kernel unpacks.
#[derive(Default)]
struct Cpio {
    bytes: Vec<u8>,
    entries: u32,
}

impl Cpio {
    fn dir(&mut self, name: &str) {
        self.entry(name, 0o040_755, &[]);
    }

    fn file(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.entry(name, 0o100_000 | mode, data);
    }

    fn entry(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.entries += 1;
        let fields = [self.entries, mode, 0, 0, 1, 0, data.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(data);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archive_form() {
        let mut c = Cpio::default();
        c.file("init", 0o755, b"#!x");
        let bytes = c.finish();
        assert!(bytes.starts_with(b"070701"));
        assert_eq!(bytes.len() % 4, 0);
        // header 110, name 5, padded to 116, then the data
        assert_eq!(&bytes[116..119], b"#!x");
    }

    #[test]
    fn module_dependencies() {
        assert_eq!(depends(b"x\0license=GPL\0depends=virtio,virtio-ring\0y"), ["virtio", "virtio_ring"]);
        assert!(depends(b"\0depends=\0").is_empty());
        assert!(depends(b"nothing").is_empty());
    }

    #[test]
    fn the_script_names_what_the_checker_expects() {
        let s = script("");
        assert!(s.contains(counter::TAG) && s.contains("oflag=direct") && s.contains("fsync"));
    }
}
