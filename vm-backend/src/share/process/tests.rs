use std::os::fd::AsFd as _;

use super::*;
use crate::channel;

#[test]
fn a_parent_that_says_nothing_or_nonsense_is_told() {
    let (ours, theirs) = channel::tests::pair();
    drop(ours);
    assert!(matches!(run(theirs.as_fd()), Err(ServeError::Closed)));
    let (ours, theirs) = channel::tests::pair();
    channel::send(ours.as_fd(), b"{}", &[]).unwrap();
    assert!(matches!(run(theirs.as_fd()), Err(ServeError::Parse(_))));
    let (ours, theirs) = channel::tests::pair();
    channel::send(ours.as_fd(), br#"{"requests":0,"control":1}"#, &[ours.as_fd()]).unwrap();
    assert!(matches!(run(theirs.as_fd()), Err(ServeError::Claim(_))));
}
