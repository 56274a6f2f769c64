//! The flattened devicetree that tells the guest's kernel what it runs on.

use std::ops::Range;

use vm_fdt::FdtWriter;

use super::isa::{Isa, Mmu};
use super::layout::{
    APLIC_BASE, APLIC_SIZE, FDT_MAX, IMSIC_BASE, IMSIC_SIZE, PLIC_BASE, PLIC_SIZE, RAM_BASE, SLOT_SIZE,
    SOURCES, slot_base, slot_source,
};

/// Supervisor external interrupt (privileged ISA, scause).
const EXTERNAL_INTERRUPT: u32 = 9;
/// The two cells of an APLIC interrupt: its source, then how it is triggered (interrupt-controller/irq.h).
const EDGE_RISING: u32 = 1;
/// Of the interrupt controller that devices are wired to. vCPUs' own have 1 + their number.
const CONTROLLER: u32 = 0x100;
const IMSICS: u32 = 0x101;
/// Bytes of `rng-seed`: what the kernel's random number generator takes at once.
pub const SEED: usize = 64;

/// What stands in the tree.
#[derive(Debug)]
pub struct Platform<'a> {
    /// Bytes of RAM.
    pub ram: u64,
    pub cpus: Cpus<'a>,
    /// Slots for virtio devices, from the first on.
    pub slots: u32,
    pub controller: Controller,
    pub initramfs: Range<u64>,
    pub command_line: &'a str,
    /// Fresh random bytes: the guest has good randomness from its first instruction on.
    pub seed: &'a [u8; SEED],
}

/// vCPUs; all are alike.
#[derive(Debug)]
pub struct Cpus<'a> {
    pub count: u32,
    pub isa: &'a Isa,
    pub mmu: Mmu,
    /// Ticks of the `time` register per second.
    pub timebase: u32,
    /// Bytes that cbo.clean, cbo.flush and cbo.inval work on.
    pub cbom: Option<u32>,
    /// Bytes that cbo.zero works on.
    pub cboz: Option<u32>,
}

/// The interrupt controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Controller {
    Plic,
    /// `identities`: interrupt identities that KVM gives each vCPU's interrupt file.
    Aia {
        identities: u32,
    },
}

/// Why there is no tree.
#[derive(Debug, thiserror::Error)]
pub enum FdtError {
    #[error("write the devicetree")]
    Write(#[from] vm_fdt::Error),
    #[error("the devicetree has {size} bytes, more than {FDT_MAX}")]
    TooLarge { size: usize },
}

/// The tree as the kernel gets it.
///
/// # Errors
/// It would be larger than [`FDT_MAX`], or the command line holds a zero byte.
pub fn build(platform: &Platform<'_>) -> Result<Vec<u8>, FdtError> {
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_string("compatible", "linux,dummy-virt")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    chosen(&mut fdt, platform)?;
    let memory = fdt.begin_node(&format!("memory@{RAM_BASE:x}"))?;
    fdt.property_string("device_type", "memory")?;
    fdt.property_array_u64("reg", &[RAM_BASE, platform.ram])?;
    fdt.end_node(memory)?;
    cpus(&mut fdt, &platform.cpus)?;
    match platform.controller {
        Controller::Plic => plic(&mut fdt, platform.cpus.count)?,
        Controller::Aia { identities } => aia(&mut fdt, platform.cpus.count, identities)?,
    }
    for n in 0..platform.slots {
        slot(&mut fdt, n, platform.controller)?;
    }
    fdt.end_node(root)?;
    let tree = fdt.finish()?;
    match u64::try_from(tree.len()) {
        Ok(size) if size <= FDT_MAX => Ok(tree),
        _ => Err(FdtError::TooLarge { size: tree.len() }),
    }
}

fn chosen(fdt: &mut FdtWriter, platform: &Platform<'_>) -> Result<(), vm_fdt::Error> {
    let node = fdt.begin_node("chosen")?;
    fdt.property_string("bootargs", platform.command_line)?;
    fdt.property_u64("linux,initrd-start", platform.initramfs.start)?;
    fdt.property_u64("linux,initrd-end", platform.initramfs.end)?;
    fdt.property("rng-seed", platform.seed)?;
    fdt.end_node(node)
}

fn cpus(fdt: &mut FdtWriter, cpus: &Cpus<'_>) -> Result<(), vm_fdt::Error> {
    let node = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 1)?;
    fdt.property_u32("#size-cells", 0)?;
    fdt.property_u32("timebase-frequency", cpus.timebase)?;
    for hart in 0..cpus.count {
        let cpu = fdt.begin_node(&format!("cpu@{hart:x}"))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_u32("reg", hart)?;
        fdt.property_string("compatible", "riscv")?;
        fdt.property_string("mmu-type", cpus.mmu.name())?;
        // Kernels before 6.8 know the string only.
        fdt.property_string("riscv,isa", &cpus.isa.string())?;
        fdt.property_string("riscv,isa-base", "rv64i")?;
        let names = cpus.isa.names().iter().map(|name| (*name).to_owned()).collect();
        fdt.property_string_list("riscv,isa-extensions", names)?;
        for (name, size) in [("riscv,cbom-block-size", cpus.cbom), ("riscv,cboz-block-size", cpus.cboz)] {
            if let Some(size) = size {
                fdt.property_u32(name, size)?;
            }
        }
        let controller = fdt.begin_node("interrupt-controller")?;
        fdt.property_string("compatible", "riscv,cpu-intc")?;
        fdt.property_u32("#interrupt-cells", 1)?;
        fdt.property_null("interrupt-controller")?;
        fdt.property_phandle(1 + hart)?;
        fdt.end_node(controller)?;
        fdt.end_node(cpu)?;
    }
    fdt.end_node(node)
}

/// For each vCPU its own interrupt controller and the supervisor external interrupt there.
fn to_each_cpu(count: u32) -> Vec<u32> {
    (0..count).flat_map(|hart| [1 + hart, EXTERNAL_INTERRUPT]).collect()
}

fn plic(fdt: &mut FdtWriter, cpus: u32) -> Result<(), vm_fdt::Error> {
    let node = fdt.begin_node(&format!("interrupt-controller@{PLIC_BASE:x}"))?;
    fdt.property_string_list("compatible", vec!["sifive,plic-1.0.0".into(), "riscv,plic0".into()])?;
    fdt.property_array_u64("reg", &[PLIC_BASE, PLIC_SIZE])?;
    fdt.property_u32("#interrupt-cells", 1)?;
    fdt.property_u32("#address-cells", 0)?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_array_u32("interrupts-extended", &to_each_cpu(cpus))?;
    fdt.property_u32("riscv,ndev", SOURCES)?;
    fdt.property_phandle(CONTROLLER)?;
    fdt.end_node(node)
}

fn aia(fdt: &mut FdtWriter, cpus: u32, identities: u32) -> Result<(), vm_fdt::Error> {
    let imsics = fdt.begin_node(&format!("imsics@{IMSIC_BASE:x}"))?;
    fdt.property_string("compatible", "riscv,imsics")?;
    fdt.property_array_u64("reg", &[IMSIC_BASE, u64::from(cpus) * IMSIC_SIZE])?;
    fdt.property_u32("#interrupt-cells", 0)?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_null("msi-controller")?;
    fdt.property_u32("#msi-cells", 0)?;
    fdt.property_array_u32("interrupts-extended", &to_each_cpu(cpus))?;
    fdt.property_u32("riscv,num-ids", identities)?;
    fdt.property_phandle(IMSICS)?;
    fdt.end_node(imsics)?;

    let aplic = fdt.begin_node(&format!("aplic@{APLIC_BASE:x}"))?;
    fdt.property_string("compatible", "riscv,aplic")?;
    fdt.property_array_u64("reg", &[APLIC_BASE, APLIC_SIZE])?;
    fdt.property_u32("#interrupt-cells", 2)?;
    fdt.property_u32("#address-cells", 0)?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_u32("msi-parent", IMSICS)?;
    fdt.property_u32("riscv,num-sources", SOURCES)?;
    fdt.property_phandle(CONTROLLER)?;
    fdt.end_node(aplic)
}

fn slot(fdt: &mut FdtWriter, n: u32, controller: Controller) -> Result<(), vm_fdt::Error> {
    let node = fdt.begin_node(&format!("virtio_mmio@{:x}", slot_base(n)))?;
    fdt.property_string("compatible", "virtio,mmio")?;
    fdt.property_array_u64("reg", &[slot_base(n), SLOT_SIZE])?;
    match controller {
        Controller::Plic => fdt.property_u32("interrupts", slot_source(n))?,
        Controller::Aia { .. } => fdt.property_array_u32("interrupts", &[slot_source(n), EDGE_RISING])?,
    }
    fdt.property_u32("interrupt-parent", CONTROLLER)?;
    fdt.property_null("dma-coherent")?;
    fdt.end_node(node)
}

#[cfg(test)]
mod reader;
#[cfg(test)]
mod tests;
