//! A boot message that was checked as a whole, with its descriptors in their places.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::FileType;
use rustix::net::SocketType;

use super::{BootMessage, ClaimError, Claims, Disk, Interrupts, Net};
use crate::arch::riscv64::layout::{MAX_COMMAND_LINE, MAX_MEMORY_MIB, MAX_SLOTS, MAX_VCPUS, MIN_MEMORY_MIB};
use crate::channel;
use crate::virtio::blk::{BlockExtent, gpt};
use crate::virtio::net::MIN_MTU;

/// Slots before the first disk's: vsock, net, balloon.
pub const FIXED_SLOTS: u32 = 3;

/// What a VMM is to run.
#[derive(Debug)]
pub struct Guest {
    /// The VMM's own user and group; root where there is none.
    pub user: Option<u32>,
    /// Bytes.
    pub memory: u64,
    pub vcpus: u32,
    pub interrupts: Interrupts,
    pub kvm: OwnedFd,
    pub boot: BootFiles,
    pub reports: Reports,
    /// A listening `SOCK_SEQPACKET` socket.
    pub control: OwnedFd,
    pub devices: DeviceFiles,
}

/// What the guest boots from.
#[derive(Debug)]
pub struct BootFiles {
    pub kernel: File,
    pub initramfs: File,
    pub command_line: String,
}

/// Where the VMM writes to.
#[derive(Debug)]
pub struct Reports {
    pub status: File,
    pub console: File,
    /// Bytes.
    pub console_limit: u64,
}

/// What devices work on.
#[derive(Debug)]
pub struct DeviceFiles {
    /// A listening stream socket.
    pub vsock: Option<OwnedFd>,
    pub net: Option<NetDevice>,
    pub balloon: bool,
    pub disks: Vec<Vec<BlockExtent>>,
    /// Of all kinds; from 3 to 32.
    pub slots: u32,
}

/// A network device.
#[derive(Debug)]
pub struct NetDevice {
    pub tap: OwnedFd,
    pub mac: [u8; 6],
    pub mtu: u16,
}

/// Why there is no guest.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    #[error("receive the boot message")]
    Receive {
        #[source]
        source: io::Error,
    },
    #[error("the parent closed the socket without a boot message")]
    Closed,
    #[error("read the boot message")]
    Parse {
        #[source]
        source: serde_json::Error,
    },
    #[error("the boot message's descriptors")]
    Claim(#[from] ClaimError),
    #[error("{what} is {value}, which is not from {least} to {most}")]
    Range { what: &'static str, value: u64, least: u64, most: u64 },
    #[error("the command line holds the byte {byte:#04x}, which is not printable")]
    CommandLine { byte: u8 },
    #[error("{mac:02x?} is no address of one network card")]
    Mac { mac: [u8; 6] },
    #[error("{what} is no {wanted}")]
    Kind { what: &'static str, wanted: &'static str },
    #[error("look at {what}")]
    Look {
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

/// A message that was refused.
#[derive(Debug)]
pub struct Refused {
    pub error: BootError,
    /// Where to say so, if the message got that far.
    pub status: Option<File>,
}

impl From<BootError> for Refused {
    fn from(error: BootError) -> Self {
        Self { error, status: None }
    }
}

impl Guest {
    /// Waits for the boot message on `socket` and checks it.
    ///
    /// # Errors
    /// See [`BootError`]; nothing but reading was done then, and all descriptors that came are closed.
    pub fn receive(socket: BorrowedFd<'_>) -> Result<Self, Refused> {
        let packet = channel::receive(socket).map_err(|source| BootError::Receive { source })?;
        let packet = packet.ok_or(BootError::Closed)?;
        Self::parse(&packet.bytes, packet.fds)
    }

    /// Checks a message.
    ///
    /// # Errors
    /// As [`Guest::receive`].
    pub fn parse(message: &[u8], fds: Vec<OwnedFd>) -> Result<Self, Refused> {
        let message: BootMessage =
            serde_json::from_slice(message).map_err(|source| BootError::Parse { source })?;
        let claims = Claims::new(fds);
        let status = claims.copy(message.status).map(File::from);
        Self::check(message, claims).map_err(|error| Refused { error, status })
    }

    fn check(message: BootMessage, mut claims: Claims) -> Result<Self, BootError> {
        check_numbers(&message)?;
        let slots =
            FIXED_SLOTS + u32::try_from(message.disks.len()).unwrap_or(u32::MAX) + message.spare_slots;
        let mut file = |fd, wanted, what| of_type(claims.take(fd, what)?, wanted, what);
        let kvm = file(message.kvm, FileType::CharacterDevice, "kvm")?;
        let boot = BootFiles {
            kernel: file(message.kernel, FileType::RegularFile, "kernel")?.into(),
            initramfs: file(message.initramfs, FileType::RegularFile, "initramfs")?.into(),
            command_line: message.command_line,
        };
        let reports = Reports {
            status: file(message.status, FileType::RegularFile, "status")?.into(),
            console: console(claims.take(message.console, "console")?)?.into(),
            console_limit: message.console_limit,
        };
        let control = claims.take(message.control, "control")?;
        let vsock = message.vsock.map(|fd| listening(claims.take(fd, "vsock")?, SocketType::STREAM, "vsock"));
        let net = message.net.map(|net| net_device(&net, &mut claims));
        let disks = message.disks.into_iter().map(|disk| disk_extents(disk, &mut claims));
        let guest = Self {
            user: message.user,
            memory: u64::from(message.memory_mib) << 20,
            vcpus: message.vcpus,
            interrupts: message.interrupts,
            kvm,
            boot,
            reports,
            control: listening(control, SocketType::SEQPACKET, "control")?,
            devices: DeviceFiles {
                vsock: vsock.transpose()?,
                net: net.transpose()?,
                balloon: message.balloon,
                disks: disks.collect::<Result<_, _>>()?,
                slots,
            },
        };
        claims.finish()?;
        Ok(guest)
    }
}

/// Claims the files of a disk; they must be regular files or block devices.
///
/// # Errors
/// See [`BootError`].
pub(crate) fn disk_extents(disk: Disk, claims: &mut Claims) -> Result<Vec<BlockExtent>, BootError> {
    in_range("the number of extents of a disk", disk.extents.len() as u64, 1, gpt::MAX_PARTITIONS as u64)?;
    let claim = |extent: super::Extent| {
        let file = claims.take(extent.file, "an extent")?;
        match file_type(file.as_fd(), "an extent")? {
            FileType::RegularFile | FileType::BlockDevice => {
                Ok(BlockExtent { file, read_only: extent.read_only })
            }
            _ => Err(BootError::Kind { what: "an extent", wanted: "regular file or block device" }),
        }
    };
    disk.extents.into_iter().map(claim).collect()
}

fn console(fd: OwnedFd) -> Result<OwnedFd, BootError> {
    match file_type(fd.as_fd(), "console")? {
        FileType::RegularFile | FileType::Fifo => Ok(fd),
        _ => Err(BootError::Kind { what: "console", wanted: "regular file or pipe" }),
    }
}

fn net_device(net: &Net, claims: &mut Claims) -> Result<NetDevice, BootError> {
    in_range("mtu", net.mtu.into(), MIN_MTU.into(), u16::MAX.into())?;
    // The lowest bit of the first byte marks a group (IEEE 802).
    if net.mac == [0; 6] || net.mac[0] & 1 != 0 {
        return Err(BootError::Mac { mac: net.mac });
    }
    let tap = of_type(claims.take(net.tap, "tap")?, FileType::CharacterDevice, "tap")?;
    Ok(NetDevice { tap, mac: net.mac, mtu: net.mtu })
}

fn check_numbers(message: &BootMessage) -> Result<(), BootError> {
    if let Some(user) = message.user {
        // 0 is root, and the last number is no user's: it means "leave it" to setresuid(2).
        in_range("user", user.into(), 1, u64::from(u32::MAX) - 1)?;
    }
    in_range("memory_mib", message.memory_mib.into(), MIN_MEMORY_MIB.into(), MAX_MEMORY_MIB.into())?;
    in_range("vcpus", message.vcpus.into(), 1, MAX_VCPUS.into())?;
    in_range(
        "the length of the command line",
        message.command_line.len() as u64,
        0,
        MAX_COMMAND_LINE as u64,
    )?;
    if let Some(byte) = message.command_line.bytes().find(|b| !(0x20..0x7f).contains(b)) {
        return Err(BootError::CommandLine { byte });
    }
    let slots = u64::from(FIXED_SLOTS) + message.disks.len() as u64 + u64::from(message.spare_slots);
    in_range("the number of slots", slots, 0, MAX_SLOTS.into())
}

fn in_range(what: &'static str, value: u64, least: u64, most: u64) -> Result<(), BootError> {
    match (least..=most).contains(&value) {
        true => Ok(()),
        false => Err(BootError::Range { what, value, least, most }),
    }
}

fn file_type(fd: BorrowedFd<'_>, what: &'static str) -> Result<FileType, BootError> {
    let stat = rustix::fs::fstat(fd).map_err(|e| BootError::Look { what, source: e.into() })?;
    Ok(FileType::from_raw_mode(stat.st_mode))
}

fn of_type(fd: OwnedFd, wanted: FileType, what: &'static str) -> Result<OwnedFd, BootError> {
    let name = match wanted {
        FileType::RegularFile => "regular file",
        _ => "character device",
    };
    match file_type(fd.as_fd(), what)? == wanted {
        true => Ok(fd),
        false => Err(BootError::Kind { what, wanted: name }),
    }
}

fn listening(fd: OwnedFd, kind: SocketType, what: &'static str) -> Result<OwnedFd, BootError> {
    use rustix::net::sockopt::{socket_acceptconn, socket_type};

    match socket_type(&fd).is_ok_and(|t| t == kind) && socket_acceptconn(&fd).unwrap_or(false) {
        true => Ok(fd),
        false => Err(BootError::Kind { what, wanted: "listening socket of its kind" }),
    }
}

#[cfg(test)]
mod tests;
