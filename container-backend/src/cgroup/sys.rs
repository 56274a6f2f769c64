//! bpf(2), which no crate of ours wraps.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::device_program::Insn;

// From linux/bpf.h: enum bpf_cmd, bpf_prog_type, bpf_attach_type and BPF_F_ALLOW_MULTI.
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// The verifier gives way to signals with EAGAIN.
const ATTEMPTS: usize = 30;

/// No GPL-only helper is called.
const LICENSE: &CStr = c"Apache-2.0";

/// The head of `union bpf_attr` as BPF_PROG_LOAD reads it; the kernel takes what is missing as zero.
#[repr(C)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
}

/// The head of `union bpf_attr` as BPF_PROG_ATTACH reads it.
#[repr(C)]
struct AttachAttr {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

/// Checks and loads a program of type CGROUP_DEVICE.
pub(super) fn load_device_program(program: &[Insn]) -> io::Result<OwnedFd> {
    let insn_cnt = u32::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
    let attr = LoadAttr {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt,
        insns: program.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
    };
    let mut tries = 0;
    loop {
        tries += 1;
        // SAFETY: `attr` is a prefix of union bpf_attr of the size passed; `insns` points to `insn_cnt` instructions and
        // `license` to a C string, both borrowed until after the call.
        let fd =
            unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attr, size_of::<LoadAttr>()) };
        match RawFd::try_from(fd) {
            // SAFETY: the kernel just returned this descriptor (close-on-exec) and nobody else knows it.
            Ok(fd) if fd >= 0 => return Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
            _ => {}
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EAGAIN) || tries == ATTEMPTS {
            return Err(error);
        }
    }
}

/// Attaches a device program to a v2 cgroup. The cgroup keeps it.
pub(super) fn attach_device_program(cgroup: &OwnedFd, program: &OwnedFd) -> io::Result<()> {
    let attr = AttachAttr {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_bpf_fd: program.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: `attr` is a prefix of union bpf_attr of the size passed and outlives the call; both descriptors are borrowed.
    let rc =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attr, size_of::<AttachAttr>()) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
