//! One thread's reading of many containers and pods: what they share of time and files.

use std::time::{Duration, Instant};

use hartpod_container::cgroup::{Depth, FileLooks};

use super::guest::Words;
use crate::node::Node;

/// For layers that were never measured, all of a pass together, which with another runs beside it: who asks first should not get nothing of small ones, nor wait for large ones.
const FIRST_WALKS: Duration = Duration::from_millis(100);
/// Open files that are looked at for sockets, or listed, for one answer, by all its passes together: some 30 ms.
const LOOKS: u32 = 65_536;

#[derive(Debug)]
pub(super) struct Pass<'a> {
    pub(super) node: &'a Node,
    pub(super) words: &'a Words,
    pub(super) depth: Depth,
    /// No layer's first walk goes on after this.
    pub(super) first_walks_end: Instant,
    /// For the text of files.
    pub(super) buffer: Vec<u8>,
    pub(super) looks: FileLooks,
}

impl<'a> Pass<'a> {
    /// One of so many for an answer.
    pub(super) fn one_of(passes: usize, node: &'a Node, words: &'a Words, depth: Depth) -> Self {
        let first_walks_end = Instant::now() + FIRST_WALKS;
        let passes = u32::try_from(passes.max(1)).unwrap_or(u32::MAX);
        let looks = FileLooks::new(LOOKS / passes);
        Self { node, words, depth, first_walks_end, buffer: Vec::new(), looks }
    }
}
