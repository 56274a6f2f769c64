//! The pod agent as a guest's /init: it must run there with nothing beside it.

use std::path::{Path, PathBuf};

use super::file_error::{FileError, read_file};

/// elf(5), and EM_RISCV of the RISC-V ELF psABI.
const MACHINE_AT: usize = 18;
const RISCV: u16 = 243;
const PROGRAM_HEADERS_AT: usize = 32;
const PROGRAM_HEADER_SIZE_AT: usize = 54;
const PROGRAM_HEADER_COUNT_AT: usize = 56;
const PT_INTERP: u32 = 3;

/// The agent has some 6 MB, with symbols ten times that.
const AGENT_MAX: usize = 256 << 20;

/// Why a program cannot be a guest's /init.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{} is no 64-bit riscv64 program (ELF machine {machine:?})", path.display())]
    Machine { path: PathBuf, machine: Option<u16> },
    #[error("{} is linked dynamically: in a guest there are no libraries (`make build` links it static)", path.display())]
    Dynamic { path: PathBuf },
}

/// Reads the agent and checks that it can be /init of a riscv64 guest.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, AgentError> {
    let bytes = read_file(path, AGENT_MAX)?;
    let is_elf64 = bytes.starts_with(b"\x7fELF\x02");
    let machine = number(&bytes, MACHINE_AT).filter(|_| is_elf64);
    if machine != Some(RISCV) {
        return Err(AgentError::Machine { path: path.to_owned(), machine });
    }
    if has_interpreter(&bytes).unwrap_or(true) {
        return Err(AgentError::Dynamic { path: path.to_owned() });
    }
    Ok(bytes)
}

/// Nothing for a file that ends within its headers.
fn has_interpreter(elf: &[u8]) -> Option<bool> {
    let at = elf.get(PROGRAM_HEADERS_AT..PROGRAM_HEADERS_AT + 8)?.try_into().ok()?;
    let at = usize::try_from(u64::from_le_bytes(at)).ok()?;
    let size = usize::from(number(elf, PROGRAM_HEADER_SIZE_AT)?);
    for index in 0..usize::from(number(elf, PROGRAM_HEADER_COUNT_AT)?) {
        let start = index.checked_mul(size)?.checked_add(at)?;
        let kind = elf.get(start..start.checked_add(4)?)?.try_into().ok()?;
        if u32::from_le_bytes(kind) == PT_INTERP {
            return Some(true);
        }
    }
    Some(false)
}

fn number(elf: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(elf.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;

    use super::*;

    /// An ELF file with one program header.
    pub(in super::super) fn elf(machine: u16, header: u32) -> Vec<u8> {
        let mut elf = vec![0; 64 + 56];
        elf[..5].copy_from_slice(b"\x7fELF\x02");
        elf[MACHINE_AT..][..2].copy_from_slice(&machine.to_le_bytes());
        elf[PROGRAM_HEADERS_AT..][..8].copy_from_slice(&64_u64.to_le_bytes());
        elf[PROGRAM_HEADER_SIZE_AT..][..2].copy_from_slice(&56_u16.to_le_bytes());
        elf[PROGRAM_HEADER_COUNT_AT..][..2].copy_from_slice(&1_u16.to_le_bytes());
        elf[64..68].copy_from_slice(&header.to_le_bytes());
        elf
    }

    fn read_elf(bytes: &[u8]) -> Result<Vec<u8>, AgentError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hartpod-pod");
        fs::write(&path, bytes).unwrap();
        read(&path)
    }

    #[test]
    fn only_a_static_riscv64_program_will_do() {
        assert!(read_elf(&elf(RISCV, 1)).is_ok());
        assert!(matches!(read_elf(&elf(RISCV, PT_INTERP)), Err(AgentError::Dynamic { .. })));
        assert!(matches!(read_elf(&elf(62, 1)), Err(AgentError::Machine { machine: Some(62), .. })));
        assert!(matches!(read_elf(b"#!/bin/sh"), Err(AgentError::Machine { machine: None, .. })));
        // Torn within its headers.
        assert!(matches!(read_elf(&elf(RISCV, 1)[..66]), Err(AgentError::Dynamic { .. })));
    }
}
