//! New limits for a container, set by a child of the agent: the kernel may take seconds to take memory back.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use hartpod_container::cgroup::{Leaf, Update, UpdateFault};
use hartpod_container::fork_role;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
use tokio::io::Interest;

use crate::children::Children;
use crate::status_code::chain;
use crate::sys::Watched;

/// What ps shows of the child.
const NAME: &str = "hartpod-update";

/// Longest answer of a child: warnings that have no room in it are left out.
const ANSWER_MAX: usize = 8192;
/// Characters of a text: one has room in any case, as JSON needs at most six bytes for each.
const TEXT_MAX: usize = 1024;

/// Why limits were not changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpdateError {
    #[error("start a child that sets limits")]
    Fork(#[source] io::Error),
    #[error("hear of the child that sets limits")]
    Talk(#[source] io::Error),
    #[error("{text}")]
    Refused { fault: UpdateFault, text: String },
}

/// What a child says: warnings, or why it failed.
type Answer = Result<Vec<String>, (UpdateFault, String)>;

/// Waits for as long as the kernel takes. Whoever stops waiting does not stop the child.
pub(crate) async fn update(
    leaf: &Leaf,
    update: Update,
    children: &Children,
) -> Result<Vec<String>, UpdateError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .map_err(|e| UpdateError::Talk(e.into()))?;
    let child = fork_role(NAME, &[theirs.as_fd()], || {
        let warnings = leaf.update_blocking(&update);
        let answer: Answer = match warnings {
            Ok(warnings) => Ok(warnings.iter().map(|warning| cut(&warning.to_string())).collect()),
            Err(error) => Err((error.fault(), cut(&chain(&error)))),
        };
        i32::from(tell(theirs.as_fd(), &answer).is_err())
    })
    .map_err(UpdateError::Fork)?;
    drop(theirs);
    tokio::spawn(children.own(&child));
    let watched = Watched::new(ours, Interest::READABLE).map_err(UpdateError::Talk)?;
    let answer = watched.io(Interest::READABLE, hear).await.map_err(UpdateError::Talk)?;
    answer.map_err(|(fault, text)| UpdateError::Refused { fault, text })
}

fn cut(text: &str) -> String {
    text.chars().take(TEXT_MAX).collect()
}

fn tell(socket: BorrowedFd<'_>, answer: &Answer) -> io::Result<()> {
    send(socket, &encode(answer)?, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// What does not fit would be cut by the socket, and be no answer at all.
fn encode(answer: &Answer) -> io::Result<Vec<u8>> {
    let mut text = serde_json::to_vec(answer)?;
    let mut warnings = answer.as_deref().unwrap_or_default();
    while let (true, [kept @ .., _]) = (text.len() > ANSWER_MAX, warnings) {
        warnings = kept;
        text = serde_json::to_vec(&Answer::Ok(kept.to_vec()))?;
    }
    Ok(text)
}

fn hear(socket: BorrowedFd<'_>) -> io::Result<Answer> {
    let mut text = [0; ANSWER_MAX];
    let (_, length) = recv(socket, &mut text, RecvFlags::empty())?;
    // The child ended without a word.
    let text = text.get(..length).filter(|text| !text.is_empty()).ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok(serde_json::from_slice(text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_with_too_many_warnings_keeps_the_first() {
        let many: Vec<String> = (0..20).map(|n| format!("{n}{}", "\u{1}".repeat(TEXT_MAX - 2))).collect();
        let text = encode(&Ok(many.clone())).unwrap();
        assert!(text.len() <= ANSWER_MAX);
        let heard: Answer = serde_json::from_slice(&text).unwrap();
        assert_eq!(heard.unwrap(), many[..1]);
        for answer in [Ok(Vec::new()), Ok(vec!["odd".to_owned()]), Err((UpdateFault::State, "no".to_owned()))]
        {
            let heard: Answer = serde_json::from_slice(&encode(&answer).unwrap()).unwrap();
            assert_eq!(heard, answer);
        }
    }
}
