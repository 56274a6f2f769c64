//! Image references as users write them, normalised as docker and containerd do.
//!
//! The grammar is that of github.com/distribution/reference (`reference.go`, `normalize.go`): `busybox` means
//! `docker.io/library/busybox:latest`, the part before the first slash is a registry only when it has a dot, a colon or an
//! upper-case letter, or is `localhost`.

use std::fmt;
use std::str::FromStr;

use crate::digest::{Digest, InvalidDigest, shorten};

/// The registry of a reference that names none.
const DEFAULT_REGISTRY: &str = "docker.io";
/// The old name of [`DEFAULT_REGISTRY`].
const LEGACY_DEFAULT_REGISTRY: &str = "index.docker.io";
/// The folder of Docker Hub's official images.
const OFFICIAL: &str = "library";
/// The tag of a reference that has neither tag nor digest.
const DEFAULT_TAG: &str = "latest";
/// The longest repository, registry included (`RepositoryNameTotalLengthMax`).
const MAX_REPOSITORY: usize = 255;
/// The longest tag (`TagRegexp`).
const MAX_TAG: usize = 128;

/// A normalised image reference: registry, repository, and a tag or a digest or both.
///
/// With both, the digest decides what is pulled and the tag is not recorded, as in containerd.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// The registry as written, with its port: `docker.io`, `127.0.0.1:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository below the registry: `library/busybox`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Registry and path: `docker.io/library/busybox`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.registry, self.path)
    }

    /// The tag, if it has one. It always has a tag or a digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest of the manifest or index, if it has one.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The name under which an image is recorded: `repository@digest` when there is a digest, else `repository:tag`.
    pub fn name(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => self.digest_name(digest),
            (None, tag) => format!("{}:{}", self.repository(), tag.as_deref().unwrap_or(DEFAULT_TAG)),
        }
    }

    /// `repository@digest`, an entry of the CRI's `repo_digests`.
    pub fn digest_name(&self, digest: &Digest) -> String {
        format!("{}@{digest}", self.repository())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// Why a text is no image reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("image reference {text:?}: {problem}")]
pub struct InvalidReference {
    text: String,
    problem: ReferenceProblem,
}

/// What is wrong with a reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceProblem {
    /// Nothing there.
    #[error("it is empty")]
    Empty,
    /// 64 hex digits, which would be taken for an image id.
    #[error("64 hex digits are an image id, not a repository")]
    LooksLikeId,
    /// The registry is no host name, address or `[v6]`, with an optional port.
    #[error("{registry:?} is no registry host")]
    Registry {
        /// What stands before the first slash.
        registry: String,
    },
    /// A component of the path breaks the rules.
    #[error(
        "path component {component:?} is not lower-case letters and digits, separated by one '.', one or two '_', or '-'"
    )]
    Path {
        /// The component.
        component: String,
    },
    /// The tag breaks the rules.
    #[error(
        "tag {tag:?} is not 1 to 128 of letters, digits, '_', '.' and '-', starting with none of '.' and '-'"
    )]
    Tag {
        /// The tag.
        tag: String,
    },
    /// The part after `@` is no digest.
    #[error(transparent)]
    Digest(#[from] InvalidDigest),
    /// Longer than any registry takes.
    #[error("the repository has {length} characters, the limit is {MAX_REPOSITORY}")]
    TooLong {
        /// Its length.
        length: usize,
    },
}

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Reference, InvalidReference> {
        parse(text).map_err(|problem| InvalidReference { text: shorten(text), problem })
    }
}

fn parse(text: &str) -> Result<Reference, ReferenceProblem> {
    if text.is_empty() {
        return Err(ReferenceProblem::Empty);
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest.parse::<Digest>()?)),
        None => (text, None),
    };
    let (name, tag) = split_tag(rest);
    if name.is_empty() {
        return Err(ReferenceProblem::Empty);
    }
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    if name.len() == 64 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(ReferenceProblem::LooksLikeId);
    }
    let (registry, path) = split_registry(name);
    check_registry(&registry)?;
    path.split('/').try_for_each(check_component)?;
    let length = registry.len() + 1 + path.len();
    if length > MAX_REPOSITORY {
        return Err(ReferenceProblem::TooLong { length });
    }
    let tag = match (tag, &digest) {
        (None, None) => Some(DEFAULT_TAG.to_owned()),
        (tag, _) => tag.map(str::to_owned),
    };
    Ok(Reference { registry, path, tag, digest })
}

/// A colon after the last slash starts the tag; one before it belongs to the registry's port.
fn split_tag(rest: &str) -> (&str, Option<&str>) {
    let last = rest.rfind('/').map_or(0, |slash| slash + 1);
    match rest[last..].find(':') {
        Some(colon) => (&rest[..last + colon], Some(&rest[last + colon + 1..])),
        None => (rest, None),
    }
}

/// `normalize.go`, `splitDockerDomain`.
fn split_registry(name: &str) -> (String, String) {
    let (registry, path) = match name.split_once('/') {
        Some((first, rest)) if is_registry(first) => (first, rest),
        _ => (DEFAULT_REGISTRY, name),
    };
    let registry = if registry == LEGACY_DEFAULT_REGISTRY { DEFAULT_REGISTRY } else { registry };
    if registry == DEFAULT_REGISTRY && !path.contains('/') {
        return (registry.to_owned(), format!("{OFFICIAL}/{path}"));
    }
    (registry.to_owned(), path.to_owned())
}

fn is_registry(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':']) || first.bytes().any(|b| b.is_ascii_uppercase())
}

fn check_registry(registry: &str) -> Result<(), ReferenceProblem> {
    let (host, port) = match registry.rsplit_once(':') {
        // A colon inside of brackets belongs to the address.
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (registry, None),
    };
    let host_fits = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        }),
    };
    let port_fits = port.is_none_or(|port| {
        port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port != 0)
    });
    match host_fits && port_fits {
        true => Ok(()),
        false => Err(ReferenceProblem::Registry { registry: registry.to_owned() }),
    }
}

fn check_component(component: &str) -> Result<(), ReferenceProblem> {
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let fits = component.bytes().next().is_some_and(is_word)
        && component.bytes().next_back().is_some_and(is_word)
        && component.split(|c: char| c.is_ascii() && is_word(c as u8)).all(|separator| {
            matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-')
        });
    match fits {
        true => Ok(()),
        false => Err(ReferenceProblem::Path { component: component.to_owned() }),
    }
}

fn check_tag(tag: &str) -> Result<(), ReferenceProblem> {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let fits = tag.len() <= MAX_TAG
        && tag.bytes().next().is_some_and(is_word)
        && tag.bytes().all(|b| is_word(b) || b == b'.' || b == b'-');
    match fits {
        true => Ok(()),
        false => Err(ReferenceProblem::Tag { tag: tag.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn references_are_normalised_as_docker_does() {
        let with_digest = format!("repo.example/a/b:v1@{D}");
        let only_digest = format!("busybox@{D}");
        for (text, name) in [
            ("busybox", "docker.io/library/busybox:latest".to_owned()),
            ("busybox:1.36", "docker.io/library/busybox:1.36".to_owned()),
            ("foo/bar", "docker.io/foo/bar:latest".to_owned()),
            ("docker.io/busybox", "docker.io/library/busybox:latest".to_owned()),
            ("index.docker.io/busybox", "docker.io/library/busybox:latest".to_owned()),
            ("localhost/busybox", "localhost/busybox:latest".to_owned()),
            ("localhost:5000/a/b:t", "localhost:5000/a/b:t".to_owned()),
            ("127.0.0.1:5000/pause", "127.0.0.1:5000/pause:latest".to_owned()),
            ("[::1]:5000/pause:3.9", "[::1]:5000/pause:3.9".to_owned()),
            ("[2001:db8::1]/pause:3.9", "[2001:db8::1]/pause:3.9".to_owned()),
            ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10".to_owned()),
            ("Foo/bar", "Foo/bar:latest".to_owned()),
            ("a--b/c__d/e.f_g", "docker.io/a--b/c__d/e.f_g:latest".to_owned()),
            (&only_digest, format!("docker.io/library/busybox@{D}")),
            (&with_digest, format!("repo.example/a/b@{D}")),
        ] {
            assert_eq!(text.parse::<Reference>().unwrap().name(), name, "{text}");
        }
        let both = with_digest.parse::<Reference>().unwrap();
        assert_eq!((both.tag(), both.digest().unwrap().to_string()), (Some("v1"), D.to_owned()));
        assert_eq!(both.to_string(), with_digest);
    }

    #[test]
    fn what_is_no_reference_is_refused_with_the_part_that_is_wrong() {
        let long = format!("a.example/{}", "a/".repeat(130) + "a");
        let longest_tag = format!("a:{}", "t".repeat(129));
        for (text, part) in [
            ("", "it is empty"),
            (":tag", "it is empty"),
            ("Busybox", "path component \"Busybox\""),
            ("a//b", "path component \"\""),
            ("a/", "path component \"\""),
            ("a.example/../b", "path component \"..\""),
            ("a.example/-b", "path component \"-b\""),
            ("a.example/b___c", "path component \"b___c\""),
            ("a.example/b..c", "path component \"b..c\""),
            ("busybox:", "tag \"\""),
            ("busybox:-x", "tag \"-x\""),
            ("busybox:a b", "tag \"a b\""),
            (&longest_tag, "1 to 128"),
            ("busybox@sha256:1", "needs 64"),
            ("busybox@", "has no algorithm"),
            ("a..example/b", "\"a..example\" is no registry host"),
            ("a.example:port/b", "is no registry host"),
            ("a.example:70000/b", "is no registry host"),
            ("[::zz]/b", "is no registry host"),
            ("user@host.example/b", "has no algorithm"),
            (&D[7..], "image id"),
            (&long, "the limit is 255"),
            ("busy\0box", "path component"),
            ("büsybox", "path component"),
        ] {
            let message = text.parse::<Reference>().unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
    }
}
