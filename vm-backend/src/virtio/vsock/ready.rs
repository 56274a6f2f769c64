//! The one word that a guest may say by itself.

use std::fmt;
use std::sync::{Mutex, PoisonError};

/// The host port whose first connection attempt means that the guest is ready. It is refused like every other.
pub(super) const READY_PORT: u32 = 1024;

/// A call that happens once, however often and from however many lives of the device it is asked for.
pub(super) struct ReadySignal {
    /// What to call, until it was called.
    call: Mutex<Option<Box<dyn Fn() + Send>>>,
}

impl ReadySignal {
    pub(super) fn new(call: Box<dyn Fn() + Send>) -> Self {
        Self { call: Mutex::new(Some(call)) }
    }

    pub(super) fn raise(&self) {
        let call = self.call.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(call) = call {
            call();
        }
    }
}

impl fmt::Debug for ReadySignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReadySignal")
    }
}
