//! Wall-clock time as pod/v1 and logs tell it.

use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};

/// Now, in nanoseconds since the Unix epoch; a clock before 1970 gives 0. Good until the year 2262.
pub(crate) fn now_nanos() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Sets the machine's clock to these nanoseconds since the epoch.
pub(crate) fn set_clock(nanos: u64) -> io::Result<()> {
    let since_epoch = TimeSpec::from_duration(Duration::from_nanos(nanos));
    Ok(clock_settime(ClockId::CLOCK_REALTIME, since_epoch)?)
}
