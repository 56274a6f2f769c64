//! Requests to the VMM of one guest.
//!
//! A VMM that was taken over answers when it likes, or never. So a request waits on a thread of its own, not on one of those that do
//! everybody's short work, and few wait at a time.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use hartpod_vm::launcher::{ClientError, Control, is_file_server_gone};
use tokio::sync::{Mutex, MutexGuard, Semaphore, oneshot};
use tokio::time::timeout;

/// Requests to one VMM at a time: one may wait for a log's disk (`Control::reopen_log`).
const PLACES: usize = 2;
/// Bytes of a waiting thread's stack.
const STACK: usize = 128 << 10;

/// A VMM did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    #[error(transparent)]
    Vmm(#[from] ClientError),
    #[error("the VMM has not answered earlier requests for {} s", .0.as_secs())]
    Busy(Duration),
    #[error("start a thread that asks the VMM")]
    Thread(#[source] io::Error),
    #[error("the thread that asked the VMM broke off")]
    BrokenOff,
}

/// The way to the VMM of a guest. Clones share its places.
#[derive(Debug, Clone)]
pub(crate) struct VmmControl {
    /// The folder of the VMM.
    dir: Arc<Path>,
    places: Arc<Semaphore>,
    /// Guards the start of the guest's file server.
    file_server: Arc<Mutex<()>>,
}

impl VmmControl {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir: dir.into(), places: Arc::new(Semaphore::new(PLACES)), file_server: Arc::default() }
    }

    /// The folder of the VMM.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// One at a time may look whether there is a file server, and start one.
    pub(super) async fn file_server(&self) -> MutexGuard<'_, ()> {
        self.file_server.lock().await
    }

    /// Whether the guest had a file server that has ended.
    pub(crate) fn has_lost_volumes(&self) -> bool {
        is_file_server_gone(&self.dir)
    }

    /// Asks; each step (a place, a connection, an answer) waits for `patience` at most. Whoever stops waiting gives no place back: the
    /// request does, when it is over.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        patience: Duration,
        request: impl FnOnce(&Control) -> Result<T, ClientError> + Send + 'static,
    ) -> Result<T, ControlError> {
        let Ok(Ok(place)) = timeout(patience, self.places.clone().acquire_owned()).await else {
            return Err(ControlError::Busy(patience));
        };
        let (sender, answer) = oneshot::channel();
        let dir = self.dir.clone();
        let asking = move || {
            let answer = Control::connect_within(&dir, patience).and_then(|control| request(&control));
            drop(place);
            let _ = sender.send(answer);
        };
        let thread = thread::Builder::new().name("vmm-control".to_owned()).stack_size(STACK);
        thread.spawn(asking).map_err(ControlError::Thread)?;
        Ok(answer.await.map_err(|_| ControlError::BrokenOff)??)
    }
}

#[cfg(test)]
mod tests {
    use hartpod_vm::launcher::CONTROL_SOCKET;
    use rustix::io::Errno;
    use rustix::net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept, bind, listen, socket_with,
    };

    use super::*;

    /// Takes connections, as the kernel does for it, and never answers.
    fn mute_vmm(dir: &Path) -> rustix::fd::OwnedFd {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        bind(&socket, &SocketAddrUnix::new(dir.join(CONTROL_SOCKET)).unwrap()).unwrap();
        listen(&socket, 128).unwrap();
        socket
    }

    #[tokio::test]
    async fn a_vmm_that_never_answers_is_asked_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let vmm = mute_vmm(dir.path());
        let control = VmmControl::new(dir.path().to_owned());
        let asked: Vec<_> = (0..20)
            .map(|_| {
                let control = control.clone();
                tokio::spawn(async move { control.ask(Duration::from_secs(60), |c| c.empty(4)).await })
            })
            .collect();
        let mut asking = Vec::new();
        while asking.len() < PLACES {
            tokio::time::sleep(Duration::from_millis(5)).await;
            asking.extend(accept(&vmm));
        }
        // Whoever gives up gives no place back.
        asked.iter().for_each(tokio::task::JoinHandle::abort);
        let refused = control.ask(Duration::from_millis(100), |c| c.empty(4)).await.unwrap_err();
        assert!(matches!(refused, ControlError::Busy(_)), "{refused}");
        assert_eq!(accept(&vmm).unwrap_err(), Errno::AGAIN, "more were asking");
        drop((vmm, asking));
        let gone = control.ask(Duration::from_secs(60), |c| c.empty(4)).await.unwrap_err();
        assert!(matches!(gone, ControlError::Vmm(ClientError::Connect { .. })), "{gone}");
    }
}
