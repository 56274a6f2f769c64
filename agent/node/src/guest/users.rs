//! Users of VMMs: each guest's is its own, so that a VMM that was taken over can do nothing to another.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The users that there are, and those that are taken. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct VmmUsers {
    first: u32,
    last: u32,
    /// Guards the set for one look-up.
    taken: Arc<Mutex<BTreeSet<u32>>>,
}

/// A user that is one VMM's as long as this lives.
#[derive(Debug)]
pub(crate) struct VmmUser {
    pub(crate) uid: u32,
    of: VmmUsers,
}

/// Every user is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("every user of vm.uid_range ({first} to {last}) has a guest")]
pub(crate) struct NoUser {
    first: u32,
    last: u32,
}

impl VmmUsers {
    /// Of the users `first` to `last`.
    pub(crate) fn new([first, last]: [u32; 2]) -> Self {
        Self { first, last, taken: Arc::default() }
    }

    fn taken(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lowest that is free.
    pub(crate) fn take(&self) -> Result<VmmUser, NoUser> {
        let mut taken = self.taken();
        let free = (self.first..=self.last).find(|uid| !taken.contains(uid));
        let uid = free.ok_or(NoUser { first: self.first, last: self.last })?;
        taken.insert(uid);
        drop(taken);
        Ok(VmmUser { uid, of: self.clone() })
    }

    /// The one that the guest of an earlier daemon has, of whatever range it was.
    pub(crate) fn retake(&self, uid: u32) -> VmmUser {
        self.taken().insert(uid);
        VmmUser { uid, of: self.clone() }
    }
}

impl Drop for VmmUser {
    fn drop(&mut self) {
        self.of.taken().remove(&self.uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_free_again_when_its_guest_is_gone() {
        let users = VmmUsers::new([100_000, 100_001]);
        let first = users.take().unwrap();
        let _second = users.retake(100_001);
        assert_eq!(first.uid, 100_000);
        let error = users.take().unwrap_err().to_string();
        assert_eq!(error, "every user of vm.uid_range (100000 to 100001) has a guest");
        drop(first);
        assert_eq!(users.take().unwrap().uid, 100_000);
    }
}
