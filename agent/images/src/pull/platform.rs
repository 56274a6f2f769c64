//! This machine's platform, and which of an index's images is for it.

use std::fmt;

use oci_spec::image::{Descriptor, Platform};

/// What an image must be for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    architecture: &'static str,
    /// Variants that run here, the best first. An image without a variant is for every machine of its architecture.
    variants: Vec<&'static str>,
}

impl Wanted {
    /// This machine, in the words of Go (`GOARCH`, and the variants of the OCI image index specification).
    pub(crate) fn here() -> Wanted {
        Wanted::of(std::env::consts::ARCH)
    }

    fn of(architecture: &'static str) -> Wanted {
        let (architecture, variants) = match architecture {
            "x86_64" => ("amd64", amd64_variants()),
            "x86" => ("386", vec![]),
            "aarch64" => ("arm64", vec!["v8"]),
            "arm" => ("arm", vec!["v7", "v6", "v5"]),
            // The first profile is what every 64-bit board with Linux has.
            "riscv64" => ("riscv64", vec!["rva20u64"]),
            "powerpc64" => ("ppc64le", vec![]),
            other => (other, vec![]),
        };
        Wanted { architecture, variants }
    }

    /// How well an image for `platform` fits: lower is better, None is not at all.
    fn rank(&self, platform: &Platform) -> Option<usize> {
        let variant = platform.variant().as_deref();
        self.fits(&platform.os().to_string(), &platform.architecture().to_string(), variant)
    }

    fn fits(&self, os: &str, architecture: &str, variant: Option<&str>) -> Option<usize> {
        if os != "linux" || architecture != self.architecture {
            return None;
        }
        match variant.filter(|variant| !variant.is_empty()) {
            None => Some(self.variants.len()),
            Some(variant) => self.variants.iter().position(|known| *known == variant),
        }
    }

    /// Whether a configuration is for this machine.
    pub(crate) fn runs(&self, os: &str, architecture: &str) -> bool {
        os == "linux" && architecture == self.architecture
    }

    /// The descriptor of an index that fits best, or one that does not tell its platform (its configuration will).
    pub(crate) fn choose<'a>(&self, descriptors: &'a [Descriptor]) -> Option<&'a Descriptor> {
        let ranked = descriptors.iter().filter_map(|descriptor| {
            let platform = descriptor.platform().as_ref();
            platform.and_then(|platform| self.rank(platform)).map(|rank| (rank, descriptor))
        });
        let best = ranked.min_by_key(|(rank, _)| *rank).map(|(_, descriptor)| descriptor);
        best.or_else(|| descriptors.iter().find(|descriptor| descriptor.platform().is_none()))
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "linux/{}", self.architecture)
    }
}

/// `linux/arm64/v8`.
pub(crate) fn describe(platform: &Platform) -> String {
    let variant = platform.variant().as_deref().filter(|variant| !variant.is_empty());
    let variant = variant.map(|variant| format!("/{variant}")).unwrap_or_default();
    format!("{}/{}{variant}", platform.os(), platform.architecture())
}

/// The levels of the x86-64 ABI that this processor has.
#[cfg(target_arch = "x86_64")]
fn amd64_variants() -> Vec<&'static str> {
    use std::arch::is_x86_feature_detected as has;
    let v2 = has!("ssse3") && has!("sse4.1") && has!("sse4.2") && has!("popcnt") && has!("cmpxchg16b");
    let v3 =
        v2 && has!("avx2") && has!("bmi1") && has!("bmi2") && has!("f16c") && has!("fma") && has!("lzcnt");
    match (v2, v3) {
        (_, true) => vec!["v3", "v2", "v1"],
        (true, _) => vec!["v2", "v1"],
        _ => vec!["v1"],
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn amd64_variants() -> Vec<&'static str> {
    vec!["v1"]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(platforms: &[&str]) -> Vec<Descriptor> {
        let all = platforms.iter().enumerate().map(|(n, platform)| {
            let mut value = serde_json::json!({
                "mediaType": "application/vnd.oci.image.manifest.v1+json", "size": n,
                "digest": format!("sha256:{n:064x}"),
            });
            if let Some((os, rest)) = platform.split_once('/') {
                let (architecture, variant) = rest.split_once('/').unwrap_or((rest, ""));
                value["platform"] = serde_json::json!({"os": os, "architecture": architecture});
                if !variant.is_empty() {
                    value["platform"]["variant"] = variant.into();
                }
            }
            serde_json::from_value(value).unwrap()
        });
        all.collect()
    }

    fn chosen(architecture: &'static str, platforms: &[&str]) -> Option<u64> {
        Wanted::of(architecture).choose(&index(platforms)).map(Descriptor::size)
    }

    #[test]
    fn the_image_for_this_machine_is_chosen() {
        let many = [
            "windows/amd64",
            "linux/amd64",
            "linux/arm/v7",
            "linux/arm64/v8",
            "linux/riscv64",
            "unknown/unknown",
        ];
        assert_eq!(chosen("x86_64", &many), Some(1));
        assert_eq!(chosen("arm", &many), Some(2));
        assert_eq!(chosen("aarch64", &many), Some(3));
        assert_eq!(chosen("riscv64", &many), Some(4));
        assert_eq!(chosen("s390x", &many), None);
        assert_eq!(chosen("arm", &["linux/arm/v5", "linux/arm/v6"]), Some(1));
        assert_eq!(chosen("riscv64", &["linux/riscv64/rva23u64"]), None);
        assert_eq!(chosen("riscv64", &["linux/riscv64/rva23u64", "linux/riscv64"]), Some(1));
        assert_eq!(chosen("riscv64", &["linux/amd64", ""]), Some(1));
    }

    #[test]
    fn this_machine_has_a_name() {
        assert!(
            ["linux/amd64", "linux/arm64", "linux/riscv64"].contains(&Wanted::here().to_string().as_str())
        );
    }
}
