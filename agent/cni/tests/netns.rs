//! Network namespace files. These tests need root, as CI has it.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use hartpod_cni::netns;
use nix::sched::{CloneFlags, setns};

/// Removes what a failed assertion would leave mounted.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "needs root: network namespaces are made");
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        for dir in [self.0.path(), &self.path("not/there")] {
            for path in netns::list_blocking(dir, "hartpod-").unwrap_or_default() {
                let _ = netns::remove_blocking(&path);
            }
        }
    }
}

fn inside<T: Send>(netns: &Path, body: impl FnOnce() -> T + Send) -> T {
    let file = File::open(netns).unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            body()
        });
        thread.join().unwrap()
    })
}

#[test]
fn a_new_namespace_is_ones_own_and_has_its_loopback_up() {
    let folder = Folder::new();
    let path = folder.path("not/there/hartpod-a");
    assert!(!netns::is_netns_blocking(&path));
    netns::create_blocking(&path).unwrap();
    assert!(netns::is_netns_blocking(&path));
    let ours = fs::metadata("/proc/self/ns/net").unwrap().ino();
    assert_ne!(fs::metadata(&path).unwrap().ino(), ours);
    inside(&path, || {
        let listener = TcpListener::bind("127.0.0.1:1").unwrap();
        TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    });
    netns::remove_blocking(&path).unwrap();
    assert!(!path.exists());
}

#[test]
fn making_and_removing_twice_is_fine() {
    let folder = Folder::new();
    let path = folder.path("hartpod-b");
    netns::create_blocking(&path).unwrap();
    let first = fs::metadata(&path).unwrap().ino();
    netns::create_blocking(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().ino(), first, "the namespace stays the same");
    netns::remove_blocking(&path).unwrap();
    netns::remove_blocking(&path).unwrap();
    netns::remove_blocking(&folder.path("no/such/folder/x")).unwrap();
}

#[test]
fn what_a_crash_left_is_used_or_removed() {
    let folder = Folder::new();
    let path = folder.path("hartpod-c");
    fs::write(&path, "").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(!netns::is_netns_blocking(&path), "an empty file is no namespace");
    netns::create_blocking(&path).unwrap();
    assert!(netns::is_netns_blocking(&path));
    let none: Option<&str> = None;
    nix::mount::mount(Some("/proc/self/ns/net"), &path, none, nix::mount::MsFlags::MS_BIND, none).unwrap();
    netns::remove_blocking(&path).unwrap();
    assert!(!path.exists(), "stacked mounts go too");
}

#[test]
fn a_failure_names_its_step_and_leaves_nothing() {
    let folder = Folder::new();
    fs::write(folder.path("file"), "").unwrap();
    let error = netns::create_blocking(&folder.path("file/x")).unwrap_err().to_string();
    assert!(error.starts_with("create ") && error.ends_with("/file/x"), "{error}");
    fs::create_dir(folder.path("dir")).unwrap();
    assert!(netns::create_blocking(&folder.path("dir")).is_err());
    let link = folder.path("hartpod-link");
    std::os::unix::fs::symlink(folder.path("file"), &link).unwrap();
    assert!(netns::create_blocking(&link).is_err(), "a link is not followed");
    assert!(!netns::is_netns_blocking(&folder.path("file")));
}

#[test]
fn the_list_has_what_carries_the_prefix() {
    let folder = Folder::new();
    assert_eq!(netns::list_blocking(&folder.path("none"), "hartpod-").unwrap(), Vec::<PathBuf>::new());
    for name in ["hartpod-2", "cni-1", "hartpod-1"] {
        fs::write(folder.path(name), "").unwrap();
    }
    let found = netns::list_blocking(folder.0.path(), "hartpod-").unwrap();
    assert_eq!(found, [folder.path("hartpod-1"), folder.path("hartpod-2")]);
}
