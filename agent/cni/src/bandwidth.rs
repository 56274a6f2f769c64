//! Rate limits of a pod's interface, which Kubernetes carries in annotations.

use std::collections::BTreeMap;

use serde::Serialize;

const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";

/// Smallest and largest rate that Kubernetes lets through, bit/s (1k and 1P).
const SANE: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;

/// Rate limits, as the bandwidth plugin takes them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Bandwidth {
    /// To the pod, bit/s; 0 means no limit.
    pub ingress_rate: u64,
    /// Bits that may arrive at once.
    pub ingress_burst: u64,
    /// From the pod, bit/s; 0 means no limit.
    pub egress_rate: u64,
    /// Bits that may leave at once.
    pub egress_burst: u64,
}

/// Why an annotation is not a rate.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("annotation {annotation}: {value:?} is not a quantity of 1k to 1P bit/s")]
pub struct InvalidBandwidth {
    /// Which annotation.
    pub annotation: &'static str,
    /// What it says.
    pub value: String,
}

impl Bandwidth {
    /// The limits that a pod's annotations ask for; none when they ask for none. A burst is 2^32 - 1 bits, as
    /// containerd and kubelet before it set it.
    ///
    /// # Errors
    /// A rate that is no Kubernetes quantity, or is out of reason.
    pub fn from_annotations(
        annotations: &BTreeMap<String, String>,
    ) -> Result<Option<Self>, InvalidBandwidth> {
        let rate = |annotation: &'static str| match annotations.get(annotation) {
            None => Ok(None),
            Some(value) => match quantity(value).filter(|rate| SANE.contains(rate)) {
                Some(rate) => Ok(Some(rate)),
                None => Err(InvalidBandwidth { annotation, value: value.chars().take(64).collect() }),
            },
        };
        let (ingress, egress) = (rate(INGRESS)?, rate(EGRESS)?);
        if ingress.is_none() && egress.is_none() {
            return Ok(None);
        }
        let burst = |rate: Option<u64>| rate.map_or(0, |_| u64::from(u32::MAX));
        Ok(Some(Self {
            ingress_rate: ingress.unwrap_or(0),
            ingress_burst: burst(ingress),
            egress_rate: egress.unwrap_or(0),
            egress_burst: burst(egress),
        }))
    }
}

/// A Kubernetes quantity as a whole number, rounded up; none when it is not one, negative or beyond 2^64.
/// The grammar is apimachinery's pkg/api/resource: a decimal number and `m`, `k`, `Ki`, .. or an exponent.
fn quantity(text: &str) -> Option<u64> {
    let text = text.strip_prefix('+').unwrap_or(text);
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty())
        || fraction.contains('.')
        || whole.len() + fraction.len() > 24
    {
        return None;
    }
    let mantissa: u128 = format!("0{whole}{fraction}").parse().ok()?;
    let (base, exponent) = scale(suffix)?;
    let ten = |exponent: usize| 10u128.checked_pow(u32::try_from(exponent).ok()?);
    let mut divisor = ten(fraction.len())?;
    let mut factor = 1u128;
    match u32::try_from(exponent) {
        Ok(up) => factor = u128::from(base).checked_pow(up)?,
        Err(_) => divisor = divisor.checked_mul(u128::from(base).checked_pow(exponent.unsigned_abs())?)?,
    }
    u64::try_from(mantissa.checked_mul(factor)?.div_ceil(divisor)).ok()
}

/// Base and exponent that a suffix stands for.
fn scale(suffix: &str) -> Option<(u64, i32)> {
    Some(match suffix {
        "" => (10, 0),
        "n" => (10, -9),
        "u" => (10, -6),
        "m" => (10, -3),
        "k" => (10, 3),
        "M" => (10, 6),
        "G" => (10, 9),
        "T" => (10, 12),
        "P" => (10, 15),
        "E" => (10, 18),
        "Ki" => (1024, 1),
        "Mi" => (1024, 2),
        "Gi" => (1024, 3),
        "Ti" => (1024, 4),
        "Pi" => (1024, 5),
        "Ei" => (1024, 6),
        _ => (10, suffix.strip_prefix(['e', 'E'])?.parse().ok()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        for (text, wanted) in [
            ("1000", 1000),
            ("10M", 10_000_000),
            ("1.5M", 1_500_000),
            ("1Ki", 1024),
            ("1.5Gi", 1_610_612_736),
            ("1e3", 1000),
            ("2E", 2_000_000_000_000_000_000),
            ("1500m", 2),
            ("+1k", 1000),
            (".5k", 500),
            ("5.", 5),
        ] {
            assert_eq!(quantity(text), Some(wanted), "{text}");
        }
        for text in
            ["", ".", "k", "-1", "1..2", "1.2.3", "1K", "1 k", "0x10", "1e", "1e99", "20E", "1kk", "1\u{0}"]
        {
            assert_eq!(quantity(text), None, "{text:?}");
        }
        assert_eq!(quantity(&"9".repeat(100)), None);
        assert_eq!(quantity("1e-30"), Some(1), "rounded up");
    }

    #[test]
    fn one_annotation_limits_one_direction() {
        let annotations = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
        assert_eq!(Bandwidth::from_annotations(&BTreeMap::new()), Ok(None));
        let expected =
            Bandwidth { egress_rate: 1_000_000, egress_burst: 4_294_967_295, ..Bandwidth::default() };
        assert_eq!(Bandwidth::from_annotations(&annotations(EGRESS, "1M")), Ok(Some(expected)));
        for value in ["999", "2P", "fast"] {
            let error = Bandwidth::from_annotations(&annotations(INGRESS, value)).unwrap_err();
            assert_eq!((error.annotation, error.value.as_str()), (INGRESS, value));
        }
    }
}
