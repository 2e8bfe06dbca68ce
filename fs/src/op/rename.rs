//! rename(2) in all its cases.
//!
//! When a directory changes its parent, the volume's rename right is taken, so that the parents seen on the way to the root
//! stay what they are. New names are made before old ones go: a block freed here is never needed here.

use super::lookup::led_to;
use super::unlink::{drop_dir, drop_file};
use super::{LINK_MAX, is_dir, parent_for_change, stamp};
use crate::dir::{self, Target};
use crate::error::{FsError, Step};
use crate::tx::{Effect, Tx};
use crate::{inode, names};
use luna_dlm::Mode;
use luna_format::Ino;

/// Fail with EEXIST when the new name is taken.
pub const RENAME_NOREPLACE: u32 = 1;
/// Both names must be there and change places.
pub const RENAME_EXCHANGE: u32 = 2;
/// Directories deeper than this are taken for a loop.
const MAX_DEPTH: u32 = 1 << 16;

/// A name and where it is.
#[derive(Clone, Copy)]
struct Spot<'a> {
    parent: Ino,
    name: &'a [u8],
}

/// Renames.
pub fn rename(tx: &mut Tx<'_>, parent: Ino, name: &[u8], newparent: Ino, newname: &[u8], flags: u32) -> Step<()> {
    if flags & !(RENAME_NOREPLACE | RENAME_EXCHANGE) != 0 || flags == RENAME_NOREPLACE | RENAME_EXCHANGE {
        return Err(FsError::Invalid("rename flags").into());
    }
    dir::valid(name)?;
    dir::valid(newname)?;
    let (from, to) = (Spot { parent, name }, Spot { parent: newparent, name: newname });
    let (low, high) = (parent.min(newparent), parent.max(newparent));
    parent_for_change(tx, low)?;
    parent_for_change(tx, high)?;
    let Some(source) = dir::find(tx, parent, name)? else { return Err(FsError::NotFound.into()) };
    let target = dir::find(tx, newparent, newname)?;
    match target {
        None if flags & RENAME_EXCHANGE != 0 => Err(FsError::NotFound.into()),
        Some(_) if flags & RENAME_NOREPLACE != 0 => Err(FsError::Exists.into()),
        Some(t) if t.ino == source.ino => Ok(()),
        Some(t) if flags & RENAME_EXCHANGE != 0 => exchange(tx, from, to, &source, &t),
        _ => shift(tx, from, to, &source, target.as_ref()),
    }
}

fn of_dir(t: &Target) -> bool {
    is_dir(u32::from(t.kind) << 12)
}

/// Takes all rights before anything is read, in the order in which they are numbered.
fn take_rights(tx: &mut Tx<'_>, from: Spot<'_>, to: Spot<'_>, moved: &[&Target]) -> Step<()> {
    if from.parent != to.parent && moved.iter().any(|t| of_dir(t)) {
        tx.need(names::rename(), Mode::Ex)?;
    }
    let mut inos: Vec<Ino> = moved.iter().map(|t| t.ino).collect();
    inos.sort_unstable();
    for ino in inos {
        tx.need(names::inode(ino), Mode::Ex)?;
        led_to(tx, ino)?;
    }
    Ok(())
}

/// Whether `dir` lies in the tree below `top`, or is it.
fn below(tx: &mut Tx<'_>, dir: Ino, top: Ino) -> Step<bool> {
    let mut at = dir;
    for _ in 0..MAX_DEPTH {
        if at == top {
            return Ok(true);
        }
        if at == tx.sb.root_ino {
            return Ok(false);
        }
        at = dir::directory(tx, at)?.parent;
    }
    Err(FsError::Damaged { ino: dir, what: "the way to the root does not end" }.into())
}

fn shift(tx: &mut Tx<'_>, from: Spot<'_>, to: Spot<'_>, source: &Target, target: Option<&Target>) -> Step<()> {
    let (source_dir, target_dir) = (of_dir(source), target.is_some_and(of_dir));
    let moves = source_dir && from.parent != to.parent;
    // the replaced directory does not move, but asking for the rename right before looking costs nothing here
    let rights: Vec<&Target> = std::iter::once(source).chain(target).collect();
    take_rights(tx, from, to, &rights)?;
    if moves && below(tx, to.parent, source.ino)? {
        return Err(FsError::Invalid("a directory cannot move below itself").into());
    }
    match target {
        Some(_) if source_dir && !target_dir => return Err(FsError::NotDir.into()),
        Some(_) if !source_dir && target_dir => return Err(FsError::IsDir.into()),
        Some(t) if target_dir => drop_dir(tx, t.ino)?,
        Some(t) => drop_file(tx, t.ino)?,
        None => {}
    }
    if moves && !target_dir && inode::get(tx, to.parent)?.nlink >= LINK_MAX {
        return Err(FsError::TooManyLinks.into());
    }
    match target {
        Some(_) => dir::replace(tx, to.parent, to.name, source)?,
        None => dir::insert(tx, to.parent, to.name, source)?,
    }
    dir::remove(tx, from.parent, from.name)?;
    settle(tx, source, to.parent)?;
    links(tx, from.parent, if source_dir { -1 } else { 0 })?;
    links(tx, to.parent, i64::from(source_dir) - i64::from(target_dir))
}

fn exchange(tx: &mut Tx<'_>, from: Spot<'_>, to: Spot<'_>, source: &Target, target: &Target) -> Step<()> {
    take_rights(tx, from, to, &[source, target])?;
    if from.parent != to.parent
        && (of_dir(source) && below(tx, to.parent, source.ino)? || of_dir(target) && below(tx, from.parent, target.ino)?)
    {
        return Err(FsError::Invalid("a directory cannot move below itself").into());
    }
    dir::replace(tx, to.parent, to.name, source)?;
    dir::replace(tx, from.parent, from.name, target)?;
    settle(tx, source, to.parent)?;
    settle(tx, target, from.parent)?;
    let change = i64::from(of_dir(target)) - i64::from(of_dir(source));
    links(tx, from.parent, change)?;
    links(tx, to.parent, -change)
}

/// What was renamed has a new change time and, if a directory, perhaps a new parent.
fn settle(tx: &mut Tx<'_>, t: &Target, parent: Ino) -> Step<()> {
    let now = tx.now_ns;
    inode::update(tx, t.ino, |i| {
        stamp(i, now);
        if of_dir(t) {
            i.parent = parent;
        }
    })?;
    tx.effect(Effect::Inode(t.ino));
    Ok(())
}

fn links(tx: &mut Tx<'_>, dir: Ino, change: i64) -> Step<()> {
    inode::update(tx, dir, |i| i.nlink = (i64::from(i.nlink) + change).clamp(0, i64::from(u32::MAX)) as u32)
}
