//! What one might try. Each is one forbidden thing, with all that must come before it.
// The C library's constants have whatever type they have; here they become arguments of system calls.
#![allow(clippy::cast_possible_truncation)]

use nix::errno::Errno;
use nix::libc;

use super::sys::{call, fork};
use super::{NOTHING, PANIC};

/// What an attacker knows and holds; descriptor 0 is a regular file besides.
#[derive(Debug)]
pub(crate) struct Held {
    pub(super) victim: usize,
    pub(super) tcp_port: u16,
    pub(super) abstract_name: String,
}

pub(crate) type Attack = fn(&Held) -> Result<i64, Errno>;

/// What holds without seccomp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Else {
    /// The call fails with one of these.
    Fails(&'static [Errno]),
    /// As `Fails`, by the user's limit: root has none.
    FailsForUser(&'static [Errno]),
    /// Nothing of ours; the machine's own settings, perhaps.
    Nothing,
}

use Else::{Fails, FailsForUser, Nothing};
use Errno::{
    EACCES, EAGAIN, ECONNREFUSED, ENETUNREACH, ENOENT, ENOKEY, ENOSYS, ENOTDIR, EPERM, EROFS, ESRCH, EXDEV,
};

const HERE: usize = libc::AT_FDCWD as usize;

#[rustfmt::skip]
pub(crate) const ATTACKS: &[(&str, Attack, Else)] = &[
    // Files: there are none, whichever way one goes.
    ("open an absolute path", |_| open(HERE, c"/etc/passwd", libc::O_RDONLY), Fails(&[ENOENT])),
    ("open a relative path", |_| open(HERE, c"../../../../../../etc/passwd", libc::O_RDONLY), Fails(&[ENOENT])),
    ("open a device", |_| open(HERE, c"/dev/kvm", libc::O_RDWR), Fails(&[ENOENT])),
    ("open from a descriptor", |_| open(0, c"../etc/passwd", libc::O_RDONLY), Fails(&[ENOTDIR])),
    ("open a descriptor in /proc", |_| open(HERE, c"/proc/self/fd/0", libc::O_RDWR), Fails(&[ENOENT])),
    ("open another's root", |_| open(HERE, c"/proc/1/root/etc/passwd", libc::O_RDONLY), Fails(&[ENOENT])),
    ("open by openat2", open_by_openat2, Fails(&[ENOENT])),
    ("open by handle", open_by_handle, Fails(&[EPERM])),
    ("look at a file", |_| call(libc::SYS_faccessat, &[HERE, c"/etc".as_ptr() as usize, 0]), Fails(&[ENOENT])),
    ("create a file", |_| open(HERE, c"/new", libc::O_WRONLY | libc::O_CREAT), Fails(&[EROFS, EACCES])),
    ("create a file without a name", |_| open(HERE, c"/", libc::O_RDWR | libc::O_TMPFILE), Fails(&[EROFS, EACCES])),
    ("create a folder", |_| call(libc::SYS_mkdirat, &[HERE, c"/new".as_ptr() as usize, 0o755]), Fails(&[EROFS, EACCES])),
    ("create a device", |_| call(libc::SYS_mknodat, &[HERE, c"/new".as_ptr() as usize, libc::S_IFCHR as usize | 0o666, 0x0103]), Fails(&[EROFS, EACCES, EPERM])),
    ("give a descriptor a name", |_| call(libc::SYS_linkat, &[0, c"".as_ptr() as usize, HERE, c"/new".as_ptr() as usize, libc::AT_EMPTY_PATH as usize]), Fails(&[EROFS, EACCES, ENOENT, EXDEV])),
    ("run a program", |_| call(libc::SYS_execve, &[c"/bin/sh".as_ptr() as usize, 0, 0]), Fails(&[ENOENT])),
    ("run a descriptor", |_| call(libc::SYS_execveat, &[0, c"".as_ptr() as usize, 0, 0, libc::AT_EMPTY_PATH as usize]), Fails(&[EACCES])),

    // Mounts and namespaces: no capabilities, and no user namespace to get some in.
    ("mount", |_| call(libc::SYS_mount, &[c"none".as_ptr() as usize, c"/".as_ptr() as usize, c"tmpfs".as_ptr() as usize, 0, 0]), Fails(&[EPERM])),
    ("open a file system", |_| call(libc::SYS_fsopen, &[c"proc".as_ptr() as usize, 0]), Fails(&[EPERM])),
    ("unmount", |_| call(libc::SYS_umount2, &[c"/".as_ptr() as usize, libc::MNT_DETACH as usize]), Fails(&[EPERM])),
    ("make the root writable", |_| call(libc::SYS_mount, &[0, c"/".as_ptr() as usize, 0, (libc::MS_REMOUNT | libc::MS_BIND) as usize, 0]), Fails(&[EPERM])),
    ("change the root", |_| call(libc::SYS_chroot, &[c"/".as_ptr() as usize]), Fails(&[EPERM])),
    ("make a user namespace", |_| call(libc::SYS_unshare, &[libc::CLONE_NEWUSER as usize]), Fails(&[EPERM])),
    ("make a mount namespace", |_| call(libc::SYS_unshare, &[libc::CLONE_NEWNS as usize]), Fails(&[EPERM])),
    ("become root", |_| call(libc::SYS_setresuid, &[0, 0, 0]), FailsForUser(&[EPERM])),
    ("become another user", |_| call(libc::SYS_setresuid, &[1000, 1000, 1000]), Fails(&[EPERM])),
    ("take a capability", take_capabilities, Fails(&[EPERM])),
    ("load a module", |_| call(libc::SYS_init_module, &[0, 0, 0]), Fails(&[EPERM, ENOSYS])),
    ("name the machine", |_| call(libc::SYS_sethostname, &[c"x".as_ptr() as usize, 1]), Fails(&[EPERM])),

    // Processes: their numbers are of another namespace.
    ("kill a process", |held| call(libc::SYS_kill, &[held.victim, libc::SIGKILL as usize]), Fails(&[ESRCH])),
    ("kill a thread", |held| call(libc::SYS_tgkill, &[held.victim, held.victim, libc::SIGKILL as usize]), Fails(&[ESRCH])),
    ("kill everybody", |_| call(libc::SYS_kill, &[usize::MAX, libc::SIGKILL as usize]), Fails(&[ESRCH])),
    ("open a process", |held| call(libc::SYS_pidfd_open, &[held.victim, 0]), Fails(&[ESRCH])),
    ("trace a process", |held| call(libc::SYS_ptrace, &[libc::PTRACE_SEIZE as usize, held.victim, 0, 0]), Fails(&[ESRCH])),
    ("read a process", read_process, Fails(&[ESRCH])),
    ("slow a process down", |held| call(libc::SYS_setpriority, &[libc::PRIO_PROCESS as usize, held.victim, 19]), Fails(&[ESRCH])),
    ("start a process", |_| fork(), FailsForUser(&[EAGAIN])),

    // The network: a namespace with nothing in it but a loopback interface that is down.
    ("connect to this machine", connect_tcp, Fails(&[ENETUNREACH, EACCES])),
    ("send a datagram", send_udp, Fails(&[ENETUNREACH])),
    ("connect to a socket's path", |_| connect_unix(b"/run/dbus/system_bus_socket"), Fails(&[ENOENT])),
    ("connect to an abstract socket", |held| connect_unix(&[b"\0", held.abstract_name.as_bytes()].concat()), Fails(&[ECONNREFUSED, EPERM])),
    ("make a raw socket", |_| call(libc::SYS_socket, &[libc::AF_PACKET as usize, libc::SOCK_RAW as usize, 0x0300]), Fails(&[EPERM])),
    ("bring an interface up", bring_up_loopback, Fails(&[EPERM])),
    ("make a netlink socket", |_| socket(libc::AF_NETLINK, libc::SOCK_RAW), Nothing),
    ("make a vsock socket", |_| socket(libc::AF_VSOCK, libc::SOCK_STREAM), Nothing),

    // The kernel.
    ("find a key", |_| call(libc::SYS_keyctl, &[libc::KEYCTL_SEARCH as usize, libc::KEY_SPEC_SESSION_KEYRING as usize, c"user".as_ptr() as usize, KEY.as_ptr() as usize, 0]), Fails(&[ENOKEY])),
    ("load a program into the kernel", |_| call(libc::SYS_bpf, &[BPF_PROG_LOAD, 0, 0]), Nothing),
    ("handle page faults", |_| call(libc::SYS_userfaultfd, &[1]), Nothing),
    ("make an io_uring", |_| call(libc::SYS_io_uring_setup, &[1, [0_u64; 15].as_mut_ptr() as usize]), Nothing),
    ("count events", |_| call(libc::SYS_perf_event_open, &[[0_u64; 16].as_ptr() as usize, 0, usize::MAX, usize::MAX, 0]), Nothing),
    ("map memory to execute", |_| call(libc::SYS_mmap, &[0, 4096, (libc::PROT_READ | libc::PROT_EXEC) as usize, ANONYMOUS, usize::MAX, 0]), Nothing),
    ("make memory executable", make_executable, Nothing),
    ("a request to a device", |_| call(libc::SYS_ioctl, &[0, KVM_SET_GSI_ROUTING, 0]), Nothing),
    ("simulate typing", |_| call(libc::SYS_ioctl, &[0, libc::TIOCSTI as usize, c"x".as_ptr() as usize]), Nothing),
    ("be told of others' file accesses", |_| call(libc::SYS_inotify_init1, &[0]), Nothing),
    ("share memory", |_| call(libc::SYS_shmget, &[0, 4096, 0o1600]), Nothing),
];

pub(super) fn find(name: &str) -> Option<Attack> {
    match name {
        NOTHING => Some(|_| Ok(0)),
        PANIC => Some(|_| panic!("on purpose")),
        name => ATTACKS.iter().find(|(attack, _, _)| *attack == name).map(|(_, attack, _)| *attack),
    }
}

const ANONYMOUS: usize = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as usize;
const KVM_SET_GSI_ROUTING: usize = 0x4008_ae6a;
const BPF_PROG_LOAD: usize = 5;
const KEY: &std::ffi::CStr = c"hartpod jailbreak";

/// Puts a key into the session keyring that whoever starts a VMM might have.
pub(super) fn hide_a_key() -> Result<(), Errno> {
    let session = libc::KEY_SPEC_SESSION_KEYRING as usize;
    call(libc::SYS_keyctl, &[libc::KEYCTL_JOIN_SESSION_KEYRING as usize, 0])?;
    call(
        libc::SYS_add_key,
        &[c"user".as_ptr() as usize, KEY.as_ptr() as usize, c"x".as_ptr() as usize, 1, session],
    )?;
    Ok(())
}

fn open(folder: usize, path: &std::ffi::CStr, flags: i32) -> Result<i64, Errno> {
    call(libc::SYS_openat, &[folder, path.as_ptr() as usize, flags as usize, 0o600])
}

fn open_by_openat2(_: &Held) -> Result<i64, Errno> {
    let how = [libc::O_RDONLY as u64, 0, 0];
    call(
        libc::SYS_openat2,
        &[HERE, c"/etc/passwd".as_ptr() as usize, how.as_ptr() as usize, size_of_val(&how)],
    )
}

/// The root of a file system often has the inode 2.
fn open_by_handle(_: &Held) -> Result<i64, Errno> {
    // struct file_handle: 8 bytes of FILEID_INO32_GEN.
    let handle = [8_u32, 1, 2, 0];
    call(libc::SYS_open_by_handle_at, &[0, handle.as_ptr() as usize, libc::O_RDONLY as usize])
}

fn take_capabilities(_: &Held) -> Result<i64, Errno> {
    const VERSION_3: u32 = 0x2008_0522;
    let header = [VERSION_3, 0];
    let all = [u32::MAX; 6];
    call(libc::SYS_capset, &[header.as_ptr() as usize, all.as_ptr() as usize])
}

fn read_process(held: &Held) -> Result<i64, Errno> {
    let mut buffer = [0_u8; 8];
    let local = [buffer.as_mut_ptr() as usize, buffer.len()];
    let remote = [held as *const Held as usize, 8];
    call(
        libc::SYS_process_vm_readv,
        &[held.victim, local.as_ptr() as usize, 1, remote.as_ptr() as usize, 1, 0],
    )
}

fn socket(family: i32, kind: i32) -> Result<i64, Errno> {
    call(libc::SYS_socket, &[family as usize, kind as usize, 0])
}

fn descriptor(fd: i64) -> usize {
    usize::try_from(fd).unwrap_or(usize::MAX)
}

/// struct sockaddr_in of 127.0.0.1.
fn loopback(port: u16) -> [u8; 16] {
    let mut address = [0; 16];
    address[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
    address[2..4].copy_from_slice(&port.to_be_bytes());
    address[4..8].copy_from_slice(&[127, 0, 0, 1]);
    address
}

fn connect_tcp(held: &Held) -> Result<i64, Errno> {
    let address = loopback(held.tcp_port);
    let socket = socket(libc::AF_INET, libc::SOCK_STREAM)?;
    call(libc::SYS_connect, &[descriptor(socket), address.as_ptr() as usize, address.len()])
}

fn send_udp(held: &Held) -> Result<i64, Errno> {
    let address = loopback(held.tcp_port);
    let socket = socket(libc::AF_INET, libc::SOCK_DGRAM)?;
    call(
        libc::SYS_sendto,
        &[descriptor(socket), c"x".as_ptr() as usize, 1, 0, address.as_ptr() as usize, address.len()],
    )
}

fn connect_unix(name: &[u8]) -> Result<i64, Errno> {
    let address = [&(libc::AF_UNIX as u16).to_ne_bytes(), name].concat();
    let socket = socket(libc::AF_UNIX, libc::SOCK_STREAM)?;
    call(libc::SYS_connect, &[descriptor(socket), address.as_ptr() as usize, address.len()])
}

fn bring_up_loopback(_: &Held) -> Result<i64, Errno> {
    // struct ifreq: a name and flags.
    let mut request = [0_u8; 40];
    request[..2].copy_from_slice(b"lo");
    request[16..18].copy_from_slice(&(libc::IFF_UP as u16).to_ne_bytes());
    let socket = socket(libc::AF_INET, libc::SOCK_DGRAM)?;
    call(libc::SYS_ioctl, &[descriptor(socket), libc::SIOCSIFFLAGS as usize, request.as_ptr() as usize])
}

fn make_executable(_: &Held) -> Result<i64, Errno> {
    let writable = (libc::PROT_READ | libc::PROT_WRITE) as usize;
    let page = call(libc::SYS_mmap, &[0, 4096, writable, ANONYMOUS, usize::MAX, 0])?;
    call(libc::SYS_mprotect, &[descriptor(page), 4096, writable | libc::PROT_EXEC as usize])
}
