//! Names in a tar archive, checked before anything is done with them.

use super::error::EntryProblem;

/// The longest component that Linux file systems take (`NAME_MAX`).
const MAX_NAME: usize = 255;
/// The longest path that a system call takes, without its NUL (`PATH_MAX` - 1). Longer ones could never be opened by name.
const MAX_PATH: usize = 4095;
/// Folders in each other. Far more than any real image has; it bounds the open files of a removal.
pub(super) const MAX_DEPTH: usize = 256;

/// A path below the layer's root: components that are neither empty nor `.` or `..`, joined by `/`. The root is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EntryPath(Vec<u8>);

impl EntryPath {
    /// Cleans a name. A leading `/` means the layer's root, as in docker and containerd.
    pub(super) fn parse(raw: &[u8]) -> Result<EntryPath, EntryProblem> {
        if raw.contains(&0) {
            return Err(EntryProblem::Nul);
        }
        if raw.len() > MAX_PATH {
            return Err(EntryProblem::PathTooLong { length: raw.len(), limit: MAX_PATH });
        }
        let mut clean = Vec::with_capacity(raw.len());
        let mut depth = 0;
        for component in raw.split(|&b| b == b'/') {
            match component {
                b"" | b"." => continue,
                b".." => return Err(EntryProblem::ParentInName),
                long if long.len() > MAX_NAME => {
                    return Err(EntryProblem::NameTooLong { length: long.len(), limit: MAX_NAME });
                }
                _ => {}
            }
            if !clean.is_empty() {
                clean.push(b'/');
            }
            clean.extend_from_slice(component);
            depth += 1;
        }
        if depth > MAX_DEPTH {
            return Err(EntryProblem::TooDeep { limit: MAX_DEPTH });
        }
        Ok(EntryPath(clean))
    }

    /// The folder part and the name; None for the root.
    pub(super) fn split(&self) -> Option<(&[u8], &[u8])> {
        match self.0.iter().rposition(|&b| b == b'/') {
            Some(slash) => Some((&self.0[..slash], &self.0[slash + 1..])),
            None if self.0.is_empty() => None,
            None => Some((b"", &self.0)),
        }
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// `dir/name`, or `name` at the root.
pub(super) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    match dir {
        b"" => name.to_vec(),
        dir => [dir, b"/", name].concat(),
    }
}

/// A name for an error: readable and short.
pub(super) fn printable(raw: &[u8]) -> String {
    crate::digest::shorten(&String::from_utf8_lossy(raw))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cleaned() {
        for (raw, clean) in [
            ("./", ""),
            ("/", ""),
            ("", ""),
            ("/usr/bin/", "usr/bin"),
            ("./a//b/./c", "a/b/c"),
            ("...", "..."),
            ("a\nb", "a\nb"),
        ] {
            assert_eq!(EntryPath::parse(raw.as_bytes()).unwrap().as_bytes(), clean.as_bytes(), "{raw}");
        }
        assert_eq!(EntryPath::parse(b"a/b").unwrap().split(), Some((&b"a"[..], &b"b"[..])));
        assert_eq!(EntryPath::parse(b"a").unwrap().split(), Some((&b""[..], &b"a"[..])));
        assert_eq!(EntryPath::parse(b".").unwrap().split(), None);
    }

    #[test]
    fn hostile_names_are_refused() {
        let deep = "a/".repeat(257);
        let long = "a".repeat(64 << 10);
        let long_name = format!("a/{}", "b".repeat(256));
        for (raw, problem) in [
            ("..", EntryProblem::ParentInName),
            ("../a", EntryProblem::ParentInName),
            ("a/../b", EntryProblem::ParentInName),
            ("/..", EntryProblem::ParentInName),
            ("a\0b", EntryProblem::Nul),
            (&long, EntryProblem::PathTooLong { length: 65536, limit: 4095 }),
            (&long_name, EntryProblem::NameTooLong { length: 256, limit: 255 }),
            (&deep, EntryProblem::TooDeep { limit: 256 }),
        ] {
            assert_eq!(EntryPath::parse(raw.as_bytes()), Err(problem));
        }
        assert!(EntryPath::parse("a/".repeat(256).as_bytes()).is_ok());
    }
}
