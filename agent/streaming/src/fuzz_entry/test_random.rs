//! Random inputs for the entry functions of the fuzz targets.

use std::time::{SystemTime, UNIX_EPOCH};

/// Runs `entry` over `count` random inputs. `FUZZ_SEED` in the environment repeats a run.
pub(crate) fn run(name: &str, count: u64, entry: impl Fn(&[u8])) {
    let seed = std::env::var("FUZZ_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        now.as_secs() << 20 ^ u64::from(now.subsec_nanos())
    });
    println!("{name}: FUZZ_SEED={seed}");
    let mut state = seed | 1;
    let mut next = move || {
        // xorshift64* (Vigna, 2016).
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    };
    for _ in 0..count {
        let length = next() % 600;
        let input = (0..length).map(|_| next().to_le_bytes()[7]).collect::<Vec<_>>();
        entry(&input);
    }
}
