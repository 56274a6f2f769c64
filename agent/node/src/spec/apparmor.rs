//! Which AppArmor profile a container's processes run under. The rules are containerd's (internal/cri/server, generateApparmorSpecOpts).

use hartpod_proto::cri::v1 as cri;

use super::security::{Profile, profile};
use super::{SpecError, SpecSettings};
use crate::apparmor::DEFAULT_PROFILE;
use crate::validate::Kind;

const FIELD: &str = "config.linux.security_context.apparmor";

/// The profile, which the kernel has. Where nothing is asked for it is the default one, if it can be had (kubernetes#51746).
#[allow(deprecated)]
pub(super) fn profile_blocking(
    security: &cri::LinuxContainerSecurityContext,
    settings: &SpecSettings,
    kind: Kind,
    warnings: &mut Vec<String>,
) -> Result<Option<String>, SpecError> {
    let asked = profile(FIELD, security.apparmor.as_ref(), &security.apparmor_profile)?;
    if kind == Kind::Guest {
        return in_guest(asked, security.privileged, warnings).map(|()| None);
    }
    let Some(kernel) = &settings.apparmor else {
        return match asked {
            None | Some(Profile::Unconfined) => Ok(None),
            Some(Profile::RuntimeDefault) if security.privileged => Ok(None),
            Some(_) => Err(SpecError::unsupported(FIELD, "AppArmor is not enabled in the kernel")),
        };
    };
    match asked {
        Some(Profile::Unconfined) => Ok(None),
        None | Some(Profile::RuntimeDefault) if security.privileged => Ok(None),
        None if !kernel.has_parser() => {
            warnings
                .push("no apparmor_parser on this node: containers are not confined by AppArmor".to_owned());
            Ok(None)
        }
        None | Some(Profile::RuntimeDefault) => {
            kernel.load_default_blocking()?;
            Ok(Some(DEFAULT_PROFILE.to_owned()))
        }
        Some(Profile::Localhost(name)) if kernel.has_blocking(&name)? => Ok(Some(name)),
        Some(Profile::Localhost(name)) => {
            Err(SpecError::invalid(FIELD, format!("AppArmor profile {name:?} is not loaded on this node")))
        }
    }
}

/// A guest has no policy: what keeps its containers from the node is the guest itself.
fn in_guest(asked: Option<Profile>, privileged: bool, warnings: &mut Vec<String>) -> Result<(), SpecError> {
    match asked {
        None | Some(Profile::Unconfined) => Ok(()),
        Some(Profile::RuntimeDefault) => {
            if !privileged {
                warnings.push(
                    "AppArmor's RuntimeDefault has no effect in guests, which have no policy".to_owned(),
                );
            }
            Ok(())
        }
        Some(Profile::Localhost(_)) => {
            Err(SpecError::unsupported(FIELD, "a guest has none of the node's AppArmor profiles"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use cri::security_profile::ProfileType;

    use super::*;
    use crate::apparmor::tests::fake;

    fn asks(profile: Option<(ProfileType, &str)>, privileged: bool) -> cri::LinuxContainerSecurityContext {
        let apparmor = profile
            .map(|(typ, name)| cri::SecurityProfile { profile_type: typ.into(), localhost_ref: name.into() });
        cri::LinuxContainerSecurityContext { apparmor, privileged, ..Default::default() }
    }

    /// The profile, or the last words of the refusal, and the number of warnings.
    fn found(
        asked: &cri::LinuxContainerSecurityContext,
        settings: &SpecSettings,
        kind: Kind,
    ) -> (Result<Option<String>, String>, usize) {
        let mut warnings = Vec::new();
        let found = profile_blocking(asked, settings, kind, &mut warnings);
        (found.map_err(|e| e.to_string()), warnings.len())
    }

    #[test]
    fn each_profile_by_table() {
        use ProfileType::*;
        let dir = tempfile::tempdir().unwrap();
        let on = SpecSettings {
            apparmor: Some(Arc::new(fake(dir.path(), "web (enforce)\n"))),
            ..SpecSettings::default()
        };
        let off = SpecSettings::default();
        let (default, web) = (Ok(Some("hartpod-default")), Ok(Some("web")));
        let (disabled, unloaded) =
            (Err("AppArmor is not enabled in the kernel"), Err("\"gone\" is not loaded on this node"));
        for (profile, privileged, with_it, without_it) in [
            (None, false, default, Ok(None)),
            (None, true, Ok(None), Ok(None)),
            (Some((Unconfined, "")), false, Ok(None), Ok(None)),
            (Some((RuntimeDefault, "")), false, default, disabled),
            (Some((RuntimeDefault, "")), true, Ok(None), Ok(None)),
            (Some((Localhost, "web")), false, web, disabled),
            (Some((Localhost, "localhost/web")), false, web, disabled),
            // As containerd has it: a profile that is named holds for privileged containers, too.
            (Some((Localhost, "web")), true, web, disabled),
            (Some((Localhost, "gone")), false, unloaded, disabled),
        ] {
            for (settings, expected) in [(&on, with_it), (&off, without_it)] {
                let (found, warnings) = found(&asks(profile, privileged), settings, Kind::Namespaces);
                match (&found, expected) {
                    (Ok(found), Ok(expected)) => assert_eq!(found.as_deref(), expected, "{profile:?}"),
                    (Err(found), Err(expected)) => assert!(found.ends_with(expected), "{profile:?}: {found}"),
                    _ => panic!("{profile:?}, {privileged}: {found:?}, not {expected:?}"),
                }
                assert_eq!(warnings, 0, "{profile:?}");
            }
        }
    }

    #[test]
    #[allow(deprecated)]
    fn the_old_field_says_it_as_text() {
        let dir = tempfile::tempdir().unwrap();
        let on = SpecSettings {
            apparmor: Some(Arc::new(fake(dir.path(), "web (enforce)\n"))),
            ..SpecSettings::default()
        };
        let mut asked = asks(None, false);
        asked.apparmor_profile = "localhost/web".into();
        assert_eq!(found(&asked, &on, Kind::Namespaces).0, Ok(Some("web".to_owned())));
        asked.apparmor_profile = "unconfined".into();
        assert_eq!(found(&asked, &on, Kind::Namespaces).0, Ok(None));
    }

    #[test]
    fn without_a_parser_only_what_asks_for_the_default_is_refused() {
        use ProfileType::*;
        let dir = tempfile::tempdir().unwrap();
        let kernel = fake(dir.path(), "web (enforce)\n");
        std::fs::remove_file(dir.path().join("parser")).unwrap();
        let on = SpecSettings { apparmor: Some(Arc::new(kernel)), ..SpecSettings::default() };
        assert_eq!(found(&asks(None, false), &on, Kind::Namespaces), (Ok(None), 1));
        let (refused, _) = found(&asks(Some((RuntimeDefault, "")), false), &on, Kind::Namespaces);
        assert!(refused.unwrap_err().contains("install the package apparmor"));
        let (web, _) = found(&asks(Some((Localhost, "web")), false), &on, Kind::Namespaces);
        assert_eq!(web, Ok(Some("web".to_owned())));
    }

    #[test]
    fn a_guest_has_no_profiles_of_the_nodes() {
        use ProfileType::*;
        let settings = SpecSettings::of_guests();
        for (profile, warnings) in [(None, 0), (Some((Unconfined, "")), 0), (Some((RuntimeDefault, "")), 1)] {
            assert_eq!(found(&asks(profile, false), &settings, Kind::Guest), (Ok(None), warnings));
        }
        assert_eq!(found(&asks(Some((RuntimeDefault, "")), true), &settings, Kind::Guest), (Ok(None), 0));
        let (refused, _) = found(&asks(Some((Localhost, "web")), false), &settings, Kind::Guest);
        assert!(refused.unwrap_err().ends_with("a guest has none of the node's AppArmor profiles"));
    }
}
