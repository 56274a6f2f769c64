//! The v2 stand-in for the devices controller: an eBPF program of type CGROUP_DEVICE, assembled here instruction by instruction.
//!
//! The kernel calls it with `struct bpf_cgroup_dev_ctx { u32 access_type; u32 major; u32 minor; }` (linux/bpf.h): kind in the low
//! half of `access_type`, access bits in the high half. It answers 1 for yes. Every program from the root down must say yes.

use std::io;
use std::os::fd::OwnedFd;

use super::devices::{DevicePolicy, Exception, Kind};
use super::sys;

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Insn {
    pub(super) code: u8,
    /// Destination register in the low four bits, source in the high ones; bit fields turn round with the byte order.
    pub(super) registers: u8,
    pub(super) offset: i16,
    pub(super) immediate: i32,
}

// Opcodes of the instruction set standard (RFC 9669): class | source or size | operation.
const LOAD_WORD: u8 = 0x61; // LDX | MEM | W
const MOV_IMM: u8 = 0xb7; // ALU64 | MOV | K
const MOV_REG: u8 = 0xbf; // ALU64 | MOV | X
const AND_IMM: u8 = 0x57; // ALU64 | AND | K
const SHIFT_RIGHT_IMM: u8 = 0x77; // ALU64 | RSH | K
const JUMP_NOT_EQUAL_IMM: u8 = 0x56; // JMP32 | JNE | K
const JUMP_NOT_EQUAL_REG: u8 = 0x5d; // JMP | JNE | X
const JUMP_EQUAL_IMM: u8 = 0x16; // JMP32 | JEQ | K
const EXIT: u8 = 0x95;

/// `BPF_DEVCG_DEV_BLOCK`, `BPF_DEVCG_DEV_CHAR`.
const DEV_BLOCK: i32 = 1;
const DEV_CHAR: i32 = 2;

// Register use: r0 answer, r1 context then scratch, r2 kind, r3 access, r4 major, r5 minor.

fn insn(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> Insn {
    let registers = if cfg!(target_endian = "little") { src << 4 | dst } else { dst << 4 | src };
    Insn { code, registers, offset, immediate }
}

/// The program of a policy. The first exception that matches decides, for all of them say the same.
pub(super) fn assemble(policy: &DevicePolicy) -> Vec<Insn> {
    let mut program = vec![
        insn(LOAD_WORD, 2, 1, 0, 0),
        insn(MOV_REG, 3, 2, 0, 0),
        insn(AND_IMM, 2, 0, 0, 0xffff),
        insn(SHIFT_RIGHT_IMM, 3, 0, 0, 16),
        insn(LOAD_WORD, 4, 1, 4, 0),
        insn(LOAD_WORD, 5, 1, 8, 0),
    ];
    for exception in &policy.exceptions {
        block(&mut program, exception, policy.allow_by_default);
    }
    program.extend([insn(MOV_IMM, 0, 0, 0, i32::from(policy.allow_by_default)), insn(EXIT, 0, 0, 0, 0)]);
    program
}

/// One exception: compare, or jump to the next block.
fn block(program: &mut Vec<Insn>, exception: &Exception, allow_by_default: bool) {
    let kind = if exception.kind == Kind::Char { DEV_CHAR } else { DEV_BLOCK };
    let mut tests = vec![insn(JUMP_NOT_EQUAL_IMM, 2, 0, 0, kind)];
    let bits = i32::from(exception.access.bits());
    tests.extend([insn(MOV_REG, 1, 3, 0, 0), insn(AND_IMM, 1, 0, 0, bits)]);
    if allow_by_default {
        // Denied if any of the wanted accesses is.
        tests.push(insn(JUMP_EQUAL_IMM, 1, 0, 0, 0));
    } else {
        // Allowed if all of them are.
        tests.push(insn(JUMP_NOT_EQUAL_REG, 1, 3, 0, 0));
    }
    for (register, number) in [(4, exception.major), (5, exception.minor)] {
        // JMP32 compares 32 bits, so the sign of the immediate is of no account.
        tests.extend(number.map(|n| insn(JUMP_NOT_EQUAL_IMM, register, 0, 0, n as i32)));
    }
    let after = tests.len() + 2;
    for (at, test) in tests.iter_mut().enumerate() {
        if matches!(test.code, JUMP_NOT_EQUAL_IMM | JUMP_NOT_EQUAL_REG | JUMP_EQUAL_IMM) {
            // At most ten: a block is no longer.
            test.offset = i16::try_from(after - at - 1).unwrap_or(i16::MAX);
        }
    }
    program.extend(tests);
    program.extend([insn(MOV_IMM, 0, 0, 0, i32::from(!allow_by_default)), insn(EXIT, 0, 0, 0, 0)]);
}

/// Loads the program and attaches it to a v2 cgroup, where it stays until the cgroup goes.
///
/// Attached so that programs of children run as well: systemd in a container attaches its own.
pub(super) fn attach(program: &[Insn], cgroup: &OwnedFd) -> io::Result<()> {
    let loaded = sys::load_device_program(program)?;
    sys::attach_device_program(cgroup, &loaded)
}

#[cfg(test)]
mod tests;
