//! Requests: a header, a structure that depends on the kind, attributes.

/// Flags of a request besides NLM_F_REQUEST and NLM_F_ACK (linux/netlink.h).
pub mod flag {
    /// Only if there is none.
    pub const EXCL: u16 = 0x200;
    /// If there is none.
    pub const CREATE: u16 = 0x400;
}

/// Bytes of struct nlmsghdr.
pub(crate) const HEADER: usize = 16;

const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;

/// The attribute holds attributes.
const NESTED: u16 = 1 << 15;

/// A message to the kernel.
#[derive(Debug, Clone)]
pub struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// One that changes something, of a kind RTM_..; `body` is the structure that the kind begins with.
    #[must_use]
    pub fn change(kind: u16, flags: u16, body: &[u8]) -> Self {
        Self::new(kind, REQUEST | ACK | flags, body)
    }

    /// One that asks for a single thing.
    pub(crate) fn get(kind: u16, body: &[u8]) -> Self {
        Self::new(kind, REQUEST | ACK, body)
    }

    /// One that asks for all there are.
    pub(crate) fn dump(kind: u16, body: &[u8]) -> Self {
        Self::new(kind, REQUEST | DUMP, body)
    }

    fn new(kind: u16, flags: u16, body: &[u8]) -> Self {
        // Length and sequence number come at the end; the sender's is the kernel's to fill in.
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(body);
        Self { bytes }
    }

    /// Adds an attribute. Values of 64 KiB and more have no place in one; nothing that the kernel takes is that long.
    pub fn put(&mut self, kind: u16, value: &[u8]) {
        self.put_with(kind, |request| request.bytes.extend(value));
    }

    /// Adds an attribute that holds what `fill` adds.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        self.put_with(kind | NESTED, fill);
    }

    fn put_with(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend(kind.to_ne_bytes());
        fill(self);
        // The padding is not part of the length.
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// The whole message.
    pub(crate) fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}
