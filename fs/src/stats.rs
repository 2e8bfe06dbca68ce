//! Small looks at a volume for status and statfs. Changes nothing. Not here: counting (the parts count themselves).

use crate::volume::Volume;

impl Volume {
    /// Blocks of the volume and how many are free, as far as this host knows.
    pub fn space(&self) -> (u64, u64) {
        let t = crate::alloc::statfs(self);
        (t.blocks, t.free)
    }

    /// Metadata blocks in the cache, and how many of them are dirty.
    pub fn meta_counts(&self) -> (usize, usize) {
        self.meta.lock().counts()
    }
}
