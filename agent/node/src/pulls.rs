//! Pulls under way, for whoever wants to watch one: CRI has no word for it, so they are part of the verbose status.

use std::sync::{Arc, Mutex, PoisonError};

use hartpod_images::{LayerState, Progress, Reference};
use tokio::sync::watch;

/// All pulls that callers wait for.
#[derive(Debug, Default)]
pub(crate) struct Pulls {
    /// Guards nothing else; the pulls tell their progress without it.
    under_way: Mutex<Vec<Arc<Pull>>>,
}

#[derive(Debug)]
struct Pull {
    image: String,
    progress: watch::Receiver<Progress>,
}

/// How far one pull is.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct PullState {
    /// The reference in full, e.g. docker.io/library/busybox:latest.
    pub(crate) image: String,
    /// Compressed bytes that are here, of layers that were here before too.
    pub(crate) done: u64,
    /// Compressed bytes in all; 0 until the manifest is known.
    pub(crate) total: u64,
}

/// One pull; ends when dropped.
#[derive(Debug)]
pub(crate) struct PullGuard<'a> {
    pulls: &'a Pulls,
    pull: Arc<Pull>,
}

impl Pulls {
    /// Adds a pull; its progress goes into the sender.
    pub(crate) fn begin(&self, reference: &Reference) -> (watch::Sender<Progress>, PullGuard<'_>) {
        let (sender, progress) = watch::channel(Progress::default());
        let pull = Arc::new(Pull { image: reference.to_string(), progress });
        self.lock().push(pull.clone());
        (sender, PullGuard { pulls: self, pull })
    }

    /// All as they are now.
    pub(crate) fn states(&self) -> Vec<PullState> {
        self.lock().iter().map(|pull| pull.state()).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Pull>>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pull {
    fn state(&self) -> PullState {
        let progress = self.progress.borrow();
        let mut state = PullState { image: self.image.clone(), done: 0, total: 0 };
        for layer in &progress.layers {
            let present = matches!(layer.state, LayerState::Exists | LayerState::Done);
            state.done += if present { layer.total } else { layer.done.min(layer.total) };
            state.total += layer.total;
        }
        state
    }
}

impl Drop for PullGuard<'_> {
    fn drop(&mut self) {
        self.pulls.lock().retain(|p| !Arc::ptr_eq(p, &self.pull));
    }
}

#[cfg(test)]
mod tests {
    use hartpod_images::LayerProgress;

    use super::*;

    fn layer(state: LayerState, done: u64, total: u64) -> LayerProgress {
        let digest = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
        LayerProgress { digest, done, total, state }
    }

    #[test]
    fn a_pull_is_told_while_it_lasts() {
        let pulls = Pulls::default();
        let (sender, guard) = pulls.begin(&"busybox".parse().unwrap());
        let image = "docker.io/library/busybox:latest".to_owned();
        assert_eq!(pulls.states(), [PullState { image: image.clone(), done: 0, total: 0 }]);
        sender.send_replace(Progress {
            layers: vec![layer(LayerState::Exists, 0, 10), layer(LayerState::Pulling, 30, 100)],
        });
        assert_eq!(pulls.states(), [PullState { image, done: 40, total: 110 }]);
        drop(guard);
        assert_eq!(pulls.states(), []);
    }

    #[test]
    fn two_pulls_of_one_image_end_one_by_one() {
        let pulls = Pulls::default();
        let reference = "busybox".parse().unwrap();
        let (_first, guard) = pulls.begin(&reference);
        let (_second, _kept) = pulls.begin(&reference);
        drop(guard);
        assert_eq!(pulls.states().len(), 1);
    }
}
