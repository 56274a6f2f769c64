//! What a guest boots from and what it can do without any device, played from a string of bytes: shared by the fuzz targets and the tests. An
//! entry function returns if all went well, and panics otherwise.
#![allow(clippy::expect_used)]

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::MemfdFlags;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use serde_json::{Value, json};

use super::fdt::{self, Controller, Cpus, Platform, SEED};
use super::image::{HEADER_SIZE, ImageHeader};
use super::isa::{Aia, Isa, Mmu};
use super::layout::{
    FDT_BASE, FDT_MAX, MAX_COMMAND_LINE, MAX_MEMORY_MIB, MAX_SLOTS, MAX_VCPUS, PLIC_BASE, PLIC_SIZE,
    RAM_BASE, place,
};
use super::plic::{Outputs, PlicDevice};
use super::sbi::{self, Call};
use crate::boot::Guest;
use crate::bus::Bus;
use crate::console::Console;
use crate::memory;
use crate::virtio::fuzz_entry::Input;

/// A boot message that may be anything, a kernel's header that may lie, a devicetree of any size.
pub fn boot(data: &[u8]) {
    assert!(Guest::parse(data, Vec::new()).is_err(), "a guest without descriptors");
    let mut input = Input::new(data);
    message(&mut input);
    let header = header(&mut input);
    let any = [input.number(), (input.number() & 0xfff_ffff) << 12, input.number()];
    let file = input.one_of(&[64, 4096, any[0]]);
    let ram = input.one_of(&[64 << 20, 128 << 20, any[1]]);
    let initramfs = input.one_of(&[0, 5_000_001, any[2]]);
    let Ok(header) = ImageHeader::parse(&header, file) else { return };
    let Ok(at) = place(ram, &header, initramfs) else { return };
    assert!(at.kernel.start >= FDT_BASE + FDT_MAX && at.kernel.end <= at.initramfs.start);
    assert!(at.kernel.end - at.kernel.start >= file, "the file is longer than its place");
    assert!(at.initramfs.end <= RAM_BASE + ram && at.initramfs.end - at.initramfs.start == initramfs);
    let isa = Isa::new((0..input.u8()).map(|_| u64::from(input.u8())).collect::<Vec<_>>(), Aia::Hidden);
    let command_line = input.bytes::<64>();
    let platform = Platform {
        ram,
        cpus: Cpus {
            count: u32::from(input.u8()),
            isa: &isa,
            mmu: Mmu::Sv48,
            timebase: 1,
            cbom: None,
            cboz: Some(64),
        },
        slots: u32::from(input.u8()),
        controller: input.one_of(&[Controller::Plic, Controller::Aia { identities: 255 }]),
        initramfs: at.initramfs,
        command_line: &String::from_utf8_lossy(&command_line),
        seed: &[0; SEED],
    };
    if let Ok(tree) = fdt::build(&platform) {
        assert!(u64::try_from(tree.len()).is_ok_and(|size| size <= FDT_MAX));
    }
}

/// A header that is nearly right.
fn header(input: &mut Input<'_>) -> [u8; HEADER_SIZE] {
    let mut header = input.bytes::<HEADER_SIZE>();
    if input.u8() != 0 {
        let size = input.number();
        let size = input.one_of(&[0x1e6_b000, 1 << 20, size]);
        let fields = [(8, input.one_of(&[0x20_0000, 0, 0x1000, 1 << 30, u64::MAX])), (16, size)];
        for (at, field) in fields {
            header[at..at + 8].copy_from_slice(&field.to_le_bytes());
        }
        header[24] &= !1;
        header[56..60].copy_from_slice(b"RSC\x05");
    }
    header
}

/// A message that is nearly right, with descriptors of all kinds.
fn message(input: &mut Input<'_>) {
    let mut message = json!({
        "memory_mib": 256, "vcpus": 2, "kvm": 0, "kernel": 1, "initramfs": 2, "command_line": "quiet",
        "status": 3, "console": 4, "console_limit": 65536, "control": 5, "vsock": 6,
        "net": {"tap": 7, "mac": [2, 0, 0, 0, 0, 1], "mtu": 1500}, "balloon": true, "spare_slots": 4,
        "disks": [{"extents": [{"file": 8, "read_only": true}, {"file": 9, "read_only": false}]}],
        "interrupts": "plic",
    });
    for _ in 0..input.u8() % 4 {
        let place = input.one_of(&[
            "/memory_mib",
            "/vcpus",
            "/kvm",
            "/kernel",
            "/command_line",
            "/status",
            "/console",
            "/console_limit",
            "/control",
            "/vsock",
            "/net",
            "/net/tap",
            "/net/mac/0",
            "/net/mtu",
            "/spare_slots",
            "/disks",
            "/disks/0/extents",
            "/disks/0/extents/0/file",
            "/interrupts",
        ]);
        let number = input.number();
        let value = match input.u8() % 8 {
            0..=3 => json!(number),
            4 => Value::Null,
            5 => json!([]),
            6 => json!("\u{1}".repeat(usize::from(input.u16()))),
            _ => json!([{"extents": [{"file": number, "read_only": false}]}]),
        };
        if let Some(old) = message.pointer_mut(place) {
            *old = value;
        }
    }
    let mut fds: Vec<OwnedFd> = (0..10).map(|index| descriptor(index, input.u8())).collect();
    fds.truncate(10 - usize::from(input.u8() == 1));
    let Ok(guest) = Guest::parse(message.to_string().as_bytes(), fds) else { return };
    assert!(guest.memory >> 20 <= MAX_MEMORY_MIB.into() && (1..=MAX_VCPUS).contains(&guest.vcpus));
    assert!(guest.boot.command_line.len() <= MAX_COMMAND_LINE && guest.devices.slots <= MAX_SLOTS);
}

/// One of the right kind for this place in the message, or for another.
fn descriptor(index: usize, luck: u8) -> OwnedFd {
    let file = || rustix::fs::memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("memfd");
    let socket = |kind| {
        let socket = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).expect("a socket");
        bind(&socket, &SocketAddrUnix::new_unnamed()).expect("a name");
        listen(&socket, 1).expect("a listener");
        socket
    };
    let kind = if luck >= 250 { usize::from(luck) } else { index };
    match kind {
        0 | 7 | 250 => File::open("/dev/null").expect("/dev/null").into(),
        5 | 251 => socket(SocketType::SEQPACKET),
        6 | 252 => socket(SocketType::STREAM),
        253 => File::open("/").expect("/").into(),
        _ => file(),
    }
}

impl Input<'_> {
    /// Small, large, or around a power of two.
    fn number(&mut self) -> u64 {
        let power = 1_u64 << (self.u8() % 64);
        match self.u8() % 4 {
            0 => self.u8().into(),
            1 => self.u64(),
            2 => power - 1,
            _ => power,
        }
    }
}

#[derive(Debug)]
struct Harts([bool; 3]);

impl Outputs for Harts {
    fn set(&mut self, context: usize, high: bool) {
        assert_ne!(self.0[context], high, "driven without a change");
        self.0[context] = high;
    }
}

/// Accesses to the address space of a guest with a PLIC, and calls to its firmware.
pub fn bus(data: &[u8]) {
    let mut input = Input::new(data);
    let plic = PlicDevice::new(3, Box::new(Harts([false; 3])));
    let lines = [0, 1, 31, 63, 64].map(|source| plic.line(source));
    let mut bus = Bus::default();
    bus.insert(PLIC_BASE, PLIC_SIZE, Arc::clone(&plic) as _).expect("a free place");
    let ram = memory::map(RAM_BASE, 1 << 16).expect("memory");
    let console = Console::new(File::create("/dev/null").expect("/dev/null"), 100);
    while !input.is_over() {
        let mut bytes = input.bytes::<8>();
        let width = input.one_of(&[1, 2, 4, 4, 4, 8]);
        match input.u8() % 8 {
            0..=2 => bus.read(register(&mut input), &mut bytes[..width]),
            3 | 4 => bus.write(register(&mut input), &bytes[..width]),
            5 | 6 => lines[usize::from(input.u8()) % lines.len()].set(input.u8() % 2 == 0),
            _ => {
                let address = input.one_of(&[RAM_BASE, RAM_BASE + 0xffff, RAM_BASE - 1, u64::MAX, 0]);
                let arguments = [input.number(), address, u64::from(input.u8() / 255), 0, 0, 0];
                let extension = input.one_of(&[sbi::DEBUG_CONSOLE, sbi::DEBUG_CONSOLE, 0, u64::MAX]);
                let call = Call { extension, function: u64::from(input.u8() % 4), arguments };
                let answer = sbi::answer(&call, &ram, &console);
                assert!(answer.value <= 4096 && (answer.error == 0 || answer.value == 0));
            }
        }
    }
    let _ = console.panic_line();
}

/// Mostly where the PLIC has something.
fn register(input: &mut Input<'_>) -> u64 {
    let word = u64::from(input.u8() % 70) * 4;
    match input.u8() % 8 {
        0 | 1 => PLIC_BASE + word,
        2 => PLIC_BASE + 0x1000 + word,
        3 => PLIC_BASE + 0x2000 + word * 8,
        4 | 5 => PLIC_BASE + 0x20_0000 + u64::from(input.u8() % 5) * 0x1000 + word % 16,
        6 => PLIC_BASE + u64::from(input.u32() & 0x7f_ffff),
        _ => input.number(),
    }
}

#[cfg(test)]
mod tests {
    use crate::virtio::fuzz_entry::tests::run;

    #[test]
    fn random_boots_are_sound_or_refused() {
        run("boot", 1500, super::boot);
    }

    #[test]
    fn random_accesses_of_a_bare_guest_do_no_harm() {
        run("bus", 1500, super::bus);
    }
}
