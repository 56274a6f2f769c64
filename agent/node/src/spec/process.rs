//! What is run: command line, environment, working directory, identity.

use std::path::PathBuf;

use hartpod_proto::cri::v1 as cri;
use oci_spec::image::Config as ImageConfig;
use oci_spec::runtime::User;

use super::SpecError;

/// What a process finds programs by when the image says nothing. Same as containerd's (pkg/oci, defaultUnixEnv).
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Largest uid or gid, as runc and containerd have it.
const ID_MAX: i64 = i32::MAX as i64;

/// The command line by Kubernetes' rules: `command` replaces the entrypoint and the image's arguments with it; `args` alone
/// replaces the image's arguments.
pub(super) fn args(container: &cri::ContainerConfig, image: &ImageConfig) -> Result<Vec<String>, SpecError> {
    let image_cmd = image.cmd().as_deref().unwrap_or_default();
    let image_entrypoint = match image.entrypoint().as_deref().unwrap_or_default() {
        // Docker's way of saying that a base image's entrypoint is taken away.
        [only] if only.is_empty() => &[],
        entrypoint => entrypoint,
    };
    let (program, rest) = match (&container.command[..], &container.args[..]) {
        ([], []) => (image_entrypoint, image_cmd),
        ([], args) => (image_entrypoint, args),
        (command, args) => (command, args),
    };
    let all = [program, rest].concat();
    match all.first() {
        None => {
            return Err(SpecError::invalid(
                "config.command",
                "neither the request nor the image names a command",
            ));
        }
        Some(first) if first.is_empty() => {
            return Err(SpecError::invalid("config.command", "the name of the program is empty"));
        }
        Some(_) => {}
    }
    if all.iter().any(|a| a.contains('\0')) {
        return Err(SpecError::invalid("config.command", "an argument contains a NUL"));
    }
    Ok(all)
}

/// The environment: defaults, then the image's, then the request's; a later one replaces an earlier one in its place.
pub(super) fn env(
    container: &cri::ContainerConfig,
    image: &ImageConfig,
    hostname: &str,
) -> Result<Vec<String>, SpecError> {
    let mut env = Environment::default();
    env.set("PATH", DEFAULT_PATH.to_owned());
    if container.tty {
        env.set("TERM", "TERM=xterm".to_owned());
    }
    env.set("HOSTNAME", format!("HOSTNAME={hostname}"));
    for entry in image.env().iter().flatten() {
        match entry.split_once('=') {
            Some((name, _)) => env.set(name, entry.clone()),
            None => env.unset(entry),
        }
    }
    for cri::KeyValue { key, value } in &container.envs {
        let field = || format!("config.envs[{key:?}]");
        if key.is_empty() || key.contains('=') {
            return Err(SpecError::invalid(field(), "a name must not be empty or contain ="));
        }
        let Ok(value) = std::str::from_utf8(value) else {
            return Err(SpecError::unsupported(
                field(),
                "the value is not UTF-8, which an OCI runtime spec must be",
            ));
        };
        env.set(key, format!("{key}={value}"));
    }
    match env.0.iter().find(|(_, e)| e.contains('\0')) {
        Some((name, _)) => Err(SpecError::invalid(format!("config.envs[{name:?}]"), "contains a NUL")),
        None => Ok(env.0.into_iter().map(|(_, entry)| entry).collect()),
    }
}

/// Name and `NAME=value`, in the order of first mention.
#[derive(Default)]
struct Environment(Vec<(String, String)>);

impl Environment {
    fn set(&mut self, name: &str, entry: String) {
        match self.0.iter_mut().find(|(n, _)| n == name) {
            Some((_, present)) => *present = entry,
            None => self.0.push((name.to_owned(), entry)),
        }
    }

    fn unset(&mut self, name: &str) {
        self.0.retain(|(n, _)| n != name);
    }
}

/// The working directory. One of an image may be relative to `/`, as Docker takes it.
pub(super) fn cwd(container: &cri::ContainerConfig, image: &ImageConfig) -> Result<PathBuf, SpecError> {
    let wanted = &container.working_dir;
    if wanted.contains('\0') {
        return Err(SpecError::invalid("config.working_dir", "contains a NUL"));
    }
    if !wanted.is_empty() {
        return if wanted.starts_with('/') {
            Ok(wanted.into())
        } else {
            Err(SpecError::invalid("config.working_dir", format!("{wanted:?} is not an absolute path")))
        };
    }
    let of_image = image.working_dir().as_deref().unwrap_or_default();
    Ok(PathBuf::from("/").join(of_image))
}

/// Most supplemental groups of a request. The kernel takes 65536 (NGROUPS_MAX), but they travel in every report of the process.
const GROUPS_MAX: usize = 4096;

/// Who runs it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Identity {
    /// USER[:GROUP] to be looked up in the image.
    pub(super) user: String,
    /// What is known of it without the image's files.
    pub(super) spec: User,
    /// Groups come from the request alone.
    pub(super) strict_groups: bool,
}

/// The user, the group and the further groups.
pub(super) fn identity(
    security: &cri::LinuxContainerSecurityContext,
    image: &ImageConfig,
) -> Result<Identity, SpecError> {
    let user = user(security, image)?;
    let strict_groups = match cri::SupplementalGroupsPolicy::try_from(security.supplemental_groups_policy) {
        Ok(cri::SupplementalGroupsPolicy::Merge) => false,
        Ok(cri::SupplementalGroupsPolicy::Strict) => true,
        Err(_) => {
            return Err(SpecError::unsupported(
                "config.linux.security_context.supplemental_groups_policy",
                format!("{} is not known", security.supplemental_groups_policy),
            ));
        }
    };
    if security.supplemental_groups.len() > GROUPS_MAX {
        return Err(SpecError::invalid(
            "config.linux.security_context.supplemental_groups",
            format!("has {} groups, at most {GROUPS_MAX} are allowed", security.supplemental_groups.len()),
        ));
    }
    let mut groups = security
        .supplemental_groups
        .iter()
        .map(|g| id("config.linux.security_context.supplemental_groups", *g))
        .collect::<Result<Vec<_>, _>>()?;
    groups.sort_unstable();
    groups.dedup();

    let mut spec = User::default();
    let (name, group) = user.split_once(':').unwrap_or((&user, ""));
    spec.set_uid(name.parse().unwrap_or(0));
    spec.set_gid(group.parse().unwrap_or(0));
    spec.set_additional_gids(Some(groups).filter(|g| !g.is_empty()));
    Ok(Identity { user, spec, strict_groups })
}

fn user(security: &cri::LinuxContainerSecurityContext, image: &ImageConfig) -> Result<String, SpecError> {
    let field = |name: &str| format!("config.linux.security_context.{name}");
    let name = if !security.run_as_username.is_empty() {
        check_name(&field("run_as_username"), &security.run_as_username)?;
        security.run_as_username.clone()
    } else if let Some(uid) = &security.run_as_user {
        id(&field("run_as_user"), uid.value)?.to_string()
    } else if security.run_as_group.is_some() {
        // CRI: the runtime MUST error.
        return Err(SpecError::invalid(field("run_as_group"), "is given without a user"));
    } else {
        let of_image = image.user().as_deref().unwrap_or_default();
        check_name("the image's user", of_image)?;
        return Ok(if of_image.is_empty() { "0".to_owned() } else { of_image.to_owned() });
    };
    match &security.run_as_group {
        None => Ok(name),
        Some(_) if name.contains(':') => {
            Err(SpecError::invalid(field("run_as_group"), format!("{name:?} has a group already")))
        }
        Some(gid) => Ok(format!("{name}:{}", id(&field("run_as_group"), gid.value)?)),
    }
}

/// USER[:GROUP]; numbers in range.
fn check_name(field: &str, text: &str) -> Result<(), SpecError> {
    let invalid = |problem: &str| Err(SpecError::invalid(field, format!("{text:?} {problem}")));
    if text.chars().any(char::is_control) {
        return invalid("contains a control character");
    }
    if text.matches(':').count() > 1 || text.starts_with(':') {
        return invalid("is not USER[:GROUP]");
    }
    for part in text.split(':') {
        let number = part.parse::<i128>().ok();
        if number.is_some_and(|n| !(0..=i128::from(ID_MAX)).contains(&n)) {
            return invalid("is out of range");
        }
    }
    Ok(())
}

fn id(field: &str, value: i64) -> Result<u32, SpecError> {
    u32::try_from(value)
        .ok()
        .filter(|v| i64::from(*v) <= ID_MAX)
        .ok_or_else(|| SpecError::invalid(field, format!("{value} is not in 0 to {ID_MAX}")))
}

#[cfg(test)]
mod tests;
