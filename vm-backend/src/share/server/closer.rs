//! Closing files, which waits for the storage that they are on. Each volume has a thread of its own for that while it has something to close, so
//! that one whose storage hangs holds up no other.

use std::collections::HashMap;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::Duration;

/// Bytes of a thread's stack.
const STACK: usize = 64 << 10;
/// Without anything to do a thread ends.
const IDLE: Duration = Duration::from_secs(5);

/// Closes by dropping.
#[derive(Debug)]
pub(super) struct Closer<T> {
    /// To the threads, by the number of their volume; guards that nothing is sent to one that ends.
    threads: Arc<Mutex<HashMap<u64, Sender<T>>>>,
}

impl<T> Default for Closer<T> {
    fn default() -> Self {
        Self { threads: Arc::default() }
    }
}

impl<T: Send + 'static> Closer<T> {
    /// Does not wait; where there is no thread to be had, it does.
    pub(super) fn close(&self, volume: u64, what: T) {
        let mut threads = lock(&self.threads);
        let unsent = match threads.get(&volume) {
            Some(thread) => match thread.send(what) {
                Ok(()) => return,
                // It has panicked.
                Err(mpsc::SendError(what)) => what,
            },
            None => what,
        };
        let (sender, work) = mpsc::channel();
        let all = self.threads.clone();
        let thread = Builder::new().name("close".to_owned()).stack_size(STACK);
        if thread.spawn(move || run(&all, volume, &work)).is_ok() {
            // It takes its work, or is found with work, for the table is locked.
            let _ = sender.send(unsent);
            threads.insert(volume, sender);
        } else {
            drop(threads);
            drop(unsent);
        }
    }
}

fn run<T>(threads: &Mutex<HashMap<u64, Sender<T>>>, volume: u64, work: &Receiver<T>) {
    loop {
        match work.recv_timeout(IDLE) {
            Ok(what) => drop(what),
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {
                let mut threads = lock(threads);
                match work.try_recv() {
                    Ok(what) => {
                        drop(threads);
                        drop(what);
                    }
                    Err(_) => {
                        threads.remove(&volume);
                        return;
                    }
                }
            }
        }
    }
}

fn lock<T>(threads: &Mutex<HashMap<u64, Sender<T>>>) -> MutexGuard<'_, HashMap<u64, Sender<T>>> {
    threads.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Says that it is closed once it may be.
    struct File(Option<Receiver<()>>, Sender<u64>, u64);

    impl Drop for File {
        fn drop(&mut self) {
            if let Some(gate) = &self.0 {
                let _ = gate.recv();
            }
            let _ = self.1.send(self.2);
        }
    }

    #[test]
    fn a_volume_that_hangs_holds_up_no_other() {
        let closer = Closer::default();
        let (said, closed) = mpsc::channel();
        let (open_gate, gate) = mpsc::channel();
        closer.close(1, File(Some(gate), said.clone(), 10));
        closer.close(1, File(None, said.clone(), 11));
        for number in 20..23 {
            closer.close(2, File(None, said.clone(), number));
        }
        assert_eq!([closed.recv(), closed.recv(), closed.recv()], [Ok(20), Ok(21), Ok(22)]);
        assert!(closed.try_recv().is_err());
        drop(open_gate);
        assert_eq!([closed.recv(), closed.recv()], [Ok(10), Ok(11)]);
    }
}
