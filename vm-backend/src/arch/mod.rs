//! What depends on the processor's architecture. Another architecture is another module beside `riscv64` with the same names.

pub mod riscv64;
