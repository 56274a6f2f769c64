//! Names of pods and containers: each has one holder at a time, and a repeated request finds what the first one made.
//!
//! The kubelet repeats RunPodSandbox or CreateContainer with the same name and attempt when it did not hear the answer. So a
//! request with a known name and an equal configuration joins the one in flight, or is given once what was made for a caller
//! that had hung up by then. Anything else is refused, naming the holder.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;

use prost::Message;
use sha2::{Digest, Sha256};

/// What a pod is called by the kubelet; unique on the node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct PodName {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) uid: String,
    pub(crate) attempt: u32,
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}_{}_{}", self.name, self.namespace, self.uid, self.attempt)
    }
}

/// What a container is called; unique within its pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ContainerName {
    pub(crate) name: String,
    pub(crate) attempt: u32,
}

impl fmt::Display for ContainerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}", self.name, self.attempt)
    }
}

/// Equal for equal requests: SHA-256 of the request's encoding (its maps are ordered).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ConfigHash([u8; 32]);

impl ConfigHash {
    pub(crate) fn of(request: &impl Message) -> Self {
        Self(Sha256::digest(request.encode_to_vec()).into())
    }
}

/// How far the holder of a name has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Being made.
    InFlight,
    /// Made; nobody was told.
    Undelivered,
    /// Made, and somebody knows or it is no longer as it was made.
    Settled,
}

/// What a request for a name gets.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Claim<I> {
    /// The name is the caller's, who makes what it stands for.
    Yours,
    /// The same request is being worked on: wait for it.
    Join(I),
    /// The same request was finished and nobody was told.
    Return(I),
    /// Somebody else's.
    Taken(I),
}

/// Who holds which name.
#[derive(Debug)]
pub(crate) struct Names<N, I> {
    holders: HashMap<N, Holder<I>>,
}

#[derive(Debug)]
struct Holder<I> {
    id: I,
    hash: ConfigHash,
    progress: Progress,
}

impl<N, I> Default for Names<N, I> {
    fn default() -> Self {
        Self { holders: HashMap::new() }
    }
}

impl<N: Eq + Hash, I: Clone + PartialEq> Names<N, I> {
    /// Asks for a name on behalf of `id`.
    pub(crate) fn claim(&mut self, name: N, id: I, hash: ConfigHash) -> Claim<I> {
        let Some(holder) = self.holders.get(&name) else {
            self.hold(name, id, hash, Progress::InFlight);
            return Claim::Yours;
        };
        let id = holder.id.clone();
        match holder.progress {
            _ if holder.hash != hash => Claim::Taken(id),
            Progress::InFlight => Claim::Join(id),
            Progress::Undelivered => Claim::Return(id),
            Progress::Settled => Claim::Taken(id),
        }
    }

    /// Enters a holder known from a record.
    pub(crate) fn hold(&mut self, name: N, id: I, hash: ConfigHash, progress: Progress) {
        self.holders.insert(name, Holder { id, hash, progress });
    }

    /// Notes how far `id` has come; nothing is told of it if it no longer holds the name.
    pub(crate) fn advance(&mut self, name: &N, id: &I, progress: Progress) {
        if let Some(holder) = self.holders.get_mut(name).filter(|h| h.id == *id) {
            holder.progress = progress;
        }
    }

    /// Frees the name if `id` holds it.
    pub(crate) fn release(&mut self, name: &N, id: &I) {
        if self.holders.get(name).is_some_and(|h| h.id == *id) {
            self.holders.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use hartpod_proto::cri::v1::PodSandboxConfig;

    use super::*;

    fn hash(hostname: &str) -> ConfigHash {
        ConfigHash::of(&PodSandboxConfig { hostname: hostname.into(), ..Default::default() })
    }

    #[test]
    fn the_same_request_joins_then_returns_once_then_is_refused() {
        let mut names = Names::default();
        assert_eq!(names.claim("a", 1, hash("x")), Claim::Yours);
        assert_eq!(names.claim("a", 2, hash("x")), Claim::Join(1));
        names.advance(&"a", &1, Progress::Undelivered);
        assert_eq!(names.claim("a", 3, hash("x")), Claim::Return(1));
        names.advance(&"a", &1, Progress::Settled);
        assert_eq!(names.claim("a", 4, hash("x")), Claim::Taken(1));
    }

    #[test]
    fn another_configuration_is_refused_at_every_stage() {
        let mut names = Names::default();
        assert_eq!(names.claim("a", 1, hash("x")), Claim::Yours);
        for progress in [Progress::InFlight, Progress::Undelivered, Progress::Settled] {
            names.advance(&"a", &1, progress);
            assert_eq!(names.claim("a", 2, hash("y")), Claim::Taken(1), "{progress:?}");
        }
    }

    #[test]
    fn only_the_holder_frees_a_name() {
        let mut names = Names::default();
        assert_eq!(names.claim("a", 1, hash("x")), Claim::Yours);
        names.release(&"a", &2);
        assert_eq!(names.claim("a", 2, hash("x")), Claim::Join(1));
        names.release(&"a", &1);
        assert_eq!(names.claim("a", 2, hash("x")), Claim::Yours);
    }

    #[test]
    fn the_hash_does_not_depend_on_the_order_in_which_labels_were_added() {
        let labels = |keys: &[&str]| PodSandboxConfig {
            labels: keys.iter().map(|k| ((*k).to_owned(), "v".to_owned())).collect(),
            ..Default::default()
        };
        assert_eq!(ConfigHash::of(&labels(&["a", "b", "c"])), ConfigHash::of(&labels(&["c", "b", "a"])));
    }
}
