//! A virtual machine: its memory, its harts, its wires.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use kvm_bindings::KVM_CAP_VM_GPA_BITS;
use kvm_ioctls::{IoEventAddress, VcpuFd, VmFd};
use vm_memory::GuestMemoryBackend as _;
use vmm_sys_util::eventfd::EventFd;

use super::layout::slot_base;
use super::sys;
use crate::memory::GuestRam;
use crate::virtio::QUEUE_NOTIFY;

/// KVM refused.
#[derive(Debug, thiserror::Error)]
#[error("kvm: {what}")]
pub struct KvmError {
    /// What was tried.
    pub what: &'static str,
    #[source]
    pub source: io::Error,
}

/// Names what was tried.
pub(super) trait Tried<T> {
    fn tried(self, what: &'static str) -> Result<T, KvmError>;
}

impl<T, E: Into<io::Error>> Tried<T> for Result<T, E> {
    fn tried(self, what: &'static str) -> Result<T, KvmError> {
        self.map_err(|source| KvmError { what, source: source.into() })
    }
}

/// The only version that there ever was of what is stable (Documentation/virt/kvm/api.rst).
const API_VERSION: i32 = 12;

/// A VM with its RAM, without vCPUs.
#[derive(Debug)]
pub struct Vm {
    fd: Arc<VmFd>,
    /// KVM reads and writes it for as long as the VM exists.
    _memory: GuestRam,
}

impl Vm {
    /// Makes a VM that has `memory` as its RAM.
    ///
    /// # Errors
    /// `kvm` is not KVM, or the RAM does not fit the guest-physical address space.
    pub fn new(kvm: OwnedFd, memory: GuestRam) -> Result<Self, KvmError> {
        let kvm = sys::kvm(kvm);
        if kvm.get_api_version() != API_VERSION {
            return Err(io::Error::from(io::ErrorKind::Unsupported)).tried("find API version 12");
        }
        let fd = kvm.create_vm().tried("create a VM")?;
        let bits = fd.check_extension_raw(KVM_CAP_VM_GPA_BITS.into());
        let end = memory.last_addr().0;
        if u32::try_from(bits).is_ok_and(|bits| (1..64).contains(&bits) && end >> bits != 0) {
            let too_small = io::Error::other(format!("the address space has {bits} bits"));
            return Err(too_small).tried("give the VM its memory");
        }
        for region in memory.iter() {
            sys::set_memory(&fd, region).tried("give the VM its memory")?;
        }
        Ok(Self { fd: Arc::new(fd), _memory: memory })
    }

    /// Makes `count` vCPUs; all but the first wait until the guest starts them.
    ///
    /// # Errors
    /// There are more than the host allows.
    pub fn create_vcpus(&self, count: u32) -> Result<Vec<VcpuFd>, KvmError> {
        (0..count).map(|id| self.fd.create_vcpu(id.into()).tried("create a vCPU")).collect()
    }

    /// A write of `queue` to the QueueNotify of `slot` signals `kick` and does not leave KVM.
    ///
    /// # Errors
    /// It was registered before, or there are too many.
    pub fn notify(&self, slot: u32, queue: u32, kick: &EventFd) -> Result<(), KvmError> {
        let at = IoEventAddress::Mmio(slot_base(slot) + QUEUE_NOTIFY);
        self.fd.register_ioevent(kick, &at, queue).tried("register an ioeventfd")
    }

    pub(super) fn fd(&self) -> &Arc<VmFd> {
        &self.fd
    }
}
