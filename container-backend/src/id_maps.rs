//! Which ids of the node stand for the ids in a user namespace.

use std::fmt::Write as _;

use oci_spec::runtime::LinuxIdMapping;

/// A row of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// The first, inside.
    pub container: u32,
    /// The first, on the node.
    pub host: u32,
    /// How many.
    pub length: u32,
}

/// Checked maps of user and group ids: neither is empty, and no id stands for two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdMaps {
    uids: Vec<IdRange>,
    gids: Vec<IdRange>,
}

/// Why ranges are no map.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdMapError {
    /// There is none.
    #[error("{which}: no range of ids")]
    Empty {
        /// `uids` or `gids`.
        which: &'static str,
    },
    /// More than the kernel takes.
    #[error("{which}: {count} ranges are more than the {RANGES_MAX} that a user namespace takes")]
    TooMany {
        /// `uids` or `gids`.
        which: &'static str,
        /// How many there are.
        count: usize,
    },
    /// A range of no ids.
    #[error("{which}[{index}]: the length is 0")]
    NoLength {
        /// `uids` or `gids`.
        which: &'static str,
        /// Which of them.
        index: usize,
    },
    /// A range past the highest id.
    #[error("{which}[{index}]: {length} ids from {first} on are more than there are")]
    Overflow {
        /// `uids` or `gids`.
        which: &'static str,
        /// Which of them.
        index: usize,
        /// Where it begins.
        first: u32,
        /// How many it is to have.
        length: u32,
    },
    /// Two ranges have an id in common.
    #[error("{which}[{index}] overlaps {which}[{earlier}]")]
    Overlap {
        /// `uids` or `gids`.
        which: &'static str,
        /// The later one.
        index: usize,
        /// The earlier one.
        earlier: usize,
    },
}

/// The kernel's (UID_GID_MAP_MAX_EXTENTS, linux/user_namespace.h).
const RANGES_MAX: usize = 340;
/// 4294967295 stands for "no id".
const IDS: u64 = u32::MAX as u64;

impl IdMaps {
    /// # Errors
    /// See [`IdMapError`].
    pub fn new(uids: Vec<IdRange>, gids: Vec<IdRange>) -> Result<Self, IdMapError> {
        check("uids", &uids)?;
        check("gids", &gids)?;
        Ok(Self { uids, gids })
    }

    /// As the OCI runtime spec has them; `None` without any.
    pub(crate) fn from_oci(
        uids: Option<&Vec<LinuxIdMapping>>,
        gids: Option<&Vec<LinuxIdMapping>>,
    ) -> Result<Option<Self>, IdMapError> {
        let ranges = |list: Option<&Vec<LinuxIdMapping>>| -> Vec<IdRange> {
            let range = |m: &LinuxIdMapping| IdRange {
                container: m.container_id(),
                host: m.host_id(),
                length: m.size(),
            };
            list.into_iter().flatten().map(range).collect()
        };
        let (uids, gids) = (ranges(uids), ranges(gids));
        if uids.is_empty() && gids.is_empty() { Ok(None) } else { Self::new(uids, gids).map(Some) }
    }

    /// What a user id inside is on the node.
    #[must_use]
    pub fn host_uid(&self, uid: u32) -> Option<u32> {
        on_host(&self.uids, uid)
    }

    /// What a group id inside is on the node.
    #[must_use]
    pub fn host_gid(&self, gid: u32) -> Option<u32> {
        on_host(&self.gids, gid)
    }

    /// The ranges of user ids.
    #[must_use]
    pub fn uids(&self) -> &[IdRange] {
        &self.uids
    }

    /// The ranges of group ids.
    #[must_use]
    pub fn gids(&self) -> &[IdRange] {
        &self.gids
    }

    /// User and group on the node of who is root inside.
    pub(crate) fn root(&self) -> Option<(u32, u32)> {
        Some((self.host_uid(0)?, self.host_gid(0)?))
    }
}

fn on_host(ranges: &[IdRange], id: u32) -> Option<u32> {
    let range = ranges.iter().find(|range| id >= range.container && id - range.container < range.length)?;
    Some(range.host + (id - range.container))
}

/// What is written to /proc/PID/uid_map and gid_map.
pub(crate) fn kernel_text(ranges: &[IdRange]) -> String {
    ranges.iter().fold(String::new(), |mut text, range| {
        // To a string it cannot fail.
        let _ = writeln!(text, "{} {} {}", range.container, range.host, range.length);
        text
    })
}

fn check(which: &'static str, ranges: &[IdRange]) -> Result<(), IdMapError> {
    match ranges.len() {
        0 => return Err(IdMapError::Empty { which }),
        1..=RANGES_MAX => {}
        count => return Err(IdMapError::TooMany { which, count }),
    }
    for (index, range) in ranges.iter().enumerate() {
        let length = range.length;
        if length == 0 {
            return Err(IdMapError::NoLength { which, index });
        }
        let too_high = |first: &u32| u64::from(*first) + u64::from(length) > IDS;
        if let Some(first) = [range.container, range.host].into_iter().find(too_high) {
            return Err(IdMapError::Overflow { which, index, first, length });
        }
        let meets = |a: u32, b: u32, other: u32| {
            u64::from(a) < u64::from(b) + u64::from(other) && u64::from(b) < u64::from(a) + u64::from(length)
        };
        let overlaps = |other: &IdRange| {
            meets(range.container, other.container, other.length)
                || meets(range.host, other.host, other.length)
        };
        if let Some(earlier) = ranges[..index].iter().position(overlaps) {
            return Err(IdMapError::Overlap { which, index, earlier });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(container: u32, host: u32, length: u32) -> IdRange {
        IdRange { container, host, length }
    }

    fn refusal(uids: &[IdRange]) -> String {
        IdMaps::new(uids.to_vec(), vec![range(0, 0, 1)]).unwrap_err().to_string()
    }

    #[test]
    fn ids_are_found_on_the_node() {
        let uids = vec![range(0, 100_000, 1000), range(65534, 7, 1)];
        let maps = IdMaps::new(uids, vec![range(0, u32::MAX - 5, 5)]).unwrap();
        assert_eq!(maps.root(), Some((100_000, u32::MAX - 5)));
        for (inside, outside) in [(999, Some(100_999)), (1000, None), (65534, Some(7)), (u32::MAX, None)] {
            assert_eq!(maps.host_uid(inside), outside, "{inside}");
        }
        assert_eq!((maps.host_gid(4), maps.host_gid(5)), (Some(u32::MAX - 1), None));
        assert_eq!(kernel_text(maps.uids()), "0 100000 1000\n65534 7 1\n");
    }

    #[test]
    fn ranges_that_are_no_map_are_told() {
        for (ranges, expected) in [
            (&[][..], "uids: no range of ids"),
            (&[range(0, 1, 0)], "uids[0]: the length is 0"),
            (&[range(0, u32::MAX, 1)], "uids[0]: 1 ids from 4294967295 on are more than there are"),
            (&[range(9, 0, u32::MAX)], "uids[0]: 4294967295 ids from 9 on are more than there are"),
            (&[range(0, 100, 10), range(9, 200, 1)], "uids[1] overlaps uids[0]"),
            (&[range(0, 100, 10), range(10, 109, 1)], "uids[1] overlaps uids[0]"),
            (&[range(5, 100, 1), range(0, 200, 10)], "uids[1] overlaps uids[0]"),
        ] {
            assert_eq!(refusal(ranges), expected);
        }
        let many: Vec<_> = (0..341).map(|n| range(n, n, 1)).collect();
        assert_eq!(refusal(&many), "uids: 341 ranges are more than the 340 that a user namespace takes");
        let no_gids = IdMaps::new(vec![range(0, 1, 1)], vec![]).unwrap_err();
        assert_eq!(no_gids.to_string(), "gids: no range of ids");
    }

    #[test]
    fn a_spec_without_ranges_has_no_map() {
        assert_eq!(IdMaps::from_oci(None, Some(&vec![])), Ok(None));
        assert!(IdMaps::from_oci(Some(&vec![LinuxIdMapping::default()]), None).is_err());
    }
}
