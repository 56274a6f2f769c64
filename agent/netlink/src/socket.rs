//! A connection to the kernel's network configuration.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with};

use crate::attribute::{Attributes, i32_at, u16_at, u32_at};
use crate::message::{HEADER, Request};
use crate::sys;

/// The kernel's answers come in pieces of at most this.
const PIECE: usize = 32 << 10;

/// Kinds of messages that are about messages (linux/netlink.h).
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// Flags of a message: what was listed changed meanwhile; the refused request is not repeated; attributes follow.
const DUMP_INTERRUPTED: u16 = 0x10;
const CAPPED: u16 = 0x100;
const WORDS_FOLLOW: u16 = 0x200;
/// The attribute of a refusal that has the kernel's words.
const WORDS: u16 = 1;

/// Lists are asked for again when they change while they are given.
const DUMP_TRIES: u32 = 10;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The socket itself.
    #[error("netlink")]
    Socket(#[from] io::Error),
    /// An answer that makes no sense.
    #[error("an answer of the kernel makes no sense")]
    Answer,
    /// The kernel said no, with its words, which may be empty.
    #[error("{}", refusal(*.errno, .words))]
    Refused {
        /// What it is about.
        errno: Errno,
        /// More of that.
        words: String,
    },
}

fn refusal(errno: Errno, words: &str) -> String {
    let error = io::Error::from(errno);
    if words.is_empty() { error.to_string() } else { format!("{error}: {words}") }
}

impl From<Errno> for NetlinkError {
    fn from(errno: Errno) -> Self {
        Self::Socket(errno.into())
    }
}

impl NetlinkError {
    /// The number of the kernel's refusal, if it is one.
    #[must_use]
    pub fn refused(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            Self::Socket(_) | Self::Answer => None,
        }
    }
}

/// A socket in the network namespace of the thread that opened it, and for that namespace ever after.
#[derive(Debug)]
pub struct Socket {
    socket: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// Opens one.
    ///
    /// # Errors
    /// Those of socket(2).
    pub fn open() -> Result<Self, NetlinkError> {
        // Protocol 0 is NETLINK_ROUTE.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        sys::want_words(socket.as_fd())?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends a request and waits for the kernel's word.
    ///
    /// # Errors
    /// The kernel refuses, or cannot be asked.
    pub fn request(&mut self, request: Request) -> Result<(), NetlinkError> {
        self.exchange(request, |_| ())?;
        Ok(())
    }

    /// Sends a request for a list and gives each item's structure and attributes to `take`, which begins anew after `None`.
    pub(crate) fn list<T>(
        &mut self,
        request: &Request,
        take: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        for _ in 0..DUMP_TRIES {
            let mut items = Vec::new();
            if self.exchange(request.clone(), |item| items.extend(take(item)))? {
                return Ok(items);
            }
        }
        Err(NetlinkError::Socket(io::ErrorKind::ResourceBusy.into()))
    }

    /// Gives each message of the answer to `take`. False when what was listed changed meanwhile.
    pub(crate) fn exchange(
        &mut self,
        request: Request,
        mut take: impl FnMut(&[u8]),
    ) -> Result<bool, NetlinkError> {
        self.sequence += 1;
        let bytes = request.finish(self.sequence);
        sendto(&self.socket, &bytes, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        let mut steady = true;
        let mut piece = vec![0; PIECE];
        loop {
            let (_, length) = recv(&self.socket, &mut piece[..], RecvFlags::TRUNC)?;
            let mut rest = piece.get(..length).ok_or(NetlinkError::Answer)?;
            while let Some(message) = Message::first(rest)? {
                rest = rest.get(message.whole.len().next_multiple_of(4)..).unwrap_or_default();
                if message.sequence != self.sequence {
                    continue;
                }
                steady &= message.flags & DUMP_INTERRUPTED == 0;
                match message.kind {
                    ERROR | DONE => return message.verdict().map(|()| steady),
                    _ => take(message.body()),
                }
            }
        }
    }
}

/// A message of the kernel's.
struct Message<'a> {
    whole: &'a [u8],
    kind: u16,
    flags: u16,
    sequence: u32,
}

impl<'a> Message<'a> {
    /// The first one in `bytes`, if there is any.
    fn first(bytes: &'a [u8]) -> Result<Option<Self>, NetlinkError> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let parse = || {
            let length = usize::try_from(u32_at(bytes, 0)?).ok().filter(|length| *length >= HEADER)?;
            Some(Self {
                whole: bytes.get(..length)?,
                kind: u16_at(bytes, 4)?,
                flags: u16_at(bytes, 6)?,
                sequence: u32_at(bytes, 8)?,
            })
        };
        parse().map(Some).ok_or(NetlinkError::Answer)
    }

    fn body(&self) -> &'a [u8] {
        self.whole.get(HEADER..).unwrap_or_default()
    }

    /// What an ERROR or DONE says: zero, or the number of an error, negative.
    fn verdict(&self) -> Result<(), NetlinkError> {
        let body = self.body();
        // Old kernels end a list without a number.
        let number = i32_at(body, 0).unwrap_or(0);
        if number == 0 {
            return Ok(());
        }
        let words = if self.flags & WORDS_FOLLOW == 0 { String::new() } else { self.words() };
        Err(NetlinkError::Refused { errno: Errno::from_raw_os_error(number.saturating_neg()), words })
    }

    fn words(&self) -> String {
        let body = self.body();
        // An error repeats the header of the request, and what else it had unless that is left out; the end of a list repeats nothing.
        let repeated = match (self.kind, self.flags & CAPPED) {
            (DONE, _) => 0,
            (_, 0) => u32_at(body, 4).and_then(|length| usize::try_from(length).ok()).unwrap_or(HEADER),
            _ => HEADER,
        };
        let at = repeated.saturating_add(4).next_multiple_of(4);
        let words = Attributes::new(body.get(at..).unwrap_or_default()).find(|(kind, _)| *kind == WORDS);
        let words = words.map(|(_, text)| text.split(|byte| *byte == 0).next().unwrap_or_default());
        String::from_utf8_lossy(words.unwrap_or_default()).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer of this kind to the first request.
    fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER + body.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend([kind.to_ne_bytes(), flags.to_ne_bytes()].concat());
        bytes.extend([1_u32.to_ne_bytes(), [0; 4]].concat());
        bytes.extend(body);
        bytes
    }

    fn verdict(bytes: &[u8]) -> Result<(), NetlinkError> {
        Message::first(bytes).unwrap().unwrap().verdict()
    }

    #[test]
    fn a_refusal_has_the_words_of_the_kernel() {
        let number = (-libc::ENOENT).to_ne_bytes();
        let words = [&[8 + 4, 0, 1, 0][..], b"no such\0"].concat();
        let request = message(38, 0, b"12345678");
        let full = message(ERROR, WORDS_FOLLOW, &[&number[..], &request, &words].concat());
        let capped =
            message(ERROR, WORDS_FOLLOW | CAPPED, &[&number[..], &request[..HEADER], &words].concat());
        let end = message(DONE, WORDS_FOLLOW, &[&number[..], &words].concat());
        for bytes in [full, capped, end] {
            let error = verdict(&bytes).unwrap_err();
            assert_eq!(error.refused(), Some(Errno::NOENT));
            assert_eq!(error.to_string(), "No such file or directory (os error 2): no such");
        }
        let silent = verdict(&message(ERROR, 0, &[&number[..], &request].concat())).unwrap_err();
        assert_eq!(silent.to_string(), "No such file or directory (os error 2)");
        assert!(verdict(&message(ERROR, 0, &[0; 20])).is_ok());
    }

    #[test]
    fn answers_that_make_no_sense_are_no_panic() {
        assert!(Message::first(&[]).unwrap().is_none());
        for bytes in [&[1, 0][..], &[15; 40], &[8, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]] {
            assert!(Message::first(bytes).is_err(), "{bytes:?}");
        }
        // Words that reach beyond the message, or are not where they should be.
        let lost = message(ERROR, WORDS_FOLLOW, &[&[0xff; 4][..], &[0xff; 16]].concat());
        assert!(verdict(&lost).unwrap_err().refused().is_some());
        assert_eq!(Attributes::new(&[3, 0, 1, 0, 9]).next(), None);
        assert_eq!(Attributes::new(&[9, 0, 1, 0, 9]).next(), None);
    }
}
