//! Writes a cpio archive in the format that the kernel unpacks into its first root
//! (Documentation/driver-api/early-userspace/buffer-format.rst): `newc`, uncompressed.

use rustix::fs::FileType;

const MAGIC: &str = "070701";
/// Names and contents begin at multiples of it.
const ALIGNMENT: usize = 4;
const TRAILER: &str = "TRAILER!!!";

/// An archive that grows in memory. All entries belong to root, and have no time: the same contents give the same bytes.
#[derive(Debug, Default)]
pub(super) struct Cpio {
    bytes: Vec<u8>,
    entries: u32,
}

/// Numbers of a device file.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Device {
    pub(super) major: u32,
    pub(super) minor: u32,
}

/// A file's contents are too large for the format's 32 bits.
#[derive(Debug, thiserror::Error)]
#[error("{name} is larger than 4 GiB")]
pub struct TooLarge {
    name: String,
}

impl Cpio {
    /// Adds a folder. Parents come first.
    pub(super) fn folder(&mut self, name: &str, mode: u32) -> Result<(), TooLarge> {
        self.add(name, FileType::Directory, mode, Device::default(), &[])
    }

    pub(super) fn file(&mut self, name: &str, mode: u32, contents: &[u8]) -> Result<(), TooLarge> {
        self.add(name, FileType::RegularFile, mode, Device::default(), contents)
    }

    pub(super) fn character_device(&mut self, name: &str, mode: u32, device: Device) -> Result<(), TooLarge> {
        self.add(name, FileType::CharacterDevice, mode, device, &[])
    }

    /// The whole archive.
    pub(super) fn finish(mut self) -> Result<Vec<u8>, TooLarge> {
        self.entries = 0;
        self.header(TRAILER, 0, Device::default(), 0);
        Ok(self.bytes)
    }

    fn add(
        &mut self,
        name: &str,
        kind: FileType,
        mode: u32,
        device: Device,
        contents: &[u8],
    ) -> Result<(), TooLarge> {
        let length = u32::try_from(contents.len()).map_err(|_| TooLarge { name: name.to_owned() })?;
        self.entries += 1;
        self.header(name, kind.as_raw_mode() | mode, device, length);
        self.bytes.extend_from_slice(contents);
        self.align();
        Ok(())
    }

    fn header(&mut self, name: &str, mode: u32, device: Device, length: u32) {
        let with_nul = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        // ino, mode, uid, gid, nlink, mtime, size, device of the file system, device of the file, length of the name, checksum
        let fields = [self.entries, mode, 0, 0, 1, 0, length, 0, 0, device.major, device.minor, with_nul, 0];
        self.bytes.extend_from_slice(MAGIC.as_bytes());
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An entry as it is read back.
    #[derive(Debug, PartialEq, Eq)]
    pub(in super::super) struct Read {
        pub(in super::super) name: String,
        pub(in super::super) mode: u32,
        pub(in super::super) device: (u32, u32),
        pub(in super::super) contents: Vec<u8>,
    }

    /// Reads an archive by the format's description.
    pub(in super::super) fn read(archive: &[u8]) -> Vec<Read> {
        let (mut at, mut entries) = (0, Vec::new());
        loop {
            assert_eq!(&archive[at..at + 6], b"070701", "at {at}");
            let field = |n: usize| {
                let text = std::str::from_utf8(&archive[at + 6 + n * 8..][..8]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let (length, name_length) = (field(6) as usize, field(11) as usize);
            let name = std::str::from_utf8(&archive[at + 110..][..name_length - 1]).unwrap().to_owned();
            assert_eq!(archive[at + 110 + name_length - 1], 0);
            let contents_at = (at + 110 + name_length).next_multiple_of(4);
            if name == TRAILER {
                assert_eq!(contents_at, archive.len());
                return entries;
            }
            let contents = archive[contents_at..][..length].to_vec();
            entries.push(Read { name, mode: field(1), device: (field(9), field(10)), contents });
            at = (contents_at + length).next_multiple_of(4);
        }
    }

    #[test]
    fn entries_come_back_as_they_went_in() {
        let mut cpio = Cpio::default();
        cpio.folder("dev", 0o755).unwrap();
        cpio.character_device("dev/console", 0o600, Device { major: 5, minor: 1 }).unwrap();
        cpio.file("init", 0o755, b"12345").unwrap();
        let entries = read(&cpio.finish().unwrap());
        let told: Vec<_> =
            entries.iter().map(|e| (e.name.as_str(), e.mode, e.device, e.contents.len())).collect();
        assert_eq!(
            told,
            [
                ("dev", 0o40_755, (0, 0), 0),
                ("dev/console", 0o20_600, (5, 1), 0),
                ("init", 0o100_755, (0, 0), 5),
            ]
        );
    }

    #[test]
    fn cpio_of_the_system_reads_it_too() {
        let Ok(mut cpio) = std::process::Command::new("cpio")
            .args(["-t", "--quiet"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
        else {
            return eprintln!("skipped: needs cpio");
        };
        let mut archive = Cpio::default();
        archive.folder("modules", 0o755).unwrap();
        archive.file("modules/00-a.ko", 0o644, &[1; 4097]).unwrap();
        std::io::Write::write_all(&mut cpio.stdin.take().unwrap(), &archive.finish().unwrap()).unwrap();
        let listed = cpio.wait_with_output().unwrap();
        assert!(listed.status.success());
        assert_eq!(String::from_utf8(listed.stdout).unwrap(), "modules\nmodules/00-a.ko\n");
    }
}
