//! Operation bodies, one file each.
