//! The cgroup lines of a mount table (`/proc/<pid>/mountinfo`, see proc_pid_mountinfo(5)).

use std::path::PathBuf;

use crate::mount_info::unescape;

/// One mount of a cgroup file system.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct CgroupMount {
    pub(super) point: PathBuf,
    pub(super) kind: Kind,
    pub(super) read_only: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    V2,
    /// With the names in its super block options, among which are the controllers.
    V1(Vec<String>),
}

/// The cgroup mounts of a table. Where several mounts share a mount point only the last, which hides the others, counts;
/// a hidden cgroup mount below another file system's later mount is dropped too.
pub(super) fn parse(table: &[u8]) -> Vec<CgroupMount> {
    let mut mounts: Vec<CgroupMount> = Vec::new();
    for line in table.split(|b| *b == b'\n') {
        let Some((point, mount)) = parse_line(line) else { continue };
        mounts.retain(|m| m.point != point);
        mounts.extend(mount);
    }
    mounts
}

/// The mount point of a line, and the mount if it is one of cgroups.
fn parse_line(line: &[u8]) -> Option<(PathBuf, Option<CgroupMount>)> {
    // id parent major:minor root point options [optional fields ..] - fstype source super-options
    let mut fields = line.split(|b| *b == b' ');
    let point = unescape(fields.nth(4)?);
    let options = fields.next()?;
    fields.find(|f| *f == b"-")?;
    let fstype = fields.next()?;
    let super_options = fields.nth(1).unwrap_or_default();
    let kind = match fstype {
        b"cgroup2" => Kind::V2,
        b"cgroup" => Kind::V1(split_options(super_options)),
        _ => return Some((point, None)),
    };
    let read_only = split_options(options).iter().chain(&split_options(super_options)).any(|o| o == "ro");
    Some((point.clone(), Some(CgroupMount { point, kind, read_only })))
}

fn split_options(field: &[u8]) -> Vec<String> {
    field.split(|b| *b == b',').map(|o| String::from_utf8_lossy(o).into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid_lines_are_read_and_others_dropped() {
        let table = b"31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
            32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime shared:7 master:2 - cgroup cgroup rw,cpu,cpuacct\n\
            41 31 0:38 /../x /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n\
            short line\n";
        let mounts = parse(table);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0].point, PathBuf::from("/sys/fs/cgroup/cpu"));
        assert_eq!(mounts[0].kind, Kind::V1(vec!["rw".into(), "cpu".into(), "cpuacct".into()]));
        assert_eq!(mounts[1].kind, Kind::V2);
        assert!(!mounts[1].read_only);
    }

    #[test]
    fn escapes_and_read_only_are_understood() {
        let mounts = parse(b"1 0 0:2 / /a\\040b\\134c\\9 ro,nosuid - cgroup2 none rw\n");
        assert_eq!(mounts[0].point, PathBuf::from("/a b\\c\\9"));
        assert!(mounts[0].read_only);
    }

    #[test]
    fn a_later_mount_hides_an_earlier_one() {
        let mounts = parse(
            b"1 0 0:2 / /cg rw - cgroup2 none rw\n2 1 0:3 / /cg rw - tmpfs none rw\n3 0 0:4 / /x rw - cgroup2 n rw\n",
        );
        assert_eq!(mounts.len(), 1);
        assert_eq!(mounts[0].point, PathBuf::from("/x"));
    }
}
