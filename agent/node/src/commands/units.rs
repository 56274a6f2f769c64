//! Numbers for people: three digits at most where that is enough.

use std::time::Duration;

/// `843 B`, `1.2 MiB`.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    #[allow(clippy::cast_precision_loss)] // shown with two digits
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = usize::from(unit > 0 && value < 99.95);
    format!("{value:.decimals$} {}", UNITS[unit])
}

/// `0.3 ms`, `41 ms`, `2.1 s`.
pub(super) fn time(duration: Duration) -> String {
    let ms = duration.as_secs_f64() * 1000.0;
    if ms < 9.95 {
        format!("{ms:.1} ms")
    } else if ms < 999.5 {
        format!("{ms:.0} ms")
    } else {
        format!("{:.1} s", ms / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_the_unit_that_fits() {
        for (count, expected) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 KiB"),
            (1 << 20, "1.0 MiB"),
            (1_300_000, "1.2 MiB"),
            (1000 << 20, "1.0 GiB"),
            (150 << 20, "150 MiB"),
            (u64::MAX, "16777216 TiB"),
        ] {
            assert_eq!(bytes(count), expected);
        }
    }

    #[test]
    fn times_have_the_unit_that_fits() {
        for (us, expected) in [
            (0, "0.0 ms"),
            (320, "0.3 ms"),
            (9_960, "10 ms"),
            (41_200, "41 ms"),
            (999_600, "1.0 s"),
            (2_140_000, "2.1 s"),
        ] {
            assert_eq!(time(Duration::from_micros(us)), expected);
        }
    }
}
