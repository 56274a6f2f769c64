//! The header `traceparent` (W3C Trace Context): whose trace a call belongs to.

use std::fmt;

/// Of the version that is written.
const LENGTH: usize = 55;
/// The bit of the flags that says that the caller's spans are recorded.
const SAMPLED: u8 = 1;

/// A caller's span, as it names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TraceParent {
    pub(super) trace: [u8; 16],
    pub(super) span: [u8; 8],
    pub(super) is_sampled: bool,
}

impl TraceParent {
    /// `00-<trace>-<span>-<flags>`. What is none is as good as no header.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        let (known, rest) = bytes.split_at_checked(LENGTH)?;
        let [version] = hex(&known[..2])?;
        // Later versions may have more behind it; ff is none.
        let ends = match version {
            0 => rest.is_empty(),
            255 => false,
            _ => matches!(rest.first(), None | Some(b'-')),
        };
        let dashes = [2, 35, 52].iter().all(|at| known[*at] == b'-');
        let (trace, span, [flags]) = (hex(&known[3..35])?, hex(&known[36..52])?, hex::<1>(&known[53..])?);
        let is_named = trace != [0; 16] && span != [0; 8];
        (ends && dashes && is_named).then_some(Self { trace, span, is_sampled: flags & SAMPLED != 0 })
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("00-")?;
        self.trace.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str("-")?;
        self.span.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        write!(f, "-{:02x}", u8::from(self.is_sampled))
    }
}

/// Lower case alone is allowed.
fn hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    if digits.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = value(pair[0])? << 4 | value(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn what_is_read_is_what_is_written() {
        let parsed = TraceParent::parse(GOOD).unwrap();
        assert!(parsed.is_sampled && parsed.trace[..2] == [0x0a, 0xf7] && parsed.span[7] == 0x31);
        assert_eq!(parsed.to_string(), GOOD);
        let unsampled = GOOD.replace("-01", "-00");
        assert_eq!(TraceParent::parse(&unsampled).unwrap().to_string(), unsampled);
    }

    #[test]
    fn a_later_version_may_say_more() {
        for good in
            [GOOD.replacen("00", "cc", 1), GOOD.replacen("00", "cc", 1) + "-what", GOOD.replace("-01", "-ff")]
        {
            assert!(TraceParent::parse(&good).is_some_and(|parent| parent.is_sampled), "{good}");
        }
    }

    #[test]
    fn anything_else_is_none() {
        let bad = [
            String::new(),
            "00".into(),
            GOOD.to_uppercase(),
            GOOD.replacen("00", "ff", 1),
            GOOD.replacen("00", "cc", 1) + "x",
            GOOD.to_owned() + "-x",
            GOOD[..LENGTH - 1].to_owned(),
            GOOD.replace('-', "_"),
            GOOD.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            GOOD.replace("b7ad6b7169203331", &"0".repeat(16)),
            GOOD.replace("0af7", "0äf"),
            "ä".repeat(LENGTH),
        ];
        for bad in bad {
            assert_eq!(TraceParent::parse(&bad), None, "{bad}");
        }
    }
}
