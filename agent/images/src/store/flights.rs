//! Pulls under way. Whoever asks for an image that is being pulled, with the same credentials, waits for that pull.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::auth::Auth;
use crate::image::{Image, Progress};
use crate::pull::error::PullError;
use crate::reference::Reference;

pub(super) type Outcome = Result<Arc<Image>, PullError>;

/// What a pull is known by. Credentials count: nobody gets an image by another's.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Key {
    pub(super) reference: Reference,
    pub(super) auth: Option<Auth>,
}

/// A pull, held by everybody who waits for it. When the last of them goes, it is cancelled.
#[derive(Debug)]
pub(super) struct Flight {
    outcome: watch::Receiver<Option<Outcome>>,
    progress: watch::Receiver<Progress>,
    reference: String,
    _cancel: DropGuard,
}

/// The pull's own end.
pub(super) struct Pilot {
    pub(super) outcome: watch::Sender<Option<Outcome>>,
    pub(super) progress: watch::Sender<Progress>,
    pub(super) cancel: CancellationToken,
}

#[derive(Debug, Default)]
pub(super) struct Flights {
    /// Guards the pulls that can be joined.
    all: Mutex<Vec<(Key, Weak<Flight>)>>,
}

impl Flights {
    /// Joins a pull, or makes one; then there is a pilot, and somebody to be has to be it.
    pub(super) fn join(&self, key: &Key) -> (Arc<Flight>, Option<Pilot>) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(_, flight)| flight.strong_count() > 0);
        let known = all.iter().find(|(known, _)| known == key).and_then(|(_, flight)| flight.upgrade());
        if let Some(flight) = known {
            return (flight, None);
        }
        let (flight, pilot) = Flight::start(&key.reference);
        all.push((key.clone(), Arc::downgrade(&flight)));
        (flight, Some(pilot))
    }

    /// Nobody joins it any more: its outcome is known.
    pub(super) fn landed(&self, key: &Key) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(known, flight)| known != key && flight.strong_count() > 0);
    }
}

impl Flight {
    pub(super) fn start(reference: &Reference) -> (Arc<Flight>, Pilot) {
        let cancel = CancellationToken::new();
        let (outcome_sender, outcome) = watch::channel(None);
        let (progress_sender, progress) = watch::channel(Progress::default());
        let flight = Flight {
            outcome,
            progress,
            reference: reference.to_string(),
            _cancel: cancel.clone().drop_guard(),
        };
        (Arc::new(flight), Pilot { outcome: outcome_sender, progress: progress_sender, cancel })
    }

    /// Waits for the outcome and passes progress on.
    pub(super) async fn wait(&self, to: Option<watch::Sender<Progress>>) -> Outcome {
        let mut outcome = self.outcome.clone();
        let mut progress = self.progress.clone();
        let pass_on = |progress: &mut watch::Receiver<Progress>| {
            if let Some(to) = &to {
                to.send_replace(progress.borrow_and_update().clone());
            }
        };
        let gone = || Err(PullError::Cancelled { reference: self.reference.clone() });
        loop {
            tokio::select! {
                biased;
                landed = outcome.wait_for(Option::is_some) => {
                    let landed = landed.map(|outcome| outcome.clone());
                    pass_on(&mut progress);
                    return landed.ok().flatten().unwrap_or_else(gone);
                }
                Ok(()) = progress.changed(), if to.is_some() => pass_on(&mut progress),
            }
        }
    }
}
