//! The header in front of every packet (VIRTIO 1.2 section 5.10.6).

/// Bytes of a header.
pub(super) const HEADER_LEN: usize = 44;

/// Most payload that a packet carries. Linux sends no more either (VIRTIO_VSOCK_MAX_PKT_BUF_SIZE).
pub(super) const MAX_PAYLOAD: u32 = 64 << 10;

/// The host's address (VMADDR_CID_HOST).
pub(super) const HOST_CID: u64 = 2;

/// Type of stream sockets, the only one offered.
pub(super) const STREAM: u16 = 1;

/// What a packet wants, by number (`op`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Request = 1,
    Response = 2,
    Reset = 3,
    Shutdown = 4,
    Data = 5,
    CreditUpdate = 6,
    CreditRequest = 7,
}

impl Operation {
    pub(super) fn from_number(op: u16) -> Option<Self> {
        Some(match op {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::Data,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }
}

/// A header, taken out of guest memory as a whole before anything in it is looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) src_cid: u64,
    pub(super) dst_cid: u64,
    pub(super) src_port: u32,
    pub(super) dst_port: u32,
    /// Bytes of payload.
    pub(super) len: u32,
    /// Stream, seqpacket: `type` in the standard.
    pub(super) kind: u16,
    pub(super) op: u16,
    pub(super) flags: u32,
    /// Credit of the sender: room for what it receives, and what it has passed on of that so far.
    pub(super) buf_alloc: u32,
    pub(super) fwd_cnt: u32,
}

impl Header {
    pub(super) fn operation(&self) -> Option<Operation> {
        Operation::from_number(self.op)
    }

    pub(super) fn from_bytes(bytes: &[u8; HEADER_LEN]) -> Self {
        let mut at = Fields { bytes, offset: 0 };
        Self {
            src_cid: u64::from_le_bytes(at.take()),
            dst_cid: u64::from_le_bytes(at.take()),
            src_port: u32::from_le_bytes(at.take()),
            dst_port: u32::from_le_bytes(at.take()),
            len: u32::from_le_bytes(at.take()),
            kind: u16::from_le_bytes(at.take()),
            op: u16::from_le_bytes(at.take()),
            flags: u32::from_le_bytes(at.take()),
            buf_alloc: u32::from_le_bytes(at.take()),
            fwd_cnt: u32::from_le_bytes(at.take()),
        }
    }

    pub(super) fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let fields: [&[u8]; 10] = [
            &self.src_cid.to_le_bytes(),
            &self.dst_cid.to_le_bytes(),
            &self.src_port.to_le_bytes(),
            &self.dst_port.to_le_bytes(),
            &self.len.to_le_bytes(),
            &self.kind.to_le_bytes(),
            &self.op.to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.buf_alloc.to_le_bytes(),
            &self.fwd_cnt.to_le_bytes(),
        ];
        let mut offset = 0;
        for field in fields {
            bytes[offset..offset + field.len()].copy_from_slice(field);
            offset += field.len();
        }
        bytes
    }

    /// The answer to a packet that belongs to no connection: a reset of the type that it came with.
    pub(super) fn reset(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: Operation::Reset as u16,
            ..Self::default()
        }
    }
}

struct Fields<'a> {
    bytes: &'a [u8; HEADER_LEN],
    offset: usize,
}

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut field = [0; N];
        field.copy_from_slice(&self.bytes[self.offset..self.offset + N]);
        self.offset += N;
        field
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stand_where_the_standard_puts_them() {
        let header = Header {
            src_cid: 0x0101_0101_0101_0101,
            dst_cid: 0x0202_0202_0202_0202,
            src_port: 0x0303_0303,
            dst_port: 0x0404_0404,
            len: 0x0505_0505,
            kind: 0x0606,
            op: 0x0707,
            flags: 0x0808_0808,
            buf_alloc: 0x0909_0909,
            fwd_cnt: 0x0a0a_0a0a,
        };
        let bytes = header.to_bytes();
        let offsets =
            [(0, 1), (8, 2), (16, 3), (20, 4), (24, 5), (28, 6), (30, 7), (32, 8), (36, 9), (40, 10)];
        for (offset, value) in offsets {
            assert_eq!(bytes[offset], value, "at {offset}");
        }
        assert_eq!(Header::from_bytes(&bytes), header);
    }

    #[test]
    fn operations_have_the_numbers_of_the_standard() {
        for op in 0..=u16::MAX {
            let known = Operation::from_number(op);
            assert_eq!(known.is_some(), (1..=7).contains(&op));
            assert!(known.is_none_or(|known| known as u16 == op));
        }
    }

    #[test]
    fn a_reset_goes_back_where_the_packet_came_from() {
        let stray =
            Header { src_cid: 3, dst_cid: 2, src_port: 70, dst_port: 80, kind: 2, ..Header::default() };
        let reset = stray.reset();
        assert_eq!((reset.src_cid, reset.dst_cid, reset.src_port, reset.dst_port), (2, 3, 80, 70));
        assert_eq!((reset.operation(), reset.kind, reset.len), (Some(Operation::Reset), 2, 0));
    }
}
