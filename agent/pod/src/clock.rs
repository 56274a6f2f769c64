//! Wall-clock time as pod/v1 and logs tell it.

use std::io;
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};

pub(crate) use hartpod_logs::now_nanos;

/// Sets the machine's clock to these nanoseconds since the epoch.
pub(crate) fn set_clock(nanos: u64) -> io::Result<()> {
    let since_epoch = TimeSpec::from_duration(Duration::from_nanos(nanos));
    Ok(clock_settime(ClockId::CLOCK_REALTIME, since_epoch)?)
}
