//! The guest's RAM as devices see it.

use std::sync::Arc;

/// Guest RAM: every access is checked against its bounds; contents may change under the reader at any time.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;

/// A handle of it that device threads hold.
pub type GuestRam = Arc<GuestMemory>;
