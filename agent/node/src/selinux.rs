//! SELinux: what containers are labelled with, where the kernel has it on and a policy for containers is installed.

mod context;
mod levels;

use std::io;
use std::path::{Path, PathBuf};

use hartpod_proto::cri::v1 as cri;

pub(crate) use context::{Context, is_level};
pub(crate) use levels::{Level, Levels};

/// Where the kernel's SELinux is talked to.
const SELINUXFS: &str = "/sys/fs/selinux";
/// Names the policy.
const CONFIG: &str = "/etc/selinux/config";
/// What containers are labelled with, of all policies (container-selinux).
const SHARED_CONTEXTS: &str = "/usr/share/containers/selinux/contexts";
/// The extended attribute of a file's label.
const ATTRIBUTE: &str = "security.selinux";

/// SELinux of this node.
#[derive(Debug)]
pub struct SeLinux {
    selinuxfs: PathBuf,
    /// Of a container's processes, and of its files.
    process: Context,
    file: Context,
    pub(crate) levels: Levels,
}

/// What a pod or container is labelled with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Labels {
    /// None: the policy decides.
    pub(crate) process: Option<String>,
    pub(crate) files: String,
}

impl SeLinux {
    /// That of the running kernel. None without a policy for containers, too: there is nothing to label them with then.
    pub(crate) fn detect() -> Option<Self> {
        Path::new(SELINUXFS).join("enforce").exists().then(|| Self::find(Path::new("/"), SELINUXFS.into()))?
    }

    fn find(root: &Path, selinuxfs: PathBuf) -> Option<Self> {
        let below = |path: &str| root.join(path.trim_start_matches('/'));
        let config = std::fs::read_to_string(below(CONFIG)).unwrap_or_default();
        let policy =
            setting(&config, "SELINUXTYPE").filter(|policy| !policy.contains('/')).unwrap_or("targeted");
        let of_policy = below(&format!("/etc/selinux/{policy}/contexts/lxc_contexts"));
        let text =
            std::fs::read_to_string(below(SHARED_CONTEXTS)).or_else(|_| std::fs::read_to_string(of_policy));
        let text = text.ok()?;
        let context = |key| setting(&text, key)?.parse().ok();
        let (process, file) = (context("process")?, context("file")?);
        Some(Self { selinuxfs, process, file, levels: Levels::default() })
    }

    /// By the options of the pod, and those of the container over them; `level` is the pod's, for who names none.
    pub(crate) fn labels_blocking(
        &self,
        options: [Option<&cri::SeLinuxOption>; 2],
        level: Option<&str>,
        privileged: bool,
    ) -> io::Result<Labels> {
        let all = |context: &Context| {
            let mut context = context.clone();
            context.level = level.map_or(context.level, str::to_owned);
            options.into_iter().flatten().fold(context, Context::with)
        };
        let process = all(&self.process);
        let mut files = self.file.clone();
        files.level.clone_from(&process.level);
        if options.into_iter().flatten().any(|options| !options.user.is_empty()) {
            files.user.clone_from(&process.user);
        }
        let names_type = options.into_iter().flatten().any(|options| !options.r#type.is_empty());
        let process = if privileged && !names_type {
            // As unconfined as the policy has it; one that has no such type decides by itself.
            let free = Context { typ: "spc_t".into(), level: "s0".into(), ..process };
            self.check_blocking(&free).is_ok().then(|| free.to_string())
        } else {
            self.check_blocking(&process)?;
            Some(process.to_string())
        };
        Ok(Labels { process, files: files.to_string() })
    }

    /// Whether the policy has such a context: the kernel takes it or not.
    fn check_blocking(&self, context: &Context) -> io::Result<()> {
        let text = format!("{context}\0");
        std::fs::write(self.selinuxfs.join("context"), text)
            .map_err(|source| io::Error::new(source.kind(), format!("context {context}: {source}")))
    }
}

/// Labels one file; where its file system has no labels there is nothing to do.
pub(crate) fn label_file_blocking(path: &Path, label: &str) -> io::Result<()> {
    let value = format!("{label}\0");
    match rustix::fs::lsetxattr(path, ATTRIBUTE, value.as_bytes(), rustix::fs::XattrFlags::empty()) {
        Err(rustix::io::Errno::NOTSUP) => Ok(()),
        done => Ok(done?),
    }
}

/// `key = "value"`, or without the quotes.
fn setting<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let mut found = lines.filter_map(|line| line.split_once('=')).filter(|(found, _)| found.trim() == key);
    found.next().map(|(_, value)| value.trim().trim_matches('"')).filter(|value| !value.is_empty())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A node with a policy, below `dir`. Contexts that it is asked about are written to the file `context` there; that is missing when none is valid.
    pub(crate) fn fake(dir: &Path) -> SeLinux {
        std::fs::create_dir_all(dir.join("etc/selinux/mine/contexts")).unwrap();
        std::fs::write(
            dir.join("etc/selinux/config"),
            "# SELINUXTYPE=other\nSELINUX=enforcing\nSELINUXTYPE=mine\n",
        )
        .unwrap();
        let contexts = "process = \"system_u:system_r:container_t:s0\"\ncontent = \"a:b:c:s0\"\nfile = \"system_u:object_r:container_file_t:s0\"\n";
        std::fs::write(dir.join("etc/selinux/mine/contexts/lxc_contexts"), contexts).unwrap();
        SeLinux::find(dir, dir.to_owned()).unwrap()
    }

    #[test]
    fn labels_are_the_policys_with_the_pods_level_and_what_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = fake(dir.path());
        let option = |user: &str, typ: &str, level: &str| {
            Some(cri::SeLinuxOption {
                user: user.into(),
                r#type: typ.into(),
                level: level.into(),
                ..Default::default()
            })
        };
        let level = Some("s0:c1,c2");
        for (pod, container, privileged, process, files) in [
            (
                None,
                None,
                false,
                "system_u:system_r:container_t:s0:c1,c2",
                "system_u:object_r:container_file_t:s0:c1,c2",
            ),
            // One that names only its type keeps the level of its pod.
            (
                None,
                option("", "web_t", ""),
                false,
                "system_u:system_r:web_t:s0:c1,c2",
                "system_u:object_r:container_file_t:s0:c1,c2",
            ),
            (
                option("", "web_t", "s0:c7"),
                None,
                false,
                "system_u:system_r:web_t:s0:c7",
                "system_u:object_r:container_file_t:s0:c7",
            ),
            (
                option("", "web_t", "s0:c7"),
                option("my_u", "", "s0"),
                false,
                "my_u:system_r:web_t:s0",
                "my_u:object_r:container_file_t:s0",
            ),
            (None, None, true, "system_u:system_r:spc_t:s0", "system_u:object_r:container_file_t:s0:c1,c2"),
            (
                None,
                option("", "web_t", ""),
                true,
                "system_u:system_r:web_t:s0:c1,c2",
                "system_u:object_r:container_file_t:s0:c1,c2",
            ),
        ] {
            let labels =
                kernel.labels_blocking([pod.as_ref(), container.as_ref()], level, privileged).unwrap();
            assert_eq!((labels.process.as_deref(), labels.files.as_str()), (Some(process), files));
            assert_eq!(std::fs::read_to_string(dir.path().join("context")).unwrap(), format!("{process}\0"));
        }
    }

    #[test]
    fn a_context_that_the_policy_does_not_have_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let mut kernel = fake(dir.path());
        kernel.selinuxfs = dir.path().join("none");
        let refused = kernel.labels_blocking([None, None], None, false).unwrap_err().to_string();
        assert!(refused.starts_with("context system_u:system_r:container_t:s0: "), "{refused}");
        assert_eq!(kernel.labels_blocking([None, None], None, true).unwrap().process, None);
    }

    #[test]
    fn without_a_policy_for_containers_there_are_no_labels() {
        let dir = tempfile::tempdir().unwrap();
        assert!(SeLinux::find(dir.path(), dir.path().to_owned()).is_none());
        fake(dir.path());
        std::fs::write(dir.path().join("etc/selinux/config"), "SELINUXTYPE=../../x").unwrap();
        assert!(SeLinux::find(dir.path(), dir.path().to_owned()).is_none());
    }

    #[test]
    fn a_file_is_labelled() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts");
        std::fs::write(&path, "").unwrap();
        label_file_blocking(&path, "a:b:c:s0").unwrap();
        let mut value = [0; 64];
        let length = rustix::fs::lgetxattr(&path, ATTRIBUTE, &mut value).unwrap();
        assert_eq!(&value[..length], b"a:b:c:s0\0");
    }
}
