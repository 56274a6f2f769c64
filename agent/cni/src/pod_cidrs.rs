//! The ranges of pod addresses that the kubelet tells.

use std::net::IpAddr;

/// Kubernetes has one of each family; more are no node's.
const MAX_RANGES: usize = 8;

/// Ranges of pod addresses, in the kubelet's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodCidrs {
    ranges: Vec<String>,
    routes: Vec<String>,
}

/// Why a text is not a list of ranges.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPodCidrs {
    /// One is no range.
    #[error("{text:?} is not an address with a prefix length")]
    Form {
        /// The beginning of it.
        text: String,
    },
    /// One is an address in a range, which IPAM plugins refuse.
    #[error("{text} has bits set behind its prefix")]
    HostBits {
        /// The range.
        text: String,
    },
    /// There are too many.
    #[error("{count} ranges, at most {MAX_RANGES} are allowed")]
    Many {
        /// How many.
        count: usize,
    },
}

impl PodCidrs {
    /// Reads ranges separated by commas.
    ///
    /// # Errors
    /// The first that is none.
    pub fn parse(text: &str) -> Result<Self, InvalidPodCidrs> {
        let parts: Vec<&str> = text.split(',').map(str::trim).collect();
        if parts.len() > MAX_RANGES {
            return Err(InvalidPodCidrs::Many { count: parts.len() });
        }
        let parsed = parts.into_iter().map(range).collect::<Result<Vec<_>, _>>()?;
        let has = |is: fn(&IpAddr) -> bool| parsed.iter().any(|(ip, _)| is(ip));
        // As containerd fills `.Routes`: the default route of each family, IPv4 first.
        let families = [(has(IpAddr::is_ipv4), "0.0.0.0/0"), (has(IpAddr::is_ipv6), "::/0")];
        let routes =
            families.into_iter().filter(|(has, _)| *has).map(|(_, route)| route.to_owned()).collect();
        Ok(Self { ranges: parsed.iter().map(|(ip, length)| format!("{ip}/{length}")).collect(), routes })
    }

    /// The ranges; at least one.
    #[must_use]
    pub fn ranges(&self) -> &[String] {
        &self.ranges
    }

    /// Default routes of the families that have a range.
    #[must_use]
    pub fn routes(&self) -> &[String] {
        &self.routes
    }
}

fn range(text: &str) -> Result<(IpAddr, u8), InvalidPodCidrs> {
    let form = || InvalidPodCidrs::Form { text: text.chars().take(64).collect() };
    let (ip, length) = text.split_once('/').ok_or_else(form)?;
    let ip: IpAddr = ip.parse().map_err(|_| form())?;
    // Rust takes a sign; nobody else does.
    let digits = length.bytes().all(|b| b.is_ascii_digit());
    let length: u8 = length.parse().ok().filter(|_| digits).ok_or_else(form)?;
    let (bits, width) = match ip {
        IpAddr::V4(ip) => (u128::from(ip.to_bits()) << 96, 32),
        IpAddr::V6(ip) => (ip.to_bits(), 128),
    };
    if length > width {
        return Err(form());
    }
    if bits.checked_shl(length.into()).unwrap_or(0) != 0 {
        return Err(InvalidPodCidrs::HostBits { text: text.to_owned() });
    }
    Ok((ip, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_both_families_come_with_their_default_routes() {
        let both = PodCidrs::parse("10.1.2.0/24, FD00:0:0::/64").unwrap();
        assert_eq!(both.ranges(), ["10.1.2.0/24", "fd00::/64"]);
        assert_eq!(both.routes(), ["0.0.0.0/0", "::/0"]);
        assert_eq!(PodCidrs::parse("fd00::/64").unwrap().routes(), ["::/0"]);
        for fine in ["0.0.0.0/0", "::/0", "10.0.0.1/32", "::1/128"] {
            assert_eq!(PodCidrs::parse(fine).unwrap().ranges(), [fine]);
        }
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for text in [
            "",
            "10.1.2.0",
            "10.1.2.0/",
            "10.1.2.0/33",
            "::/129",
            "10.1.2/24",
            "a/8",
            "10.1.2.0/+8",
            "10.1.2.0/24,",
            "0/0",
            "1.1.1.0/24/1",
        ] {
            assert!(matches!(PodCidrs::parse(text), Err(InvalidPodCidrs::Form { .. })), "{text}");
        }
        for text in ["10.1.2.3/24", "fd00::1/64", "0.0.0.1/0", "::1/0"] {
            assert!(matches!(PodCidrs::parse(text), Err(InvalidPodCidrs::HostBits { .. })), "{text}");
        }
        let many = ["10.0.0.0/8"; 9].join(",");
        assert_eq!(PodCidrs::parse(&many), Err(InvalidPodCidrs::Many { count: 9 }));
    }
}
