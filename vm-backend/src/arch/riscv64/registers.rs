//! A vCPU's registers (KVM_GET_ONE_REG, KVM_SET_ONE_REG): what it can do, what a guest is not to see, and where it begins.

use std::io;

use kvm_bindings::{
    KVM_REG_RISCV, KVM_REG_RISCV_CONFIG, KVM_REG_RISCV_CORE, KVM_REG_RISCV_CSR, KVM_REG_RISCV_CSR_SMSTATEEN,
    KVM_REG_RISCV_ISA_EXT, KVM_REG_RISCV_SBI_EXT, KVM_REG_RISCV_TIMER, KVM_REG_SIZE_U64,
    KVM_RISCV_ISA_EXT_ID_KVM_RISCV_ISA_EXT_SSAIA, KVM_RISCV_SBI_EXT_ID_KVM_RISCV_SBI_EXT_DBCN,
};
use kvm_ioctls::VcpuFd;

use super::isa::{Aia, Isa, Mmu};
use super::sys;
use super::vm::{KvmError, Tried as _};

/// A register of 64 bits.
const fn register(kind: u32, index: u32) -> u64 {
    KVM_REG_RISCV as u64 | KVM_REG_SIZE_U64 | kind as u64 | index as u64
}

/// Fields of `struct kvm_riscv_config` and `struct kvm_riscv_core` (arch/riscv/include/uapi/asm/kvm.h), in words.
const CBOM_SIZE: u64 = register(KVM_REG_RISCV_CONFIG, 1);
const CBOZ_SIZE: u64 = register(KVM_REG_RISCV_CONFIG, 5);
const SATP_MODE: u64 = register(KVM_REG_RISCV_CONFIG, 6);
const PC: u64 = register(KVM_REG_RISCV_CORE, 0);
const A0: u64 = register(KVM_REG_RISCV_CORE, 10);
const A1: u64 = register(KVM_REG_RISCV_CORE, 11);
const TIMEBASE: u64 = register(KVM_REG_RISCV_TIMER, 0);
const SSTATEEN0: u64 = register(KVM_REG_RISCV_CSR | KVM_REG_RISCV_CSR_SMSTATEEN, 0);
const SSAIA: u64 = register(KVM_REG_RISCV_ISA_EXT, KVM_RISCV_ISA_EXT_ID_KVM_RISCV_ISA_EXT_SSAIA);
const DBCN: u64 = register(KVM_REG_RISCV_SBI_EXT, KVM_RISCV_SBI_EXT_ID_KVM_RISCV_SBI_EXT_DBCN);
/// What stays of an id without its index.
const KIND: u64 = !0xffff;

/// What all vCPUs of a guest can do.
#[derive(Debug)]
pub struct Abilities {
    pub isa: Isa,
    pub mmu: Mmu,
    /// Ticks per second.
    pub timebase: u32,
    /// Bytes, where the guest has the instructions.
    pub cbom: Option<u32>,
    pub cboz: Option<u32>,
}

/// Readies vCPUs that have never run: the debug console is on, Ssaia as told, and registers of extensions that KVM switches by Smstateen are
/// the guest's. Then reads what they can do, from the first: all are alike.
///
/// # Errors
/// KVM refuses, or it offers a paging mode that nobody knows.
pub fn prepare(vcpus: &[VcpuFd], aia: Aia) -> Result<Abilities, KvmError> {
    let none = || io::Error::from(io::ErrorKind::InvalidInput);
    let first = vcpus.first().ok_or_else(none).tried("find the first vCPU")?;
    let all = sys::register_list(first).tried("list a vCPU's registers")?;
    for vcpu in vcpus {
        set(vcpu, DBCN, 1).tried("enable the SBI debug console")?;
        if all.contains(&SSTATEEN0) {
            set(vcpu, SSTATEEN0, u64::MAX).tried("write sstateen0")?;
        }
        if aia == Aia::Hidden && all.contains(&SSAIA) {
            // Only hosts with Smstateen can; on others the guest is merely not told of it.
            let _ = set(vcpu, SSAIA, 0);
        }
    }
    read_abilities(first, &all, aia)
}

fn read_abilities(vcpu: &VcpuFd, all: &[u64], aia: Aia) -> Result<Abilities, KvmError> {
    let mut numbers = Vec::new();
    for id in all.iter().filter(|id| **id & KIND == register(KVM_REG_RISCV_ISA_EXT, 0)) {
        if get(vcpu, *id).tried("read an ISA extension")? == 1 {
            numbers.push(id & !KIND);
        }
    }
    let isa = Isa::new(numbers, aia);
    let satp = get(vcpu, SATP_MODE).tried("read the paging mode")?;
    let unknown = || io::Error::other(format!("satp mode {satp}"));
    let block = |extension, id| -> Result<Option<u32>, KvmError> {
        if !isa.has(extension) {
            return Ok(None);
        }
        let size = get(vcpu, id).tried("read the size of cache blocks")?;
        Ok(u32::try_from(size).ok().filter(|size| *size > 0))
    };
    let timebase = get(vcpu, TIMEBASE).tried("read the timer's frequency")?;
    Ok(Abilities {
        mmu: Mmu::from_satp_mode(satp).ok_or_else(unknown).tried("know the paging mode")?,
        timebase: u32::try_from(timebase).map_err(io::Error::other).tried("read the timer's frequency")?,
        cbom: block("zicbom", CBOM_SIZE)?,
        cboz: block("zicboz", CBOZ_SIZE)?,
        isa,
    })
}

/// Where the first vCPU begins (Linux Documentation/arch/riscv/boot.rst).
///
/// # Errors
/// KVM refuses.
pub fn set_entry(vcpu: &VcpuFd, kernel: u64, devicetree: u64) -> Result<(), KvmError> {
    for (id, value) in [(PC, kernel), (A0, 0), (A1, devicetree)] {
        set(vcpu, id, value).tried("set the entry registers")?;
    }
    Ok(())
}

fn get(vcpu: &VcpuFd, id: u64) -> io::Result<u64> {
    let mut bytes = [0; 8];
    vcpu.get_one_reg(id, &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

fn set(vcpu: &VcpuFd, id: u64, value: u64) -> io::Result<()> {
    vcpu.set_one_reg(id, &value.to_le_bytes())?;
    Ok(())
}
