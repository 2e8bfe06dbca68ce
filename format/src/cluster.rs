//! Slot blocks: beat, Disk Paxos register, membership record, mailbox. (Filled in by the cluster work.)
