//! System calls without libc: no errno, hence no thread-local storage, which a scrubbed process no longer has.
#![allow(unsafe_code)]

use core::arch::asm;

use super::clone::CloneArgs;

/// Calls the kernel; a result in `-4095..0` is a negated errno.
///
/// # Safety
/// Whatever the call does with its arguments must be sound; memory that it writes must be the caller's to change.
#[inline(always)]
pub(crate) unsafe fn syscall(number: libc::c_long, args: [usize; 6]) -> isize {
    let result: isize;
    #[allow(clippy::cast_possible_truncation)] // only 64-bit machines get here
    let number = number as isize;
    let [a, b, c, d, e, f] = args;
    // SAFETY: this is the kernel's calling convention of the architecture; the caller vouches for the rest.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c,
            in("r10") d, in("r8") e, in("r9") f, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    // SAFETY: as above.
    #[cfg(target_arch = "riscv64")]
    unsafe {
        asm!("ecall", in("a7") number, inlateout("a0") a as isize => result, in("a1") b, in("a2") c,
            in("a3") d, in("a4") e, in("a5") f, options(nostack));
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") a as isize => result, in("x1") b, in("x2") c,
            in("x3") d, in("x4") e, in("x5") f, options(nostack));
    }
    result
}

/// Leaves the current stack for good: calls `enter(argument)` on one that ends below `top`.
///
/// # Safety
/// `top` is the 16-byte aligned upper end of writable memory that nothing else uses, and `argument` is what `enter` wants.
pub(crate) unsafe fn switch_stack(top: usize, enter: unsafe extern "C" fn(usize) -> !, argument: usize) -> ! {
    // SAFETY: the new stack is the caller's promise; enter does not return, so nothing of the old frame is needed again.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!("mov rsp, {top}", "xor ebp, ebp", "call {enter}", "ud2", top = in(reg) top, enter = in(reg) enter,
            in("rdi") argument, options(noreturn));
    }
    // SAFETY: as above.
    #[cfg(target_arch = "riscv64")]
    unsafe {
        asm!("mv sp, {top}", "mv fp, zero", "jalr {enter}", "unimp", top = in(reg) top, enter = in(reg) enter,
            in("a0") argument, options(noreturn));
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        asm!("mov sp, {top}", "mov x29, xzr", "blr {enter}", "brk 1", top = in(reg) top, enter = in(reg) enter,
            in("x0") argument, options(noreturn));
    }
}

/// `clone3(2)` for a child that shares our memory and has a stack of its own, on which it calls `enter(argument)`. The result
/// is as for [`syscall`], in the caller only.
///
/// # Safety
/// `args` names a stack that nothing else uses for as long as the child runs on it, 16-byte aligned at both ends, and
/// `argument` is what `enter` wants.
pub(super) unsafe fn clone_onto_stack(
    args: &mut CloneArgs,
    enter: unsafe extern "C" fn(usize) -> !,
    argument: usize,
) -> isize {
    let result: isize;
    let (args, size) = (&raw mut *args, size_of::<CloneArgs>());
    // SAFETY: the kernel gives the child the caller's registers and the new stack; enter does not return, so the child never
    // reaches what follows this block.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!("syscall", "test rax, rax", "jnz 2f", "xor ebp, ebp", "mov rdi, r12", "call r13", "ud2", "2:",
            inout("rax") libc::SYS_clone3 => result, in("rdi") args, in("rsi") size, in("r12") argument, in("r13") enter,
            out("rcx") _, out("r11") _);
    }
    // SAFETY: as above.
    #[cfg(target_arch = "riscv64")]
    unsafe {
        asm!("ecall", "bnez a0, 2f", "mv fp, zero", "mv a0, {argument}", "jalr {enter}", "unimp", "2:",
            in("a7") libc::SYS_clone3, inout("a0") args => result, in("a1") size, argument = in(reg) argument,
            enter = in(reg) enter);
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        asm!("svc 0", "cbnz x0, 2f", "mov x29, xzr", "mov x0, {argument}", "blr {enter}", "brk 1", "2:",
            in("x8") libc::SYS_clone3, inout("x0") args => result, in("x1") size, argument = in(reg) argument,
            enter = in(reg) enter);
    }
    result
}
