use super::reader::{Node, read};
use super::*;
use crate::arch::riscv64::isa::{Aia, EXTENSIONS};
use crate::arch::riscv64::layout::{MAX_COMMAND_LINE, MAX_SLOTS, MAX_VCPUS};

fn isa() -> Isa {
    Isa::new(0..15, Aia::Hidden)
}

fn tree(count: u32, controller: Controller) -> Node {
    let isa = isa();
    let platform = Platform {
        ram: 512 << 20,
        cpus: Cpus { count, isa: &isa, mmu: Mmu::Sv57, timebase: 10_000_000, cbom: Some(64), cboz: None },
        slots: 12,
        controller,
        initramfs: 0x9f00_0000..0x9f12_3456,
        command_line: "quiet rdinit=/init",
        seed: &[7; SEED],
    };
    read(&build(&platform).unwrap())
}

#[test]
fn the_kernel_finds_its_command_line_its_initramfs_and_its_memory() {
    let root = tree(1, Controller::Plic);
    let chosen = root.at("chosen");
    assert_eq!(chosen.strings("bootargs"), ["quiet rdinit=/init"]);
    assert_eq!(chosen.u64s("linux,initrd-start"), [0x9f00_0000]);
    assert_eq!(chosen.u64s("linux,initrd-end"), [0x9f12_3456]);
    assert_eq!(chosen.properties["rng-seed"], [7; 64]);
    assert_eq!(root.at("memory@80000000").u64s("reg"), [0x8000_0000, 512 << 20]);
    assert_eq!((root.cells("#address-cells"), root.cells("#size-cells")), (vec![2], vec![2]));
}

#[test]
fn each_vcpu_says_what_it_can_do() {
    let root = tree(3, Controller::Plic);
    assert_eq!(root.at("cpus").cells("timebase-frequency"), [10_000_000]);
    for hart in 0..3 {
        let cpu = root.at(&format!("cpus/cpu@{hart}"));
        assert_eq!(cpu.cells("reg"), [hart]);
        assert_eq!(cpu.strings("mmu-type"), ["riscv,sv57"]);
        assert_eq!(cpu.strings("riscv,isa")[0], isa().string());
        assert_eq!(cpu.strings("riscv,isa-base"), ["rv64i"]);
        assert_eq!(cpu.strings("riscv,isa-extensions"), isa().names());
        assert_eq!(cpu.cells("riscv,cbom-block-size"), [64]);
        assert!(!cpu.properties.contains_key("riscv,cboz-block-size"));
        assert_eq!(cpu.at("interrupt-controller").cells("phandle"), [1 + hart]);
    }
}

#[test]
fn a_plic_has_one_supervisor_context_per_vcpu_in_their_order() {
    let root = tree(2, Controller::Plic);
    let plic = root.at("interrupt-controller@c000000");
    assert_eq!(plic.cells("interrupts-extended"), [1, 9, 2, 9]);
    assert_eq!(plic.cells("riscv,ndev"), [63]);
    assert_eq!(plic.u64s("reg"), [PLIC_BASE, PLIC_SIZE]);
    assert!(!root.children.keys().any(|name| name.starts_with("aplic") || name.starts_with("imsics")));
    let slot = root.at("virtio_mmio@1000c000");
    assert_eq!(slot.cells("interrupts"), [19]);
    assert_eq!(slot.cells("interrupt-parent"), plic.cells("phandle"));
}

#[test]
fn an_aia_has_the_identities_that_kvm_gave_and_edge_interrupts() {
    let root = tree(4, Controller::Aia { identities: 255 });
    let imsics = root.at("imsics@28000000");
    assert_eq!(imsics.cells("riscv,num-ids"), [255]);
    assert_eq!(imsics.u64s("reg"), [IMSIC_BASE, 0x4000]);
    assert_eq!(imsics.cells("interrupts-extended"), [1, 9, 2, 9, 3, 9, 4, 9]);
    let aplic = root.at("aplic@d000000");
    assert_eq!(aplic.cells("msi-parent"), imsics.cells("phandle"));
    assert_eq!(aplic.cells("riscv,num-sources"), [63]);
    let slot = root.at("virtio_mmio@10001000");
    assert_eq!(slot.cells("interrupts"), [8, 1]);
    assert_eq!(slot.cells("interrupt-parent"), aplic.cells("phandle"));
}

#[test]
fn all_slots_are_there_and_no_more() {
    let root = tree(1, Controller::Plic);
    let slots: Vec<_> = root.children.keys().filter(|name| name.starts_with("virtio_mmio@")).collect();
    assert_eq!(slots.len(), 12);
    assert_eq!(root.at("virtio_mmio@10002000").u64s("reg"), [0x1000_2000, 0x1000]);
}

#[test]
fn the_largest_guest_fits() {
    let isa = Isa::new(0..EXTENSIONS.len() as u64, Aia::Shown);
    let platform = Platform {
        ram: 1 << 40,
        cpus: Cpus {
            count: MAX_VCPUS,
            isa: &isa,
            mmu: Mmu::Sv57,
            timebase: 1,
            cbom: Some(64),
            cboz: Some(64),
        },
        slots: MAX_SLOTS,
        controller: Controller::Aia { identities: 2047 },
        initramfs: 0..0,
        command_line: &"x".repeat(MAX_COMMAND_LINE),
        seed: &[0; SEED],
    };
    let blob = build(&platform).unwrap();
    assert!(blob.len() as u64 <= FDT_MAX, "{}", blob.len());
    read(&blob);
}

#[test]
fn a_zero_byte_in_the_command_line_is_an_error() {
    let isa = isa();
    let platform = Platform {
        ram: 1 << 30,
        cpus: Cpus { count: 1, isa: &isa, mmu: Mmu::Sv39, timebase: 1, cbom: None, cboz: None },
        slots: 0,
        controller: Controller::Plic,
        initramfs: 0..0,
        command_line: "a\0b",
        seed: &[0; SEED],
    };
    assert!(matches!(build(&platform), Err(FdtError::Write(_))));
}
