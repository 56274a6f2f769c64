//! riscv64 with the H extension.
//!
//! [`layout`], [`image`], [`fdt`], [`isa`], [`plic`] and [`sbi`] are pure, so they are tested on any machine; what calls KVM is built on
//! riscv64 only.

pub mod fdt;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz_entry;
pub mod image;
pub mod isa;
pub mod layout;
pub mod plic;
pub mod sbi;

#[cfg(target_arch = "riscv64")]
pub mod aia;
#[cfg(target_arch = "riscv64")]
pub mod registers;
#[cfg(target_arch = "riscv64")]
mod sys;
#[cfg(target_arch = "riscv64")]
pub mod vcpu;
#[cfg(target_arch = "riscv64")]
pub mod vm;
