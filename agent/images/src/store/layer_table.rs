//! Which layers are on disk, and who needs them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::paths::{Paths, TempLayer};
use crate::digest::Digest;
use crate::file_error::FileError;
use crate::image::Usage;
use crate::layer::LayerFacts;
use crate::pull::blocking;

/// The layers of a store, by diff-id.
#[derive(Debug)]
pub(crate) struct LayerTable {
    paths: Paths,
    /// Guards what is known of the layers. Held for a few lines, never over a disk access.
    slots: Mutex<HashMap<Digest, Slot>>,
}

#[derive(Debug, Default)]
struct Slot {
    /// Of a layer that is on disk.
    facts: Option<LayerFacts>,
    /// Bytes of its EROFS file, if it has one.
    file_bytes: Option<u64>,
    /// Images that have it.
    images: usize,
    /// Pulls that need it.
    leases: usize,
    /// Held by whoever makes the layer or removes it.
    gate: Arc<tokio::sync::Mutex<()>>,
}

/// While it lives nobody removes these layers.
#[derive(Debug)]
pub(crate) struct Lease {
    table: Arc<LayerTable>,
    diff_ids: Vec<Digest>,
}

impl LayerTable {
    pub(crate) fn new(paths: Paths) -> LayerTable {
        LayerTable { paths, slots: Mutex::default() }
    }

    pub(crate) fn paths(&self) -> &Paths {
        &self.paths
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<Digest, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn lease(self: &Arc<Self>, diff_ids: Vec<Digest>) -> Lease {
        let mut slots = self.slots();
        for diff_id in &diff_ids {
            slots.entry(diff_id.clone()).or_default().leases += 1;
        }
        drop(slots);
        Lease { table: Arc::clone(self), diff_ids }
    }

    /// What has to be held while a layer is made or removed.
    pub(crate) fn gate(&self, diff_id: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(&self.slots().entry(diff_id.clone()).or_default().gate)
    }

    /// The facts of a layer that is on disk.
    pub(crate) fn facts(&self, diff_id: &Digest) -> Option<LayerFacts> {
        self.slots().get(diff_id).and_then(|slot| slot.facts)
    }

    pub(crate) fn set_present(&self, diff_id: &Digest, facts: LayerFacts) {
        self.slots().entry(diff_id.clone()).or_default().facts = Some(facts);
    }

    pub(crate) fn set_file(&self, diff_id: &Digest, bytes: u64) {
        self.slots().entry(diff_id.clone()).or_default().file_bytes = Some(bytes);
    }

    /// An image has these layers from now on.
    pub(crate) fn add_image(&self, diff_ids: &[Digest]) {
        let mut slots = self.slots();
        for diff_id in diff_ids {
            slots.entry(diff_id.clone()).or_default().images += 1;
        }
    }

    /// An image that had these layers is gone.
    pub(crate) fn remove_image(&self, diff_ids: &[Digest]) {
        let mut slots = self.slots();
        for diff_id in diff_ids {
            if let Some(slot) = slots.get_mut(diff_id) {
                slot.images = slot.images.saturating_sub(1);
            }
        }
    }

    /// Removes those of the layers that nobody needs, and returns what could not be removed.
    pub(crate) async fn collect(self: &Arc<Self>, diff_ids: &[Digest]) -> Vec<FileError> {
        let mut errors = Vec::new();
        for diff_id in diff_ids {
            let gate = self.gate(diff_id);
            let turn = gate.lock_owned().await;
            let unused = self.slots().get_mut(diff_id).is_some_and(Slot::give_up);
            if unused {
                let (table, diff_id) = (Arc::clone(self), diff_id.clone());
                let removed = blocking(move || {
                    let taken = TempLayer::take_out_blocking(&table.paths, &diff_id);
                    // Whoever wants the layer again need not wait until the old one is deleted.
                    drop(turn);
                    taken.map(TempLayer::discard_blocking)
                });
                errors.extend(removed.await.err());
            } else {
                drop(turn);
            }
            self.forget(diff_id);
        }
        errors
    }

    /// Forgets a layer that is neither there nor wanted.
    fn forget(&self, diff_id: &Digest) {
        let mut slots = self.slots();
        if slots.get(diff_id).is_some_and(|slot| {
            slot.facts.is_none() && slot.is_unneeded() && Arc::strong_count(&slot.gate) == 1
        }) {
            slots.remove(diff_id);
        }
    }

    /// What the layers on disk take.
    pub(crate) fn usage(&self) -> Usage {
        let slots = self.slots();
        slots.values().filter_map(|slot| Some((slot.facts?, slot.file_bytes))).fold(
            Usage::default(),
            |sum, (facts, file)| Usage {
                bytes: sum.bytes.saturating_add(facts.bytes).saturating_add(file.unwrap_or_default()),
                inodes: sum.inodes.saturating_add(facts.inodes).saturating_add(u64::from(file.is_some())),
            },
        )
    }
}

impl Slot {
    fn is_unneeded(&self) -> bool {
        self.images == 0 && self.leases == 0
    }

    /// Declares an unneeded layer absent; its folder is then the caller's to remove.
    fn give_up(&mut self) -> bool {
        self.is_unneeded() && {
            self.file_bytes = None;
            self.facts.take().is_some()
        }
    }
}

impl Lease {
    pub(crate) fn diff_ids(&self) -> &[Digest] {
        &self.diff_ids
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut slots = self.table.slots();
        for diff_id in &self.diff_ids {
            if let Some(slot) = slots.get_mut(diff_id) {
                slot.leases = slot.leases.saturating_sub(1);
            }
        }
    }
}
