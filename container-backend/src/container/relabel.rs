//! Labels volumes for SELinux, as they are asked for with.
//!
//! It may take as long as a volume is large: it is done by the container's own process, in the host's mount namespace, before that has anything of
//! the container's. What is in a volume is anybody's: no link is followed, and every name is tried in the folder that is open.

use std::cell::OnceCell;
use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{
    Dir, FileType, Mode, OFlags, XattrFlags, fstat, getxattr, lgetxattr, lsetxattr, openat, setxattr,
};
use rustix::io::Errno as OsErrno;

use crate::errno::Errno;
use crate::failure::Failure;
use crate::mount_info::has_mounts_below;

const ATTRIBUTE: &str = "security.selinux";

/// Folders in folders; each holds a descriptor open.
const DEPTH_MAX: usize = 256;

/// What the node itself lives of: a pod that has it relabelled stops the node. Same as libselinux's for containers (go-selinux, label.Relabel).
const NEVER: [&str; 27] = [
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/etc/passwd",
    "/etc/pki",
    "/etc/shadow",
    "/home",
    "/lib",
    "/lib64",
    "/media",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/srv",
    "/sys",
    "/system",
    "/tmp",
    "/usr",
    "/usr/bin",
    "/usr/lib",
    "/var",
    "/var/lib",
    "/var/log",
];

/// Labels a file or folder of the host, and all that is below it, but for what is on file systems without labels: those are walked only on the
/// way to others, which are mounted below.
pub(super) fn relabel(source: &Path, label: &str) -> Result<(), Failure> {
    let failed =
        |what: String| move |errno: Errno| Failure::Relabel { source_path: source.to_owned(), what, errno };
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let top =
        rustix::fs::open(source, flags, Mode::empty()).map_err(|e| failed("open it".into())(e.into()))?;
    let place = std::fs::read_link(of_fd(&top)).map_err(|e| failed("find it".into())(e.into()))?;
    if NEVER.iter().any(|path| place == Path::new(path)) {
        return Err(failed(format!("{} is the node's own", place.display()))(Errno::PERM));
    }
    let value = [label.as_bytes(), b"\0"].concat();
    walk(&top, &value)
        .map_err(|(path, errno)| failed(format!("set {label} on {}", path.display()))(errno.into()))
}

/// A name for what a descriptor is open on, whatever it is called by now.
fn of_fd(fd: &impl AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// What is mounted, once that matters.
#[derive(Debug, Default)]
struct Table(OnceCell<Option<Vec<u8>>>);

impl Table {
    /// Whether something of a folder may have labels though it has none itself.
    fn leads_on(&self, folder: &impl AsRawFd) -> bool {
        let table = self.0.get_or_init(|| std::fs::read("/proc/thread-self/mountinfo").ok());
        match (table, std::fs::read_link(of_fd(folder))) {
            (Some(table), Ok(place)) => has_mounts_below(table, &place),
            (None, _) | (_, Err(_)) => true,
        }
    }
}

type Failed = (PathBuf, OsErrno);

fn at(path: &Path) -> impl FnOnce(OsErrno) -> Failed {
    let path = path.to_owned();
    move |errno| (path, errno)
}

fn walk(top: &OwnedFd, value: &[u8]) -> Result<(), Failed> {
    let name = of_fd(top);
    let top_has = set(&name, Link::Followed, value).map_err(at(&name))?;
    if !FileType::from_raw_mode(fstat(top).map_err(at(&name))?.st_mode).is_dir() {
        return Ok(());
    }
    let table = Table::default();
    if top_has == Labels::None && !table.leads_on(top) {
        return Ok(());
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(&name, flags, Mode::empty()).map_err(at(&name))?;
    let mut open = vec![Dir::new(folder).map_err(at(&name))?];
    while let Some(folder) = open.last_mut() {
        let Some(entry) = folder.read() else {
            open.pop();
            continue;
        };
        let entry = entry.map_err(at(&name))?;
        let bytes = entry.file_name().to_bytes();
        if bytes == b"." || bytes == b".." {
            continue;
        }
        let parent = folder.fd().map_err(at(&name))?;
        let path = of_fd(&parent).join(OsStr::from_bytes(bytes));
        let has = match set(&path, Link::Itself, value) {
            // It was there a moment ago.
            Err(OsErrno::NOENT) => continue,
            done => done.map_err(at(&path))?,
        };
        match openat(parent, entry.file_name(), flags | OFlags::NOFOLLOW, Mode::empty()) {
            Ok(below) if has == Labels::None && !table.leads_on(&below) => {}
            Ok(_) if open.len() >= DEPTH_MAX => return Err((path, OsErrno::NAMETOOLONG)),
            Ok(below) => open.push(Dir::new(below).map_err(at(&path))?),
            // No folder: a link, a file, or gone.
            Err(OsErrno::NOTDIR | OsErrno::LOOP | OsErrno::NOENT) => {}
            Err(errno) => return Err((path, errno)),
        }
    }
    Ok(())
}

/// What a path's last name means where it is a link.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Link {
    /// A descriptor's name is a link to what it is open on.
    Followed,
    Itself,
}

/// Whether a file system has labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Labels {
    Some,
    None,
}

/// What has the label already is not written to again: the next pod with the same volume is quick.
fn set(path: &Path, link: Link, value: &[u8]) -> Result<Labels, OsErrno> {
    let mut found = [0; 512];
    let length = match link {
        Link::Followed => getxattr(path, ATTRIBUTE, &mut found),
        Link::Itself => lgetxattr(path, ATTRIBUTE, &mut found),
    };
    if length.is_ok_and(|length| found.get(..length) == Some(value)) {
        return Ok(Labels::Some);
    }
    let set = match link {
        Link::Followed => setxattr(path, ATTRIBUTE, value, XattrFlags::empty()),
        Link::Itself => lsetxattr(path, ATTRIBUTE, value, XattrFlags::empty()),
    };
    match set {
        // NFS and the like go by what they were mounted with. Below may be mounts of file systems that have labels, and above.
        Err(OsErrno::NOTSUP) => Ok(Labels::None),
        other => other.map(|()| Labels::Some),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn label(path: &Path) -> Option<String> {
        let mut value = [0; 64];
        let length = lgetxattr(path, ATTRIBUTE, &mut value).ok()?;
        Some(String::from_utf8(value[..length].to_vec()).unwrap())
    }

    #[test]
    fn all_of_a_volume_is_labelled_and_nothing_that_links_lead_to() {
        let dir = tempfile::tempdir().unwrap();
        let (volume, outside) = (dir.path().join("volume"), dir.path().join("outside"));
        fs::create_dir_all(volume.join("deep/er")).unwrap();
        fs::create_dir(&outside).unwrap();
        for file in [volume.join("file"), volume.join("deep/er/file"), outside.join("file")] {
            fs::write(file, "").unwrap();
        }
        symlink(&outside, volume.join("link")).unwrap();
        symlink(outside.join("file"), volume.join("deep/link")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, volume.join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let given = dir.path().join("given");
        symlink(&volume, &given).unwrap();
        // The source itself may be a link, as for any mount.
        relabel(&given, "a:b:c:s0").unwrap();
        relabel(&given, "a:b:c:s0").unwrap();
        for path in ["", "file", "fifo", "deep", "deep/er", "deep/er/file", "link", "deep/link"] {
            assert_eq!(label(&volume.join(path)).as_deref(), Some("a:b:c:s0\0"), "{path}");
        }
        assert_eq!((label(&outside), label(&outside.join("file"))), (None, None));
        relabel(&volume.join("file"), "x:b:c:s0").unwrap();
        assert_eq!(label(&volume.join("file")).as_deref(), Some("x:b:c:s0\0"));
    }

    #[test]
    fn a_file_system_without_labels_among_others_stops_nothing() {
        use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("a-mount");
        for folder in ["a-mount", "b", "c"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
        }
        // Of this thread alone.
        crate::sys::exec::unshare(rustix::thread::UnshareFlags::NEWNS).unwrap();
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        mount("ramfs", &below, "ramfs", MountFlags::empty(), None).unwrap();
        fs::create_dir(below.join("inside")).unwrap();
        relabel(dir.path(), "a:b:c:s0").unwrap();
        for folder in ["", "b", "c"] {
            assert_eq!(label(&dir.path().join(folder)).as_deref(), Some("a:b:c:s0\0"), "{folder}");
        }
        relabel(&below, "a:b:c:s0").unwrap();
        assert_eq!(label(&below.join("inside")), None);
        // What is too deep is not looked into for nothing, and what is mounted is found.
        let deep: PathBuf =
            std::iter::once(Path::new("inside")).chain(vec![Path::new("d"); DEPTH_MAX]).collect();
        fs::create_dir_all(below.join(deep)).unwrap();
        relabel(&below, "a:b:c:s0").unwrap();
        let point = below.join("on/the way");
        fs::create_dir_all(&point).unwrap();
        mount(dir.path().join("c"), &point, "", MountFlags::BIND, None).unwrap();
        for top in [dir.path(), &below] {
            relabel(top, "x:b:c:s0").unwrap();
            assert_eq!(label(&point).as_deref(), Some("x:b:c:s0\0"));
        }
    }

    #[test]
    fn what_the_node_lives_of_is_not_relabelled() {
        let dir = tempfile::tempdir().unwrap();
        symlink("/etc", dir.path().join("link")).unwrap();
        for path in [Path::new("/"), Path::new("/usr/"), Path::new("/etc/../etc"), &dir.path().join("link")] {
            let refused = relabel(path, "a:b:c:s0").unwrap_err();
            assert_eq!(refused.blame(), crate::failure::Blame::Request, "{refused}");
            assert!(refused.to_string().ends_with("is the node's own"), "{refused}");
        }
        let missing = relabel(&dir.path().join("none"), "l").unwrap_err();
        assert_eq!(missing.blame(), crate::failure::Blame::Missing);
    }

    #[test]
    fn a_volume_of_folders_in_folders_has_an_end() {
        let dir = tempfile::tempdir().unwrap();
        let deep: PathBuf = std::iter::once(dir.path()).chain(vec![Path::new("d"); DEPTH_MAX + 1]).collect();
        fs::create_dir_all(deep).unwrap();
        assert!(relabel(dir.path(), "a:b:c:s0").is_err());
    }
}
