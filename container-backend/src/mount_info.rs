//! Tables of mounts (`/proc/<pid>/mountinfo`, see proc_pid_mountinfo(5)).

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

/// Whether anything is mounted below a folder, by a table of the mount namespace that it is in.
pub(crate) fn has_mounts_below(table: &[u8], folder: &Path) -> bool {
    // id parent major:minor root point ..
    let points = table.split(|b| *b == b'\n').filter_map(|line| line.split(|b| *b == b' ').nth(4));
    points.map(unescape).any(|point| point != folder && point.starts_with(folder))
}

/// The kernel writes blanks, tabs, newlines and backslashes of a path as `\` and three octal digits.
pub(crate) fn unescape(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        match octal(rest) {
            Some(byte) => {
                out.push(byte);
                rest = rest.get(4..).unwrap_or_default();
            }
            None => {
                out.push(first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

fn octal(text: &[u8]) -> Option<u8> {
    let digits = text.strip_prefix(b"\\")?.get(..3)?;
    let digits = OsStr::from_bytes(digits).to_str()?;
    u8::from_str_radix(digits, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_mounted_below_counts() {
        let table = b"22 1 8:1 / / rw - ext4 /dev/a rw\n30 22 0:5 / /srv/a\\040b rw - tmpfs x rw\n31 22 0:6 / /srv/a\\040b/c rw - tmpfs y rw\n";
        for (folder, below) in [
            ("/", true),
            ("/srv", true),
            ("/srv/a b", true),
            ("/srv/a b/c", false),
            ("/srv/a", false),
            ("/sr", false),
        ] {
            assert_eq!(has_mounts_below(table, Path::new(folder)), below, "{folder}");
        }
        assert!(!has_mounts_below(b"", Path::new("/")));
    }
}
