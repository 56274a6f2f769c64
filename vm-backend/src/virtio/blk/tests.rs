use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::process::Command;

use super::gpt::{ALIGNMENT, SECTOR};
use super::*;
use crate::virtio::test_driver::{
    Driver, DriverQueue, INDIRECT, NEXT, Piece, RAM_START, WRITE, interrupt, ram,
};

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// Sectors at which the partitions of [`Rig::new`] begin.
const FIRST: u64 = ALIGNMENT / SECTOR;
const SECOND: u64 = 2 * FIRST;

/// A guest with a disk of two files: 5000 bytes to read, and 64 KiB to write.
struct Rig {
    driver: Driver,
    layer: Vec<u8>,
    scratch: File,
}

impl Rig {
    fn new() -> Self {
        Self::with_features(u64::MAX)
    }

    fn with_features(features: u64) -> Self {
        let layer = (0..5000_u32).map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1]).collect::<Vec<_>>();
        let scratch = tempfile::tempfile().unwrap();
        scratch.set_len(64 << 10).unwrap();
        let extents = vec![
            BlockExtent { file: file_of(&layer).into(), read_only: true },
            BlockExtent { file: scratch.try_clone().unwrap().into(), read_only: false },
        ];
        let mut driver = Driver::new(ram(4 << 20));
        driver.slot.fill(Box::new(Block::new(extents).unwrap())).unwrap();
        driver.start(features, 64);
        Self { driver, layer, scratch }
    }

    fn header(&self, kind: u32, sector: u64) -> Piece {
        let at = self.driver.free;
        self.driver.poke(at, &[kind.to_le_bytes(), [0; 4]].concat());
        self.driver.poke(at + 8, &sector.to_le_bytes());
        (at, 16)
    }

    fn status(&self) -> Piece {
        self.driver.poke(self.driver.free + 16, &[0xff]);
        (self.driver.free + 16, 1)
    }

    /// Where data goes.
    fn data(&self) -> u64 {
        self.driver.free + 0x1000
    }

    fn submit(&mut self, readable: &[Piece], writable: &[Piece]) -> u8 {
        let head = self.driver.queues[0].add(readable, writable);
        self.driver.kick(0);
        assert_eq!(self.driver.wait_used(0).0, head);
        self.driver.peek(self.driver.free + 16, 1)[0]
    }

    fn read(&mut self, sector: u64, count: u32) -> (u8, Vec<u8>) {
        let (header, status) = (self.header(0, sector), self.status());
        self.driver.poke(self.data(), &vec![0xee; count as usize]);
        let result = self.submit(&[header], &[(self.data(), count), status]);
        (result, self.driver.peek(self.data(), count as usize))
    }

    fn write(&mut self, sector: u64, data: &[u8]) -> u8 {
        let (header, status) = (self.header(1, sector), self.status());
        self.driver.poke(self.data(), data);
        self.submit(&[header, (self.data(), u32::try_from(data.len()).unwrap())], &[status])
    }

    fn command(&mut self, kind: u32, data: &[u8]) -> u8 {
        let (header, status) = (self.header(kind, 0), self.status());
        self.driver.poke(self.data(), data);
        let data = (self.data(), u32::try_from(data.len()).unwrap());
        self.submit(&[header, data], &[status])
    }

    /// The whole disk as the guest reads it.
    fn image(&mut self) -> Vec<u8> {
        let mut capacity = [0; 8];
        self.driver.slot.read(0x100, &mut capacity);
        let sectors = u64::from_le_bytes(capacity);
        let stretch = ALIGNMENT / SECTOR;
        (0..sectors / stretch).flat_map(|index| self.read(index * stretch, 1 << 20).1).collect()
    }
}

fn file_of(content: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    file
}

fn u64_at(data: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(data[at..at + 8].try_into().unwrap())
}

fn u32_at(data: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(data[at..at + 4].try_into().unwrap())
}

/// Another way to the checksum than the table's.
fn slow_crc(data: &[u8]) -> u32 {
    !data.iter().fold(!0, |crc, byte| {
        (0..8)
            .fold(crc ^ u32::from(*byte), |crc: u32, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

/// Checks a header and its entries, and returns where they say the partitions are.
fn parse(image: &[u8], at: u64) -> Vec<(u64, u64)> {
    let sector = |index: u64| usize::try_from(index * SECTOR).unwrap();
    let header = &image[sector(at)..][..92];
    assert_eq!(&header[..16], b"EFI PART\0\0\x01\0\x5c\0\0\0");
    let without = [&header[..16], &[0; 4], &header[20..]].concat();
    assert_eq!(u32_at(header, 16), slow_crc(&without));
    assert_eq!(u64_at(header, 24), at);
    let last = image.len() as u64 / SECTOR - 1;
    assert_eq!(u64_at(header, 32), if at == 1 { last } else { 1 });
    let (first_usable, last_usable) = (u64_at(header, 40), u64_at(header, 48));
    let entries = &image[sector(u64_at(header, 72))..][..128 * 128];
    assert_eq!((u32_at(header, 80), u32_at(header, 84)), (128, 128));
    assert_eq!(u32_at(header, 88), slow_crc(entries));
    let used = entries.chunks(128).filter(|entry| entry[..16] != [0; 16]);
    let places = used.map(|entry| (u64_at(entry, 32), u64_at(entry, 40))).collect::<Vec<_>>();
    assert!(places.iter().all(|(start, end)| (first_usable..=last_usable).contains(start)
        && start <= end
        && *end <= last_usable));
    places
}

#[test]
fn the_guest_reads_a_partition_table_with_both_copies_right() {
    let mut rig = Rig::new();
    rig.scratch.write_all_at(&[7; 64 << 10], 0).unwrap();
    let image = rig.image();
    let places = parse(&image, 1);
    assert_eq!(places, [(FIRST, FIRST + 9), (SECOND, SECOND + 127)]);
    assert_eq!(parse(&image, image.len() as u64 / SECTOR - 1), places);
    assert_eq!(&image[510..512], [0x55, 0xaa]);
    let first = usize::try_from(ALIGNMENT).unwrap();
    assert_eq!(image[first..][..5000], rig.layer);
    assert!(image[first + 5000..2 * first].iter().all(|byte| *byte == 0), "padding and gap are zeros");
    assert!(image[2 * first..][..64 << 10].iter().all(|byte| *byte == 7));
}

#[test]
fn blkid_and_partx_read_the_partition_table() {
    let mut rig = Rig::new();
    let mut image = tempfile::NamedTempFile::new().unwrap();
    image.write_all(&rig.image()).unwrap();
    let run = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).arg(image.path()).output().unwrap();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let probe = run("blkid", &["-p", "-o", "export"]);
    assert!(probe.contains("PTTYPE=gpt"), "{probe}");
    let list = run("partx", &["--show", "--noheadings", "--output", "NR,START,SECTORS,NAME"]);
    let list = list.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect::<Vec<_>>();
    assert_eq!(list, [["1", "2048", "10", "extent", "1"], ["2", "4096", "128", "extent", "2"]]);
}

#[test]
fn writes_reach_the_file_and_are_read_back() {
    let mut rig = Rig::new();
    let data = (0..4096_u32).map(|at| at.to_le_bytes()[0]).collect::<Vec<_>>();
    assert_eq!(rig.write(SECOND + 8, &data), OK);
    let mut file = vec![0; 4096];
    rig.scratch.read_exact_at(&mut file, 4096).unwrap();
    assert_eq!(file, data);
    assert_eq!(rig.read(SECOND + 8, 4096), (OK, data));
    assert_eq!(rig.command(4, &[]), OK);
}

#[test]
fn nothing_but_a_writable_file_can_be_written() {
    let mut rig = Rig::new();
    let before = rig.image();
    let last = before.len() as u64 / SECTOR - 1;
    let crossing = vec![1; 1024];
    // Table, gaps, the read-only file, the copy of the table, and requests that begin or end in the writable file.
    for sector in [0, 1, 2, 40, FIRST, FIRST + 20, SECOND - 1, SECOND + 127, last - 33, last - 1] {
        assert_eq!(rig.write(sector, &crossing), IO_ERROR, "sector {sector}");
    }
    assert_eq!(rig.image(), before);
}

#[test]
fn requests_outside_of_the_disk_fail() {
    let mut rig = Rig::new();
    let end = 4 * FIRST;
    for (sector, count) in
        [(end, 512), (end - 1, 1024), (u64::MAX, 512), (u64::MAX / 512, 512), (0, 511), (0, 513)]
    {
        assert_eq!(rig.read(sector, count).0, IO_ERROR, "{sector} {count}");
    }
    assert_eq!(rig.write(end, &[0; 512]), IO_ERROR);
    assert_eq!(rig.write(SECOND, &[0; 100]), IO_ERROR);
    assert_eq!(rig.read(end - 1, 512).0, OK);
}

#[test]
fn data_may_lie_in_odd_pieces_and_across_regions_of_ram() {
    let mut rig = Rig::new();
    let (header, status) = (rig.header(0, FIRST), rig.status());
    // RAM is two regions of 2 MiB; the second piece begins in one and ends in the other.
    let border = RAM_START + (2 << 20);
    let pieces =
        [(rig.data() + 1, 511), (border - 700, 1200), (rig.data() + 0x1000, 0), (rig.data() + 0x2003, 2385)];
    let mut writable = pieces.to_vec();
    writable.push(status);
    assert_eq!(rig.submit(&[(header.0, 7), (header.0 + 7, 9)], &writable), OK);
    let read =
        pieces.iter().flat_map(|(at, count)| rig.driver.peek(*at, *count as usize)).collect::<Vec<_>>();
    assert_eq!(read[..], rig.layer[..4096]);
}

#[test]
fn an_indirect_table_works() {
    let mut rig = Rig::new();
    let (header, status) = (rig.header(0, FIRST), rig.status());
    let table = rig.driver.free + 0x800;
    let pieces = [(header, NEXT, 1_u16), ((rig.data(), 512), NEXT | WRITE, 2), (status, WRITE, 0)];
    for (index, ((at, length), flags, next)) in (0_u64..).zip(pieces) {
        rig.driver.poke(table + index * 16, &at.to_le_bytes());
        let rest = [&length.to_le_bytes()[..], &flags.to_le_bytes(), &next.to_le_bytes()].concat();
        rig.driver.poke(table + index * 16 + 8, &rest);
    }
    rig.driver.queues[0].descriptor(63, (table, 48), INDIRECT, 0);
    rig.driver.queues[0].offer(63);
    rig.driver.kick(0);
    assert_eq!(rig.driver.wait_used(0), (63, 513));
    assert_eq!(rig.driver.peek(rig.data(), 512), rig.layer[..512]);
}

#[test]
fn discards_and_zeroes_give_storage_back_and_read_as_zeros() {
    for kind in [11, 13] {
        let mut rig = Rig::new();
        assert_eq!(rig.write(SECOND, &[5; 64 << 10]), OK);
        rig.scratch.sync_all().unwrap();
        let before = rig.scratch.metadata().unwrap().blocks();
        let range = |sector: u64, sectors: u32, flags: u32| {
            [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
        };
        assert_eq!(rig.command(kind, &[range(SECOND, 32, 0), range(SECOND + 64, 64, 0)].concat()), OK);
        let mut content = vec![1; 64 << 10];
        rig.scratch.read_exact_at(&mut content, 0).unwrap();
        let expected = [vec![0; 16 << 10], vec![5; 16 << 10], vec![0; 32 << 10]].concat();
        assert_eq!(content, expected);
        rig.scratch.sync_all().unwrap();
        assert!(rig.scratch.metadata().unwrap().blocks() < before);
        assert_eq!(rig.scratch.metadata().unwrap().len(), 64 << 10);
        for (range, expected) in [
            (range(FIRST, 8, 0), IO_ERROR),
            (range(SECOND + 120, 16, 0), IO_ERROR),
            (range(u64::MAX, 2, 0), IO_ERROR),
            (range(SECOND, u32::MAX, 0), IO_ERROR),
            (range(SECOND, 8, 2), UNSUPPORTED),
            (range(SECOND, 8, 1), if kind == 13 { OK } else { UNSUPPORTED }),
            (vec![0; 15], IO_ERROR),
            (vec![], IO_ERROR),
            (range(SECOND, 8, 0).repeat(17), IO_ERROR),
        ] {
            assert_eq!(rig.command(kind, &range), expected, "{kind} {range:?}");
        }
    }
}

#[test]
fn the_id_and_the_configuration_tell_the_disk() {
    let mut rig = Rig::new();
    let (header, status) = (rig.header(8, 0), rig.status());
    assert_eq!(rig.submit(&[header], &[(rig.data(), 20), status]), OK);
    let id = rig.driver.peek(rig.data(), 20);
    assert!(id.iter().all(u8::is_ascii_hexdigit), "{id:?}");
    let mut config = [0xff; 64];
    rig.driver.slot.read(0x100, &mut config);
    assert_eq!(u64_at(&config, 0), 4 * FIRST);
    assert_eq!((u32_at(&config, 8), u32_at(&config, 12), u32_at(&config, 20)), (128 << 10, 126, 512));
    assert_eq!(config[24], 3);
    assert_eq!((u32_at(&config, 36), u32_at(&config, 40), u32_at(&config, 44)), (1 << 21, 16, 8));
    assert_eq!((u32_at(&config, 48), u32_at(&config, 52), config[56]), (1 << 21, 16, 1));
    assert_eq!(config[57..], [0; 7]);
}

#[test]
fn requests_without_sense_are_answered_and_leave_the_device_working() {
    let mut rig = Rig::new();
    let status = rig.status();
    let header = rig.header(99, 0);
    assert_eq!(rig.submit(&[header], &[status]), UNSUPPORTED);
    let header = rig.header(0, 0);
    assert_eq!(rig.submit(&[(header.0, 15)], &[status]), IO_ERROR, "a short header");
    // No place for a status: given back with nothing written.
    let head = rig.driver.queues[0].add(&[header], &[]);
    rig.driver.kick(0);
    assert_eq!(rig.driver.wait_used(0), (head, 0));
    assert_eq!(rig.read(FIRST, 512).0, OK);
}

#[test]
fn many_requests_under_way_are_all_answered() {
    let mut rig = Rig::new();
    rig.driver.start(u64::MAX, 128);
    let (header, status) = (rig.header(0, FIRST), rig.status());
    for round in 0..20 {
        let heads = (0..32).map(|index| {
            let data = rig.data() + index * 4096;
            rig.driver.poke(data, &[0xee; 512]);
            rig.driver.queues[0].add(&[header], &[(data, 512), status])
        });
        let heads = heads.collect::<Vec<_>>();
        rig.driver.kick(0);
        let answered = heads.iter().map(|_| rig.driver.wait_used(0)).collect::<Vec<_>>();
        assert_eq!(answered, heads.iter().map(|head| (*head, 513)).collect::<Vec<_>>(), "round {round}");
        for index in 0..32 {
            assert_eq!(rig.driver.peek(rig.data() + index * 4096, 512), rig.layer[..512]);
        }
    }
}

#[test]
fn after_a_reset_nothing_touches_guest_memory() {
    let mut rig = Rig::new();
    for _ in 0..30 {
        let (header, status) = (rig.header(0, FIRST), rig.status());
        for index in 0..16 {
            let data = (rig.data() + index * 0x4000, 0x4000);
            rig.driver.queues[0].add(&[header], &[data, status]);
        }
        rig.driver.kick(0);
        rig.driver.write32(0x070, 0);
        let mine = vec![0xc3; 0x8_0000];
        rig.driver.poke(RAM_START, &mine);
        std::thread::yield_now();
        assert!(rig.driver.peek(RAM_START, mine.len()) == mine);
        rig.driver.start(u64::MAX, 64);
        rig.driver.poke(RAM_START, &vec![0; usize::try_from(DriverQueue::BYTES).unwrap()]);
    }
}

#[test]
fn a_broken_chain_stops_the_device_until_a_reset() {
    let mut rig = Rig::new();
    let header = rig.header(0, FIRST);
    rig.driver.queues[0].add(&[header], &[(RAM_START - 512, 512)]);
    rig.driver.kick(0);
    rig.driver.wait_needs_reset();
    rig.driver.start(u64::MAX, 64);
    assert_eq!(rig.read(FIRST, 512).0, OK);
}

#[test]
fn changes_of_a_guest_that_does_not_flush_are_flushed_at_once() {
    let (write, discard) = (1_u64, 11);
    for (flushes, kind) in [(true, write), (false, write), (true, discard), (false, discard)] {
        let disk =
            Disk::new(vec![BlockExtent { file: file_of(&[0; 4096]).into(), read_only: false }]).unwrap();
        let driver = Driver::new(ram(1 << 20));
        let mut ring = DriverQueue::new(Arc::clone(&driver.memory), RAM_START, 16);
        let header = RAM_START + 0x4000;
        driver.poke(header, &[kind, FIRST, FIRST, 8].map(u64::to_le_bytes).concat());
        let data = if kind == write { (header + 512, 512) } else { (header + 16, 16) };
        ring.add(&[(header, 16), data], &[(header + 64, 1)]);
        let features = feature::DISCARD | if flushes { feature::FLUSH } else { 0 };
        serve(&disk, features, &mut ring.device_side(), &driver.memory, &interrupt()).unwrap();
        assert_eq!(driver.peek(header + 64, 1), [OK]);
        assert_eq!(disk.is_dirty(), flushes, "{kind}");
    }
}

#[test]
fn a_direct_file_takes_whatever_the_guest_asks_for() {
    let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let path = folder.path().join("scratch");
    std::fs::write(&path, vec![9; 64 << 10]).unwrap();
    let direct = File::options().read(true).write(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
    let keep = direct.try_clone().unwrap();
    let mut driver = Driver::new(ram(4 << 20));
    let extent = BlockExtent { file: direct.into(), read_only: false };
    driver.slot.fill(Box::new(Block::new(vec![extent]).unwrap())).unwrap();
    driver.start(u64::MAX, 64);
    let mut rig = Rig { driver, layer: vec![], scratch: keep };
    // Aligned, a sector in the middle of a block, and buffers at odd addresses.
    assert_eq!(rig.write(FIRST, &[1; 4096]), OK);
    assert_eq!(rig.write(FIRST + 9, &[2; 512]), OK);
    let (header, status) = (rig.header(1, FIRST + 16), rig.status());
    let at = rig.data() + 0x10_001;
    rig.driver.poke(at, &[4; 4096]);
    assert_eq!(rig.submit(&[header, (at, 100), (at + 100, 3996)], &[status]), OK);
    let expected = [vec![1; 4096], vec![9; 512], vec![2; 512], vec![9; 3072], vec![4; 4096]].concat();
    assert_eq!(rig.read(FIRST, 12288), (OK, expected.clone()));
    assert_eq!(std::fs::read(&path).unwrap()[..12288], expected);
    let flags = rustix::fs::fcntl_getfl(&rig.scratch).unwrap();
    assert!(flags.contains(rustix::fs::OFlags::DIRECT), "the flag is back after each request");
}

#[test]
fn disks_that_cannot_be_made_are_refused_with_the_reason() {
    let extent = |file: File, read_only| BlockExtent { file: file.into(), read_only };
    assert!(matches!(Block::new(vec![]), Err(BlockError::NoExtents)));
    let empty = Block::new(vec![extent(file_of(b"x"), true), extent(file_of(b""), true)]);
    assert!(matches!(empty, Err(BlockError::Empty { index: 1 })));
    let odd = Block::new(vec![extent(file_of(b"x"), false)]);
    assert!(matches!(odd, Err(BlockError::Unaligned { index: 0, size: 1 })));
    let huge = tempfile::tempfile().unwrap();
    huge.set_len(1 << 40).unwrap();
    assert!(Block::new(vec![extent(huge, true)]).is_ok(), "a sparse file of 1 TiB is nothing special");
    let many = (0..=gpt::MAX_PARTITIONS).map(|_| extent(file_of(b"x"), true)).collect();
    assert!(matches!(Block::new(many), Err(BlockError::TooLarge { extents: 129 })));
    let (pipe, _) = rustix::pipe::pipe().unwrap();
    let pipe = BlockExtent { file: pipe, read_only: true };
    assert!(matches!(Block::new(vec![pipe]), Err(BlockError::File { index: 0, .. })));
}

#[test]
fn a_disk_of_layers_alone_is_read_only_to_the_guest() {
    let block = Block::new(vec![BlockExtent { file: file_of(b"x").into(), read_only: true }]).unwrap();
    assert_ne!(block.features() & feature::READ_ONLY, 0);
    assert_eq!(block.features() & (feature::FLUSH | feature::DISCARD | feature::WRITE_ZEROES), 0);
}

#[test]
fn files_that_are_not_open_as_they_should_be_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    std::fs::write(&path, [0; 512]).unwrap();
    let disk = |options: &mut std::fs::OpenOptions, read_only| {
        let file = options.open(&path).unwrap().into();
        match Disk::new(vec![BlockExtent { file, read_only }]) {
            Ok(_) => None,
            Err(BlockError::Mode { index: 0, what }) => Some(what),
            Err(other) => panic!("{other}"),
        }
    };
    let options = File::options;
    assert_eq!(disk(options().read(true), true), None);
    assert_eq!(disk(options().read(true).write(true), false), None);
    assert_eq!(disk(options().read(true).append(true), true), None, "nobody writes");
    assert_eq!(disk(options().read(true), false), Some("writing"));
    assert_eq!(disk(options().write(true), true), Some("reading"));
    assert_eq!(disk(options().write(true), false), Some("reading"));
    assert_eq!(disk(options().read(true).append(true), false), Some("writing at any place"));
}
