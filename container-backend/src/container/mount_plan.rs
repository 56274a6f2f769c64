//! The mounts of an OCI spec, lowered: what kind, with which attributes, told apart from the file system's own options.

use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;

use crate::errno::Errno;
use crate::failure::Failure;
use crate::id_maps::IdMaps;
use crate::sys::mount_attr::{MountAttr, Reach};

/// One mount to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountPlan {
    pub(crate) destination: PathBuf,
    pub(crate) kind: MountKind,
    /// For this mount.
    pub(crate) attr: MountAttr,
    /// For it and all below it (`rro` and the like, and propagation).
    pub(crate) tree_attr: MountAttr,
    /// What ids of its files are shown as.
    pub(crate) ids: Option<MountIds>,
}

/// Maps of a mount's own, which need not be the pod's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountIds {
    pub(crate) maps: IdMaps,
    pub(crate) reach: Reach,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum MountKind {
    /// A file or folder of the host.
    /// With `relabel` it is given the container's SELinux label before.
    Bind { source: PathBuf, recursive: bool, relabel: bool },
    /// Files of an image, from `sub_path` of it on; read-only.
    Image { image: String, sub_path: PathBuf },
    /// The pod's /dev/shm.
    PodShm,
    /// Of the container's pid namespace.
    Proc,
    /// Where the cgroup hierarchies go; what that means depends on the node.
    Cgroup,
    /// A file system of its own.
    New { fstype: NewFs, source: String, options: Vec<(String, Option<String>)> },
}

/// File systems that a container may have mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NewFs {
    Devpts,
    Mqueue,
    Sysfs,
    Tmpfs,
}

impl NewFs {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Devpts => "devpts",
            Self::Mqueue => "mqueue",
            Self::Sysfs => "sysfs",
            Self::Tmpfs => "tmpfs",
        }
    }
}

impl MountPlan {
    pub(crate) fn is_read_only(&self) -> bool {
        self.attr.set & MOUNT_ATTR_RDONLY != 0
    }

    /// For messages.
    pub(crate) fn fstype(&self) -> &'static str {
        match &self.kind {
            MountKind::Bind { .. } => "bind",
            MountKind::Image { .. } => "image",
            MountKind::PodShm => "shm",
            MountKind::Proc => "proc",
            MountKind::Cgroup => "cgroup",
            MountKind::New { fstype, .. } => fstype.name(),
        }
    }

    /// What it is when it cannot be mounted.
    pub(crate) fn failure(&self, errno: Errno) -> Failure {
        Failure::Mount { fstype: self.fstype().into(), destination: self.destination.clone(), errno }
    }

    /// # Errors
    /// A type or option that is not supported.
    pub(crate) fn from_oci(mount: &Mount) -> Result<Self, Failure> {
        let options = mount.options().as_deref().unwrap_or_default();
        // Without dots and slashes that say nothing: `/etc/hosts/` would have to be a folder.
        let destination: PathBuf = mount.destination().components().collect();
        let bad_type =
            |fstype: &str| Failure::MountType { destination: destination.clone(), fstype: fstype.into() };
        let source = mount.source().clone().unwrap_or_default();
        let bind = options.iter().any(|o| o == "bind" || o == "rbind");
        let typ = mount.typ().as_deref().unwrap_or(if bind { "bind" } else { "none" });
        let mut parsed = Parsed::default();
        for option in options {
            parsed.add(option);
        }
        let kind = match typ {
            "tmpfs" | "bind" if destination == Path::new("/dev/shm") && source == Path::new("shm") => {
                parsed.data.clear();
                MountKind::PodShm
            }
            "image" => {
                parsed.attr.set |= MOUNT_ATTR_RDONLY;
                MountKind::Image {
                    image: source.to_string_lossy().into_owned(),
                    sub_path: parsed.take("subpath").unwrap_or_default().into(),
                }
            }
            _ if bind || typ == "bind" => {
                if !source.is_absolute() {
                    return Err(Failure::MountSource {
                        source_path: source,
                        destination,
                        errno: Errno::INVAL,
                    });
                }
                let relabel = parsed.take_flag("Z");
                MountKind::Bind { source, recursive: parsed.recursive, relabel }
            }
            "proc" => MountKind::Proc,
            "cgroup" | "cgroup2" => MountKind::Cgroup,
            _ => {
                let fstype = match typ {
                    "devpts" => NewFs::Devpts,
                    "mqueue" => NewFs::Mqueue,
                    "sysfs" => NewFs::Sysfs,
                    "tmpfs" => NewFs::Tmpfs,
                    other => return Err(bad_type(other)),
                };
                let source = source.to_str().filter(|s| !s.is_empty()).unwrap_or(typ).to_owned();
                MountKind::New { fstype, source, options: std::mem::take(&mut parsed.data) }
            }
        };
        let ids = match kind {
            MountKind::Bind { .. } => mount_ids(mount, &mut parsed)?,
            _ => None,
        };
        let plan = Self { destination, kind, attr: parsed.attr, tree_attr: parsed.tree_attr, ids };
        match parsed.data.into_iter().next() {
            Some((option, _)) => Err(Failure::MountOption {
                fstype: plan.fstype().into(),
                destination: plan.destination,
                option,
            }),
            None => Ok(plan),
        }
    }
}

/// Maps of the mount's own. As in runc, mounts below it are left as they are unless `ridmap` is asked for.
fn mount_ids(mount: &Mount, parsed: &mut Parsed) -> Result<Option<MountIds>, Failure> {
    let maps = IdMaps::from_oci(mount.uid_mappings().as_ref(), mount.gid_mappings().as_ref());
    let maps = maps.map_err(|error| Failure::IdMap {
        destination: mount.destination().clone(),
        problem: error.to_string(),
    })?;
    Ok(maps.map(|maps| {
        parsed.take_flag("idmap");
        let reach = if parsed.take_flag("ridmap") { Reach::Tree } else { Reach::One };
        MountIds { maps, reach }
    }))
}

// linux/mount.h
pub(crate) const MOUNT_ATTR_RDONLY: u64 = 0x1;
pub(crate) const MOUNT_ATTR_NOSUID: u64 = 0x2;
pub(crate) const MOUNT_ATTR_NODEV: u64 = 0x4;
pub(crate) const MOUNT_ATTR_NOEXEC: u64 = 0x8;
const MOUNT_ATTR_ATIME: u64 = 0x70;
const MOUNT_ATTR_RELATIME: u64 = 0x0;
const MOUNT_ATTR_NOATIME: u64 = 0x10;
const MOUNT_ATTR_STRICTATIME: u64 = 0x20;
const MOUNT_ATTR_NODIRATIME: u64 = 0x80;
const MOUNT_ATTR_NOSYMFOLLOW: u64 = 0x20_0000;

#[derive(Default)]
struct Parsed {
    attr: MountAttr,
    tree_attr: MountAttr,
    recursive: bool,
    data: Vec<(String, Option<String>)>,
}

impl Parsed {
    fn add(&mut self, option: &str) {
        // What only takes back a default adds nothing: a bind keeps what the host's mount forbids.
        const NO_CHANGE: [&str; 12] = [
            "bind",
            "defaults",
            "rw",
            "suid",
            "dev",
            "exec",
            "async",
            "diratime",
            "symfollow",
            "norelatime",
            "loud",
            "rrw",
        ];
        if NO_CHANGE.contains(&option) {
            return;
        }
        if option == "rbind" {
            self.recursive = true;
        } else if let Some(propagation) = propagation(option) {
            // A propagation without the r is for the top mount alone, which containers never mean: same as the r.
            self.tree_attr.propagation = propagation;
        } else if let Some((set, clear)) = attribute(option) {
            set_bits(&mut self.attr, set, clear);
        } else if let Some((set, clear)) = option.strip_prefix('r').and_then(attribute) {
            set_bits(&mut self.tree_attr, set, clear);
        } else {
            let (key, value) =
                option.split_once('=').map_or((option, None), |(k, v)| (k, Some(v.to_owned())));
            self.data.push((key.to_owned(), value));
        }
    }
}

impl Parsed {
    /// Whether it is there.
    fn take_flag(&mut self, key: &str) -> bool {
        let before = self.data.len();
        self.data.retain(|(found, value)| found != key || value.is_some());
        self.data.len() < before
    }

    /// The value of an option of the file system's own.
    fn take(&mut self, key: &str) -> Option<String> {
        let at = self.data.iter().position(|(found, value)| found == key && value.is_some())?;
        self.data.remove(at).1
    }
}

fn set_bits(attr: &mut MountAttr, set: u64, clear: u64) {
    attr.set = attr.set & !clear | set;
    attr.clear |= clear;
}

fn propagation(option: &str) -> Option<u64> {
    Some(match option {
        "private" | "rprivate" => libc::MS_PRIVATE,
        "slave" | "rslave" => libc::MS_SLAVE,
        "shared" | "rshared" => libc::MS_SHARED,
        "unbindable" | "runbindable" => libc::MS_UNBINDABLE,
        _ => return None,
    })
}

/// Bits to set and to clear first; the access time modes exclude one another.
fn attribute(option: &str) -> Option<(u64, u64)> {
    Some(match option {
        "ro" => (MOUNT_ATTR_RDONLY, 0),
        "nosuid" => (MOUNT_ATTR_NOSUID, 0),
        "nodev" => (MOUNT_ATTR_NODEV, 0),
        "noexec" => (MOUNT_ATTR_NOEXEC, 0),
        "relatime" => (MOUNT_ATTR_RELATIME, MOUNT_ATTR_ATIME),
        "noatime" => (MOUNT_ATTR_NOATIME, MOUNT_ATTR_ATIME),
        "strictatime" => (MOUNT_ATTR_STRICTATIME, MOUNT_ATTR_ATIME),
        "nodiratime" => (MOUNT_ATTR_NODIRATIME, 0),
        "nosymfollow" => (MOUNT_ATTR_NOSYMFOLLOW, 0),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::MountBuilder;

    use super::*;

    fn plan(typ: &str, source: &str, destination: &str, options: &[&str]) -> Result<MountPlan, Failure> {
        let options: Vec<String> = options.iter().map(ToString::to_string).collect();
        let mount = MountBuilder::default().typ(typ).source(source).destination(destination).options(options);
        MountPlan::from_oci(&mount.build().unwrap())
    }

    #[test]
    fn a_volume_is_read_only_with_what_is_mounted_below_only_if_asked() {
        let ro = plan("bind", "/v", "/data", &["rbind", "rprivate", "ro"]).unwrap();
        assert_eq!(ro.kind, MountKind::Bind { source: "/v".into(), recursive: true, relabel: false });
        assert_eq!(ro.attr.set, MOUNT_ATTR_RDONLY);
        assert_eq!((ro.tree_attr.set, ro.tree_attr.propagation), (0, libc::MS_PRIVATE));
        let rro = plan("bind", "/v", "/data", &["rbind", "rslave", "rro"]).unwrap();
        assert_eq!(rro.tree_attr.set, MOUNT_ATTR_RDONLY);
        assert_eq!(rro.tree_attr.propagation, libc::MS_SLAVE);
    }

    #[test]
    fn a_later_access_time_mode_replaces_an_earlier_one() {
        let attr = plan("tmpfs", "t", "/t", &["noatime", "strictatime"]).unwrap().attr;
        assert_eq!((attr.set, attr.clear), (MOUNT_ATTR_STRICTATIME, MOUNT_ATTR_ATIME));
    }

    #[test]
    fn a_trailing_slash_means_nothing() {
        assert_eq!(
            plan("bind", "/v", "/etc//./hosts/", &["bind"]).unwrap().destination.as_os_str(),
            "/etc/hosts"
        );
        assert_eq!(plan("bind", "/v", "/a/../b", &["bind"]).unwrap().destination.as_os_str(), "/a/../b");
    }

    #[test]
    fn options_of_the_file_system_stay_apart() {
        let plan = plan("tmpfs", "", "/t", &["nosuid", "mode=755", "size=64k"]).unwrap();
        let options = vec![("mode".into(), Some("755".into())), ("size".into(), Some("64k".into()))];
        assert_eq!(plan.kind, MountKind::New { fstype: NewFs::Tmpfs, source: "tmpfs".into(), options });
        assert_eq!(plan.attr.set, MOUNT_ATTR_NOSUID);
    }

    #[test]
    fn the_shm_of_the_pod_is_not_a_tmpfs_of_the_container() {
        let options = ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"];
        assert_eq!(plan("tmpfs", "shm", "/dev/shm", &options).unwrap().kind, MountKind::PodShm);
        assert!(matches!(plan("tmpfs", "shm", "/other", &options).unwrap().kind, MountKind::New { .. }));
    }

    #[test]
    fn an_image_is_read_only_whatever_is_asked() {
        let image = plan("image", "sha256:1", "/data", &["rw", "rprivate", "subpath=a=b/c"]).unwrap();
        assert_eq!(image.kind, MountKind::Image { image: "sha256:1".into(), sub_path: "a=b/c".into() });
        assert!(image.is_read_only());
        assert!(plan("image", "sha256:1", "/data", &["size=1"]).is_err());
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        let error = plan("bind", "/v", "/data", &["rbind", "size=1"]).unwrap_err();
        assert_eq!(error.to_string(), "mount on /data: option `size` is not supported for bind");
        let error = plan("nfs", "srv:/", "/data", &[]).unwrap_err();
        assert_eq!(error.to_string(), "mount on /data: type `nfs` is not supported");
        assert!(plan("bind", "relative", "/data", &["rbind"]).is_err());
        assert!(plan("bind", "/v", "/data", &["idmap"]).is_err());
    }

    #[test]
    fn a_mount_may_have_maps_of_its_own() {
        let plan = |options: &[&str], uids: u32| {
            let json = serde_json::json!({"destination": "/d", "type": "bind", "source": "/v", "options": options,
                "uidMappings": [{"containerID": 0, "hostID": 9, "size": uids}],
                "gidMappings": [{"containerID": 0, "hostID": 7, "size": 1}]});
            MountPlan::from_oci(&serde_json::from_value(json).unwrap())
        };
        let ids = plan(&["rbind"], 1).unwrap().ids.unwrap();
        assert_eq!((ids.maps.root(), ids.reach), (Some((9, 7)), Reach::One));
        assert_eq!(plan(&["rbind", "ridmap"], 1).unwrap().ids.unwrap().reach, Reach::Tree);
        let error = plan(&["rbind"], 0).unwrap_err().to_string();
        assert_eq!(error, "mount on /d: uids[0]: the length is 0");
    }
}
