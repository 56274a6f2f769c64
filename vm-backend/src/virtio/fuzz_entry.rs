//! What a hostile guest can do, played from a string of bytes: shared by the fuzz targets in `fuzz/` and a bounded number of random inputs
//! in the tests. An entry function returns if all went well, whatever the guest did, and panics otherwise.
#![allow(clippy::expect_used)]

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;

use rustix::fs::MemfdFlags;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, VolatileSlice};

use super::blk::{self, Block, BlockExtent, Disk, gpt};
use super::chain::{Chain, MAX_DESCRIPTORS, QueueError};
use super::net::{self, Received, Receiver};
use super::test_driver::{Driver, DriverQueue, INDIRECT, NEXT, RAM_START, WRITE, interrupt, ram};
use super::{ActiveQueue, Removal, balloon, fs};
use crate::memory::{GuestMemory, GuestRam};

const RAM_SIZE: u64 = 256 << 10;
const RING_SIZE: u16 = 16;
/// Rounds of work per input: a guest that goes on for ever is stopped by its reset, an input by this.
const ROUNDS: usize = 8;
/// Bytes of the file that a guest must not be able to write.
const LAYER: [u8; 5000] = [0x5a; 5000];
const SCRATCH_SIZE: u64 = 64 << 10;

/// The guest's decisions. Once the input is used up all are 0.
#[derive(Debug)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    #[must_use]
    pub fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    #[must_use]
    pub fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let (now, later) = self.0.split_at(N.min(self.0.len()));
        self.0 = later;
        let mut bytes = [0; N];
        bytes[..now.len()].copy_from_slice(now);
        bytes
    }

    pub fn u8(&mut self) -> u8 {
        self.bytes::<1>()[0]
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.bytes())
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes())
    }

    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes())
    }

    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::from(self.u8()) % choices.len()]
    }

    /// A guest address: mostly in RAM, else where checks go wrong.
    pub fn address(&mut self) -> u64 {
        match self.u8() % 8 {
            0..=4 => RAM_START + u64::from(self.u16()) * 4,
            5 => RAM_START + RAM_SIZE - u64::from(self.u8()),
            6 => self.u64(),
            _ => u64::MAX - u64::from(self.u16()),
        }
    }

    pub fn length(&mut self) -> u32 {
        match self.u8() % 8 {
            0..=2 => u32::from(self.u8()) * 512,
            3 | 4 => u32::from(self.u16()),
            5 => u32::from(self.u8() % 32),
            6 => self.u32(),
            _ => u32::MAX - u32::from(self.u8()),
        }
    }
}

/// Writes descriptors and offers chains as the input says, sensible or not.
pub fn play(input: &mut Input<'_>, memory: &GuestMemory, ring: &mut DriverQueue) {
    for _ in 0..input.u8() % 24 {
        let (index, piece) = (u16::from(input.u8()), (input.address(), input.length()));
        let flags = match input.u8() % 8 {
            0 => 0,
            1 => NEXT,
            2 => WRITE,
            3 | 4 => NEXT | WRITE,
            5 => INDIRECT,
            6 => input.u16(),
            _ => {
                // A table of descriptors where an indirect one may point.
                let entry = [piece.0.to_le_bytes(), input.bytes()].concat();
                drop(memory.write_slice(&entry, GuestAddress(input.address())));
                NEXT | WRITE
            }
        };
        ring.descriptor(index, piece, flags, u16::from(input.u8() % 20));
    }
    for _ in 0..input.u8() % 8 {
        ring.offer(u16::from(input.u8() % 20));
    }
    if input.u8() == 0xff {
        ring.set_available_index(input.u16());
    }
    ring.set_no_interrupt(input.u8() & 1 == 1);
}

fn rig() -> (GuestRam, DriverQueue) {
    let memory = ram(usize::try_from(RAM_SIZE).expect("small"));
    let ring = DriverQueue::new(memory.clone(), RAM_START, RING_SIZE);
    (memory, ring)
}

/// Descriptor chains.
pub fn chain(data: &[u8]) {
    let mut input = Input::new(data);
    let (memory, mut ring) = rig();
    let mut queue = ring.device_side();
    for _ in 0..ROUNDS {
        play(&mut input, &memory, &mut ring);
        for _ in 0..=RING_SIZE {
            match queue.next_chain(&memory) {
                Ok(Some(chain)) => use_chain(&mut input, &memory, &mut queue, chain),
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}

fn use_chain(input: &mut Input<'_>, memory: &GuestMemory, queue: &mut ActiveQueue, mut chain: Chain<'_>) {
    let total = chain.readable.len() + chain.writable.len();
    assert!(u32::try_from(total).is_ok(), "{total} bytes in a chain");
    // A descriptor can span both regions of RAM.
    assert!(chain.readable.pieces() + chain.writable.pieces() <= 2 * MAX_DESCRIPTORS);
    for buffers in [&mut chain.readable, &mut chain.writable] {
        let length = buffers.len();
        assert_eq!(buffers.slices().iter().map(|slice| slice.len() as u64).sum::<u64>(), length);
        buffers.slices().iter().for_each(|slice| assert_in_ram(memory, slice));
    }
    let mut header = [0; 16];
    let before = chain.readable.len();
    let read = chain.readable.read(&mut header);
    assert_eq!(read.is_ok(), before >= 16);
    let taken = u64::from(input.u16());
    match chain.writable.take(taken) {
        Ok(part) => assert_eq!(part.len(), taken),
        Err(e) => assert_eq!(e, QueueError::Short),
    }
    let _ = chain.writable.write(&header);
    if chain.writable.len() < 1 << 20 {
        chain.writable.fill_zero();
    }
    queue.complete(memory, chain.head, 1).expect("the rings are in RAM");
}

fn assert_in_ram(memory: &GuestMemory, slice: &VolatileSlice<'_>) {
    let start = slice.ptr_guard().as_ptr().addr();
    let inside = memory.iter().any(|region| {
        let base = memory.get_host_address(region.start_addr()).expect("a region").addr();
        let length = usize::try_from(region.len()).expect("small");
        base <= start && start + slice.len() <= base + length
    });
    assert!(inside, "{start:#x} + {:#x} is not guest RAM", slice.len());
}

fn file(content: &[u8], size: u64) -> OwnedFd {
    let file = rustix::fs::memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("memfd");
    rustix::io::write(&file, content).expect("write");
    rustix::fs::ftruncate(&file, size).expect("truncate");
    file
}

fn extents() -> (OwnedFd, OwnedFd, Vec<BlockExtent>) {
    let (layer, scratch) = (file(&LAYER, LAYER.len() as u64), file(&[], SCRATCH_SIZE));
    let copy = |file: &OwnedFd| file.try_clone().expect("a descriptor");
    let extents = vec![
        BlockExtent { file: copy(&layer), read_only: true },
        BlockExtent { file: copy(&scratch), read_only: false },
    ];
    (layer, scratch, extents)
}

fn assert_files_kept(layer: &OwnedFd, scratch: &OwnedFd) {
    let mut content = [0; LAYER.len() + 1];
    assert_eq!(rustix::io::pread(layer, &mut content[..], 0).expect("read"), LAYER.len());
    assert_eq!(content[..LAYER.len()], LAYER, "a read-only file was written");
    assert_eq!(rustix::fs::fstat(scratch).expect("stat").st_size, 64 << 10, "a file grew or shrank");
}

/// Requests of a virtio-blk driver.
pub fn block(data: &[u8]) {
    let mut input = Input::new(data);
    let (memory, mut ring) = rig();
    let (layer, scratch, extents) = extents();
    let disk = Disk::new(extents).expect("a disk");
    let mut queue = ring.device_side();
    let (features, raised) = (input.u64(), interrupt());
    for _ in 0..ROUNDS {
        if input.u8() % 4 == 0 {
            play(&mut input, &memory, &mut ring);
        } else {
            request(&mut input, &memory, &mut ring);
        }
        if blk::serve(&disk, features, &mut queue, &memory, &raised).is_err() {
            break;
        }
    }
    assert_files_kept(&layer, &scratch);
}

/// A request that is nearly right, so that it comes further than the header.
fn request(input: &mut Input<'_>, memory: &GuestMemory, ring: &mut DriverQueue) {
    let kind = input.one_of(&[0, 1, 1, 4, 8, 11, 13, 13, 2, u32::MAX]);
    let partition = input.one_of(&[0, 2048, 4096, 4096, 6144, 8192, u64::MAX / 512, u64::MAX]);
    let sector = partition.wrapping_add(u64::from(input.u8())).wrapping_sub(u64::from(input.u8() % 4));
    let header = RAM_START + 0x4000;
    let place = |at: u64| GuestAddress(header + at);
    memory.write_obj(kind.to_le(), place(0)).expect("RAM");
    memory.write_obj(sector.to_le(), place(8)).expect("RAM");
    // What a discard would find as its range.
    memory.write_obj(sector.to_le(), place(32)).expect("RAM");
    memory.write_obj(u32::from(input.u16()).to_le(), place(40)).expect("RAM");
    memory.write_obj(u32::from(input.u8() % 4).to_le(), place(44)).expect("RAM");
    let data =
        input.one_of(&[(header + 32, 16), (header + 512, 512), (header + 512, 4096), (header, 100_000)]);
    let data = [(data.0, data.1 + u32::from(input.u8() % 4)), data][usize::from(input.u8() % 4 != 0)];
    let status = (header + 64, 1);
    match kind {
        0 | 8 => ring.add(&[(header, 16)], &[data, status]),
        _ => ring.add(&[(header, 16), data], &[status]),
    };
}

/// Packets of a virtio-net driver, and of the network.
pub fn network(data: &[u8]) {
    let mut input = Input::new(data);
    let memory = ram(usize::try_from(RAM_SIZE).expect("small"));
    let mut rings = [0, 0x2000].map(|at| DriverQueue::new(memory.clone(), RAM_START + at, RING_SIZE));
    let [mut receive, mut send] = rings.each_ref().map(DriverQueue::device_side);
    let (host, tap) = UnixDatagram::pair().expect("sockets");
    for socket in [&host, &tap] {
        socket.set_nonblocking(true).expect("a flag");
    }
    let features = input.u64();
    let (mut receiver, raised) = (Receiver::new(features), interrupt());
    let mut packet = vec![0x77; 70_000];
    for _ in 0..ROUNDS {
        for ring in &mut rings {
            if input.u8() % 2 == 0 {
                play(&mut input, &memory, ring);
            } else {
                let (at, length) = (RAM_START + 0x8000, u32::from(input.u16()));
                ring.add(&[(at, 12), (at + 12, length)], &[]);
                ring.add(&[], &[(at, length), (at + 0x1_0000, 1514)]);
            }
        }
        for _ in 0..input.u8() % 4 {
            let length = usize::from(input.u16()) + usize::from(input.u8()) * 16;
            drop(host.send(&packet[..length.min(net::HEADER + net::MAX_FRAME)]));
        }
        for _ in 0..4 {
            match receiver.receive(tap.as_fd(), &mut receive, &memory, &raised) {
                Ok(Received::More) => {}
                Ok(_) => break,
                Err(_) => return,
            }
        }
        if net::transmit(tap.as_fd(), features, &mut send, &memory, &raised).is_err() {
            return;
        }
        while let Ok(length) = host.recv(&mut packet) {
            assert!(
                (net::HEADER + 14..=net::HEADER + net::MAX_FRAME).contains(&length),
                "{length} bytes sent"
            );
        }
    }
}

/// Requests of a file system's driver, and answers of a server that was taken over.
pub fn files(data: &[u8]) {
    let mut input = Input::new(data);
    let (memory, mut ring) = rig();
    let mut queue = ring.device_side();
    let mut under_way = fs::UnderWay::default();
    let mut asked = Vec::new();
    for _ in 0..ROUNDS {
        play(&mut input, &memory, &mut ring);
        let next = std::cell::Cell::new(asked.len() as u64 * 64);
        let number = || next.replace(next.get() + 1);
        let outcome = input.u8() % 8;
        let taken = under_way.take(&mut queue, &memory, number, |packet| {
            let (request, _) =
                crate::share::wire::Request::parse(packet).expect("what the device makes is one");
            asked.push(request.number);
            match outcome {
                0 => fs::Sent::NotNow,
                1 => fs::Sent::Gone,
                _ => fs::Sent::Yes,
            }
        });
        if taken.is_err() {
            return;
        }
        for _ in 0..input.u8() % 4 {
            let number =
                if asked.is_empty() { input.u64() } else { asked[usize::from(input.u8()) % asked.len()] };
            let answer = vec![0x5a; usize::from(input.u16())];
            if under_way.complete(&mut queue, &memory, number, &answer).is_err() {
                return;
            }
        }
    }
    let _ = under_way.fail_all(&mut queue, &memory);
}

/// Reports of a balloon driver.
pub fn report(data: &[u8]) {
    let mut input = Input::new(data);
    let (memory, mut ring) = rig();
    let mut queue = ring.device_side();
    for _ in 0..ROUNDS {
        play(&mut input, &memory, &mut ring);
        let pages = input.one_of(&[balloon::Pages::Reported, balloon::Pages::InBalloon]);
        if balloon::serve(pages, &mut queue, &memory, &interrupt()).is_err() {
            return;
        }
    }
}

/// Registers of a slot, in any order, and what the host does with it meanwhile.
pub fn transport(data: &[u8]) {
    const REGISTERS: [u64; 24] = [
        0x014, 0x020, 0x024, 0x030, 0x038, 0x044, 0x050, 0x064, 0x070, 0x080, 0x084, 0x090, 0x094, 0x0a0,
        0x0a4, 0x0fc, 0x100, 0x120, 0x070, 0x070, 0x030, 0x044, 0x050, 0x00,
    ];
    let mut input = Input::new(data);
    let mut driver = Driver::new(ram(usize::try_from(RAM_SIZE).expect("small")));
    let (layer, scratch, _) = extents();
    let block = || Box::new(Block::new(extents().2).expect("a disk"));
    driver.slot.fill(block()).expect("an empty slot");
    while !input.is_over() {
        match input.u8() % 16 {
            0 if driver.slot.is_filled() => {
                driver.start(input.u64() | 1 << 32, input.one_of(&[1, 2, 16, 64]))
            }
            1 if driver.slot.is_filled() => {
                drop(driver.slot.empty(input.one_of(&[Removal::Unbound, Removal::Forced])))
            }
            1 => driver.slot.fill(block()).expect("an empty slot"),
            2 => {
                if let Some(mut ring) = driver.queues.pop() {
                    play(&mut input, &driver.memory, &mut ring);
                    driver.queues.push(ring);
                }
                driver.kick(u32::from(input.u8() % 8));
            }
            3 => {
                let mut data = [0xee; 8];
                let width = input.one_of(&[1, 2, 4, 8]);
                driver.slot.read(u64::from(input.u16()) % 0x1000, &mut data[..width]);
            }
            4 => {
                let (data, width) = (input.bytes::<8>(), input.one_of(&[1, 2, 4, 8]));
                driver.slot.write(u64::from(input.u16()) % 0x1000, &data[..width]);
            }
            _ => {
                let register = input.one_of(&REGISTERS);
                let value = match input.u8() % 4 {
                    0 => u32::from(input.u8()),
                    // Cut to the half that a register holds.
                    #[allow(clippy::cast_possible_truncation)]
                    1 => input.address() as u32,
                    2 => input.one_of(&[0, 1, 3, 11, 15, 8, 16]),
                    _ => input.u32(),
                };
                driver.write32(register, value);
            }
        }
        let status = driver.read32(0x070);
        assert_eq!(status & !0xcf, 0, "status {status:#x} does not exist");
    }
    drop(driver);
    assert_files_kept(&layer, &scratch);
}

/// Sizes of files that become a disk.
pub fn table(data: &[u8]) {
    let mut input = Input::new(data);
    let mut sizes = vec![];
    while !input.is_over() && sizes.len() <= gpt::MAX_PARTITIONS {
        let size = match input.u8() % 4 {
            0 => u64::from(input.u16()),
            1 => u64::from(input.u32()),
            2 => u64::from(input.u8()) << 55,
            _ => input.u64(),
        };
        sizes.push(size.max(1));
    }
    let Some(table) = gpt::lay_out(&sizes) else { return };
    let end = table.sectors.checked_mul(gpt::SECTOR).expect("a disk fits 64 bits");
    let places = table.partitions.iter().map(|partition| (partition.start, partition.length));
    let pieces = table.pieces.iter().map(|(start, bytes)| (*start, bytes.len() as u64));
    let mut places = places.chain(pieces).collect::<Vec<_>>();
    places.sort_unstable();
    assert!(places.windows(2).all(|two| two[0].0 + two[0].1 <= two[1].0), "parts overlap");
    assert!(places.iter().all(|(start, length)| start + length <= end), "parts past the end");
    for (partition, size) in table.partitions.iter().zip(&sizes) {
        assert_eq!((partition.start % gpt::ALIGNMENT, partition.length % gpt::SECTOR), (0, 0));
        assert!(partition.length >= *size && partition.length - size < gpt::SECTOR);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    /// Runs `entry` over `count` random inputs. `FUZZ_SEED` in the environment repeats a run.
    pub(crate) fn run(name: &str, count: u64, entry: impl Fn(&[u8])) {
        let seed = std::env::var("FUZZ_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            now.as_secs() << 20 ^ u64::from(now.subsec_nanos())
        });
        println!("{name}: FUZZ_SEED={seed}");
        let mut state = seed | 1;
        let mut next = move || {
            // xorshift64* (Vigna, 2016).
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            state.wrapping_mul(0x2545_f491_4f6c_dd1d)
        };
        for _ in 0..count {
            let length = next() % 600;
            let input = (0..length).map(|_| next().to_le_bytes()[7]).collect::<Vec<_>>();
            entry(&input);
        }
    }

    #[test]
    fn random_chains_do_no_harm() {
        run("chain", 1500, super::chain);
    }

    #[test]
    fn random_disk_requests_do_no_harm() {
        run("block", 1000, super::block);
    }

    #[test]
    fn random_packets_do_no_harm() {
        run("network", 600, super::network);
    }

    #[test]
    fn random_guests_and_clients_of_vsock_do_no_harm() {
        run("vsock", 1500, super::super::vsock::fuzz::vsock);
    }

    #[test]
    fn random_requests_for_files_do_no_harm() {
        run("files", 1000, super::files);
    }

    #[test]
    fn random_reports_do_no_harm() {
        run("report", 1000, super::report);
    }

    #[test]
    fn random_register_accesses_do_no_harm() {
        run("transport", 300, super::transport);
    }

    #[test]
    fn random_sizes_make_sound_tables_or_none() {
        run("table", 1000, super::table);
    }
}
