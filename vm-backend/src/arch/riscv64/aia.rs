//! The AIA that KVM emulates: an APLIC for wires, which turns them into messages to one interrupt file (IMSIC) per vCPU.
//!
//! Setting it up cannot be undone: where a step fails the VM is of no use any more. So whether it works here is found out once, with a VM
//! that is thrown away.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{
    KVM_CAP_IRQCHIP, KVM_DEV_RISCV_AIA_ADDR_APLIC, KVM_DEV_RISCV_AIA_CONFIG_GROUP_BITS,
    KVM_DEV_RISCV_AIA_CONFIG_GROUP_SHIFT, KVM_DEV_RISCV_AIA_CONFIG_GUEST_BITS,
    KVM_DEV_RISCV_AIA_CONFIG_HART_BITS, KVM_DEV_RISCV_AIA_CONFIG_IDS, KVM_DEV_RISCV_AIA_CONFIG_SRCS,
    KVM_DEV_RISCV_AIA_CTRL_INIT, KVM_DEV_RISCV_AIA_GROUP_SHIFT_MIN, KVM_DEV_RISCV_AIA_GRP_ADDR,
    KVM_DEV_RISCV_AIA_GRP_CONFIG, KVM_DEV_RISCV_AIA_GRP_CTRL, kvm_create_device, kvm_device_attr,
    kvm_device_type_KVM_DEV_TYPE_RISCV_AIA,
};
use kvm_ioctls::{DeviceFd, VmFd};

use super::layout::{APLIC_BASE, IMSIC_BASE, IMSIC_SIZE, RAM_BASE, SOURCES};
use super::sys;
use super::vm::{KvmError, Tried as _, Vm};
use crate::memory;
use crate::virtio::Line;

/// An AIA that is set up.
#[derive(Debug)]
pub struct Aia {
    vm: Arc<VmFd>,
    /// KVM keeps the device as long as the VM.
    _device: DeviceFd,
    /// Interrupt identities of each vCPU's file, as KVM chose them.
    pub identities: u32,
}

impl Aia {
    /// Sets it up for a VM whose `vcpus` vCPUs are all made and have never run.
    ///
    /// The mode (in software, or with the CPU's guest interrupt files) is left to KVM, which knows what the host has: to ask for one that it
    /// lacks fails, here or when a vCPU runs.
    ///
    /// # Errors
    /// The host's CPU has no AIA, or KVM cannot give one to the guest.
    pub fn new(vm: &Vm, vcpus: u32) -> Result<Self, KvmError> {
        let mut request =
            kvm_create_device { type_: kvm_device_type_KVM_DEV_TYPE_RISCV_AIA, fd: 0, flags: 0 };
        let device = vm.fd().create_device(&mut request).tried("create an AIA")?;
        let config = [
            (KVM_DEV_RISCV_AIA_CONFIG_SRCS, SOURCES),
            (KVM_DEV_RISCV_AIA_CONFIG_GROUP_BITS, 0),
            (KVM_DEV_RISCV_AIA_CONFIG_GROUP_SHIFT, KVM_DEV_RISCV_AIA_GROUP_SHIFT_MIN),
            (KVM_DEV_RISCV_AIA_CONFIG_HART_BITS, hart_bits(vcpus)),
            (KVM_DEV_RISCV_AIA_CONFIG_GUEST_BITS, 0),
        ];
        for (attribute, value) in config {
            set_u32(&device, attribute, value).tried("configure the AIA")?;
        }
        let ids = KVM_DEV_RISCV_AIA_CONFIG_IDS.into();
        let identities =
            sys::get_u32(&device, KVM_DEV_RISCV_AIA_GRP_CONFIG, ids).tried("read the AIA's identities")?;
        set_address(&device, KVM_DEV_RISCV_AIA_ADDR_APLIC.into(), APLIC_BASE).tried("place the APLIC")?;
        for vcpu in 0..u64::from(vcpus) {
            // The APLIC has number 0, the first vCPU's file 1.
            set_address(&device, 1 + vcpu, IMSIC_BASE + vcpu * IMSIC_SIZE).tried("place an IMSIC")?;
        }
        let init = kvm_device_attr {
            flags: 0,
            group: KVM_DEV_RISCV_AIA_GRP_CTRL,
            attr: KVM_DEV_RISCV_AIA_CTRL_INIT.into(),
            addr: 0,
        };
        device.set_device_attr(&init).tried("initialize the AIA")?;
        Ok(Self { vm: Arc::clone(vm.fd()), _device: device, identities })
    }

    /// The wire of `source`, edge-sensitive.
    #[must_use]
    pub fn line(&self, source: u32) -> Box<dyn Line> {
        Box::new(AplicLine { vm: Arc::clone(&self.vm), source, pulse: Mutex::new(()) })
    }
}

/// Bits that tell the numbers of `vcpus` harts apart.
fn hart_bits(vcpus: u32) -> u32 {
    u32::BITS - vcpus.saturating_sub(1).leading_zeros()
}

/// Attributes of the group CONFIG have 32 bits.
fn set_u32(device: &DeviceFd, attribute: u32, value: u32) -> Result<(), kvm_ioctls::Error> {
    let addr = &raw const value as u64;
    let group = KVM_DEV_RISCV_AIA_GRP_CONFIG;
    device.set_device_attr(&kvm_device_attr { flags: 0, group, attr: attribute.into(), addr })
}

/// Attributes of the group ADDR have 64 bits.
fn set_address(device: &DeviceFd, attr: u64, address: u64) -> Result<(), kvm_ioctls::Error> {
    let addr = &raw const address as u64;
    device.set_device_attr(&kvm_device_attr { flags: 0, group: KVM_DEV_RISCV_AIA_GRP_ADDR, attr, addr })
}

/// A pulse per interrupt. Not an irqfd: KVM never lowers the wire of one, so it fires once and never again.
#[derive(Debug)]
struct AplicLine {
    vm: Arc<VmFd>,
    source: u32,
    /// Held for a pulse: one that began inside another would be no edge, and the guest might have seen the first already.
    pulse: Mutex<()>,
}

impl Line for AplicLine {
    fn set(&self, high: bool) {
        if high {
            let _pulse = self.pulse.lock().unwrap_or_else(PoisonError::into_inner);
            for level in [true, false] {
                if let Err(error) = self.vm.set_irq_line(self.source, level) {
                    eprintln!("hartpod-vmm: set interrupt source {} to {level}: {error}", self.source);
                }
            }
        }
    }
}

/// Whether an AIA can be had here, tried with a VM of one vCPU that is thrown away.
#[must_use]
pub fn probe(kvm: OwnedFd) -> bool {
    // 1 MiB that is never touched.
    let Ok(vm) = memory::map(RAM_BASE, 1 << 20).map_err(drop).and_then(|ram| Vm::new(kvm, ram).map_err(drop))
    else {
        return false;
    };
    if vm.fd().check_extension_raw(KVM_CAP_IRQCHIP.into()) != 1 {
        return false;
    }
    // The vCPU must live until the AIA is initialized.
    vm.create_vcpus(1).is_ok_and(|vcpus| {
        let works = Aia::new(&vm, 1).is_ok();
        drop(vcpus);
        works
    })
}
