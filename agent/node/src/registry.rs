//! All pods of the node: by id, by a prefix of it, and by name.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use hartpod_proto::{ContainerId, SandboxId};

use crate::names::{Claim, Names, PodName, Progress};
use crate::pod::{PodHandle, PodInfo};
use crate::trace;

/// No pod or container is meant by an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LookupError {
    #[error("no {what} id given")]
    Empty { what: &'static str },
    #[error("no {what} {id:?}")]
    NotFound { what: &'static str, id: String },
    #[error("{what} {prefix:?} could be any of {count}")]
    Ambiguous { what: &'static str, prefix: String, count: usize },
}

const SANDBOX: &str = "pod sandbox";
const CONTAINER: &str = "container";

/// The pods.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    /// Guards the maps below; held for a look-up or a change of one entry, never while anything is awaited.
    maps: Mutex<Maps>,
}

#[derive(Debug, Default)]
struct Maps {
    pods: BTreeMap<String, PodHandle>,
    /// Made containers, and the pod that each is in.
    containers: BTreeMap<String, SandboxId>,
    names: Names<PodName, SandboxId>,
}

impl Registry {
    /// A panic while the lock was held cannot have left a map half changed.
    fn maps(&self) -> MutexGuard<'_, Maps> {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Claims the pod's name; when it is the caller's, others will find `pod` from then on.
    pub(crate) fn claim(&self, pod: PodHandle) -> Claim<PodHandle> {
        let mut maps = self.maps();
        let info = pod.info.clone();
        let find = |maps: &Maps, id: &SandboxId| maps.pods.get(id.as_str()).cloned();
        let claim = maps.names.claim(info.name.clone(), info.id.clone(), info.hash);
        let found = match &claim {
            Claim::Yours => None,
            Claim::Join(id) | Claim::Return(id) | Claim::Taken(id) => find(&maps, id),
        };
        match (claim, found) {
            (Claim::Join(_), Some(handle)) => Claim::Join(handle),
            (Claim::Return(_), Some(handle)) => Claim::Return(handle),
            (Claim::Taken(_), Some(handle)) => Claim::Taken(handle),
            // Names and pods come and go under one lock, so a holder without a pod does not exist.
            (_, _) => {
                maps.names.hold(info.name.clone(), info.id.clone(), info.hash, Progress::InFlight);
                maps.pods.insert(info.id.to_string(), pod);
                Claim::Yours
            }
        }
    }

    /// Enters a pod known from a record.
    pub(crate) fn restore(&self, handle: PodHandle, progress: Progress) {
        let mut maps = self.maps();
        let info = handle.info.clone();
        maps.names.hold(info.name.clone(), info.id.clone(), info.hash, progress);
        maps.pods.insert(info.id.to_string(), handle);
    }

    /// Notes how far a pod has come.
    pub(crate) fn advance(&self, info: &PodInfo, progress: Progress) {
        self.maps().names.advance(&info.name, &info.id, progress);
    }

    /// Forgets a pod and its name.
    pub(crate) fn forget(&self, info: &PodInfo) {
        let mut maps = self.maps();
        maps.pods.remove(info.id.as_str());
        maps.names.release(&info.name, &info.id);
        maps.containers.retain(|_, pod| *pod != info.id);
    }

    /// Makes a container known by its id.
    pub(crate) fn add_container(&self, container: &ContainerId, pod: &SandboxId) {
        self.maps().containers.insert(container.to_string(), pod.clone());
    }

    /// Forgets a container.
    pub(crate) fn forget_container(&self, container: &ContainerId) {
        self.maps().containers.remove(container.as_str());
    }

    /// Every pod.
    pub(crate) fn pods(&self) -> Vec<PodHandle> {
        self.maps().pods.values().cloned().collect()
    }

    /// The pod with this id or the only one whose id begins so.
    pub(crate) fn pod(&self, id: &str) -> Result<PodHandle, LookupError> {
        let maps = self.maps();
        let (_, handle) = one(&maps.pods, SANDBOX, id)?;
        handle.info.note();
        Ok(handle.clone())
    }

    /// The container with this id or the only one whose id begins so, and its pod.
    pub(crate) fn container(&self, id: &str) -> Result<(PodHandle, ContainerId), LookupError> {
        let maps = self.maps();
        let not_found = || LookupError::NotFound { what: CONTAINER, id: id.to_owned() };
        let (full, pod) = one(&maps.containers, CONTAINER, id)?;
        let handle = maps.pods.get(pod.as_str()).ok_or_else(not_found)?;
        handle.info.note();
        trace::note("container.id", full);
        Ok((handle.clone(), full.parse().map_err(|_| not_found())?))
    }
}

fn one<'a, T>(
    map: &'a BTreeMap<String, T>,
    what: &'static str,
    id: &str,
) -> Result<(&'a String, &'a T), LookupError> {
    if id.is_empty() {
        return Err(LookupError::Empty { what });
    }
    let mut found = map.range(id.to_owned()..).take_while(|(key, _)| key.starts_with(id));
    let first = found.next().ok_or_else(|| LookupError::NotFound { what, id: shorten(id) })?;
    match found.count() {
        0 => Ok(first),
        more => Err(LookupError::Ambiguous { what, prefix: id.to_owned(), count: more + 1 }),
    }
}

/// An id in an error is the caller's text, which may be anything.
fn shorten(id: &str) -> String {
    id.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_found_by_itself_and_by_a_prefix_of_its_own() {
        let map: BTreeMap<String, u8> =
            [("aa1", 1), ("aa2", 2), ("b", 3)].map(|(k, v)| (k.to_owned(), v)).into();
        let find = |id| one(&map, "thing", id).map(|(_, v)| *v);
        assert_eq!(find("aa1"), Ok(1));
        assert_eq!(find("b"), Ok(3));
        assert_eq!(find("aa"), Err(LookupError::Ambiguous { what: "thing", prefix: "aa".into(), count: 2 }));
        assert_eq!(find("c"), Err(LookupError::NotFound { what: "thing", id: "c".into() }));
        assert_eq!(find(""), Err(LookupError::Empty { what: "thing" }));
        assert!(find("b1").is_err());
    }
}
