//! Threads of a volume. Each volume has its own, so that one whose storage hangs holds up no other; they come with the first request and go
//! when there is nothing to do.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

/// Of one volume at a time.
const THREADS: usize = 4;
/// Bytes of a thread's stack. Buffers are on the heap.
const STACK: usize = 128 << 10;
/// Without anything to do a thread ends.
const IDLE: Duration = Duration::from_secs(5);
/// Requests of a volume that may be under way once it hangs; more are refused, so that it cannot take up all places that a guest has.
const MOST_WHEN_STUCK: usize = 32;
/// Requests of a volume in any case: more than a queue of the guest's has places.
const MOST: usize = 256;
/// A request that takes this long says that a volume hangs.
const STUCK: Duration = Duration::from_secs(10);

/// A request to be answered. Gone without a call, it is as good as answered with an error: see [`Pool::run`].
pub(super) type Job = Box<dyn FnOnce() + Send>;

/// The threads of a volume, and what waits for them.
#[derive(Default)]
pub(super) struct Pool {
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    /// When what is being done began.
    doing: Vec<Instant>,
    threads: usize,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

impl Pool {
    /// Has `job` done by a thread.
    ///
    /// # Errors
    /// The volume hangs and enough waits for it, or there is no thread to be had; the job is not done.
    pub(super) fn run(self: &Arc<Self>, job: Job) -> io::Result<()> {
        let mut state = self.state();
        let under_way = state.waiting.len() + state.doing.len();
        let stuck = state.doing.iter().any(|begun| begun.elapsed() >= STUCK);
        if under_way >= MOST || (stuck && under_way >= MOST_WHEN_STUCK) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        state.waiting.push_back(job);
        if state.doing.len() + state.waiting.len() > state.threads && state.threads < THREADS {
            let pool = self.clone();
            let started =
                Builder::new().name("volume".to_owned()).stack_size(STACK).spawn(move || pool.work());
            match started {
                Ok(_) => state.threads += 1,
                // Others will come to it.
                Err(_) if state.threads > 0 => {}
                Err(error) => {
                    state.waiting.pop_back();
                    return Err(error);
                }
            }
        }
        drop(state);
        self.work.notify_one();
        Ok(())
    }

    fn work(&self) {
        let mut state = self.state();
        loop {
            let Some(job) = state.waiting.pop_front() else {
                let waited = self.work.wait_timeout(state, IDLE);
                let (again, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
                state = again;
                if timeout.timed_out() && state.waiting.is_empty() {
                    state.threads -= 1;
                    return;
                }
                continue;
            };
            let begun = Instant::now();
            state.doing.push(begun);
            drop(state);
            // A panic was printed; the answer is told by what is dropped with the job.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
            state = self.state();
            if let Some(place) = state.doing.iter().position(|other| *other == begun) {
                state.doing.swap_remove(place);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn jobs_are_done_side_by_side_and_no_more_than_there_is_room_for() {
        let pool = Arc::new(Pool::default());
        let (sender, done) = mpsc::channel();
        let gate = Arc::new(Mutex::new(()));
        let closed = gate.lock().unwrap();
        for number in 0..MOST {
            let (gate, sender) = (gate.clone(), sender.clone());
            let job = move || {
                drop(gate.lock());
                sender.send(number).unwrap();
            };
            pool.run(Box::new(job)).unwrap();
        }
        assert!(pool.run(Box::new(|| {})).is_err(), "there is no room for more");
        assert!(pool.state().threads <= THREADS);
        drop(closed);
        let mut all: Vec<usize> = (0..MOST).map(|_| done.recv().unwrap()).collect();
        all.sort_unstable();
        assert!(all.into_iter().eq(0..MOST));
        pool.run(Box::new(|| std::panic::resume_unwind(Box::new("on purpose")))).unwrap();
        pool.run(Box::new(move || sender.send(1).unwrap())).unwrap();
        assert_eq!(done.recv(), Ok(1), "a panic ends no thread");
    }

    #[test]
    fn a_volume_that_hangs_is_given_little_more_to_do() {
        let pool = Arc::new(Pool::default());
        // As if it had begun long ago.
        let long_ago = Instant::now().checked_sub(STUCK).unwrap();
        pool.state().doing.push(long_ago);
        let (sender, held) = mpsc::channel::<()>();
        let held = Arc::new(Mutex::new(held));
        let taken = std::iter::repeat_with(|| {
            let held = held.clone();
            pool.run(Box::new(move || assert!(held.lock().unwrap().recv().is_err())))
        });
        assert_eq!(taken.take_while(Result::is_ok).count(), MOST_WHEN_STUCK - 1);
        drop(sender);
    }
}
