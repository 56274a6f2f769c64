//! The root file system: an overlay of the image's layers and the container's own folder.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, CWD, Gid, Mode, Uid, mkdirat, symlinkat};
use rustix::mount::{FsOpenFlags, MountFlags, fsconfig_set_flag, fsconfig_set_string, fsopen};

use crate::errno::Errno;
use crate::failure::Failure;
use crate::mount;
use crate::pod::private_root::{CONTAINERS, LAYERS, ROOTFS};
use crate::request::Overlay;

/// Same as containerd's snapshots: others have to get to the root folder.
const ROOT_MODE: Mode = Mode::from_raw_mode(0o755);
/// overlayfs' own limit on lower layers (fs/overlayfs/params.h).
pub(crate) const MAX_LAYERS: usize = 500;

/// How the layers are named to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OverlayApi {
    /// One `lowerdir+` each (Linux 6.7).
    Append,
    /// All in one `lowerdir` option of mount(2), which with everything else has to fit into 4 KiB: so by short symlinks in
    /// the current folder. (fsconfig(2) takes only 255 bytes an option, so it is no help before 6.7.)
    OneOption,
}

impl OverlayApi {
    /// What this kernel has, by its release, e.g. `6.1.0-13-amd64`.
    pub(crate) fn of_release(release: &str) -> Self {
        if version_of(release) >= (6, 7) { Self::Append } else { Self::OneOption }
    }
}

/// The first two numbers of a kernel's release.
pub(crate) fn version_of(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// How overlays are mounted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Overlays<'a> {
    pub(crate) api: OverlayApi,
    /// SELinux label of everything in them.
    pub(crate) label: Option<&'a str>,
}

/// Folders in this process's mount namespace that an overlay is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    /// The bottom layer first.
    pub(crate) layers: Vec<String>,
    /// `upper` and `work` are made in it.
    pub(crate) scratch: String,
}

impl Parts {
    /// The host's folders of an image and a container; the container's is made when it is missing.
    pub(crate) fn of_folders(overlay: &Overlay) -> Result<Self, Failure> {
        let scratch = format!("{CONTAINERS}/{}", overlay.scratch);
        let what = || format!("make folder {}", overlay.scratch);
        make_folder(&scratch).map_err(|errno| Failure::RootFs { what: what(), errno })?;
        Ok(Self { layers: overlay.layers.iter().map(|layer| format!("{LAYERS}/{layer}")).collect(), scratch })
    }
}

/// Makes the overlay and attaches it at [`ROOTFS`] of this process's own mount namespace, a copy of the agent's.
///
/// It is `volatile`: what a container writes into its root does not outlive a power loss (kubelet makes a new container), so
/// neither fsync nor the unmount at its end waits for the disk.
///
/// `owner` is whose the root folder is, on the node.
pub(crate) fn mount_overlay(parts: &Parts, owner: (u32, u32), overlays: Overlays<'_>) -> Result<(), Failure> {
    let scratch = &parts.scratch;
    let failed = |what: String| move |errno: Errno| Failure::RootFs { what, errno };
    let (upper, work) = (format!("{scratch}/upper"), format!("{scratch}/work"));
    for folder in [&upper, &work] {
        make_folder(folder).map_err(failed(format!("make folder {folder}")))?;
    }
    if owner != (0, 0) {
        let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
        rustix::fs::chown(&upper, Some(uid), Some(gid))
            .map_err(|e| failed(format!("give folder {upper} to the pod's root"))(e.into()))?;
    }
    // The kernel wants the top layer first.
    let layers: Vec<String> = parts.layers.iter().rev().cloned().collect();
    for layer in &layers {
        rustix::fs::accessat(CWD, layer, rustix::fs::Access::EXISTS, AtFlags::empty())
            .map_err(|e| failed(format!("layer {}", layer.rsplit('/').next().unwrap_or(layer)))(e.into()))?;
    }
    mount_layers(&layers, Some(&Writable { upper, work }), overlays)
}

/// Where an overlay's changes go.
pub(super) struct Writable {
    upper: String,
    work: String,
}

/// Attaches an overlay of folders, the top one first, at [`ROOTFS`]; without a writable part there are at least two of them.
pub(super) fn mount_layers(
    layers: &[String],
    writable: Option<&Writable>,
    overlays: Overlays<'_>,
) -> Result<(), Failure> {
    match overlays.api {
        OverlayApi::Append => append(layers, writable, overlays.label),
        OverlayApi::OneOption => one_option(layers, writable, overlays.label),
    }
}

fn make_folder(path: &str) -> Result<(), Errno> {
    match mkdirat(CWD, path, ROOT_MODE) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

fn append(layers: &[String], writable: Option<&Writable>, label: Option<&str>) -> Result<(), Failure> {
    let refused = |what: &str| {
        let what = what.to_owned();
        move |errno: Errno| Failure::RootFs { what, errno }
    };
    let context =
        fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|e| refused("open overlayfs")(e.into()))?;
    let mounted = configure(&context, layers, writable, label).and_then(|()| mount::finish(&context));
    let mounted = mounted.map_err(|errno| match mount::complaint(context) {
        said if said.is_empty() => refused("mount overlay")(errno),
        said => refused(&format!("mount overlay ({said})"))(errno),
    })?;
    attach(mounted).map_err(refused("attach overlay"))
}

fn configure(
    context: &OwnedFd,
    layers: &[String],
    writable: Option<&Writable>,
    label: Option<&str>,
) -> Result<(), Errno> {
    fsconfig_set_string(context, "source", "overlay")?;
    for layer in layers {
        fsconfig_set_string(context, "lowerdir+", layer.as_str())?;
    }
    if let Some(Writable { upper, work }) = writable {
        fsconfig_set_string(context, "upperdir", upper.as_str())?;
        fsconfig_set_string(context, "workdir", work.as_str())?;
        fsconfig_set_flag(context, "volatile")?;
    }
    if let Some(label) = label {
        fsconfig_set_string(context, "context", label)?;
    }
    Ok(())
}

fn attach(mounted: OwnedFd) -> Result<(), Errno> {
    let point =
        rustix::fs::open(ROOTFS, rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC, Mode::empty())?;
    mount::attach(mounted, point)
}

fn one_option(layers: &[String], writable: Option<&Writable>, label: Option<&str>) -> Result<(), Failure> {
    one_option_inner(layers, writable, label)
        .map_err(|errno| Failure::RootFs { what: "mount overlay".into(), errno })
}

fn one_option_inner(
    layers: &[String],
    writable: Option<&Writable>,
    label: Option<&str>,
) -> Result<(), Errno> {
    // The links are in nobody's way: like all of the agent's mounts they go at pivot_root.
    attach(mount::new("tmpfs", "layers", &[("mode", Some("700"))])?)?;
    rustix::process::chdir(ROOTFS)?;
    let names: Vec<String> = (0..layers.len()).map(|n| n.to_string()).collect();
    for (name, layer) in names.iter().zip(layers) {
        symlinkat(layer.as_str(), CWD, name.as_str())?;
    }
    let mut options = format!("lowerdir={}", names.join(":"));
    if let Some(Writable { upper, work }) = writable {
        options.push_str(&format!(",upperdir={upper},workdir={work},volatile"));
    }
    if let Some(label) = label {
        // Its commas are its own.
        options.push_str(&format!(",context=\"{label}\""));
    }
    let options = std::ffi::CString::new(options).map_err(|_| Errno::INVAL)?;
    rustix::mount::mount("overlay", ROOTFS, "overlay", MountFlags::empty(), Some(options.as_c_str()))?;
    Ok(rustix::process::chdir("/")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_of_naming_layers_follows_the_kernel() {
        for (release, api) in [
            ("6.1.0-13-amd64", OverlayApi::OneOption),
            ("6.6.63", OverlayApi::OneOption),
            ("6.7.0", OverlayApi::Append),
            ("6.18.44-fc", OverlayApi::Append),
            ("10.0", OverlayApi::Append),
            ("weird", OverlayApi::OneOption),
        ] {
            assert_eq!(OverlayApi::of_release(release), api, "{release}");
        }
    }
}
