//! Every operation on a volume in memory: its errors in tables, and long random walks against a tree of maps.

use super::*;
use crate::error::FsError;
use crate::orphan::{self, Reaped};
use crate::testkit::{Kit, kit, kit_of};
use crate::tx::Tx;
use crate::volume::Volume;
use crate::{dir, xattr};
use std::collections::{BTreeMap, BTreeSet};

fn root() -> Cred {
    Cred { umask: 0o022, ..Cred::default() }
}

fn ok<T>(v: &Volume, body: impl FnMut(&mut Tx<'_>) -> Step<T>) -> T {
    v.run(body).expect("succeeds")
}

fn errno<T>(v: &Volume, body: impl FnMut(&mut Tx<'_>) -> Step<T>) -> i32 {
    v.run(body).err().map_or(0, |e| e.errno())
}

fn file(v: &Volume, parent: Ino, name: &str) -> Ino {
    ok(v, |tx| create(tx, parent, name.as_bytes(), 0o644, 0, &root())).ino
}

fn folder(v: &Volume, parent: Ino, name: &str) -> Ino {
    ok(v, |tx| mkdir(tx, parent, name.as_bytes(), 0o755, &root())).ino
}

fn attr(v: &Volume, ino: Ino) -> Attr {
    ok(v, |tx| getattr(tx, ino))
}

fn look(v: &Volume, parent: Ino, name: &str) -> Option<Attr> {
    match v.run(|tx| lookup(tx, parent, name.as_bytes())) {
        Ok(a) => Some(a),
        Err(FsError::NotFound) => None,
        Err(e) => panic!("lookup {name}: {e}"),
    }
}

fn all_entries(v: &Volume, ino: Ino, page: usize) -> Vec<DirEntry> {
    let (mut out, mut cookie): (Vec<DirEntry>, u64) = (Vec::new(), 0);
    loop {
        let next = ok(v, |tx| readdir(tx, ino, cookie, page));
        let Some(last) = next.last() else { return out };
        assert!(last.cookie > cookie && last.cookie <= i64::MAX as u64);
        cookie = last.cookie;
        out.extend(next);
    }
}

/// Walks the whole volume from the root: every link, parent and count must agree. Returns inodes and their links.
pub(super) fn check(v: &Volume) -> BTreeMap<Ino, u32> {
    let top = v.sb.root_ino;
    let (mut links, mut todo) = (BTreeMap::<Ino, u32>::new(), vec![(top, top)]);
    while let Some((ino, parent)) = todo.pop() {
        let i = ok(v, |tx| dir::directory(tx, ino));
        assert_eq!(i.parent, parent, "parent of {ino}");
        let listed = ok(v, |tx| dir::list(tx, ino, 0, usize::MAX));
        assert_eq!(i.entries, listed.len() as u64, "entries of {ino}");
        assert_eq!(i.size, listed.iter().map(|l| luna_format::dir::record_bytes(l.name.len()) as u64).sum::<u64>());
        assert!(listed.windows(2).all(|w| (w[0].hash, &w[0].name) < (w[1].hash, &w[1].name)), "order of {ino}");
        let mut subdirs = 0;
        for l in listed {
            assert_eq!(ok(v, |tx| dir::find(tx, ino, &l.name)), Some(l.target));
            let a = attr(v, l.target.ino);
            assert_eq!((a.generation, (a.mode >> 12) as u8), (l.target.generation, l.target.kind));
            *links.entry(l.target.ino).or_default() += 1;
            if is_dir(a.mode) {
                subdirs += 1;
                todo.push((l.target.ino, ino));
            }
        }
        assert_eq!(i.nlink, 2 + subdirs, "links of directory {ino}");
    }
    for (ino, n) in &links {
        let a = attr(v, *ino);
        assert_eq!(if is_dir(a.mode) { 1 } else { a.nlink }, *n, "links of {ino}");
    }
    links
}

#[test]
fn a_name_is_made_found_and_removed() {
    let Kit { vol: v, .. } = kit();
    let top = v.sb.root_ino;
    let before = attr(&v, top);
    let f = ok(&v, |tx| create(tx, top, b"disk.img", 0o666, 0, &Cred { uid: 5, gid: 6, umask: 0o027, groups: None }));
    assert_eq!((f.mode, f.nlink, f.uid, f.gid, f.size, f.blocks512), (0o100_640, 1, 5, 6, 0, 0));
    assert_eq!(look(&v, top, "disk.img"), Some(f));
    assert_eq!(attr(&v, f.ino), f);
    let after = attr(&v, top);
    assert!(after.mtime_ns > before.mtime_ns && after.ctime_ns > before.ctime_ns && after.size > before.size);
    ok(&v, |tx| unlink(tx, top, b"disk.img"));
    assert_eq!(look(&v, top, "disk.img"), None);
    assert_eq!(attr(&v, f.ino).nlink, 0, "listed as an orphan");
    assert_eq!(orphan::reap(&v, f.ino).unwrap(), Reaped::Freed);
    assert_eq!(errno(&v, |tx| getattr(tx, f.ino)), libc::ESTALE);
    assert_eq!(orphan::reap(&v, f.ino).unwrap(), Reaped::Nothing);
    assert_eq!(attr(&v, top).size, before.size);
}

#[test]
fn every_type_can_be_made() {
    let Kit { vol: v, .. } = kit();
    let top = v.sb.root_ino;
    for (name, mode, rdev, expect) in [
        ("f", 0o644, 7, (0o100_644, 0)),
        ("p", 0o010_600, 7, (0o010_600, 0)),
        ("s", 0o140_777, 7, (0o140_755, 0)),
        ("c", 0o020_600, 0x105, (0o020_600, 0x105)),
        ("b", 0o060_600, 0x801, (0o060_600, 0x801)),
    ] {
        let a = ok(&v, |tx| create(tx, top, name.as_bytes(), mode, rdev, &root()));
        assert_eq!((a.mode, a.rdev), expect, "{name}");
        let entry = all_entries(&v, top, 100).into_iter().find(|e| e.name == name.as_bytes()).unwrap();
        assert_eq!((u32::from(entry.kind), entry.ino), (a.mode >> 12, a.ino));
    }
    assert_eq!(errno(&v, |tx| create(tx, top, b"x", 0o120_777, 0, &root())), libc::EINVAL);
    assert_eq!(errno(&v, |tx| create(tx, top, b"x", 0o040_777, 0, &root())), libc::EINVAL);
}

#[test]
fn errors_are_the_ones_of_the_manual() {
    let Kit { vol: v, .. } = kit();
    let top = v.sb.root_ino;
    let (f, d) = (file(&v, top, "f"), folder(&v, top, "d"));
    let (e, inner) = (folder(&v, top, "empty"), folder(&v, d, "inner"));
    file(&v, d, "g");
    let gone = file(&v, top, "gone");
    ok(&v, |tx| unlink(tx, top, b"gone"));
    let dead = folder(&v, top, "dead");
    ok(&v, |tx| rmdir(tx, top, b"dead"));
    let long = vec![b'n'; 256];
    type Body<'b> = Box<dyn FnMut(&mut Tx<'_>) -> Step<()> + 'b>;
    let rn = |p, n: &'static [u8], q, m: &'static [u8], fl| -> Body<'_> { Box::new(move |tx| rename(tx, p, n, q, m, fl)) };
    let c = root();
    let table: Vec<(&str, i32, Body<'_>)> = vec![
        ("create over file", libc::EEXIST, Box::new(|tx| create(tx, top, b"f", 0, 0, &c).map(|_| ()))),
        ("create over dir", libc::EEXIST, Box::new(|tx| create(tx, top, b"d", 0, 0, &c).map(|_| ()))),
        ("create below file", libc::ENOTDIR, Box::new(|tx| create(tx, f, b"x", 0, 0, &c).map(|_| ()))),
        ("create in removed dir", libc::ENOENT, Box::new(|tx| create(tx, dead, b"x", 0, 0, &c).map(|_| ()))),
        ("long name", libc::ENAMETOOLONG, Box::new(|tx| create(tx, top, &long, 0, 0, &c).map(|_| ()))),
        ("slash", libc::EINVAL, Box::new(|tx| create(tx, top, b"a/b", 0, 0, &c).map(|_| ()))),
        ("dot", libc::EINVAL, Box::new(|tx| mkdir(tx, top, b".", 0, &c).map(|_| ()))),
        ("mkdir over file", libc::EEXIST, Box::new(|tx| mkdir(tx, top, b"f", 0, &c).map(|_| ()))),
        ("lookup below file", libc::ENOTDIR, Box::new(|tx| lookup(tx, f, b"x").map(|_| ()))),
        ("lookup long", libc::ENAMETOOLONG, Box::new(|tx| lookup(tx, top, &long).map(|_| ()))),
        ("unlink dir", libc::EISDIR, Box::new(|tx| unlink(tx, top, b"d"))),
        ("unlink nothing", libc::ENOENT, Box::new(|tx| unlink(tx, top, b"nothing"))),
        ("rmdir file", libc::ENOTDIR, Box::new(|tx| rmdir(tx, top, b"f"))),
        ("rmdir full", libc::ENOTEMPTY, Box::new(|tx| rmdir(tx, top, b"d"))),
        ("rmdir nothing", libc::ENOENT, Box::new(|tx| rmdir(tx, top, b"nothing"))),
        ("rmdir .", libc::EINVAL, Box::new(|tx| rmdir(tx, top, b"."))),
        ("rmdir ..", libc::ENOTEMPTY, Box::new(|tx| rmdir(tx, top, b".."))),
        ("link dir", libc::EPERM, Box::new(|tx| link(tx, d, top, b"x").map(|_| ()))),
        ("link over", libc::EEXIST, Box::new(|tx| link(tx, f, top, b"d").map(|_| ()))),
        ("link without links", libc::ENOENT, Box::new(|tx| link(tx, gone, top, b"x").map(|_| ()))),
        ("link into removed dir", libc::ENOENT, Box::new(|tx| link(tx, f, dead, b"x").map(|_| ()))),
        ("symlink empty", libc::ENOENT, Box::new(|tx| symlink(tx, top, b"x", b"", &c).map(|_| ()))),
        ("symlink long", libc::ENAMETOOLONG, Box::new(|tx| symlink(tx, top, b"x", &[b'a'; TARGET_MAX + 1], &c).map(|_| ()))),
        ("readlink file", libc::EINVAL, Box::new(|tx| readlink(tx, f).map(|_| ()))),
        ("readdir file", libc::ENOTDIR, Box::new(|tx| readdir(tx, f, 0, 9).map(|_| ()))),
        ("rename nothing", libc::ENOENT, rn(top, b"nothing", top, b"x", 0)),
        ("rename file over dir", libc::EISDIR, rn(top, b"f", top, b"d", 0)),
        ("rename dir over file", libc::ENOTDIR, rn(top, b"d", top, b"f", 0)),
        ("rename dir over full dir", libc::ENOTEMPTY, rn(top, b"empty", top, b"d", 0)),
        ("rename below itself", libc::EINVAL, rn(top, b"d", d, b"x", 0)),
        ("rename below its child", libc::EINVAL, rn(top, b"d", inner, b"x", 0)),
        ("rename over parent", libc::ENOTEMPTY, rn(d, b"inner", top, b"d", 0)),
        ("rename noreplace", libc::EEXIST, rn(top, b"f", top, b"d", RENAME_NOREPLACE)),
        ("exchange with nothing", libc::ENOENT, rn(top, b"f", top, b"x", RENAME_EXCHANGE)),
        ("exchange with own child", libc::EINVAL, rn(top, b"d", d, b"inner", RENAME_EXCHANGE)),
        ("exchange with own parent", libc::EINVAL, rn(d, b"inner", top, b"d", RENAME_EXCHANGE)),
        ("whiteout", libc::EINVAL, rn(top, b"f", top, b"x", 4)),
        ("both flags", libc::EINVAL, rn(top, b"f", top, b"d", 3)),
        ("rename into removed dir", libc::ENOENT, rn(top, b"f", dead, b"x", 0)),
        ("rename into file", libc::ENOTDIR, rn(top, b"d", f, b"x", 0)),
    ];
    for (what, expected, body) in table {
        assert_eq!(errno(&v, body), expected, "{what}");
    }
    assert_eq!(check(&v).len(), 5, "no error left a trace");
    assert_eq!(attr(&v, e).nlink, 2);
}

#[test]
fn renames_of_every_sort() {
    let Kit { vol: v, .. } = kit();
    let top = v.sb.root_ino;
    let (a, b) = (folder(&v, top, "a"), folder(&v, top, "b"));
    let f = file(&v, a, "f");
    let ren = |p, n: &str, q, m: &str, fl| ok(&v, |tx| rename(tx, p, n.as_bytes(), q, m.as_bytes(), fl));
    ren(a, "f", a, "g", 0);
    ren(a, "g", b, "h", RENAME_NOREPLACE);
    assert_eq!((look(&v, a, "g"), look(&v, b, "h").map(|x| x.ino)), (None, Some(f)));
    ok(&v, |tx| link(tx, f, a, b"same"));
    ren(a, "same", b, "h", 0);
    assert_eq!((attr(&v, f).nlink, look(&v, a, "same").is_some()), (2, true), "two names of one file: nothing happens");
    ren(b, "h", b, "h", 0);
    let victim = file(&v, a, "victim");
    ren(b, "h", a, "victim", 0);
    assert_eq!((attr(&v, victim).nlink, look(&v, a, "victim").map(|x| x.ino)), (0, Some(f)));
    let sub = folder(&v, a, "sub");
    assert_eq!((attr(&v, a).nlink, attr(&v, b).nlink), (3, 2));
    ren(a, "sub", b, "moved", 0);
    assert_eq!((attr(&v, a).nlink, attr(&v, b).nlink, look(&v, sub, "..").map(|x| x.ino)), (2, 3, Some(b)));
    let empty = folder(&v, a, "empty");
    ren(b, "moved", a, "empty", 0);
    assert_eq!((attr(&v, a).nlink, attr(&v, b).nlink, attr(&v, empty).nlink), (3, 2, 0), "directory over empty directory");
    file(&v, b, "x");
    ren(a, "empty", b, "x", RENAME_EXCHANGE);
    assert_eq!(
        (attr(&v, a).nlink, attr(&v, b).nlink, look(&v, sub, "..").map(|x| x.ino)),
        (2, 3, Some(b)),
        "directory and file change places"
    );
    assert!(!is_dir(look(&v, a, "empty").unwrap().mode));
    check(&v);
    assert_eq!(orphan::sweep(&v, 0).unwrap(), orphan::Sweep { freed: 2, in_use: 0, failed: 0 });
}

#[test]
fn setgid_and_chown_follow_the_manual() {
    let Kit { vol: v, .. } = kit();
    let top = v.sb.root_ino;
    let d = folder(&v, top, "d");
    let user = Cred { uid: 1000, gid: 1000, groups: Some(vec![50]), umask: 0 };
    let set = |ino, s: SetAttr| ok(&v, |tx| setattr(tx, ino, &s, &user));
    set(d, SetAttr { gid: Some(50), ..SetAttr::default() });
    assert_eq!(ok(&v, |tx| setattr(tx, d, &SetAttr { mode: Some(0o2775), ..SetAttr::default() }, &root())).mode, 0o042_775);
    let sub = ok(&v, |tx| mkdir(tx, d, b"sub", 0o755, &user));
    let f = ok(&v, |tx| create(tx, d, b"f", 0o755, 0, &user));
    assert_eq!((sub.gid, sub.mode, f.gid, f.mode), (50, 0o042_755, 50, 0o100_755));
    let cases = [(0o6755, 0o755), (0o6745, 0o2745), (0o4644, 0o644), (0o1755, 0o1755)];
    for (before, after) in cases {
        let was = ok(&v, |tx| setattr(tx, f.ino, &SetAttr { mode: Some(before), ..SetAttr::default() }, &root()));
        assert_eq!(was.mode & 0o7777, before);
        let now = set(f.ino, SetAttr { uid: Some(7), ..SetAttr::default() });
        assert_eq!((now.mode & 0o7777, now.uid), (after, 7), "chown of {before:o}");
        assert!(now.ctime_ns > was.ctime_ns && now.mtime_ns == was.mtime_ns);
    }
    let t = set(f.ino, SetAttr { atime: Some(When::Set(5)), mtime: Some(When::Set(-6)), ..SetAttr::default() });
    assert_eq!((t.atime_ns, t.mtime_ns), (5, -6));
    assert!(set(f.ino, SetAttr { mtime: Some(When::Now), ..SetAttr::default() }).mtime_ns > t.ctime_ns);
    assert_eq!(set(f.ino, SetAttr { mode: Some(0o2755), gid: Some(99), ..SetAttr::default() }).mode & 0o7777, 0o755, "not in group 99");
}

#[test]
fn links_and_symlinks() {
    let Kit { vol: v, .. } = kit();
    let top = v.sb.root_ino;
    let f = file(&v, top, "f");
    assert_eq!(ok(&v, |tx| link(tx, f, top, b"g")).nlink, 2);
    ok(&v, |tx| unlink(tx, top, b"f"));
    assert_eq!((attr(&v, f).nlink, look(&v, top, "g").map(|a| a.ino)), (1, Some(f)));
    for len in [1, 60, TARGET_MAX] {
        let target: Vec<u8> = (0..len).map(|i| b'a' + (i % 26) as u8).collect();
        let name = format!("s{len}");
        let s = ok(&v, |tx| symlink(tx, top, name.as_bytes(), &target, &root()));
        assert_eq!((s.size, s.mode, ok(&v, |tx| readlink(tx, s.ino))), (len as u64, 0o120_777, target));
    }
}

#[test]
fn attributes_of_every_name() {
    let k = kit();
    let v = k.vol.clone();
    let f = file(&v, v.sb.root_ino, "f");
    let set = |n: &[u8], val: &[u8], fl| errno(&v, |tx| xattr::set(tx, f, n, val, fl));
    let get = |n: &[u8]| v.run(|tx| xattr::get(tx, f, n)).map_err(|e| e.errno());
    assert_eq!(get(b"user.a"), Err(libc::ENODATA));
    assert_eq!(set(b"user.a", b"1", xattr::REPLACE), libc::ENODATA);
    assert_eq!(set(b"user.a", b"1", xattr::CREATE), 0);
    assert_eq!(set(b"user.a", b"2", xattr::CREATE), libc::EEXIST);
    assert_eq!(set(b"user.a", b"three", xattr::REPLACE), 0);
    assert_eq!(set(b"system.posix_acl_access", &[2, 0, 0, 0], 0), libc::EOPNOTSUPP);
    assert_eq!(set(b"trusted.empty", b"", 0), 0);
    for (name, expected) in
        [(&b"user."[..], libc::EOPNOTSUPP), (b"other.x", libc::EOPNOTSUPP), (b"", libc::EINVAL), (&[b'u'; 256], libc::ERANGE)]
    {
        assert_eq!(set(name, b"", 0), expected);
    }
    assert_eq!((get(b"user.a"), get(b"trusted.empty")), (Ok(b"three".to_vec()), Ok(vec![])));
    assert_eq!(ok(&v, |tx| xattr::list(tx, f)), b"user.a\0trusted.empty\0");
    assert_eq!(set(b"user.big", &[7; 4096], 0), libc::ENOSPC);
    assert_eq!(set(b"user.fits", &[7; 3500], 0), 0);
    assert_eq!(attr(&v, f).blocks512, 8);
    drop(v);
    let k = k.remount();
    let v = k.vol.clone();
    assert_eq!(ok(&v, |tx| xattr::get(tx, f, b"user.fits")).len(), 3500);
    for n in [&b"user.a"[..], b"user.fits", b"trusted.empty"] {
        ok(&v, |tx| xattr::remove(tx, f, n));
    }
    assert_eq!(errno(&v, |tx| xattr::remove(tx, f, b"user.a")), libc::ENODATA);
    assert_eq!((attr(&v, f).blocks512, ok(&v, |tx| xattr::list(tx, f))), (0, vec![]));
}

#[test]
fn an_open_orphan_waits_for_its_last_close() {
    let k = kit();
    let v = k.vol.clone();
    let f = file(&v, v.sb.root_ino, "f");
    ok(&v, |tx| xattr::set(tx, f, b"user.a", b"1", 0));
    let open = v.locks.hold(&crate::names::open(f), luna_dlm::Mode::Pr).unwrap();
    ok(&v, |tx| unlink(tx, tx.sb.root_ino, b"f"));
    assert_eq!(orphan::reap(&v, f).unwrap(), Reaped::InUse);
    assert_eq!(orphan::sweep(&v, 0).unwrap(), orphan::Sweep { freed: 0, in_use: 1, failed: 0 });
    assert_eq!(attr(&v, f).nlink, 0);
    drop(open);
    assert_eq!(orphan::reap(&v, f).unwrap(), Reaped::Freed);
    let again = ok(&v, |tx| create(tx, tx.sb.root_ino, b"again", 0, 0, &root()));
    assert_eq!(ok(&v, |tx| dir::list(tx, tx.sb.orphan_dir(0), 0, 9)), []);
    assert!(again.ino != f || again.generation > 1);
}

#[test]
fn orphans_survive_a_crash_and_numbers_come_back_as_others() {
    let mut k = kit();
    let mut seen: BTreeSet<(Ino, u64)> = BTreeSet::new();
    let mut reused = false;
    for round in 0..4 {
        let v = k.vol.clone();
        let top = v.sb.root_ino;
        for n in 0..50 {
            let a = ok(&v, |tx| create(tx, top, format!("f{n}").as_bytes(), 0, 0, &root()));
            reused |= seen.iter().any(|(ino, _)| *ino == a.ino);
            assert!(seen.insert((a.ino, a.generation)), "round {round}: number and generation come twice");
        }
        for n in 0..50 {
            ok(&v, |tx| unlink(tx, top, format!("f{n}").as_bytes()));
        }
        v.sync_all().unwrap();
        drop(v);
        k = k.crash();
        assert_eq!(orphan::sweep(&k.vol, 0).unwrap(), orphan::Sweep { freed: 50, in_use: 0, failed: 0 });
        check(&k.vol);
        k.vol.checkpoint().unwrap();
    }
    assert!(reused, "some number was used twice");
}

#[test]
fn the_reaper_thread_frees_what_it_is_told() {
    let k = kit();
    let v = k.vol.clone();
    let (f, d) = (file(&v, v.sb.root_ino, "f"), folder(&v, v.sb.root_ino, "d"));
    ok(&v, |tx| unlink(tx, tx.sb.root_ino, b"f"));
    let reaper = orphan::Reaper::start(v.clone()).unwrap();
    ok(&v, |tx| rmdir(tx, tx.sb.root_ino, b"d"));
    reaper.wake(d);
    for ino in [f, d] {
        for _ in 0..1000 {
            if errno(&v, |tx| getattr(tx, ino)) == libc::ESTALE {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert_eq!(errno(&v, |tx| getattr(tx, ino)), libc::ESTALE);
    }
    reaper.stop();
}

#[test]
fn readdir_pages_are_stable_while_names_come_and_go() {
    let Kit { vol: v, .. } = kit();
    let top = v.sb.root_ino;
    let names: BTreeSet<String> = (0..3000).map(|n| format!("stays-{n}")).collect();
    for n in &names {
        file(&v, top, n);
    }
    for page in [1, 2, 3, 7, 1000, 100_000] {
        let entries = all_entries(&v, top, page);
        assert_eq!(
            (&entries[0].name[..], &entries[1].name[..], entries.len()),
            (&b"."[..], &b".."[..], names.len() + 2),
            "pages of {page}"
        );
        if page > 3 {
            continue;
        }
        let unique: BTreeSet<u64> = entries.iter().map(|e| e.cookie).collect();
        assert_eq!(unique.len(), entries.len());
    }
    let (mut cookie, mut got, mut n) = (0, BTreeSet::new(), 0);
    loop {
        let page = ok(&v, |tx| readdir(tx, top, cookie, 100));
        let Some(last) = page.last() else { break };
        cookie = last.cookie;
        for e in page {
            assert!(got.insert(String::from_utf8(e.name).unwrap()), "an entry came twice");
        }
        for _ in 0..40 {
            file(&v, top, &format!("comes-{n}"));
            if n >= 40 {
                ok(&v, |tx| unlink(tx, top, format!("comes-{}", n - 40).as_bytes()));
            }
            n += 1;
        }
    }
    assert!(names.is_subset(&got), "an entry that was there all the time was missed");
}

#[test]
fn a_hundred_thousand_names() {
    // LUNA_NAMES=1000000 for a long run
    let many = std::env::var("LUNA_NAMES").ok().and_then(|s| s.parse().ok()).unwrap_or(100_000);
    let mut k = kit_of(4 << 30, 2);
    let top = k.vol.sb.root_ino;
    let d = folder(&k.vol, top, "d");
    let target = file(&k.vol, top, "target");
    let t = dir::Target { ino: target, generation: attr(&k.vol, target).generation, kind: 8 };
    let name = |n: u32| format!("a name of some length {n}").into_bytes();
    for n in 0..many {
        ok(&k.vol, |tx| dir::insert(tx, d, &name(n), &t));
    }
    k = k.remount();
    let i = ok(&k.vol, |tx| dir::directory(tx, d));
    assert_eq!(i.entries, u64::from(many));
    println!("depth {}, root entries {}, blocks {}", i.depth, i.count, i.blocks);
    for n in (0..many).step_by(17) {
        assert_eq!(ok(&k.vol, |tx| dir::find(tx, d, &name(n))), Some(t), "{n}");
    }
    assert_eq!(ok(&k.vol, |tx| dir::find(tx, d, &name(many))), None);
    assert_eq!(all_entries(&k.vol, d, 1000).len(), many as usize + 2);
    let mut rng = fastrand::Rng::with_seed(5);
    let mut order: Vec<u32> = (0..many).collect();
    rng.shuffle(&mut order);
    for (done, n) in order.iter().enumerate() {
        ok(&k.vol, |tx| dir::remove(tx, d, &name(*n)));
        if done % 20_000 == 0 {
            assert_eq!(ok(&k.vol, |tx| dir::list(tx, d, 0, usize::MAX)).len(), many as usize - done - 1);
        }
    }
    k.vol.checkpoint().unwrap();
    let used = crate::testkit::audit(&*k.disk);
    assert_eq!(used.meta.len(), 1 + 2 + 2, "root, two orphan directories, the directory and the target");
    let i = ok(&k.vol, |tx| dir::directory(tx, d));
    assert_eq!((i.entries, i.size, i.blocks, i.inline_len, i.layout), (0, 0, 0, 0, luna_format::inode::Layout::DirInline as u8));
}

#[test]
fn a_full_directory_is_cleared_in_steps() {
    let Kit { vol: v, .. } = kit();
    let d = folder(&v, v.sb.root_ino, "d");
    let t = dir::Target { ino: d, generation: 1, kind: 4 };
    for n in 0..5000 {
        ok(&v, |tx| dir::insert(tx, d, format!("{n}").as_bytes(), &t));
    }
    let mut steps = 0;
    while !ok(&v, |tx| dir::clear(tx, d, 8)) {
        steps += 1;
    }
    let i = ok(&v, |tx| dir::directory(tx, d));
    assert_eq!((i.entries, i.size, i.blocks), (0, 0, 0));
    assert!(steps > 5, "{steps}");
}

/// What the volume should be: directories as maps, files as numbers of links.
#[derive(Default)]
struct Model {
    dirs: BTreeMap<Ino, BTreeMap<Vec<u8>, Ino>>,
    parents: BTreeMap<Ino, Ino>,
    links: BTreeMap<Ino, u32>,
}

impl Model {
    fn below(&self, mut dir: Ino, top: Ino) -> bool {
        while dir != top {
            match self.parents.get(&dir) {
                Some(p) if *p != dir => dir = *p,
                _ => return false,
            }
        }
        true
    }

    fn drop_name(&mut self, ino: Ino) {
        if self.dirs.remove(&ino).is_some() {
            self.parents.remove(&ino);
        } else if let Some(n) = self.links.get_mut(&ino) {
            *n -= 1;
            if *n == 0 {
                self.links.remove(&ino);
            }
        }
    }

    fn get(&self, d: Ino, n: &[u8]) -> Option<Ino> {
        self.dirs[&d].get(n).copied()
    }

    /// The errno of a rename, and its effect.
    fn rename(&mut self, d: Ino, n: &[u8], e: Ino, m: &[u8], flags: u32) -> i32 {
        let Some(s) = self.get(d, n) else { return libc::ENOENT };
        let t = self.get(e, m);
        match t {
            None if flags == RENAME_EXCHANGE => return libc::ENOENT,
            Some(_) if flags == RENAME_NOREPLACE => return libc::EEXIST,
            Some(t) if t == s => return 0,
            _ => {}
        }
        let is_dir = |m: &Self, i: Ino| m.dirs.contains_key(&i);
        if d != e && is_dir(self, s) && self.below(e, s) {
            return libc::EINVAL;
        }
        if let Some(t) = t {
            if flags == RENAME_EXCHANGE {
                if d != e && is_dir(self, t) && self.below(d, t) {
                    return libc::EINVAL;
                }
                self.dirs.get_mut(&d).unwrap().insert(n.to_vec(), t);
                self.parents.entry(t).and_modify(|p| *p = d);
            } else {
                match (is_dir(self, s), is_dir(self, t)) {
                    (true, false) => return libc::ENOTDIR,
                    (false, true) => return libc::EISDIR,
                    (true, true) if !self.dirs[&t].is_empty() => return libc::ENOTEMPTY,
                    _ => self.drop_name(t),
                }
            }
        }
        if flags != RENAME_EXCHANGE || t.is_none() {
            self.dirs.get_mut(&d).unwrap().remove(n);
        }
        self.dirs.get_mut(&e).unwrap().insert(m.to_vec(), s);
        self.parents.entry(s).and_modify(|p| *p = e);
        0
    }
}

/// Every block in use is one that the tree reaches: inodes, directory blocks, orphans. Everything must be at home.
fn check_space(k: &Kit) {
    k.vol.checkpoint().unwrap();
    check_space_of(&k.vol, &k.disk);
}

pub(super) fn check_space_of(v: &Volume, disk: &luna_lun::memory::MemoryDisk) {
    let sb = &v.sb;
    let own = 1 + u64::from(sb.slots);
    let mut expected = own + blocks_of(v, sb.root_ino) + (0..sb.slots as u16).map(|s| blocks_of(v, sb.orphan_dir(s))).sum::<u64>();
    let mut inos: BTreeSet<Ino> = check(v).into_keys().collect();
    for s in 0..sb.slots as u16 {
        inos.extend(ok(v, |tx| dir::list(tx, sb.orphan_dir(s), 0, usize::MAX)).iter().map(|l| l.target.ino));
    }
    for ino in inos {
        expected += 1 + blocks_of(v, ino);
    }
    let used = crate::testkit::audit(disk);
    assert_eq!((used.data.len() as u64, used.meta.len() as u64), (0, expected), "blocks in use");
}

fn blocks_of(v: &Volume, ino: Ino) -> u64 {
    ok(v, |tx| crate::inode::get(tx, ino)).blocks
}

fn compare(v: &Volume, m: &Model) {
    check(v);
    for (d, names) in &m.dirs {
        let listed: BTreeMap<Vec<u8>, Ino> =
            ok(v, |tx| dir::list(tx, *d, 0, usize::MAX)).into_iter().map(|l| (l.name, l.target.ino)).collect();
        assert_eq!(&listed, names, "directory {d}");
    }
    for (f, n) in &m.links {
        assert_eq!(attr(v, *f).nlink, *n);
    }
}

fn random_walk(seed: u64, steps: u32, width: u32) {
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut k = kit();
    let top = k.vol.sb.root_ino;
    let mut m = Model::default();
    m.dirs.insert(top, BTreeMap::new());
    m.parents.insert(top, top);
    for step in 0..steps {
        let v = k.vol.clone();
        let dirs: Vec<Ino> = m.dirs.keys().copied().collect();
        let (d, e) = (dirs[rng.usize(..dirs.len())], dirs[rng.usize(..dirs.len())]);
        let name = |rng: &mut fastrand::Rng| format!("{}{}", "long".repeat(rng.usize(..30)), rng.u32(..width)).into_bytes();
        let (n, o) = (name(&mut rng), name(&mut rng));
        let there = m.get(d, &n);
        let fail = |r: Result<(), FsError>| r.err().map_or(0, |e| e.errno());
        match rng.u32(..100) {
            0..35 => match v.run(|tx| create(tx, d, &n, 0o644, 0, &root())) {
                Ok(a) => {
                    assert_eq!(there, None);
                    m.dirs.get_mut(&d).unwrap().insert(n, a.ino);
                    m.links.insert(a.ino, 1);
                }
                Err(x) => assert!(x.errno() == libc::EEXIST && there.is_some(), "step {step}: {x}"),
            },
            35..42 => match v.run(|tx| mkdir(tx, d, &n, 0o755, &root())) {
                Ok(a) => {
                    m.dirs.get_mut(&d).unwrap().insert(n, a.ino);
                    m.dirs.insert(a.ino, BTreeMap::new());
                    m.parents.insert(a.ino, d);
                }
                Err(x) => assert!(x.errno() == libc::EEXIST && there.is_some(), "step {step}: {x}"),
            },
            42..60 => {
                let expected = there.map_or(libc::ENOENT, |i| if m.dirs.contains_key(&i) { libc::EISDIR } else { 0 });
                assert_eq!(fail(v.run(|tx| unlink(tx, d, &n))), expected, "step {step}");
                if expected == 0 {
                    m.dirs.get_mut(&d).unwrap().remove(&n);
                    m.drop_name(there.unwrap());
                }
            }
            60..66 => {
                let expected = there
                    .map_or(libc::ENOENT, |i| m.dirs.get(&i).map_or(libc::ENOTDIR, |x| if x.is_empty() { 0 } else { libc::ENOTEMPTY }));
                assert_eq!(fail(v.run(|tx| rmdir(tx, d, &n))), expected, "step {step}");
                if expected == 0 {
                    m.dirs.get_mut(&d).unwrap().remove(&n);
                    m.drop_name(there.unwrap());
                }
            }
            66..74 => {
                let Some(f) = there.filter(|i| m.links.contains_key(i)) else { continue };
                let expected = if m.get(e, &o).is_some() { libc::EEXIST } else { 0 };
                assert_eq!(fail(v.run(|tx| link(tx, f, e, &o).map(|_| ()))), expected, "step {step}");
                if expected == 0 {
                    m.dirs.get_mut(&e).unwrap().insert(o, f);
                    *m.links.get_mut(&f).unwrap() += 1;
                }
            }
            74..98 => {
                let flags = rng.u32(..3);
                let expected = m.rename(d, &n, e, &o, flags);
                assert_eq!(fail(v.run(|tx| rename(tx, d, &n, e, &o, flags))), expected, "step {step} flags {flags}");
            }
            98 => {
                orphan::sweep(&v, 0).unwrap();
                drop(v);
                if rng.u32(..8) == 0 {
                    k = k.remount();
                }
            }
            _ => {
                if rng.u32(..8) == 0 {
                    v.sync_all().unwrap();
                    drop(v);
                    k = k.crash();
                }
            }
        }
        if step % 500 == 499 {
            compare(&k.vol, &m);
            check_space(&k);
        }
    }
    compare(&k.vol, &m);
    orphan::sweep(&k.vol, 0).unwrap();
    let k = k.remount();
    compare(&k.vol, &m);
    check_space(&k);
    assert_eq!(ok(&k.vol, |tx| dir::list(tx, tx.sb.orphan_dir(0), 0, 9)), []);
}

#[test]
fn random_namespaces_match_a_model() {
    let first = std::env::var("LUNA_SEED").ok().and_then(|s| s.parse().ok());
    for seed in first.map_or(1..=4, |s: u64| s..=s) {
        random_walk(seed, 4000, 12);
    }
}

#[test]
fn random_wide_directories_match_a_model() {
    random_walk(77, 6000, 3000);
}

/// The lemma of `docs/recovery.md`: once a group is another host's, this host's log has no image that is newer than home, also of
/// blocks that were freed before they went home. Otherwise replay could put one over what the new owner writes.
#[test]
fn a_group_given_back_leaves_nothing_newer_in_the_log() {
    let k = kit();
    let (v, top) = (&k.vol, k.sb().root_ino);
    let d = folder(v, top, "d");
    let names: Vec<String> = (0..300).map(|n| format!("a name long enough to fill the blocks of a directory {n}")).collect();
    let files: Vec<Ino> = names.iter().map(|n| file(v, d, n)).collect();
    names.iter().for_each(|n| ok(v, |tx| unlink(tx, d, n.as_bytes())));
    files.iter().for_each(|i| assert_eq!(orphan::reap(v, *i).unwrap(), Reaped::Freed));
    ok(v, |tx| rmdir(tx, top, b"d"));
    assert_eq!(orphan::reap(v, d).unwrap(), Reaped::Freed);
    (0..k.sb().ag_count).for_each(|g| v.write_back(&crate::names::group(g)).unwrap());
    let disk = k.disk.snapshot();
    let region = k.sb().journal_region(v.slot);
    let plan = luna_journal::plan(&disk, v.id, region, k.sb().homes(), v.slot, luna_journal::ReplayProof::FirstMount).unwrap();
    let mut freed = 0;
    for (block, image) in plan.images() {
        let mut home = luna_format::Block::zeroed();
        luna_lun::Disk::read_at(&disk, &mut home.0, block * luna_format::BLOCK_U64).unwrap();
        let found = luna_format::peek(&home, &v.id, block).map_or(0, |h| h.version);
        assert!(found >= image.header().version, "block {block}: {found} at home, {} in the log", image.header().version);
        freed += u64::from(v.meta.lock().get(block).is_none());
    }
    assert!(freed > 3, "{freed} freed blocks are in the log: too few to mean anything");
}
