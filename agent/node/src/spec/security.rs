//! Seccomp, and paths that are hidden: what the request asks for against what the node has.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use hartpod_proto::cri::v1::{self as cri, security_profile::ProfileType};
use oci_spec::runtime::LinuxSeccomp;
use rustix::fs::{Mode, OFlags};

use super::{SpecError, SpecSettings};

/// A profile file larger than this is not one.
const PROFILE_BYTES_MAX: u64 = 4 << 20;

/// A seccomp or AppArmor profile as CRI says it, in either of its two ways.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Profile {
    RuntimeDefault,
    Unconfined,
    Localhost(String),
}

/// The new field wins over the deprecated text; nothing at all is `None`.
pub(super) fn profile(
    field: &str,
    new: Option<&cri::SecurityProfile>,
    old: &str,
) -> Result<Option<Profile>, SpecError> {
    let Some(new) = new else {
        return match old {
            "" => Ok(None),
            "runtime/default" | "docker/default" => Ok(Some(Profile::RuntimeDefault)),
            "unconfined" => Ok(Some(Profile::Unconfined)),
            other => match other.strip_prefix("localhost/") {
                Some(name) if !name.is_empty() => Ok(Some(Profile::Localhost(name.to_owned()))),
                _ => Err(SpecError::invalid(field, format!("{other:?} is not a profile"))),
            },
        };
    };
    let name = new.localhost_ref.strip_prefix("localhost/").unwrap_or(&new.localhost_ref);
    match ProfileType::try_from(new.profile_type) {
        Ok(ProfileType::Localhost) if name.is_empty() => {
            Err(SpecError::invalid(field, "is of type Localhost, but localhost_ref is empty"))
        }
        Ok(ProfileType::Localhost) => Ok(Some(Profile::Localhost(name.to_owned()))),
        Ok(_) if !name.is_empty() => {
            Err(SpecError::invalid(field, "has a localhost_ref, but is not of type Localhost"))
        }
        Ok(ProfileType::RuntimeDefault) => Ok(Some(Profile::RuntimeDefault)),
        Ok(ProfileType::Unconfined) => Ok(Some(Profile::Unconfined)),
        Err(_) => Err(SpecError::invalid(field, format!("profile type {} is not known", new.profile_type))),
    }
}

/// The system call filter. Unset is unconfined, as containerd has it: the kubelet always says which, and critest expects it.
/// A privileged container has none.
#[allow(deprecated)]
pub(super) fn seccomp_blocking(
    security: &cri::LinuxContainerSecurityContext,
    settings: &SpecSettings,
    default_profile: impl FnOnce() -> LinuxSeccomp,
) -> Result<Option<LinuxSeccomp>, SpecError> {
    const FIELD: &str = "config.linux.security_context.seccomp";
    let profile = profile(FIELD, security.seccomp.as_ref(), &security.seccomp_profile_path)?;
    match profile {
        _ if security.privileged => Ok(None),
        None | Some(Profile::Unconfined) => Ok(None),
        Some(_) if !settings.seccomp => {
            Err(SpecError::unsupported(FIELD, "the kernel has no seccomp filters"))
        }
        Some(Profile::RuntimeDefault) => Ok(Some(default_profile())),
        Some(Profile::Localhost(path)) if path.starts_with('/') => read_profile(Path::new(&path)).map(Some),
        Some(Profile::Localhost(path)) => {
            Err(SpecError::invalid(FIELD, format!("{path:?} is not an absolute path to a profile")))
        }
    }
}

fn read_profile(path: &Path) -> Result<LinuxSeccomp, SpecError> {
    let at = |source| SpecError::ReadProfile { path: path.to_owned(), source };
    // Nonblocking: opening a fifo waits for a writer otherwise, and the container's pod with it.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = std::fs::File::from(rustix::fs::open(path, flags, Mode::empty()).map_err(|e| at(e.into()))?);
    if !file.metadata().map_err(at)?.is_file() {
        return Err(at(std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is not a regular file")));
    }
    let mut text = Vec::new();
    let length = file.take(PROFILE_BYTES_MAX + 1).read_to_end(&mut text).map_err(at)?;
    if length as u64 > PROFILE_BYTES_MAX {
        return Err(at(std::io::Error::new(std::io::ErrorKind::FileTooLarge, "it is larger than 4 MiB")));
    }
    serde_json::from_slice(&text).map_err(|source| SpecError::ParseProfile { path: path.to_owned(), source })
}

/// Masked or read-only paths as the request lists them; a privileged container has none. Without a list there are none,
/// as in containerd: an empty list is how `procMount: Unmasked` arrives, and the kubelet always sends one otherwise.
pub(super) fn proc_paths(
    field: &str,
    security: &cri::LinuxContainerSecurityContext,
    asked: &[String],
) -> Result<Option<Vec<String>>, SpecError> {
    if security.privileged || asked.is_empty() {
        return Ok(None);
    }
    for path in asked {
        let parts = PathBuf::from(path);
        if !parts.is_absolute()
            || path.contains('\0')
            || parts.components().any(|c| c == std::path::Component::ParentDir)
        {
            return Err(SpecError::invalid(
                format!("config.linux.security_context.{field}"),
                format!("{path:?} is not an absolute path without .."),
            ));
        }
    }
    Ok(Some(asked.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(profile_type: ProfileType, localhost_ref: &str) -> Option<cri::SecurityProfile> {
        Some(cri::SecurityProfile { profile_type: profile_type.into(), localhost_ref: localhost_ref.into() })
    }

    #[test]
    fn profiles_are_said_in_two_ways() {
        use ProfileType::*;
        for (new, old, expected) in [
            (None, "", None),
            (None, "runtime/default", Some(Profile::RuntimeDefault)),
            (None, "docker/default", Some(Profile::RuntimeDefault)),
            (None, "unconfined", Some(Profile::Unconfined)),
            (None, "localhost//p.json", Some(Profile::Localhost("/p.json".into()))),
            (new(RuntimeDefault, ""), "unconfined", Some(Profile::RuntimeDefault)),
            (new(Unconfined, ""), "", Some(Profile::Unconfined)),
            (new(Localhost, "/p.json"), "", Some(Profile::Localhost("/p.json".into()))),
            (new(Localhost, "localhost//p.json"), "", Some(Profile::Localhost("/p.json".into()))),
        ] {
            assert_eq!(profile("f", new.as_ref(), old).unwrap(), expected);
        }
        let odd = Some(cri::SecurityProfile { profile_type: 9, localhost_ref: String::new() });
        for (new, old) in [
            (None, "p.json"),
            (None, "localhost/"),
            (new(Localhost, ""), ""),
            (new(Unconfined, "/p.json"), ""),
            (odd, ""),
        ] {
            assert!(profile("f", new.as_ref(), old).is_err(), "{new:?} {old:?}");
        }
    }

    fn node() -> SpecSettings {
        SpecSettings { seccomp: true, ..SpecSettings::default() }
    }

    fn asks(seccomp: Option<cri::SecurityProfile>) -> cri::LinuxContainerSecurityContext {
        cri::LinuxContainerSecurityContext { seccomp, ..Default::default() }
    }

    fn filter(security: &cri::LinuxContainerSecurityContext) -> Result<Option<LinuxSeccomp>, SpecError> {
        seccomp_blocking(security, &node(), LinuxSeccomp::default)
    }

    #[test]
    fn the_default_filter_comes_only_when_asked_for() {
        assert!(filter(&asks(None)).unwrap().is_none());
        assert!(filter(&asks(new(ProfileType::Unconfined, ""))).unwrap().is_none());
        let mut security = asks(new(ProfileType::RuntimeDefault, ""));
        assert!(filter(&security).unwrap().is_some());
        security.privileged = true;
        assert!(filter(&security).unwrap().is_none());
    }

    #[test]
    fn a_filter_that_the_kernel_cannot_load_is_refused() {
        let security = asks(new(ProfileType::RuntimeDefault, ""));
        let error = seccomp_blocking(&security, &SpecSettings::default(), LinuxSeccomp::default).unwrap_err();
        assert!(matches!(error, SpecError::Unsupported { .. }), "{error}");
    }

    #[test]
    fn a_profile_of_the_node_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.json");
        std::fs::write(
            &path,
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_ERRNO"}]}"#,
        )
        .unwrap();
        let found = filter(&asks(new(ProfileType::Localhost, path.to_str().unwrap()))).unwrap().unwrap();
        assert_eq!(found.syscalls().as_ref().unwrap()[0].names(), &["mkdir"]);
    }

    #[test]
    fn profiles_that_are_not_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.json");
        std::fs::write(&path, "{\"defaultAction\": 3}").unwrap();
        let of = |p: &Path| filter(&asks(new(ProfileType::Localhost, p.to_str().unwrap()))).unwrap_err();
        assert!(matches!(of(&path), SpecError::ParseProfile { .. }));
        assert!(matches!(of(&dir.path().join("none")), SpecError::ReadProfile { .. }));
        assert!(matches!(of(dir.path()), SpecError::ReadProfile { .. }));
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert!(matches!(of(&fifo), SpecError::ReadProfile { .. }));
        assert!(matches!(of(Path::new("p.json")), SpecError::Invalid { .. }));
    }

    #[test]
    fn masked_paths_are_the_requests_and_none_when_privileged() {
        let mut security = cri::LinuxContainerSecurityContext::default();
        let paths = ["/proc/kcore".to_owned()];
        assert_eq!(proc_paths("masked_paths", &security, &paths).unwrap().as_deref(), Some(&paths[..]));
        assert!(proc_paths("masked_paths", &security, &["proc".to_owned()]).is_err());
        assert!(proc_paths("masked_paths", &security, &["/proc/../etc".to_owned()]).is_err());
        security.privileged = true;
        assert_eq!(proc_paths("masked_paths", &security, &paths).unwrap(), None);
    }
}
