//! A VMM's memory: the guest's RAM, and all else.

use anyhow::{Context, Result};

/// In KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    ram_rss: u64,
    own_pss: u64,
}

/// A mapping in /proc/PID/smaps; KiB.
#[derive(Debug, Default)]
struct Mapping {
    start: u64,
    end: u64,
    rss: u64,
    pss: u64,
}

impl Memory {
    /// From the text of /proc/PID/smaps. The guest's RAM is what is `ram` KiB long in one piece, in one mapping or several; if there is more
    /// than one such piece, the one that has most in memory: the allocator reserves places for threads that add up to round numbers.
    pub fn parse(smaps: &str, ram: u64) -> Result<Self> {
        let mappings = mappings(smaps);
        let rss = |mappings: &[Mapping]| mappings.iter().map(|mapping| mapping.rss).sum::<u64>();
        let pss = |mappings: &[Mapping]| mappings.iter().map(|mapping| mapping.pss).sum::<u64>();
        let runs = (0..mappings.len()).filter_map(|first| {
            let mut end = first;
            while mappings.get(end + 1).is_some_and(|next| next.start == mappings[end].end)
                && mappings[end].end - mappings[first].start < ram
            {
                end += 1;
            }
            (mappings[end].end - mappings[first].start == ram).then(|| &mappings[first..=end])
        });
        let run = runs.max_by_key(|run| rss(run));
        let run = run.with_context(|| format!("{ram} KiB of guest RAM are not in one piece in\n{smaps}"))?;
        Ok(Self { ram_rss: rss(run), own_pss: pss(&mappings) - pss(run) })
    }

    /// What of the guest's RAM is in the host's memory.
    pub fn ram_rss_mib(self) -> f64 {
        self.ram_rss as f64 / 1024.0
    }

    /// The VMM's share of everything else.
    pub fn own_pss_mib(self) -> f64 {
        self.own_pss as f64 / 1024.0
    }
}

fn mappings(smaps: &str) -> Vec<Mapping> {
    let mut found: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        let kib = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
        match (first, range(first), found.last_mut()) {
            (_, Some((start, end)), _) => found.push(Mapping { start, end, ..Mapping::default() }),
            ("Rss:", _, Some(mapping)) => mapping.rss = kib,
            ("Pss:", _, Some(mapping)) => mapping.pss = kib,
            _ => {}
        }
    }
    found
}

/// Addresses in KiB.
fn range(word: &str) -> Option<(u64, u64)> {
    let (start, end) = word.split_once('-')?;
    let kib = |digits| u64::from_str_radix(digits, 16).ok().map(|bytes| bytes >> 10);
    Some((kib(start)?, kib(end)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(range: &str, rss: u64, pss: u64) -> String {
        format!("{range} rw-p 00000000 00:00 0\nSize: 1 kB\nRss: {rss} kB\nPss: {pss} kB\nVmFlags: rd wr\n")
    }

    #[test]
    fn the_guests_ram_is_found_in_one_mapping_or_several() {
        let program = "00010000-00012000 r-xp 00000000 fe:00 12 /lab/bin/hartpod-vmm\nRss: 8 kB\nPss: 4 kB\n";
        let one = [program, &mapping("3f0000000-3f0100000", 700, 700), &mapping("3f0200000-3f0201000", 4, 2)];
        let expected = Memory { ram_rss: 700, own_pss: 6 };
        assert_eq!(Memory::parse(&one.concat(), 1024).unwrap(), expected);
        // Advice on a part of it splits it; a neighbour touches it.
        let parts = [
            program,
            &mapping("3effff000-3f0000000", 4, 2),
            &mapping("3f0000000-3f0040000", 200, 200),
            &mapping("3f0040000-3f0100000", 500, 500),
        ];
        assert_eq!(Memory::parse(&parts.concat(), 1024).unwrap(), expected);
    }

    #[test]
    fn what_is_as_large_by_accident_is_not_the_guests_ram() {
        let parts = [
            mapping("3e0000000-3e0080000", 8, 8),
            mapping("3e0080000-3e0100000", 0, 0),
            mapping("3f0000000-3f0100000", 700, 700),
        ];
        let expected = Memory { ram_rss: 700, own_pss: 8 };
        assert_eq!(Memory::parse(&parts.concat(), 1024).unwrap(), expected);
    }

    #[test]
    fn without_the_guests_ram_there_is_no_figure() {
        assert!(Memory::parse(&mapping("3f0000000-3f0100000", 700, 700), 2048).is_err());
        // A hole between them.
        let parts = [mapping("3f0000000-3f0080000", 1, 1), mapping("3f0081000-3f0101000", 1, 1)];
        assert!(Memory::parse(&parts.concat(), 1024).is_err());
    }
}
