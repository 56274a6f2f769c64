//! Which images containers run from: their layers must stay.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hartpod_proto::ContainerId;

/// An image cannot be removed or used now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Busy {
    #[error("image {image} is in use by container {container}")]
    InUse { image: String, container: ContainerId },
    #[error("image {image} is being removed")]
    BeingRemoved { image: String },
}

#[derive(Debug)]
enum State {
    UsedBy(Vec<ContainerId>),
    BeingRemoved,
}

/// Uses of images.
#[derive(Debug, Default)]
pub(crate) struct ImageUses {
    /// By image id; guards the decision between using and removing. Held for one look-up.
    states: Mutex<HashMap<String, State>>,
}

/// While it lives, the image stays.
#[derive(Debug)]
pub(crate) struct ImageUse {
    uses: Arc<ImageUses>,
    image: String,
    container: ContainerId,
}

/// While it lives, no container can be made from the image.
#[derive(Debug)]
pub(crate) struct Removal<'a> {
    uses: &'a ImageUses,
    image: String,
}

impl ImageUses {
    fn states(&self) -> MutexGuard<'_, HashMap<String, State>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a container needs the image.
    pub(crate) fn begin(self: &Arc<Self>, image: &str, container: &ContainerId) -> Result<ImageUse, Busy> {
        let mut states = self.states();
        match states.entry(image.to_owned()).or_insert_with(|| State::UsedBy(Vec::new())) {
            State::BeingRemoved => Err(Busy::BeingRemoved { image: image.to_owned() }),
            State::UsedBy(containers) => {
                containers.push(container.clone());
                Ok(ImageUse { uses: self.clone(), image: image.to_owned(), container: container.clone() })
            }
        }
    }

    /// Keeps containers from the image while it is removed.
    pub(crate) fn remove(&self, image: &str) -> Result<Removal<'_>, Busy> {
        let mut states = self.states();
        match states.get(image) {
            Some(State::BeingRemoved) => Err(Busy::BeingRemoved { image: image.to_owned() }),
            Some(State::UsedBy(containers)) if !containers.is_empty() => {
                Err(Busy::InUse { image: image.to_owned(), container: containers[0].clone() })
            }
            _ => {
                states.insert(image.to_owned(), State::BeingRemoved);
                Ok(Removal { uses: self, image: image.to_owned() })
            }
        }
    }
}

impl Drop for ImageUse {
    fn drop(&mut self) {
        let mut states = self.uses.states();
        if let Some(State::UsedBy(containers)) = states.get_mut(&self.image) {
            containers.retain(|c| *c != self.container);
            if containers.is_empty() {
                states.remove(&self.image);
            }
        }
    }
}

impl Drop for Removal<'_> {
    fn drop(&mut self) {
        self.uses.states().remove(&self.image);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(digit: &str) -> ContainerId {
        digit.repeat(64).parse().unwrap()
    }

    #[test]
    fn an_image_in_use_stays_until_the_last_user_is_gone() {
        let uses = Arc::new(ImageUses::default());
        let first = uses.begin("i", &id("1")).unwrap();
        let second = uses.begin("i", &id("2")).unwrap();
        drop(first);
        assert_eq!(uses.remove("i").unwrap_err(), Busy::InUse { image: "i".into(), container: id("2") });
        drop(second);
        uses.remove("i").unwrap();
    }

    #[test]
    fn an_image_that_is_being_removed_cannot_be_used() {
        let uses = Arc::new(ImageUses::default());
        let removal = uses.remove("i").unwrap();
        assert_eq!(uses.begin("i", &id("1")).unwrap_err(), Busy::BeingRemoved { image: "i".into() });
        assert!(uses.remove("i").is_err());
        drop(removal);
        uses.begin("i", &id("1")).unwrap();
    }
}
