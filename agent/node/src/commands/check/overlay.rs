//! Whether containers' root file systems can be mounted, by mounting one.

use std::ffi::CString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

use super::Finding::{self, Fail, Ok as Fine};
use crate::random;

/// Mounts an overlay on the file system that `root` is or will be on, in a mount namespace that ends with it.
pub(super) fn overlayfs(root: &Path) -> Finding {
    let Some(base) = super::place::existing(root) else {
        return Fail(format!("{} is on no file system", root.display()));
    };
    match try_overlay(&base) {
        Ok(()) => Fine(format!("mounts on the file system of {}", root.display())),
        Err(error) => Fail(format!("cannot be mounted on the file system of {}: {error}", root.display())),
    }
}

fn try_overlay(base: &Path) -> io::Result<()> {
    let trial = Trial::new(base)?;
    let dir = trial.0.clone();
    // A thread of its own: what it unshares ends with it.
    let attempt = std::thread::spawn(move || mount_in_a_namespace(&dir));
    attempt.join().unwrap_or_else(|_| Err(io::Error::other("the attempt failed")))
}

/// A folder that goes again.
struct Trial(PathBuf);

impl Trial {
    fn new(base: &Path) -> io::Result<Self> {
        let trial = Self(base.join(format!(".hartpod-check-{}", random::hex::<4>()?)));
        for name in ["lower", "upper", "work", "merged"] {
            fs::create_dir_all(trial.0.join(name))?;
        }
        fs::write(trial.0.join("lower/file"), "")?;
        Ok(trial)
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn mount_in_a_namespace(dir: &Path) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let path = |name: &str| dir.join(name).display().to_string();
    let options = format!("lowerdir={},upperdir={},workdir={}", path("lower"), path("upper"), path("work"));
    let options = CString::new(options)?;
    let merged = dir.join("merged");
    mount("overlay", &merged, "overlay", MountFlags::empty(), Some(options.as_c_str()))?;
    // Removing what is below needs what an upper layer needs: device numbers 0/0 or attributes.
    fs::remove_file(merged.join("file"))
}
