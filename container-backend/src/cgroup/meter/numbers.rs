//! Numbers out of the kernel's texts.

use crate::cgroup::sample::{Pressure, Stall};

/// A file of one number. "max" is none.
pub(super) fn one(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// A limit of v1, where the largest number of pages means none.
pub(super) fn v1_limit(value: u64) -> Option<u64> {
    // PAGE_COUNTER_MAX in bytes, whatever the size of a page.
    const UNLIMITED: u64 = i64::MAX as u64 & !0xf_ffff;
    (value < UNLIMITED).then_some(value)
}

/// The lines `key value` of a text.
pub(super) fn pairs(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        Some((key, value.trim().parse().ok()?))
    })
}

/// `8:16` of a device's line.
pub(super) fn device(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and `full` likewise.
pub(super) fn pressure(text: &str) -> Option<Pressure> {
    let mut some = None;
    let mut full = None;
    for line in text.lines() {
        let (kind, rest) = line.split_once(' ')?;
        match kind {
            "some" => some = stall(rest),
            "full" => full = stall(rest),
            _ => {}
        }
    }
    Some(Pressure { some: some?, full })
}

fn stall(text: &str) -> Option<Stall> {
    let mut stall = Stall::default();
    for part in text.split_whitespace() {
        let (key, value) = part.split_once('=')?;
        match key {
            "avg10" => stall.avg10 = value.parse().ok()?,
            "avg60" => stall.avg60 = value.parse().ok()?,
            "avg300" => stall.avg300 = value.parse().ok()?,
            "total" => stall.total_us = value.parse().ok()?,
            _ => {}
        }
    }
    Some(stall)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_is_none_is_absent() {
        assert_eq!(one("1048576\n"), Some(1 << 20));
        assert_eq!(one("max\n"), None);
        assert_eq!(v1_limit(9_223_372_036_854_771_712), None, "4 KiB pages");
        assert_eq!(v1_limit(9_223_372_036_854_710_272), None, "64 KiB pages");
        assert_eq!(v1_limit(64 << 20), Some(64 << 20));
    }

    #[test]
    fn pressure_has_some_and_full() {
        let text = "some avg10=1.50 avg60=0.25 avg300=0.00 total=12345\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        let pressure = pressure(text).unwrap();
        assert_eq!(pressure.some, Stall { total_us: 12345, avg10: 1.5, avg60: 0.25, avg300: 0.0 });
        assert_eq!(pressure.full.unwrap().total_us, 7);
        assert_eq!(super::pressure("some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n").unwrap().full, None);
        assert_eq!(super::pressure(""), None);
        assert_eq!(super::pressure("some avg10=x total=1"), None);
    }
}
