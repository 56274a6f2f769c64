//! The images in memory: what lists and look-ups answer from.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::digest::Digest;
use crate::image::{Image, ImageId};
use crate::reference::Reference;

/// The shortest part of an id that finds an image. Shorter ones look like names: kubelet would take an image named `cafe` for
/// present because some id starts so.
const MIN_ID_PREFIX: usize = 12;

#[derive(Debug, Default)]
pub(super) struct Index {
    images: BTreeMap<ImageId, Entry>,
    /// By every tag and digest.
    names: HashMap<String, ImageId>,
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) image: Arc<Image>,
    /// Every layer once.
    pub(super) diff_ids: Vec<Digest>,
}

impl Index {
    pub(super) fn list(&self) -> Vec<Arc<Image>> {
        self.images.values().map(|entry| Arc::clone(&entry.image)).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.images.len()
    }

    pub(super) fn get(&self, id: &ImageId) -> Option<&Entry> {
        self.images.get(id)
    }

    pub(super) fn by_name(&self, name: &str) -> Option<&Entry> {
        self.names.get(name).and_then(|id| self.images.get(id))
    }

    /// Puts an image in, in the place of the one with its id. Its names are its own from now on.
    pub(super) fn put(&mut self, entry: Entry) -> Option<Entry> {
        let id = entry.image.id.clone();
        let old = self.take(&id);
        for name in entry.image.tags.iter().chain(&entry.image.digests) {
            self.names.insert(name.clone(), id.clone());
        }
        self.images.insert(id, entry);
        old
    }

    pub(super) fn take(&mut self, id: &ImageId) -> Option<Entry> {
        let entry = self.images.remove(id)?;
        self.names.retain(|_, named| named != id);
        Some(entry)
    }

    /// See [`ImageStore::resolve`](crate::ImageStore::resolve).
    pub(super) fn resolve(&self, text: &str) -> Option<&Entry> {
        if let Some(hex) = text.strip_prefix("sha256:").or_else(|| text.strip_prefix("sha512:")) {
            return self.by_prefix(hex);
        }
        let named = text.parse::<Reference>().ok().and_then(|reference| self.by_name(&reference.name()));
        named.or_else(|| self.by_prefix(text))
    }

    fn by_prefix(&self, hex: &str) -> Option<&Entry> {
        if hex.len() < MIN_ID_PREFIX || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        let mut fitting = self.images.iter().filter(|(id, _)| id.digest().hex().starts_with(hex));
        match (fitting.next(), fitting.next()) {
            (Some((_, entry)), None) => Some(entry),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(hex: &str, tags: &[&str]) -> Entry {
        let id = format!("sha256:{hex:0<64}").parse::<ImageId>().unwrap();
        let image = Image {
            id,
            tags: tags.iter().map(|&tag| tag.to_owned()).collect(),
            digests: vec![format!("docker.io/library/a@sha256:{hex:f<64}")],
            size: 0,
            layers: Vec::new(),
            config: Default::default(),
            pinned: false,
        };
        Entry { image: Arc::new(image), diff_ids: Vec::new() }
    }

    #[test]
    fn images_are_found_by_whatever_kubelet_and_crictl_say() {
        let mut index = Index::default();
        index.put(entry("cafe00000001a", &["docker.io/library/busybox:latest"]));
        index.put(entry("cafe00000001b", &["docker.io/library/busybox:1"]));
        let id = |text: &str| index.resolve(text).map(|entry| entry.image.id.to_string()[7..20].to_owned());
        let first = Some("cafe00000001a".to_owned());
        let digest = format!("sha256:{:f<64}", "cafe00000001a");
        for text in [
            "busybox",
            "busybox:latest",
            "docker.io/library/busybox",
            &format!("sha256:{:0<64}", "cafe00000001a"),
            &format!("{:0<64}", "cafe00000001a"),
            "cafe00000001a",
            "sha256:cafe00000001a",
            &format!("a@{digest}"),
            &format!("a:any@{digest}"),
        ] {
            assert_eq!(id(text), first, "{text}");
        }
        // Ambiguous, too short, unknown, no reference.
        for text in ["cafe00000001", "cafe0000000", "cafe", "busybox:2", "", "sha256:", "A B", &digest] {
            assert_eq!(id(text), None, "{text}");
        }
    }

    #[test]
    fn a_name_belongs_to_the_image_that_got_it_last() {
        let mut index = Index::default();
        let name = "docker.io/library/busybox:latest";
        index.put(entry("aaaaaaaaaaaa", &[name]));
        index.put(entry("bbbbbbbbbbbb", &[name]));
        index.put(entry("aaaaaaaaaaaa", &[]));
        assert!(index.by_name(name).unwrap().image.id.to_string().starts_with("sha256:bbbb"));
        index.take(&entry("bbbbbbbbbbbb", &[]).image.id);
        assert!(index.by_name(name).is_none());
        assert_eq!(index.len(), 1);
    }
}
