//! From a child of the agent to a process that may be seen by a hostile container.
//!
//! Primer. A process that shares a pid namespace with a container that has CAP_SYS_PTRACE can be attached to at its first
//! instruction: its memory is read, its registers are set, it calls what its tracer wants with what it holds. A fork of the
//! agent holds the agent's heap. So before such a process exists, its parent P1 (which lives in the agent's pid namespace
//! and is seen by nobody) gets rid of everything:
//!
//! 1. P1 copies what execve needs into an [`Arena`], and moves its stack there ([`raw::switch_stack`]).
//! 2. It reads `/proc/self/maps` through a descriptor that it opened before it lost the agent's /proc, and maps zeroes over
//!    everything writable or anonymous but the arena: heap, old stack, thread-local storage, .data and .bss. What is left is
//!    the program's text and constants, which are no secret. Mapping over rather than unmapping keeps thread-local storage
//!    addressable: the kernel still writes the cpu number into glibc's rseq area there and would kill us if it could not.
//! 3. It closes all descriptors but the standard streams and the report pipe (as number 3).
//! 4. It clones P2 with CLONE_PARENT, so that P2 is the agent's child, puts P2's number into the [`Mailbox`], whose page P2
//!    does not get, and exits. P2 makes its session, loads seccomp and calls execve.
//!
//! From step 2 on there is no libc (errno is thread-local), no allocation and no panic: only [`raw`] calls, in this file. The
//! holder of a pod's pid namespace takes steps 1 to 3 as well and then waits for ever.
//!
//! [`Mailbox`]: super::mailbox::Mailbox
#![allow(unsafe_code)]

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::sock_filter as Instruction;

use super::arena::Arena;
use super::raw::{self, syscall};
use crate::report::RawFrame;

/// Enough for some 600 mappings; an agent has 25.
const MAPS_ROOM: usize = 64 * 1024;
/// Descriptor of the report pipe from step 3 on.
const REPORT: usize = 3;
/// Exit code of a P2 whose execve failed; the agent never shows it.
const EXEC_FAILED: usize = 127;
/// linux/seccomp.h
const SET_MODE_FILTER: usize = 1;
/// asm-generic/ioctls.h
const TIOCSCTTY: usize = 0x540e;

/// What P2 executes.
pub(crate) struct LastProgram<'a> {
    pub(crate) path: &'a CStr,
    pub(crate) argv: &'a [CString],
    pub(crate) envp: &'a [CString],
    /// Loaded by P2, with these flags; `None` if there is none, or P1 has loaded it.
    pub(crate) seccomp: Option<(&'a [Instruction], u32)>,
    /// Descriptor 0 becomes the controlling terminal.
    pub(crate) terminal: bool,
    /// [`super::mailbox::Mailbox::address`].
    pub(crate) mailbox: usize,
}

/// Descriptors that the scrub works with.
#[derive(Clone, Copy)]
pub(crate) struct Pipes<'a> {
    /// /proc/self/maps, opened by this very process.
    pub(crate) maps: BorrowedFd<'a>,
    /// Writing end of the report pipe.
    pub(crate) report: BorrowedFd<'a>,
}

/// What the code after the scrub works from; lives in the arena. Addresses are numbers: nothing here is ever dropped.
#[repr(C)]
#[derive(Clone, Copy)]
struct Task {
    arena: (usize, usize),
    maps_fd: usize,
    maps_room: usize,
    report: usize,
    filter: Filter,
    filter_flags: usize,
    /// All zero for the holder.
    exec: Exec,
}

/// `struct sock_fprog`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Filter {
    len: u16,
    instructions: usize,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Exec {
    path: usize,
    argv: usize,
    envp: usize,
    mailbox: usize,
    terminal: bool,
}

/// Steps 1 to 4 for P1, whose descriptors 0, 1 and 2 are the program's already. Returns only if there is no memory for the
/// arena; later failures go into the report.
pub(crate) fn exec_in_p2(program: &LastProgram<'_>, pipes: Pipes<'_>) -> io::Result<Infallible> {
    let (code, flags) = program.seccomp.unwrap_or((&[], 0));
    let strings = program.argv.iter().chain(program.envp).map(CString::as_c_str).chain([program.path]);
    let tables = Arena::table_cost::<usize>(program.argv.len() + program.envp.len() + 2);
    let mut arena = new_arena(code, strings.map(Arena::cost).sum::<usize>() + tables)?;
    let exec = Exec {
        path: arena.text(program.path)?,
        argv: pointer_table(&mut arena, program.argv)?,
        envp: pointer_table(&mut arena, program.envp)?,
        mailbox: program.mailbox,
        terminal: program.terminal,
    };
    leave(arena, code, flags, exec, pipes)
}

/// Steps 1 to 3 for the holder, which then says so, closes the report pipe too, and waits for ever.
/// Returns as [`exec_in_p2`] does.
pub(crate) fn hold(seccomp: &[Instruction], pipes: Pipes<'_>) -> io::Result<Infallible> {
    leave(new_arena(seccomp, 0)?, seccomp, 0, Exec::default(), pipes)
}

fn new_arena(code: &[Instruction], data: usize) -> io::Result<Arena> {
    let fixed = MAPS_ROOM + Arena::table_cost::<Task>(1) + Arena::table_cost::<Instruction>(code.len());
    Arena::new(fixed + data + 2 * align_of::<usize>())
}

fn pointer_table(arena: &mut Arena, strings: &[CString]) -> io::Result<usize> {
    let mut addresses = strings.iter().map(|s| arena.text(s)).collect::<io::Result<Vec<usize>>>()?;
    addresses.push(0);
    arena.table(&addresses)
}

fn leave(
    mut arena: Arena,
    code: &[Instruction],
    flags: u32,
    exec: Exec,
    pipes: Pipes<'_>,
) -> io::Result<Infallible> {
    let len = u16::try_from(code.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let task = Task {
        arena: arena.range(),
        maps_fd: pipes.maps.as_raw_fd() as usize,
        maps_room: arena.reserve::<u8>(MAPS_ROOM)?,
        report: pipes.report.as_raw_fd() as usize,
        filter: Filter { len, instructions: arena.table(code)? },
        filter_flags: flags as usize,
        exec,
    };
    let task = arena.table(&[task])?;
    // SAFETY: the stack is the arena's own part for it, and task is the address of a Task in the arena.
    unsafe { raw::switch_stack(arena.stack_top(), scrubbed, task) }
}

/// Everything after the change of stacks.
///
/// # Safety
/// `task` is the address of a [`Task`] in the arena that the current stack is in.
unsafe extern "C" fn scrubbed(task: usize) -> ! {
    // SAFETY: the caller's promise; nothing writes to the task.
    let task = unsafe { &*(task as *const Task) };
    let read = read_maps(task);
    if read < 0 {
        fail(task.report, RawFrame::SCRUB_FAILED, read);
    }
    // SAFETY: read_maps filled this many bytes of the buffer, which lies in the arena and is written to no more.
    let maps = unsafe { core::slice::from_raw_parts(task.maps_room as *const u8, read.unsigned_abs()) };
    let failed = map_zeroes_over(task, maps);
    if failed < 0 {
        fail(task.report, RawFrame::SCRUB_FAILED, failed);
    }
    if task.exec.path == 0 { hold_for_ever(task) } else { clone_and_exec(task) }
}

/// Number of bytes read, or a negated errno; a table that does not fit is E2BIG.
fn read_maps(task: &Task) -> isize {
    let mut len = 0;
    loop {
        let free = MAPS_ROOM - len;
        if free == 0 {
            return -(libc::E2BIG as isize);
        }
        // SAFETY: reads into the free rest of the buffer.
        match unsafe { syscall(libc::SYS_read, [task.maps_fd, task.maps_room + len, free, 0, 0, 0]) } {
            0 => return len as isize,
            e if e < 0 => return e,
            n => len += n.unsigned_abs(),
        }
    }
}

/// Step 2. Lines are `start-end perms offset dev inode name`.
fn map_zeroes_over(task: &Task, maps: &[u8]) -> isize {
    let mut at = 0;
    while at < maps.len() {
        let start = hexadecimal(maps, &mut at);
        at += 1;
        let end = hexadecimal(maps, &mut at);
        let writable = maps.get(at + 2) == Some(&b'w');
        // perms, offset, dev, then inode: 0 for anonymous memory and for what the kernel maps itself.
        skip_fields(maps, &mut at, 3);
        let anonymous = maps.get(at) == Some(&b'0');
        skip_fields(maps, &mut at, 1);
        // [vdso], [vvar], [vsyscall], [uprobes]
        let kernel = maps.get(at) == Some(&b'[') && matches!(maps.get(at + 1), Some(b'v' | b'u'));
        while at < maps.len() && maps[at] != b'\n' {
            at += 1;
        }
        at += 1;
        if kernel || !(writable || anonymous) {
            continue;
        }
        let failed = zero_outside(task, start, end);
        if failed < 0 {
            return failed;
        }
    }
    0
}

/// Zeroes over `start..end` less the arena and the mailbox; the kernel may have merged the arena with a neighbour.
fn zero_outside(task: &Task, start: usize, end: usize) -> isize {
    let (arena_start, arena_end) = task.arena;
    if task.exec.mailbox != 0 && (start..end).contains(&task.exec.mailbox) {
        return 0;
    }
    let before = zero(start, end.min(arena_start));
    if before < 0 { before } else { zero(start.max(arena_end), end) }
}

fn zero(start: usize, end: usize) -> isize {
    if start >= end {
        return 0;
    }
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
    // SAFETY: from here on nobody reads what was in this range: the stack, the task and all it points to are in the arena.
    let result = unsafe {
        syscall(libc::SYS_mmap, [start, end - start, protection as usize, flags as usize, usize::MAX, 0])
    };
    if (-4095..0).contains(&result) { result } else { 0 }
}

fn hexadecimal(text: &[u8], at: &mut usize) -> usize {
    let mut value = 0;
    while let Some(&byte) = text.get(*at) {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => break,
        };
        value = value << 4 | digit as usize;
        *at += 1;
    }
    value
}

/// Moves past `count` fields and the blanks after each.
fn skip_fields(text: &[u8], at: &mut usize, count: usize) {
    let mut left = count;
    while *at < text.len() && text[*at] == b' ' {
        *at += 1;
    }
    while left > 0 {
        while *at < text.len() && text[*at] != b' ' && text[*at] != b'\n' {
            *at += 1;
        }
        while *at < text.len() && text[*at] == b' ' {
            *at += 1;
        }
        left -= 1;
    }
}

/// Steps 3 and 4.
fn clone_and_exec(task: &Task) -> ! {
    if task.report != REPORT {
        // SAFETY: descriptors only; the report pipe keeps its close-on-exec flag.
        let moved =
            unsafe { syscall(libc::SYS_dup3, [task.report, REPORT, libc::O_CLOEXEC as usize, 0, 0, 0]) };
        if moved < 0 {
            fail(task.report, RawFrame::SCRUB_FAILED, moved);
        }
    }
    // SAFETY: nothing uses any of these descriptors again.
    let closed = unsafe { syscall(libc::SYS_close_range, [REPORT + 1, u32::MAX as usize, 0, 0, 0, 0]) };
    // SAFETY: the mailbox is one page; this only says who inherits it.
    let kept =
        unsafe { syscall(libc::SYS_madvise, [task.exec.mailbox, 1, libc::MADV_DONTFORK as usize, 0, 0, 0]) };
    if closed < 0 || kept < 0 {
        fail(REPORT, RawFrame::SCRUB_FAILED, closed.min(kept));
    }
    send(REPORT, RawFrame::handed_over());
    // SAFETY: no shared memory and the same stack address: a fork. clone rather than clone3, which the usual seccomp profiles
    // refuse. With CLONE_PARENT the kernel takes the exit signal from P1's own birth.
    let child = unsafe { syscall(libc::SYS_clone, [libc::CLONE_PARENT as usize, 0, 0, 0, 0, 0]) };
    match child {
        0 => exec(task),
        e if e < 0 => fail(REPORT, RawFrame::CLONE_FAILED, e),
        pid => {
            // SAFETY: the mailbox is a mapped, aligned i32 that the agent only reads atomically.
            let number = unsafe { &*(task.exec.mailbox as *const core::sync::atomic::AtomicI32) };
            #[allow(clippy::cast_possible_truncation)] // a pid
            number.store(pid as i32, core::sync::atomic::Ordering::Release);
            exit(0)
        }
    }
}

/// P2.
fn exec(task: &Task) -> ! {
    let program = &task.exec;
    // SAFETY: no memory involved. P2 has just been forked, so it leads no process group and this cannot fail.
    unsafe { syscall(libc::SYS_setsid, [0, 0, 0, 0, 0, 0]) };
    if program.terminal {
        // SAFETY: no memory involved.
        let got = unsafe { syscall(libc::SYS_ioctl, [0, TIOCSCTTY, 0, 0, 0, 0]) };
        if got < 0 {
            fail(REPORT, RawFrame::TERMINAL_FAILED, got);
        }
    }
    load_filter(task, REPORT);
    // SAFETY: path, argv and envp are terminated tables in the arena.
    let failed = unsafe { syscall(libc::SYS_execve, [program.path, program.argv, program.envp, 0, 0, 0]) };
    fail(REPORT, RawFrame::EXEC_FAILED, failed)
}

fn hold_for_ever(task: &Task) -> ! {
    load_filter(task, task.report);
    send(task.report, RawFrame::handed_over());
    // SAFETY: nothing uses any descriptor again.
    unsafe { syscall(libc::SYS_close_range, [0, u32::MAX as usize, 0, 0, 0, 0]) };
    loop {
        // SAFETY: no descriptors, no time limit, no mask: waits for a signal, and all are blocked.
        unsafe { syscall(libc::SYS_ppoll, [0, 0, 0, 0, 0, 0]) };
    }
}

fn load_filter(task: &Task, report: usize) {
    if task.filter.len == 0 {
        return;
    }
    let program = &raw const task.filter as usize;
    // SAFETY: the program and its instructions are in the arena; the kernel copies and checks them.
    let loaded =
        unsafe { syscall(libc::SYS_seccomp, [SET_MODE_FILTER, task.filter_flags, program, 0, 0, 0]) };
    if loaded < 0 {
        fail(report, RawFrame::SECCOMP_FAILED, loaded);
    }
}

fn fail(report: usize, tag: u8, result: isize) -> ! {
    #[allow(clippy::cast_possible_truncation)] // a negated errno
    send(report, RawFrame::errno(tag, -result as i32));
    exit(EXEC_FAILED)
}

fn send(report: usize, frame: RawFrame) {
    // SAFETY: writes from the frame on this stack. An error means that the agent is gone, and then so is its need to know.
    unsafe { syscall(libc::SYS_write, [report, frame.bytes.as_ptr() as usize, frame.len, 0, 0, 0]) };
}

fn exit(code: usize) -> ! {
    loop {
        // SAFETY: does not return.
        unsafe { syscall(libc::SYS_exit_group, [code, 0, 0, 0, 0, 0]) };
    }
}
