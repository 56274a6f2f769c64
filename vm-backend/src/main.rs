//! `hartpod-vmm`: one guest. It is started by the daemon with a socket as descriptor 3, see `hartpod_vm::boot`.

fn main() {}
