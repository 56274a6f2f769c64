//! KVM calls that kvm-ioctls has not, or has as unsafe functions.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, IntoRawFd as _, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::{KVMIO, kvm_device_attr, kvm_interrupt, kvm_run, kvm_userspace_memory_region};
use kvm_ioctls::{DeviceFd, Kvm, VcpuFd, VmFd};
use vm_memory::{GuestMemoryRegion as _, GuestRegionMmap};
use vmm_sys_util::ioctl::{ioctl_with_mut_ptr, ioctl_with_ref};
use vmm_sys_util::{ioctl_iow_nr, ioctl_iowr_nr};

use super::sbi::{Answer, Call};

ioctl_iow_nr!(KVM_INTERRUPT, KVMIO, 0x86, kvm_interrupt);
// The size in its number is that of the head of the list.
ioctl_iowr_nr!(KVM_GET_REG_LIST, KVMIO, 0xb0, u64);

/// As on the kernel's side (arch/riscv/include/uapi/asm/kvm.h).
const INTERRUPT_SET: u32 = u32::MAX;
const INTERRUPT_UNSET: u32 = u32::MAX - 1;
/// Registers that a vCPU has at most, generously: with vectors there are some 250.
const MAX_REGISTERS: usize = 2048;

pub(super) fn kvm(fd: OwnedFd) -> Kvm {
    // SAFETY: the descriptor is open and gets a new owner.
    unsafe { Kvm::from_raw_fd(fd.into_raw_fd()) }
}

/// Gives a region of guest RAM to the guest as slot 0. The caller keeps the region for as long as the VM exists.
pub(super) fn set_memory(vm: &VmFd, region: &GuestRegionMmap<()>) -> io::Result<()> {
    let slot = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: region.start_addr().0,
        memory_size: region.len(),
        userspace_addr: region.as_ptr() as u64,
    };
    // SAFETY: the range is one live mapping of the region; the guest may do with it what it likes, as nothing else is in it.
    unsafe { vm.set_user_memory_region(slot) }.map_err(io::Error::from)
}

/// Another descriptor of a vCPU: KVM takes interrupts for it from any thread.
pub(super) fn duplicate(vcpu: &VcpuFd) -> io::Result<OwnedFd> {
    // SAFETY: the vCPU is borrowed, so its descriptor stays open meanwhile.
    unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) }.try_clone_to_owned()
}

/// Sets the level of a vCPU's supervisor external interrupt. Not where KVM emulates an AIA.
pub(super) fn set_external_interrupt(vcpu: &OwnedFd, high: bool) -> io::Result<()> {
    let interrupt = kvm_interrupt { irq: if high { INTERRUPT_SET } else { INTERRUPT_UNSET } };
    // SAFETY: the kernel reads one kvm_interrupt.
    match unsafe { ioctl_with_ref(vcpu, KVM_INTERRUPT(), &interrupt) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The ids of all registers of a vCPU.
pub(super) fn register_list(vcpu: &VcpuFd) -> io::Result<Vec<u64>> {
    let mut list = vec![0_u64; 1 + MAX_REGISTERS];
    list[0] = MAX_REGISTERS as u64;
    // SAFETY: the head says how many ids the list has room for, and the kernel writes no more (else it fails with E2BIG).
    match unsafe { ioctl_with_mut_ptr(vcpu, KVM_GET_REG_LIST(), list.as_mut_ptr()) } {
        0 => {
            let count = usize::try_from(list[0]).unwrap_or(0).min(MAX_REGISTERS);
            Ok(list[1..=count].to_vec())
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// Reads a device attribute of 32 bits.
pub(super) fn get_u32(device: &DeviceFd, group: u32, attr: u64) -> io::Result<u32> {
    let mut value = 0_u32;
    let mut request = kvm_device_attr { flags: 0, group, attr, addr: &raw mut value as u64 };
    // SAFETY: all attributes of the AIA's group CONFIG, the only one that callers read, have 32 bits.
    unsafe { device.get_device_attr(&mut request) }?;
    Ok(value)
}

/// The call that a vCPU left KVM with, after a KVM_EXIT_RISCV_SBI.
pub(super) fn sbi_call(run: &kvm_run) -> Call {
    // SAFETY: the exit reason says that this member of the union is set; all its fields are integers.
    let sbi = unsafe { run.__bindgen_anon_1.riscv_sbi };
    Call { extension: sbi.extension_id, function: sbi.function_id, arguments: sbi.args }
}

/// What the guest gets when the vCPU goes on after a KVM_EXIT_RISCV_SBI.
pub(super) fn answer_sbi(run: &mut kvm_run, answer: Answer) {
    run.__bindgen_anon_1.riscv_sbi.ret = [answer.error as u64, answer.value];
}

/// After a KVM_EXIT_RISCV_CSR: the register reads 0.
pub(super) fn answer_csr(run: &mut kvm_run) {
    run.__bindgen_anon_1.riscv_csr.ret_value = 0;
}

/// A page that a vCPU's threads share with the kernel, to say that its next KVM_RUN must return at once.
///
/// A mapping of its own, so that it may outlive the vCPU's owner.
#[derive(Debug)]
pub(super) struct ImmediateExit {
    page: NonNull<libc::c_void>,
}

/// The smallest page of any machine; only the first bytes matter.
const PAGE: usize = 4096;

// SAFETY: only the one atomic byte in the page is touched.
unsafe impl Send for ImmediateExit {}
// SAFETY: as above.
unsafe impl Sync for ImmediateExit {}

impl ImmediateExit {
    pub(super) fn new(vcpu: &OwnedFd) -> io::Result<Self> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the kernel chooses a place where nothing is mapped.
        let page = unsafe { libc::mmap(ptr::null_mut(), PAGE, prot, libc::MAP_SHARED, vcpu.as_raw_fd(), 0) };
        match NonNull::new(page).filter(|page| page.as_ptr() != libc::MAP_FAILED) {
            Some(page) => Ok(Self { page }),
            None => Err(io::Error::last_os_error()),
        }
    }

    pub(super) fn set(&self) {
        let run: *mut kvm_run = self.page.as_ptr().cast();
        // SAFETY: the page begins with the vCPU's kvm_run and stays mapped while self lives; the kernel only reads this byte, and the
        // vCPU's own thread leaves it alone.
        let byte = unsafe { AtomicU8::from_ptr(&raw mut (*run).immediate_exit) };
        byte.store(1, Ordering::SeqCst);
    }
}

impl Drop for ImmediateExit {
    fn drop(&mut self) {
        // SAFETY: new() mapped it, and no reference into it outlives a method.
        unsafe { libc::munmap(self.page.as_ptr(), PAGE) };
    }
}
