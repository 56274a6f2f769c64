//! The head of a CRI log line: `2026-11-22T17:36:01.000000042Z stdout F `.
//!
//! Always UTC and always nine digits (kubelet parses RFC 3339 with any number of them), so that every head of a stream has
//! one length and lines sort as text.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::frame::Tag;

/// Bytes of a head: the time, and ` stdout F `.
pub(crate) const HEAD: usize = 30 + 10;

/// Now, in nanoseconds since the Unix epoch; a clock before 1970 gives 0. Good until the year 2262.
#[must_use]
pub fn now_nanos() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Which stream a line was read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// The head of a line of `stream` with `tag`, stamped with `nanos` since the epoch.
pub(crate) fn head(nanos: i64, stream: Stream, tag: Tag) -> [u8; HEAD] {
    let nanos = nanos.unsigned_abs();
    let seconds = nanos / 1_000_000_000;
    let (year, month, day) = civil_from_days(seconds / 86_400);
    let mut head = *b"0000-00-00T00:00:00.000000000Z stdout F ";
    let mut put = |at: usize, digits: usize, mut value: u64| {
        for place in head[at..at + digits].iter_mut().rev() {
            // A remainder of 10 fits any integer.
            *place = b'0' + u8::try_from(value % 10).unwrap_or_default();
            value /= 10;
        }
    };
    put(0, 4, year);
    put(5, 2, month);
    put(8, 2, day);
    put(11, 2, seconds / 3600 % 24);
    put(14, 2, seconds / 60 % 60);
    put(17, 2, seconds % 60);
    put(20, 9, nanos % 1_000_000_000);
    if stream == Stream::Stderr {
        head[31..37].copy_from_slice(b"stderr");
    }
    if tag == Tag::Partial {
        head[38] = b'P';
    }
    head
}

/// Year, month and day of a day number since 1970-01-01 (the proleptic Gregorian calendar; years begin in March here, so
/// that the leap day is a year's last: <https://howardhinnant.github.io/date_algorithms.html>).
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(nanos: i64, stream: Stream, tag: Tag) -> String {
        String::from_utf8(head(nanos, stream, tag).to_vec()).unwrap()
    }

    #[test]
    fn heads_are_what_kubelet_parses() {
        assert_eq!(text(0, Stream::Stdout, Tag::Full), "1970-01-01T00:00:00.000000000Z stdout F ");
        assert_eq!(
            text(1_700_000_000_000_000_042, Stream::Stderr, Tag::Partial),
            "2023-11-14T22:13:20.000000042Z stderr P "
        );
    }

    #[test]
    fn leap_days_and_year_ends() {
        for (seconds, date) in [
            (951_782_399, "2000-02-28T23:59:59"),
            (951_782_400, "2000-02-29T00:00:00"),
            (951_868_800, "2000-03-01T00:00:00"),
            (1_735_689_599, "2024-12-31T23:59:59"),
            (4_107_542_400, "2100-03-01T00:00:00"),
        ] {
            assert_eq!(&text(seconds * 1_000_000_000, Stream::Stdout, Tag::Full)[..19], date);
        }
    }
}
