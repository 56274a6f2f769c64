//! The calls of the guest's kernel to its firmware (RISC-V SBI 2.0) that KVM leaves to the VMM: the debug console. Time, IPIs,
//! remote fences, harts and reset are KVM's.

use vm_memory::{Bytes as _, GuestAddress};

use crate::console::Console;
use crate::memory::GuestMemory;

/// "DBCN", chapter 12.
pub const DEBUG_CONSOLE: u64 = 0x4442_434e;
const WRITE: u64 = 0;
const READ: u64 = 1;
const WRITE_BYTE: u64 = 2;

/// Standard errors, chapter 3.
const SUCCESS: i64 = 0;
const ERR_NOT_SUPPORTED: i64 = -2;
const ERR_INVALID_PARAM: i64 = -3;

/// Bytes that one call prints at most; the guest is told how many were taken and comes again.
const CHUNK: usize = 4096;

/// A call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    pub extension: u64,
    pub function: u64,
    /// a0 to a5.
    pub arguments: [u64; 6],
}

/// What the guest gets in a0 and a1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    pub error: i64,
    pub value: u64,
}

impl Answer {
    fn ok(value: u64) -> Self {
        Self { error: SUCCESS, value }
    }

    fn error(error: i64) -> Self {
        Self { error, value: 0 }
    }
}

/// Answers a call.
#[must_use]
pub fn answer(call: &Call, memory: &GuestMemory, console: &Console) -> Answer {
    match (call.extension, call.function) {
        (DEBUG_CONSOLE, WRITE) => write(call.arguments, memory, console),
        // There is nobody to type.
        (DEBUG_CONSOLE, READ) => Answer::ok(0),
        (DEBUG_CONSOLE, WRITE_BYTE) => {
            console.print(&call.arguments[0].to_le_bytes()[..1]);
            Answer::ok(0)
        }
        _ => Answer::error(ERR_NOT_SUPPORTED),
    }
}

/// The number of bytes, and the halves of their address.
fn write([bytes, low, high, ..]: [u64; 6], memory: &GuestMemory, console: &Console) -> Answer {
    let taken = usize::try_from(bytes).unwrap_or(usize::MAX).min(CHUNK);
    let mut chunk = [0; CHUNK];
    if high != 0 || memory.read_slice(&mut chunk[..taken], GuestAddress(low)).is_err() {
        return Answer::error(ERR_INVALID_PARAM);
    }
    console.print(&chunk[..taken]);
    Answer::ok(taken as u64)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _};

    use super::*;
    use crate::memory::{self, GuestRam};

    const RAM: u64 = 0x8000_0000;

    struct Guest {
        memory: GuestRam,
        console: Console,
        file: std::fs::File,
    }

    impl Guest {
        fn new() -> Self {
            let file = tempfile::tempfile().unwrap();
            let console = Console::new(file.try_clone().unwrap(), 1 << 20);
            Self { memory: memory::map(RAM, 1 << 20).unwrap(), console, file }
        }

        fn call(&self, extension: u64, function: u64, arguments: [u64; 3]) -> (i64, u64) {
            let [a, b, c] = arguments;
            let call = Call { extension, function, arguments: [a, b, c, 0, 0, 0] };
            let answer = answer(&call, &self.memory, &self.console);
            (answer.error, answer.value)
        }

        fn printed(mut self) -> Vec<u8> {
            self.file.rewind().unwrap();
            let mut bytes = Vec::new();
            self.file.read_to_end(&mut bytes).unwrap();
            bytes
        }
    }

    #[test]
    fn the_debug_console_prints_from_guest_memory() {
        let guest = Guest::new();
        guest.memory.write_slice(b"hello", GuestAddress(RAM + 100)).unwrap();
        assert_eq!(guest.call(DEBUG_CONSOLE, WRITE, [5, RAM + 100, 0]), (0, 5));
        assert_eq!(guest.call(DEBUG_CONSOLE, WRITE_BYTE, [0x1234_5621, 0, 0]), (0, 0));
        assert_eq!(guest.call(DEBUG_CONSOLE, READ, [5, RAM, 0]), (0, 0));
        assert_eq!(guest.printed(), b"hello!");
    }

    #[test]
    fn addresses_outside_of_ram_are_refused_and_print_nothing() {
        let guest = Guest::new();
        let end = RAM + (1 << 20);
        for (bytes, low, high) in [
            (1, 0, 0),
            (1, end, 0),
            (2, end - 1, 0),
            (5, RAM, 1),
            (4, u64::MAX - 1, 0),
            (u64::MAX, end - 1, 0),
        ] {
            assert_eq!(guest.call(DEBUG_CONSOLE, WRITE, [bytes, low, high]), (ERR_INVALID_PARAM, 0));
        }
        assert_eq!(guest.call(DEBUG_CONSOLE, WRITE, [0, RAM, 0]), (0, 0));
        assert!(guest.printed().is_empty());
    }

    #[test]
    fn a_huge_write_is_taken_in_parts() {
        let guest = Guest::new();
        assert_eq!(guest.call(DEBUG_CONSOLE, WRITE, [u64::MAX, RAM, 0]), (0, CHUNK as u64));
        assert_eq!(guest.printed().len(), CHUNK);
    }

    #[test]
    fn what_is_not_there_is_not_supported() {
        let guest = Guest::new();
        for (extension, function) in
            [(DEBUG_CONSOLE, 3), (0x0a00_0000, 0), (0x0900_0000, 7), (u64::MAX, u64::MAX)]
        {
            assert_eq!(guest.call(extension, function, [0; 3]), (ERR_NOT_SUPPORTED, 0));
        }
    }
}
