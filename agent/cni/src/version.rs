//! Versions of the CNI spec.

use std::fmt;

/// A version of the spec that this crate speaks. Older ones have another result format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SpecVersion {
    V0_3_0,
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

impl SpecVersion {
    const ALL: [Self; 5] = [Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.as_str() == text)
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// CHECK exists, and DEL is told the result of ADD.
    pub(crate) fn has_check(self) -> bool {
        self >= Self::V0_4_0
    }

    /// STATUS exists.
    pub(crate) fn has_status(self) -> bool {
        self >= Self::V1_1_0
    }

    /// GC exists.
    pub(crate) fn has_gc(self) -> bool {
        self >= Self::V1_1_0
    }

    /// Each address of a result says in `version` whether it is "4" or "6"; 1.0.0 dropped that.
    pub(crate) fn addresses_say_version(self) -> bool {
        self < Self::V1_0_0
    }
}

impl fmt::Display for SpecVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::SpecVersion;

    #[test]
    fn verbs_appear_with_the_version_that_brought_them() {
        let has = |text| {
            let version = SpecVersion::parse(text).unwrap();
            (version.has_check(), version.has_status(), version.addresses_say_version())
        };
        assert_eq!(has("0.3.1"), (false, false, true));
        assert_eq!(has("0.4.0"), (true, false, true));
        assert_eq!(has("1.0.0"), (true, false, false));
        assert_eq!(has("1.1.0"), (true, true, false));
        for unknown in ["", "0.2.0", "1.2.0", "v1.0.0", "1.0"] {
            assert_eq!(SpecVersion::parse(unknown), None, "{unknown}");
        }
    }
}
