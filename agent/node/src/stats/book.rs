//! What is kept between two readings.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hartpod_container::cgroup::{Depth, FileLooks, Meter, ProcessSample, Sample};

use super::layers::{TURN, pause};
use super::window::Window;
use super::writable::{DiskUse, Unmeasured};
use crate::clock;

/// Numbers of one moment.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Reading {
    /// Nanoseconds since the Unix epoch.
    pub(crate) at: i64,
    pub(crate) sample: Sample,
    /// Billionths of a core in use, see [`Window::add`].
    pub(crate) nano_cores: Option<u64>,
    /// Only of [`Depth::All`].
    pub(crate) processes: Option<Processes>,
}

/// Processes, and what they have open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Processes {
    pub(crate) counts: ProcessSample,
    /// Soft limit of open files of the first one; none of a pod.
    pub(crate) files_limit: Option<u64>,
}

/// One container or pod.
#[derive(Debug)]
pub(crate) struct Entry {
    /// None of what is inside a guest.
    meter: Option<Meter>,
    /// Held while numbers are put in or taken out.
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    window: Window,
    last: Option<Reading>,
    disk: Option<DiskUse>,
    /// The last walk of its layer took too long for its turn.
    is_large: bool,
    /// When its layer is to be walked again; none of one that never was.
    walk_due: Option<Instant>,
    /// What was counted, and when.
    processes: Option<(Instant, ProcessSample)>,
    /// The most that was told of its overhead, and what it had used in all at that time, in nanoseconds.
    overhead_cpu: Option<(u64, u64)>,
    /// Block devices that a guest was heard of: major and minor.
    devices: Vec<(u32, u32)>,
    /// Interfaces that a pod had, by name.
    interfaces: Vec<String>,
}

/// All entries, by id.
#[derive(Debug, Default)]
pub(crate) struct Book {
    /// Held for a look-up.
    entries: Mutex<BTreeMap<String, Arc<Entry>>>,
    /// How often everything was read.
    turns: AtomicUsize,
}

impl Book {
    /// The entry of this id, made with what `meter` gives if there is none.
    pub(crate) fn entry(&self, id: &str, meter: impl FnOnce() -> Option<Meter>) -> Arc<Entry> {
        let mut entries = lock(&self.entries);
        if let Some(entry) = entries.get(id) {
            return entry.clone();
        }
        let entry = Arc::new(Entry { meter: meter(), kept: Mutex::default() });
        entries.insert(id.to_owned(), entry.clone());
        entry
    }

    /// A number that is another each time.
    pub(crate) fn turn(&self) -> usize {
        self.turns.fetch_add(1, Ordering::Relaxed)
    }

    /// The entry of this id, if it is still there.
    pub(crate) fn known(&self, id: &str) -> Option<Arc<Entry>> {
        lock(&self.entries).get(id).cloned()
    }

    /// Closes the files of all others.
    pub(crate) fn keep_only(&self, ids: &BTreeSet<String>) {
        lock(&self.entries).retain(|id, _| ids.contains(id));
    }
}

impl Entry {
    /// Reads the cgroup; nothing if it is gone, or there is none on this host. `began_at` is when what is read began, in nanoseconds since the epoch.
    pub(crate) fn read_blocking(&self, depth: Depth, began_at: i64, buffer: &mut Vec<u8>) -> Option<Reading> {
        let meter = self.meter.as_ref()?;
        match meter.read(depth, buffer) {
            Ok(sample) => Some(self.take(sample?, None, began_at)),
            Err(error) => {
                tracing::debug!(%error, "no numbers");
                None
            }
        }
    }

    /// Counts the cgroup's processes; nothing if it is gone, or there is none on this host.
    pub(crate) fn processes_blocking(&self, looks: &mut FileLooks) -> Option<ProcessSample> {
        self.meter.as_ref()?.processes(looks)
    }

    /// The same, or what was counted less than `age` ago.
    pub(crate) fn processes_lately_blocking(
        &self,
        age: Duration,
        looks: &mut FileLooks,
    ) -> Option<ProcessSample> {
        let known = lock(&self.kept).processes;
        if let Some((_, counts)) = known.filter(|(at, _)| at.elapsed() < age) {
            return Some(counts);
        }
        let counts = self.processes_blocking(looks)?;
        lock(&self.kept).processes = Some((Instant::now(), counts));
        Some(counts)
    }

    /// Numbers that came some other way.
    pub(crate) fn take(&self, sample: Sample, processes: Option<Processes>, began_at: i64) -> Reading {
        let (at, mut kept) = (clock::now(), lock(&self.kept));
        let age = u64::try_from(at.saturating_sub(began_at)).map_or(Duration::ZERO, Duration::from_nanos);
        let nano_cores = sample.cpu.usage_ns.and_then(|usage| kept.window.add(Instant::now(), usage, age));
        Reading { at, sample, nano_cores, processes }
    }

    /// As [`take`](Self::take), and keeps them for when there are no others.
    pub(crate) fn take_and_keep(
        &self,
        sample: Sample,
        processes: Option<Processes>,
        began_at: i64,
    ) -> Reading {
        let reading = self.take(sample, processes, began_at);
        lock(&self.kept).last = Some(reading.clone());
        reading
    }

    /// The last numbers that were kept, with their own time.
    pub(crate) fn last(&self) -> Option<Reading> {
        lock(&self.kept).last.clone()
    }

    pub(crate) fn disk(&self) -> Option<DiskUse> {
        lock(&self.kept).disk
    }

    /// Whether its layer takes more than a turn to walk.
    pub(crate) fn is_large(&self) -> bool {
        lock(&self.kept).is_large
    }

    pub(crate) fn walk_due(&self) -> Option<Instant> {
        lock(&self.kept).walk_due
    }

    /// What a walk of its layer came to, and how long it took. One that was left is walked at once with the large ones; one that they left has to wait.
    pub(crate) fn walked(&self, found: Result<DiskUse, Unmeasured>, took: Duration) {
        let mut kept = lock(&self.kept);
        let is_left = found == Err(Unmeasured::TooLong);
        if kept.is_large || !is_left {
            kept.walk_due = Some(Instant::now() + pause(took));
        }
        kept.is_large = is_left || took >= TURN;
        kept.disk = found.ok().or(kept.disk);
    }

    /// Nanoseconds to be told of a counter that is a difference: it may not fall, for Prometheus would take that for a new beginning, and it grows by no more than
    /// was `used` in all meanwhile, so that one odd answer of a guest is made up for soon.
    pub(crate) fn overhead_cpu(&self, found: u64, used: u64) -> u64 {
        let mut kept = lock(&self.kept);
        let told = kept.overhead_cpu.map_or(found, |(told, then)| {
            found.min(told.saturating_add(used.saturating_sub(then))).max(told)
        });
        kept.overhead_cpu = Some((told, used));
        told
    }

    /// Whether a guest's block device is told on: the first `most` that it ever named are, so that its names do not pile up with who reads them.
    pub(crate) fn knows_device(&self, device: (u32, u32), most: usize) -> bool {
        is_known(&mut lock(&self.kept).devices, device, most)
    }

    /// The same of a pod's interface: some containers may make as many as they like, of any name.
    pub(crate) fn knows_interface(&self, name: &str, most: usize) -> bool {
        is_known(&mut lock(&self.kept).interfaces, name.to_owned(), most)
    }
}

fn is_known<T: PartialEq>(known: &mut Vec<T>, one: T, most: usize) -> bool {
    known.contains(&one)
        || known.len() < most && {
            known.push(one);
            true
        }
}

/// A panic while a lock was held cannot have left more than a rate or a number behind that is old.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use hartpod_container::cgroup::CpuSample;

    use super::*;

    #[test]
    fn an_entry_is_made_once_and_goes_with_its_container() {
        let book = Book::default();
        let made = book.entry("a", || None);
        assert!(Arc::ptr_eq(&made, &book.entry("a", || panic!("it is there"))));
        book.keep_only(&BTreeSet::from(["a".to_owned()]));
        assert!(Arc::ptr_eq(&made, &book.entry("a", || None)));
        book.keep_only(&BTreeSet::new());
        assert!(!Arc::ptr_eq(&made, &book.entry("a", || None)));
    }

    #[test]
    fn a_layer_that_takes_long_is_walked_with_the_large_ones_and_then_waits() {
        let entry = Book::default().entry("a", || None);
        entry.walked(Err(Unmeasured::TooLong), Duration::from_millis(100));
        assert!(entry.is_large() && entry.walk_due().is_none());
        let minute = Duration::from_secs(60);
        entry.walked(Err(Unmeasured::TooLong), minute);
        assert!(entry.is_large() && entry.walk_due().unwrap() > Instant::now() + minute);
        let disk = DiskUse { at: 1, bytes: 2, inodes: Some(3) };
        entry.walked(Ok(disk), TURN);
        assert!(entry.is_large() && entry.walk_due().unwrap() < Instant::now() + minute);
        entry.walked(Ok(disk), Duration::ZERO);
        entry.walked(Err(Unmeasured::Gone), Duration::ZERO);
        assert_eq!((entry.is_large(), entry.disk()), (false, Some(disk)), "the last numbers stay");
    }

    #[test]
    fn an_overhead_does_not_fall() {
        let entry = Book::default().entry("own/a", || None);
        let told = [(5, 10), (3, 11), (7, 14)].map(|(found, used)| entry.overhead_cpu(found, used));
        assert_eq!(told, [5, 5, 7]);
    }

    #[test]
    fn a_guest_that_once_says_that_nothing_was_used_inside_holds_no_overhead_fast() {
        let entry = Book::default().entry("own/a", || None);
        assert_eq!(entry.overhead_cpu(100, 1000), 100);
        assert_eq!(entry.overhead_cpu(1010, 1010), 110, "no more than was used meanwhile");
        assert_eq!(entry.overhead_cpu(105, 1050), 110);
        assert_eq!(entry.overhead_cpu(120, 1100), 120);
    }

    #[test]
    fn a_few_devices_and_interfaces_are_named_for_ever() {
        let entry = Book::default().entry("a", || None);
        assert!(entry.knows_device((8, 0), 2) && entry.knows_device((8, 16), 2));
        assert!(!entry.knows_device((8, 32), 2) && entry.knows_device((8, 0), 2));
        assert!(entry.knows_interface("net1", 1));
        assert!(!entry.knows_interface("net2", 1) && entry.knows_interface("net1", 1));
    }

    #[test]
    fn what_a_guest_said_last_is_told_with_its_time() {
        let entry = Book::default().entry("a", || None);
        assert_eq!(entry.last(), None);
        let sample =
            Sample { cpu: CpuSample { usage_ns: Some(5), ..Default::default() }, ..Default::default() };
        let taken = entry.take_and_keep(sample, None, 0);
        assert_eq!(entry.last(), Some(taken));
        assert_eq!(entry.read_blocking(Depth::All, 0, &mut Vec::new()), None);
    }
}
