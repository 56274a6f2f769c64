//! Levels of pods: a pair of categories each, so that what is a pod's is no other pod's.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Categories of an MCS policy (container-selinux, and the kernel's own example policies).
const CATEGORIES: u32 = 1024;

/// The levels that are taken. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Levels {
    /// How many pods have each: two, where records say so or there are more pods than levels. Guarded for one look-up.
    taken: Arc<Mutex<BTreeMap<String, usize>>>,
}

/// A level that is one pod's as long as this lives.
#[derive(Debug)]
pub(crate) struct Level {
    pub(crate) text: String,
    of: Levels,
}

impl Levels {
    fn taken(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that is free, from the pair of categories on that `random` stands for; the last one tried when there are half a million pods.
    pub(crate) fn take(&self, random: u32) -> Level {
        let mut taken = self.taken();
        let pairs =
            (0..CATEGORIES * CATEGORIES).map(|step| random.wrapping_add(step) % (CATEGORIES * CATEGORIES));
        let mut levels = pairs
            .map(|pair| (pair / CATEGORIES, pair % CATEGORIES))
            .filter(|(low, high)| low < high)
            .map(|(low, high)| format!("s0:c{low},c{high}"));
        let text = levels.find(|level| !taken.contains_key(level)).unwrap_or_else(|| "s0:c0,c1".to_owned());
        *taken.entry(text.clone()).or_default() += 1;
        drop(taken);
        Level { text, of: self.clone() }
    }

    /// The one that the pod of an earlier daemon has.
    pub(crate) fn retake(&self, text: String) -> Level {
        *self.taken().entry(text.clone()).or_default() += 1;
        Level { text, of: self.clone() }
    }
}

impl Drop for Level {
    fn drop(&mut self) {
        let mut taken = self.of.taken();
        match taken.get_mut(&self.text) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(taken.remove(&self.text)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_of_two_pods_is_free_when_both_are_gone() {
        let levels = Levels::default();
        let (one, other) = (levels.retake("s0:c0,c1".into()), levels.retake("s0:c0,c1".into()));
        drop(one);
        assert_eq!(levels.take(0).text, "s0:c0,c2");
        drop(other);
        assert_eq!(levels.take(0).text, "s0:c0,c1");
    }

    #[test]
    fn no_two_pods_have_the_same_level() {
        let levels = Levels::default();
        let old = levels.retake("s0:c0,c1".into());
        let (first, second) = (levels.take(0), levels.take(0));
        assert_eq!((first.text.as_str(), second.text.as_str()), ("s0:c0,c2", "s0:c0,c3"));
        drop(old);
        assert_eq!(levels.take(0).text, "s0:c0,c1");
        // The lower category comes first, and the last pair is followed by the first.
        assert_eq!(levels.take(5 * CATEGORIES + 2).text, "s0:c5,c6");
        drop((first, second));
        assert_eq!(levels.take(u32::MAX).text, "s0:c0,c1");
    }
}
