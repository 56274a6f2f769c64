//! Closing files, which waits for the storage that they are on. Each volume has a thread of its own for that while it has something to close, so
//! that one whose storage hangs holds up no other.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::Duration;

/// Bytes of a thread's stack.
const STACK: usize = 64 << 10;
/// Without anything to do a thread ends.
const IDLE: Duration = Duration::from_secs(5);

/// Closes by dropping.
#[derive(Debug)]
pub(super) struct Closer<T> {
    /// By the number of their volume; one without a thread has something to close.
    queues: Arc<Mutex<HashMap<u64, Queue<T>>>>,
    stack: usize,
}

/// What is to be closed of a volume.
#[derive(Debug)]
struct Queue<T> {
    waiting: VecDeque<T>,
    /// Wakes its thread; none where there was none to be had.
    thread: Option<Arc<Condvar>>,
}

impl<T> Default for Closer<T> {
    fn default() -> Self {
        Self { queues: Arc::default(), stack: STACK }
    }
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), thread: None }
    }
}

impl<T: Send + 'static> Closer<T> {
    /// Does not wait: where there is no thread to be had it is kept until there is one.
    pub(super) fn close(&self, volume: u64, what: T) {
        let mut queues = lock(&self.queues);
        let queue = queues.entry(volume).or_default();
        queue.waiting.push_back(what);
        if let Some(thread) = &queue.thread {
            thread.notify_one();
        }
        for (volume, queue) in queues.iter_mut().filter(|(_, queue)| queue.thread.is_none()) {
            match self.start(*volume) {
                Ok(thread) => queue.thread = Some(thread),
                // The next call tries again, or a thread that has nothing to do takes it over.
                Err(_) => break,
            }
        }
    }

    fn start(&self, volume: u64) -> io::Result<Arc<Condvar>> {
        let wake = Arc::new(Condvar::new());
        let (queues, woken) = (self.queues.clone(), wake.clone());
        let thread = Builder::new().name("close".to_owned()).stack_size(self.stack);
        thread.spawn(move || run(&queues, volume, &woken)).map(|_| wake)
    }
}

fn run<T>(queues: &Mutex<HashMap<u64, Queue<T>>>, mut volume: u64, wake: &Arc<Condvar>) {
    let mut locked = lock(queues);
    loop {
        let next = locked.get_mut(&volume).and_then(|queue| queue.waiting.pop_front());
        if let Some(what) = next {
            drop(locked);
            // A panic was printed.
            let _ = catch_unwind(AssertUnwindSafe(|| drop(what)));
            locked = lock(queues);
            continue;
        }
        let waited = wake.wait_timeout(locked, IDLE);
        let timeout;
        (locked, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        if timeout.timed_out() && locked.get(&volume).is_none_or(|queue| queue.waiting.is_empty()) {
            locked.remove(&volume);
            let Some((other, queue)) = locked.iter_mut().find(|(_, queue)| queue.thread.is_none()) else {
                return;
            };
            queue.thread = Some(wake.clone());
            volume = *other;
        }
    }
}

fn lock<T>(queues: &Mutex<HashMap<u64, Queue<T>>>) -> MutexGuard<'_, HashMap<u64, Queue<T>>> {
    queues.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Receiver, Sender};

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

    #[test]
    fn without_a_thread_it_is_closed_later() {
        // More than there are addresses for.
        let mut closer = Closer { stack: 1 << 56, ..Closer::default() };
        let (said, closed) = mpsc::channel();
        closer.close(1, File(None, said.clone(), 10));
        closer.close(2, File(None, said.clone(), 20));
        assert!(closed.try_recv().is_err(), "it was closed by who asked for it");
        closer.stack = STACK;
        closer.close(3, File(None, said, 30));
        let mut all: Vec<u64> = closed.iter().take(3).collect();
        all.sort_unstable();
        assert_eq!(all, [10, 20, 30]);
    }
}
