//! Changes of what images there are. One at a time: `commit` is held meanwhile, and none of this is ever dropped half way.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use oci_spec::image::ImageConfiguration;
use tracing::{info, warn};

use super::corrections::{Place, needed_blocking};
use super::index::Entry;
use super::open::SET_ASIDE;
use super::record::{CorrectionRecord, LayerRecord, Record, sync_parent};
use super::{Inner, Lease, RemoveError, TempLayer};
use crate::digest::Digest;
use crate::file_error::{At, FileError};
use crate::image::{Image, ImageId};
use crate::layer::LayerFacts;
use crate::pull::{Pulled, blocking, unique};
use crate::reference::Reference;

impl Inner {
    /// Makes a pulled image known, on disk first. If that fails its layers go.
    pub(super) async fn commit(
        self: &Arc<Self>,
        pulled: Pulled,
        reference: &Reference,
    ) -> Result<Arc<Image>, FileError> {
        let _turn = self.commit.lock().await;
        let known = self.index().get(&ImageId::from(pulled.id.clone())).cloned();
        let record = self.record(&pulled, known.as_ref().map(|known| &*known.image), reference);
        let Pulled { config, lease, .. } = pulled;
        match self.make_known(record, config, known.is_none()).await {
            Ok(entry) => {
                self.take_tags_from_others(&entry.image).await;
                let image = Arc::clone(&entry.image);
                self.index().put(entry);
                info!(image = %image.id, %reference, size = image.size, layers = image.layers.len(), "image is on disk");
                Ok(image)
            }
            Err(error) => {
                let diff_ids = lease.diff_ids().to_vec();
                drop(lease);
                self.collect(&diff_ids).await;
                Err(error)
            }
        }
    }

    /// The record of a pulled image, with the names that it had before.
    fn record(&self, pulled: &Pulled, known: Option<&Image>, reference: &Reference) -> Record {
        let mut record = Record::new(pulled.id.clone(), pulled.config_text.clone());
        if let Some(known) = known {
            record.tags.clone_from(&known.tags);
            record.digests.clone_from(&known.digests);
        }
        record.digests.push(reference.digest_name(&pulled.top));
        if reference.digest().is_none() {
            record.tags.push(reference.name());
        }
        for names in [&mut record.tags, &mut record.digests] {
            names.sort();
            names.dedup();
        }
        record.size = pulled.size;
        record.updated = now();
        let layers = pulled.layers.iter().map(|layer| {
            let facts = self.table.facts(&layer.diff_id).unwrap_or_default();
            let (diff_id, digest, size) = (layer.diff_id.clone(), layer.digest.clone(), layer.size);
            LayerRecord { diff_id, digest, size, facts }
        });
        record.layers = layers.collect();
        record
    }

    /// Writes a record, and whatever the image needs besides the layers that were pulled.
    async fn make_known(
        self: &Arc<Self>,
        mut record: Record,
        config: ImageConfiguration,
        is_new: bool,
    ) -> Result<Entry, FileError> {
        let corrections = self.correct(&record).await?;
        record.corrections = corrections.as_ref().map(|(record, _)| record.clone());
        let entry = self.entry(&record, config);
        if let Err(error) = self.write(record, is_new).await {
            if let Some((CorrectionRecord { id, .. }, lease)) = corrections {
                drop(lease);
                self.collect(&[id]).await;
            }
            return Err(error);
        }
        if is_new {
            self.table.add_image(&entry.diff_ids);
        }
        Ok(entry)
    }

    /// What memory keeps of a record.
    pub(super) fn entry(&self, record: &Record, config: ImageConfiguration) -> Entry {
        let top = record.corrections.as_ref().map(|corrections| &corrections.id);
        let image = Image {
            id: ImageId::from(record.id.clone()),
            tags: record.tags.clone(),
            digests: record.digests.clone(),
            size: record.size,
            layers: stack(&record.layers)
                .into_iter()
                .chain(top)
                .map(|layer| layer.hex().to_owned())
                .collect(),
            config,
            pinned: self.pinned.matches(record.tags.iter().chain(&record.digests)),
        };
        let diff_ids = unique(record.on_disk().map(|(layer, _)| layer.clone()));
        Entry { image: Arc::new(image), diff_ids }
    }

    /// Makes the layer with what the others' folders should be, if there is such a thing, and keeps it from being collected.
    async fn correct(
        self: &Arc<Self>,
        record: &Record,
    ) -> Result<Option<(CorrectionRecord, Lease)>, FileError> {
        let paths = self.table.paths();
        let facts = |layer: &Digest| self.table.facts(layer).unwrap_or_default();
        let places: Vec<_> = stack(&record.layers)
            .into_iter()
            .map(|layer| Place {
                folder: paths.layer(layer),
                list: paths.list(layer),
                implied: facts(layer).implied_folders,
            })
            .collect();
        let Some(corrections) = blocking(move || needed_blocking(&places)).await? else { return Ok(None) };
        let id = corrections.id();
        let lease = self.table.lease(vec![id.clone()]);
        let gate = self.table.gate(&id);
        let _turn = gate.lock().await;
        let facts = match self.table.facts(&id) {
            Some(facts) => facts,
            None => {
                let (table, id) = (Arc::clone(&self.table), id.clone());
                let made = blocking(move || -> Result<LayerFacts, FileError> {
                    let temp = TempLayer::create_blocking(table.paths())?;
                    let made = corrections.write_blocking(temp.target());
                    let placed =
                        made.and_then(|facts| temp.place_blocking(table.paths(), &id).map(|()| facts));
                    temp.discard_blocking();
                    placed
                });
                made.await?
            }
        };
        self.table.set_present(&id, facts);
        Ok(Some((CorrectionRecord { id, facts }, lease)))
    }

    /// Writes a record; `sync` when there are layers that the disk may not have yet.
    async fn write(self: &Arc<Self>, record: Record, sync: bool) -> Result<(), FileError> {
        let inner = Arc::clone(self);
        blocking(move || {
            let paths = inner.table.paths();
            if sync {
                let folder = std::fs::File::open(&paths.root).at("open", &paths.root)?;
                rustix::fs::syncfs(&folder).at("sync", &paths.root)?;
            }
            let path = paths.record(&record.id);
            record.write_blocking(&path)?;
            // An unreadable record of the same image has nothing to tell any more.
            match std::fs::remove_file(path.with_extension(SET_ASIDE)) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
                other => other.at("remove", path.with_extension(SET_ASIDE)),
            }
        })
        .await
    }

    /// A tag that moved is taken from the image that had it. If that fails on disk, the later record has it at the next start.
    async fn take_tags_from_others(self: &Arc<Self>, image: &Image) {
        for tag in &image.tags {
            let other = self.index().by_name(tag).cloned();
            let Some(other) = other.filter(|other| other.image.id != image.id) else { continue };
            let keep = |name: &String| name != tag;
            if let Err(error) = self.rename(&other, keep).await {
                warn!(image = %other.image.id, %tag, %error, "a tag that moved could not be taken from the image's record");
            }
        }
    }

    /// Rewrites an image with those of its names that are kept.
    async fn rename(
        self: &Arc<Self>,
        entry: &Entry,
        keep: impl Fn(&String) -> bool,
    ) -> Result<(), FileError> {
        let mut image = (*entry.image).clone();
        image.tags.retain(&keep);
        image.digests.retain(&keep);
        image.pinned = self.pinned.matches(image.tags.iter().chain(&image.digests));
        let path = self.table.paths().record(image.id.digest());
        let (tags, digests) = (image.tags.clone(), image.digests.clone());
        let rewrite = move || -> Result<(), FileError> {
            let read = Record::read_blocking(&path).map_err(std::io::Error::other).at("read", &path)?;
            let record = Record { tags, digests, ..read.0 };
            record.write_blocking(&path)
        };
        let written = blocking(rewrite).await;
        // Memory is right even when the disk is not.
        self.index().put(Entry { image: Arc::new(image), diff_ids: entry.diff_ids.clone() });
        written
    }

    pub(super) async fn remove(self: &Arc<Self>, id: &ImageId) -> Result<(), RemoveError> {
        let _turn = self.commit.lock().await;
        self.remove_in_turn(id).await
    }

    async fn remove_in_turn(self: &Arc<Self>, id: &ImageId) -> Result<(), RemoveError> {
        if self.index().get(id).is_none() {
            return Ok(());
        }
        let path = self.table.paths().record(id.digest());
        let removed = blocking(move || match std::fs::remove_file(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other.at("remove", &path).and_then(|()| sync_parent(&path)),
        });
        removed.await.map_err(|source| RemoveError { image: id.clone(), source })?;
        let Some(entry) = self.index().take(id) else { return Ok(()) };
        self.table.remove_image(&entry.diff_ids);
        self.collect(&entry.diff_ids).await;
        info!(image = %id, "image removed");
        Ok(())
    }

    pub(super) async fn untag(self: &Arc<Self>, name: &str) -> Result<(), RemoveError> {
        let _turn = self.commit.lock().await;
        let entry = self.index().by_name(name).cloned();
        let Some(entry) = entry else { return Ok(()) };
        let id = entry.image.id.clone();
        match entry.image.tags.len() + entry.image.digests.len() {
            0 | 1 => self.remove_in_turn(&id).await,
            _ => {
                let renamed = self.rename(&entry, |other| other != name).await;
                renamed.map_err(|source| RemoveError { image: id, source })
            }
        }
    }

    /// Removes layers that nobody needs. What fails is tried again when the store is opened.
    pub(super) async fn collect(self: &Arc<Self>, diff_ids: &[Digest]) {
        for error in self.table.collect(diff_ids).await {
            warn!(error = %error, cause = %error.source, "an unused layer could not be removed");
        }
    }
}

/// The folders of an image for overlayfs, bottom first. A layer that an image has twice stands at its upper place only: overlayfs
/// refuses the same folder twice, and the lower one cannot be seen anyway. Below a layer that hides everything there is nothing.
fn stack(layers: &[LayerRecord]) -> Vec<&Digest> {
    let mut folders: Vec<&Digest> = Vec::new();
    for layer in layers.iter().rev() {
        if !folders.contains(&&layer.diff_id) {
            folders.push(&layer.diff_id);
        }
        if layer.facts.opaque_root {
            break;
        }
    }
    folders.reverse();
    folders
}

/// Milliseconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(n: u8, opaque_root: bool) -> LayerRecord {
        let digest = Digest::of(&[n]);
        let facts = LayerFacts { opaque_root, ..LayerFacts::default() };
        LayerRecord { diff_id: digest.clone(), digest, size: 0, facts }
    }

    #[test]
    fn a_stack_has_every_folder_once_and_ends_where_nothing_shows() {
        let digests: Vec<_> = (0..4).map(|n| Digest::of(&[n])).collect();
        let names = |all: &[usize]| all.iter().map(|&n| &digests[n]).collect::<Vec<_>>();
        let plain = [layer(1, false), layer(2, false), layer(1, false), layer(3, false)];
        assert_eq!(stack(&plain), names(&[2, 1, 3]));
        assert_eq!(stack(&[layer(1, false), layer(2, true), layer(3, false)]), names(&[2, 3]));
        assert_eq!(stack(&[]), names(&[]));
    }
}
