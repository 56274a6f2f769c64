//! User namespaces. A pod's owns the pod's other namespaces: so the pod's root has rights over those, and over nothing of the node's.
//!
//! It is made by a child that does nothing else and is gone afterwards; what keeps it is who has it open, the namespaces that it owns
//! (a network namespace by its file on the node), and the mounts that show files with its ids.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::process::{Gid, Uid};
use rustix::thread::{
    LinkNameSpaceType, move_into_link_name_space, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use crate::container::rootfs::version_of;
use crate::errno::Errno;
use crate::id_maps::{IdMaps, IdRange, kernel_text};
use crate::mount;
use crate::sys::idle_child::IdleChild;
use crate::sys::mount_attr::{self, Reach};
use crate::sys::owner;

/// Why there is no user namespace.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct UserNamespaceError {
    what: &'static str,
    #[source]
    source: io::Error,
}

impl UserNamespaceError {
    /// What the kernel said.
    pub(crate) fn errno(&self) -> Errno {
        Errno::from_raw(self.source.raw_os_error().unwrap_or(libc::EIO))
    }
}

fn failed<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> UserNamespaceError {
    move |source| UserNamespaceError { what, source: source.into() }
}

/// A user namespace and its maps.
#[derive(Debug)]
pub struct UserNamespace {
    fd: OwnedFd,
    maps: IdMaps,
}

/// The first kernel whose overlayfs takes layers that are shown with other ids.
const OVERLAY_OF_MAPPED_LAYERS: (u32, u32) = (5, 19);

impl UserNamespace {
    /// Whether pods can have one here: the kernel makes it, and can show the files of `folder`'s file system, where layers are, with its ids.
    ///
    /// # Errors
    /// What is missing.
    pub fn probe_blocking(folder: &Path) -> Result<(), UserNamespaceError> {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        if version_of(&release) < OVERLAY_OF_MAPPED_LAYERS {
            let why = format!("this is {release}, and it came with 5.19");
            let source = io::Error::new(io::ErrorKind::Unsupported, why);
            return Err(failed("show layers with the ids of a user namespace")(source));
        }
        let range = IdRange { container: 0, host: 65536, length: 65536 };
        let maps = IdMaps::new(vec![range], vec![range]).map_err(io::Error::other);
        let users = Self::make(maps.map_err(failed("map ids"))?)?;
        let tree = mount::clone_of(folder, false).map_err(failed("copy the mount of the layers"))?;
        mount_attr::map_ids(tree.as_fd(), Reach::One, users.as_fd())
            .map_err(failed("show the file system of the layers with the ids of a user namespace"))
    }

    /// Makes one. The caller may have threads.
    ///
    /// # Errors
    /// The step that failed.
    pub fn make(maps: IdMaps) -> Result<Self, UserNamespaceError> {
        let child = IdleChild::start(libc::CLONE_NEWUSER).map_err(failed("make a user namespace"))?;
        Self::of_child(&child, maps)
    }

    /// Makes one that owns a network namespace, which comes with it. The caller may have threads.
    ///
    /// # Errors
    /// The step that failed.
    pub fn make_with_network(maps: IdMaps) -> Result<(Self, OwnedFd), UserNamespaceError> {
        let child = IdleChild::start(libc::CLONE_NEWUSER | libc::CLONE_NEWNET)
            .map_err(failed("make a user namespace with a network namespace"))?;
        let namespace = Self::of_child(&child, maps)?;
        let network = open(&child, "net").map_err(failed("open the network namespace"))?;
        Ok((namespace, network))
    }

    /// The one that owns a network namespace; its maps are what they are said to be, or it is another.
    ///
    /// # Errors
    /// The kernel does not tell, or it is the node's.
    pub(crate) fn of_network(network: BorrowedFd<'_>, maps: IdMaps) -> Result<Self, UserNamespaceError> {
        let fd = owner::of(network).map_err(failed("find the network namespace's owner"))?;
        let id = |file: &File| file.metadata().map(|m| std::os::unix::fs::MetadataExt::ino(&m));
        let file = File::from(fd);
        let own = File::open("/proc/self/ns/user").and_then(|own| id(&own));
        if own.and_then(|own| Ok(own == id(&file)?)).map_err(failed("compare user namespaces"))? {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "it belongs to the node");
            return Err(failed("find the network namespace's owner")(source));
        }
        Ok(Self { fd: file.into(), maps })
    }

    fn of_child(child: &IdleChild, maps: IdMaps) -> Result<Self, UserNamespaceError> {
        let write = |file: &str, text: String| fs::write(format!("/proc/{}/{file}", child.pid()), text);
        write("uid_map", kernel_text(maps.uids())).map_err(failed("map user ids"))?;
        write("gid_map", kernel_text(maps.gids())).map_err(failed("map group ids"))?;
        let fd = open(child, "user").map_err(failed("open the user namespace"))?;
        Ok(Self { fd, maps })
    }

    /// Which ids it has.
    #[must_use]
    pub fn maps(&self) -> &IdMaps {
        &self.maps
    }

    /// Who is root in it, on the node.
    pub(crate) fn root(&self) -> Result<(u32, u32), Errno> {
        self.maps.root().ok_or(Errno::INVAL)
    }

    /// Makes this process, which has one thread, the root of the namespace. Of the node's rights it has none from then on.
    pub(crate) fn enter(&self) -> Result<(), Errno> {
        move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::User))?;
        set_thread_groups(&[])?;
        set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
        Ok(set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?)
    }
}

impl AsFd for UserNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn open(child: &IdleChild, kind: &str) -> io::Result<OwnedFd> {
    crate::pod::open_namespace(&child.pid().to_string(), kind)
}
