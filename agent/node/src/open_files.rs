//! How many files the daemon may have open, and how many containers may.
//!
//! The daemon needs several per pod, so it takes all that it is allowed. Containers get what it was started with: a high soft
//! limit makes programs that still use select(2), or that close every possible descriptor, break or crawl.

use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The limits before [`raise`].
static ORIGINAL: OnceLock<Rlimit> = OnceLock::new();

/// Raises the soft limit of this process to the hard one. For the start of the program.
pub(crate) fn raise() {
    let original = original();
    let raised = Rlimit { current: original.maximum, maximum: original.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "cannot raise the number of open files");
    }
}

/// What this process was started with. None is no limit.
pub(crate) fn original() -> Rlimit {
    *ORIGINAL.get_or_init(|| getrlimit(Resource::Nofile))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_original_is_kept_when_the_limit_is_raised() {
        let before = getrlimit(Resource::Nofile);
        raise();
        assert_eq!(original(), before);
        assert_eq!(getrlimit(Resource::Nofile).current, before.maximum);
    }
}
