//! Images that the kubelet must leave alone.

use super::OpenError;
use crate::reference::Reference;

/// Patterns of pinned names.
#[derive(Clone, Debug, Default)]
pub(super) struct Pinned {
    names: Vec<String>,
    prefixes: Vec<String>,
}

impl Pinned {
    /// A pattern is a reference, normalised as any, or the beginning of a full name and a `*`.
    pub(super) fn parse(patterns: &[String]) -> Result<Pinned, OpenError> {
        let mut pinned = Pinned::default();
        for pattern in patterns {
            match pattern.strip_suffix('*') {
                Some(prefix) => pinned.prefixes.push(prefix.to_owned()),
                None => {
                    let reference: Reference = pattern
                        .parse()
                        .map_err(|source| OpenError::Pinned { pattern: pattern.clone(), source })?;
                    pinned.names.push(reference.name());
                }
            }
        }
        Ok(pinned)
    }

    /// Whether one of the names of an image is pinned.
    pub(super) fn matches<'a>(&self, mut names: impl Iterator<Item = &'a String>) -> bool {
        names.any(|name| {
            self.names.contains(name) || self.prefixes.iter().any(|prefix| name.starts_with(prefix))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_names() {
        let patterns = ["busybox", "registry.k8s.io/pause*"].map(str::to_owned);
        let pinned = Pinned::parse(&patterns).unwrap();
        for (name, fits) in [
            ("docker.io/library/busybox:latest", true),
            ("docker.io/library/busybox:1", false),
            ("registry.k8s.io/pause:3.10", true),
            ("registry.k8s.io/other:3.10", false),
        ] {
            assert_eq!(pinned.matches([name.to_owned()].iter()), fits, "{name}");
        }
        assert!(Pinned::parse(&["A B".to_owned()]).is_err());
    }
}
