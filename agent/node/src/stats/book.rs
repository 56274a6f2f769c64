//! What is kept between two readings.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hartpod_container::cgroup::{Depth, Meter, ProcessSample, Sample};

use super::window::Window;
use super::writable::DiskUse;
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
}

/// All entries, by id.
#[derive(Debug, Default)]
pub(crate) struct Book {
    /// Held for a look-up.
    entries: Mutex<BTreeMap<String, Arc<Entry>>>,
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
            Ok(sample) => {
                let counts = (depth == Depth::All).then(|| meter.processes()).flatten();
                let processes = counts.map(|counts| Processes { counts, files_limit: None });
                Some(self.take(sample?, processes, began_at))
            }
            Err(error) => {
                tracing::debug!(%error, "no numbers");
                None
            }
        }
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

    pub(crate) fn set_disk(&self, disk: DiskUse) {
        lock(&self.kept).disk = Some(disk);
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
