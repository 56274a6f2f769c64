//! Volumes of containers in a guest: shared with it by its file server, hartpod-fs, which is started with the first of them.
//!
//! A volume is looked up here, in the node's mounts, and handed over as a descriptor; two containers that mount the same have the same volume of
//! the guest. All is forgotten with its last container, whoever remembers what: the file server knows who uses a volume.

use std::io;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use hartpod_container::launcher::start_time;
use hartpod_container::{Errno, VolumeAccess, VolumeTree};
use hartpod_proto::ContainerId;
use hartpod_vm::launcher::{
    Control, FileServer, FileServerError, VOLUMES_SOCKET, VmmProcess, WaitingFileServer, start_file_server,
};
use oci_spec::runtime::Spec;
use rustix::fs::FileType;
use rustix::process::Pid;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

use super::{ControlError, VOLUMES_SLOT, VmmControl};
use crate::agent_process::AgentProcess;
use crate::backend::{LOG, log_file};
use crate::node::Node;
use crate::pod::{PodInfo, RunningAgent, own_leaf};
use crate::records::AgentRecord;
use crate::spec::Volume;

/// Where the agent of a guest mounts volumes (pod.proto).
const FOLDER: &str = "/run/hartpod/volumes";
/// For the storage of a volume to answer. The kubelet gives CreateContainer two minutes.
const PATIENCE: Duration = Duration::from_secs(60);
/// For a file server to answer: it waits 5 s for the storage of a volume that it is to share.
const SERVER: Duration = Duration::from_secs(10);
/// Threads that may wait for storage at a time, of all pods.
const OPENING: usize = 64;
/// Bytes of such a thread's stack.
const STACK: usize = 128 << 10;

static PLACES: Semaphore = Semaphore::const_new(OPENING);

/// A volume cannot be shared with a guest.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    #[error("there is nothing on the node at this path")]
    Missing,
    #[error("open it")]
    Open(#[source] Errno),
    #[error("it is {0}: only files and folders of the node can be shared with a guest")]
    Kind(&'static str),
    #[error("its storage has not answered for {} s", PATIENCE.as_secs())]
    Stuck,
    #[error("the storage of too many volumes does not answer")]
    Busy,
    #[error("start a thread that opens it")]
    Thread(#[source] io::Error),
    #[error("the thread that opened it broke off")]
    BrokenOff,
    #[error("start the server of the guest's volumes")]
    Start(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("show the guest its volumes")]
    Attach(#[source] ControlError),
    #[error("the server of the guest's volumes")]
    Server(#[from] FileServerError),
}

/// A volume that a guest has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SharedVolume {
    /// What the guest finds it by.
    number: u64,
    /// Its file server keeps its mount read-only; what is mounted below is not.
    writable_below: bool,
}

/// Shares the volumes of a container; in their order. On failure, with the one that is at fault.
pub(crate) async fn share(
    node: &Node,
    pod: &Arc<PodInfo>,
    agent: &RunningAgent,
    container: &ContainerId,
    volumes: &[Volume],
) -> Result<Vec<SharedVolume>, (PathBuf, VolumeError)> {
    let mut opened = Vec::with_capacity(volumes.len());
    for volume in volumes {
        let tree = open(volume).await.map_err(|error| (volume.source.clone(), error))?;
        opened.push((tree, volume.clone()));
    }
    let first = || volumes.first().map(|volume| volume.source.clone()).unwrap_or_default();
    ensure_server(node, pod, agent).await.map_err(|error| (first(), error))?;
    let (dir, owner) = (agent.vmm.dir().to_owned(), container.to_string());
    let shared = move || {
        let mut at = PathBuf::new();
        let mut share = || {
            let server = FileServer::connect_within(&dir, SERVER)?;
            let mut numbers = Vec::with_capacity(opened.len());
            for (tree, volume) in &opened {
                volume.source.clone_into(&mut at);
                let writable_below = tree.writable_below;
                let access = match (volume.access, writable_below) {
                    (VolumeAccess::ReadWrite, _) => "rw",
                    (_, false) => "ro",
                    (_, true) => "ro above",
                };
                let identity = format!("{access}:{}:{}", tree.identity, volume.source.display());
                let read_only = volume.access != VolumeAccess::ReadWrite && !writable_below;
                let number = server.share(tree.root.as_fd(), read_only, &identity, &owner)?;
                numbers.push(SharedVolume { number, writable_below });
            }
            Ok(numbers)
        };
        let outcome: Result<_, FileServerError> = share();
        outcome.map_err(|error| (at, error.into()))
    };
    let done = on_thread(shared).await;
    done.map_err(|error| (first(), VolumeError::Thread(error)))?
        .ok_or_else(|| (first(), VolumeError::BrokenOff))?
}

/// Makes the mounts of `volumes` come from where the guest has them.
pub(crate) fn take_from_volumes(spec: &mut Spec, volumes: &[Volume], shared: &[SharedVolume]) {
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    let mut taken = vec![false; mounts.len()];
    for (volume, shared) in volumes.iter().zip(shared) {
        let place = mounts.iter().zip(&taken).position(|(mount, taken)| {
            !taken
                && *mount.destination() == volume.destination
                && mount.source().as_ref() == Some(&volume.source)
        });
        if let Some(place) = place {
            taken[place] = true;
            let mount = &mut mounts[place];
            mount.set_source(Some(format!("{FOLDER}/{}", shared.number).into()));
            // The guest has one mount for all of it.
            if let (true, Some(options)) = (shared.writable_below, mount.options_mut()) {
                options
                    .iter_mut()
                    .filter(|option| *option == "ro")
                    .for_each(|option| "rw".clone_into(option));
            }
        }
    }
    spec.set_mounts(Some(mounts));
}

/// Takes from the guest what this container alone has mounted. A file server that is gone has nothing, and one that hangs goes with its guest.
pub(crate) async fn release(vmm: &VmmControl, container: &ContainerId, patience: Duration) {
    if !vmm.dir().join(VOLUMES_SOCKET).exists() || vmm.has_lost_volumes() {
        return;
    }
    let (dir, owner) = (vmm.dir().to_owned(), container.to_string());
    let release =
        move || FileServer::connect_within(&dir, patience).and_then(|server| server.release(&owner));
    match on_thread(release).await {
        Ok(Some(Ok(()))) => {}
        Ok(Some(Err(error))) => {
            tracing::warn!(container = %container, error = %crate::chain(&error), "volumes of a container stay shared");
        }
        Ok(None) | Err(_) => tracing::warn!(container = %container, "volumes of a container stay shared"),
    }
}

/// Looks a volume up in the node's mounts, by a thread that may wait for as long as it likes.
async fn open(volume: &Volume) -> Result<VolumeTree, VolumeError> {
    let Ok(Ok(place)) = timeout(PATIENCE, PLACES.acquire()).await else { return Err(VolumeError::Busy) };
    let (path, access) = (volume.source.clone(), volume.access);
    let opening = on_thread(move || {
        let _place = place;
        VolumeTree::open_blocking(&path, access)
    });
    let opened = timeout(PATIENCE, opening).await.map_err(|_| VolumeError::Stuck)?;
    let opened = opened.map_err(VolumeError::Thread)?.ok_or(VolumeError::BrokenOff)?;
    let tree = opened.map_err(|errno| match errno {
        Errno::NOENT => VolumeError::Missing,
        errno => VolumeError::Open(errno),
    })?;
    match tree.kind {
        FileType::RegularFile | FileType::Directory => Ok(tree),
        FileType::Socket => Err(VolumeError::Kind("a socket")),
        FileType::Fifo => Err(VolumeError::Kind("a pipe")),
        _ => Err(VolumeError::Kind("a device")),
    }
}

/// `None`: the thread broke off.
async fn on_thread<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> io::Result<Option<T>> {
    let (sender, answer) = oneshot::channel();
    thread::Builder::new()
        .name("volumes".to_owned())
        .stack_size(STACK)
        .spawn(move || drop(sender.send(act())))?;
    Ok(answer.await.ok())
}

/// Starts the guest's file server, if it has none. It is found by its socket, which is there once the VMM knows the server.
async fn ensure_server(node: &Node, pod: &Arc<PodInfo>, agent: &RunningAgent) -> Result<(), VolumeError> {
    let vmm = &agent.vmm;
    let _one_at_a_time = vmm.file_server().await;
    if vmm.dir().join(VOLUMES_SOCKET).exists() {
        return Ok(());
    }
    let start = |error: Box<dyn std::error::Error + Send + Sync>| VolumeError::Start(error);
    let guests = node.backends.guests(&pod.handler).ok_or_else(|| start("the pod is no guest".into()))?;
    let program = guests.program().map_err(|error| start(error.into()))?;
    let leaf = own_leaf(node, pod).map_err(|error| start(error.into()))?;
    let dir = vmm.dir().to_owned();
    let starting = move || -> Result<_, Box<dyn std::error::Error + Send + Sync>> {
        let log = log_file(&dir.join(LOG))?;
        let (waiting, of_vmm) = start_file_server(&program, &dir, log.into())?;
        Ok((boot(waiting, &leaf)?, of_vmm))
    };
    let started = on_thread(starting).await.map_err(VolumeError::Thread)?.ok_or(VolumeError::BrokenOff)?;
    let ((record, process), of_vmm) = started.map_err(start)?;
    // Reaped when it ends, which it does when nobody has the other end of its socket.
    AgentProcess::watch(record, process.pidfd).map_err(|error| start(error.into()))?;
    let fill = move |control: &Control| {
        let filled = control.fill_files(VOLUMES_SLOT, of_vmm.as_fd());
        // What an earlier daemon left half made has no server any more.
        filled.or_else(|refusal| match control.empty(VOLUMES_SLOT) {
            Ok(()) => control.fill_files(VOLUMES_SLOT, of_vmm.as_fd()),
            Err(_) => Err(refusal),
        })
    };
    vmm.ask(Control::PATIENCE, fill).await.map_err(VolumeError::Attach)?;
    FileServer::publish(vmm.dir()).map_err(|error| start(error.into()))
}

/// In the leaf of the guest's VMM, where what it takes is counted and with which it goes.
fn boot(
    waiting: WaitingFileServer,
    leaf: &hartpod_container::cgroup::Leaf,
) -> Result<(AgentRecord, VmmProcess), Box<dyn std::error::Error + Send + Sync>> {
    let pid = waiting.process().pid;
    let joined = match Pid::from_raw(pid) {
        Some(raw) => leaf.add_pid(raw).map_err(Into::into),
        None => Ok(()),
    };
    let started: Result<u64, Box<dyn std::error::Error + Send + Sync>> =
        joined.and_then(|()| start_time(pid).map_err(Into::into));
    match started {
        Ok(start_time) => Ok((AgentRecord { pid, start_time }, waiting.boot()?)),
        Err(error) => {
            waiting.cancel();
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{Mount, Spec};

    use super::*;

    fn mount(source: &str, destination: &str) -> Mount {
        let mut mount = Mount::default();
        mount.set_source(Some(source.into())).set_destination(destination.into());
        mount.set_options(Some(vec!["rbind".into(), "ro".into()]));
        mount
    }

    fn volume(source: &str, destination: &str) -> Volume {
        Volume { source: source.into(), destination: destination.into(), access: VolumeAccess::ReadOnly }
    }

    #[test]
    fn mounts_of_volumes_come_from_the_guests_and_others_stay() {
        let mut spec = Spec::default();
        let mounts = [("/a", "/data"), ("/files/hosts", "/etc/hosts"), ("/a", "/data"), ("/b", "/data")];
        spec.set_mounts(Some(
            mounts.iter().map(|(source, destination)| mount(source, destination)).collect(),
        ));
        let volumes = [volume("/b", "/data"), volume("/a", "/data"), volume("/a", "/data")];
        let shared = |number, writable_below| SharedVolume { number, writable_below };
        take_from_volumes(&mut spec, &volumes, &[shared(7, false), shared(8, true), shared(9, false)]);
        let mounts = spec.mounts().clone().unwrap();
        let sources: Vec<_> =
            mounts.iter().map(|m| m.source().clone().unwrap().display().to_string()).collect();
        let of = |n: u64| format!("/run/hartpod/volumes/{n}");
        assert_eq!(sources, [of(8), "/files/hosts".to_owned(), of(9), of(7)]);
        let access: Vec<_> = mounts.iter().map(|m| m.options().clone().unwrap().join(",")).collect();
        assert_eq!(access, ["rbind,rw", "rbind,ro", "rbind,ro", "rbind,ro"]);
    }

    #[tokio::test]
    async fn only_files_and_folders_can_be_shared() {
        let dir = tempfile::tempdir().unwrap();
        let open = async |path: PathBuf| {
            let (access, destination) = (VolumeAccess::ReadWrite, PathBuf::new());
            open(&Volume { source: path, destination, access }).await
        };
        let missing = open(dir.path().join("none")).await.unwrap_err();
        assert!(matches!(missing, VolumeError::Missing), "{missing}");
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
        let socket = open(dir.path().join("socket")).await.unwrap_err();
        assert!(matches!(socket, VolumeError::Kind("a socket")), "{socket}");
        let device = open("/dev/null".into()).await.unwrap_err();
        assert!(matches!(device, VolumeError::Kind("a device")), "{device}");
        std::fs::write(dir.path().join("file"), "x").unwrap();
        std::os::unix::fs::symlink("file", dir.path().join("link")).unwrap();
        let (file, link) = (open(dir.path().join("file")).await, open(dir.path().join("link")).await);
        assert_eq!(file.unwrap().identity, link.unwrap().identity);
    }
}
