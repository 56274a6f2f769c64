use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use tempfile::TempDir;

use super::super::fuse::{FOPEN_NOFLUSH, OUT_HEADER, fattr, init};
use super::*;

/// A guest's kernel, as far as a test needs one.
struct Guest {
    server: Server,
    unique: u64,
    user: (u32, u32),
}

/// What an answer has behind its header, or the error.
type Told = Result<Vec<u8>, i32>;

impl Guest {
    fn new() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        Self { server: Server::new(limits), unique: 0, user: (0, 0) }
    }

    /// Shares a folder or file, as number and node.
    fn volume(&mut self, path: &Path, read_only: bool) -> u64 {
        let root = rustix::fs::open(path, OFlags::PATH, Mode::empty()).unwrap();
        let identity = format!("{} {read_only}", path.display());
        let share = Share { root, read_only, identity, owner: "c1".into() };
        let number = self.server.share(share).unwrap();
        self.look_up(ROOT, &number.to_string()).unwrap()
    }

    fn ask(&mut self, opcode: u32, node: u64, parts: &[&[u8]]) -> Told {
        self.unique += 1;
        let mut request = vec![0; 4];
        request.extend(opcode.to_ne_bytes());
        request.extend(self.unique.to_ne_bytes());
        request.extend(node.to_ne_bytes());
        for word in [self.user.0, self.user.1, 1, 0] {
            request.extend(word.to_ne_bytes());
        }
        parts.iter().for_each(|part| request.extend(*part));
        let length = u32::try_from(request.len()).unwrap();
        request[..4].copy_from_slice(&length.to_ne_bytes());
        let mut answer = b"prefix".to_vec();
        self.server.handle(&request, MAX_DATA + OUT_HEADER, &mut answer);
        let answer = answer.strip_prefix(b"prefix").unwrap();
        let Some((header, told)) = answer.split_at_checked(OUT_HEADER) else { return Ok(Vec::new()) };
        assert_eq!(u32_at(header, 0) as usize, answer.len());
        assert_eq!(u64_at(header, 8), self.unique);
        match i32_at(header, 4) {
            0 => Ok(told.to_vec()),
            error => Err(-error),
        }
    }

    fn look_up(&mut self, folder: u64, name: &str) -> Result<u64, i32> {
        self.ask(op::LOOKUP, folder, &[&text(name)]).map(|told| u64_at(&told, 0))
    }

    fn open(&mut self, node: u64, flags: i32) -> Result<u64, i32> {
        self.ask(op::OPEN, node, &[&words([flags.unsigned_abs(), 0])]).map(|told| u64_at(&told, 0))
    }

    fn read(&mut self, node: u64, handle: u64, at: u64, size: u32) -> Told {
        let rest = [size, 0, 0, 0, 0, 0];
        self.ask(op::READ, node, &[&longs([handle, at]), &words(rest)])
    }

    fn write(
        &mut self,
        node: u64,
        (handle, at): (u64, u64),
        data: &[u8],
        how: (u32, i32),
    ) -> Result<u32, i32> {
        let size = u32::try_from(data.len()).unwrap();
        let rest = [size, how.0, 0, 0, how.1.unsigned_abs(), 0];
        let told = self.ask(op::WRITE, node, &[&longs([handle, at]), &words(rest), data]);
        told.map(|told| u32_at(&told, 0))
    }

    fn create(&mut self, folder: u64, name: &str, flags: i32, mode: u32) -> Result<(u64, u64), i32> {
        let told =
            self.ask(op::CREATE, folder, &[&words([flags.unsigned_abs(), mode, 0, 0]), &text(name)])?;
        Ok((u64_at(&told, 0), u64_at(&told, 128)))
    }

    fn set(&mut self, node: u64, valid: u32, (size, mode, owner): (u64, u32, u32)) -> Told {
        let rest = [0, 0, 0, mode, 0, owner, owner, 0];
        self.ask(op::SETATTR, node, &[&words([valid, 0]), &longs([0, size, 0, 0, 0, 0]), &words(rest)])
    }

    fn rename(&mut self, from: (u64, &str), to: (u64, &str), flags: u32) -> Told {
        let parts = [&longs([to.0])[..], &words([flags, 0]), &text(from.1), &text(to.1)];
        self.ask(op::RENAME2, from.0, &parts)
    }

    fn list(&mut self, folder: u64, room: u32) -> Vec<(String, u64)> {
        let handle = u64_at(&self.ask(op::OPENDIR, folder, &[&words([0, 0])]).unwrap(), 0);
        let (mut entries, mut at) = (Vec::new(), 0);
        loop {
            let parts = [&longs([handle, at])[..], &words([room, 0, 0, 0, 0, 0])];
            let told = self.ask(op::READDIR, folder, &parts).unwrap();
            assert!(told.len() <= room as usize);
            if told.is_empty() {
                self.ask(op::RELEASEDIR, folder, &[&longs([handle, 0, 0])]).unwrap();
                return entries;
            }
            let mut rest = told.as_slice();
            while !rest.is_empty() {
                let length = u32_at(rest, 16) as usize;
                let name = String::from_utf8(rest[24..24 + length].to_vec()).unwrap();
                entries.push((name, u64_at(rest, 0)));
                at = u64_at(rest, 8);
                rest = &rest[(24 + length).next_multiple_of(8)..];
            }
        }
    }
}

fn text(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}

fn words<const N: usize>(words: [u32; N]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn longs<const N: usize>(longs: [u64; N]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_ne_bytes()).collect()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn i32_at(bytes: &[u8], at: usize) -> i32 {
    i32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

const STALE: i32 = libc::ESTALE;

#[test]
fn a_driver_agrees_on_what_is_served() {
    let mut guest = Guest::new();
    let told = guest.ask(op::INIT, 0, &[&words([7, 41, 1 << 20, u32::MAX]), &[0; 48]]).unwrap();
    assert_eq!(told.len(), 64);
    assert_eq!((u32_at(&told, 0), u32_at(&told, 4)), (7, fuse::MINOR));
    let flags = u32_at(&told, 12);
    assert_eq!(flags & init::MAX_PAGES, init::MAX_PAGES);
    // Nothing that would keep what changes on the host from being seen, and no locks of the host's.
    assert_eq!(flags & (1 << 16 | 1 << 1 | 1 << 10 | 1 << 20), 0);
    assert_eq!(u32_at(&told, 20) as usize, MAX_DATA);
    assert_eq!(guest.ask(op::INIT, 0, &[&words([8, 0, 0, 0])]), Err(libc::EPROTO));
    assert_eq!(guest.ask(op::INIT, 0, &[&words([7, 30, 0, 0])]), Err(libc::EPROTO));
}

#[test]
fn a_file_is_written_read_and_found_again() {
    let (dir, mut guest) = (folder(), Guest::new());
    let root = guest.volume(dir.path(), false);
    let (file, handle) = guest.create(root, "file", libc::O_RDWR | libc::O_EXCL, 0o640).unwrap();
    assert_eq!(guest.write(file, (handle, 0), b"hello", (0, libc::O_RDWR)), Ok(5));
    assert_eq!(guest.read(file, handle, 1, 100).unwrap(), b"ello");
    assert_eq!(fs::read(dir.path().join("file")).unwrap(), b"hello");
    assert_eq!(guest.look_up(root, "file"), Ok(file), "the same file is the same node");
    assert_eq!(guest.create(root, "file", libc::O_RDWR | libc::O_EXCL, 0o640), Err(libc::EEXIST));
    let (again, second) = guest.create(root, "file", libc::O_RDONLY, 0o640).unwrap();
    assert_eq!(again, file);
    assert_eq!(guest.write(file, (second, 0), b"x", (0, 0)), Err(libc::EBADF), "it is open to be read");
    // The host's own changes are there at once.
    fs::write(dir.path().join("file"), "changed").unwrap();
    assert_eq!(guest.read(file, handle, 0, 100).unwrap(), b"changed");
    let told = guest.ask(op::GETATTR, file, &[&words([0, 0]), &longs([0])]).unwrap();
    assert_eq!((u64_at(&told, 0), u64_at(&told, 16 + 8)), (0, 7), "its size, which may not be kept");
    for handle in [handle, second] {
        assert_eq!(guest.ask(op::FLUSH, file, &[&longs([handle, 0, 0])]).map(drop), Ok(()));
        assert_eq!(guest.ask(op::FSYNC, file, &[&longs([handle]), &words([0, 0])]).map(drop), Ok(()));
        guest.ask(op::RELEASE, file, &[&longs([handle, 0, 0])]).unwrap();
        assert_eq!(guest.read(file, handle, 0, 1), Err(libc::EBADF));
    }
    assert_eq!(guest.look_up(root, "none"), Err(libc::ENOENT));
}

#[test]
fn what_is_appended_goes_to_the_end_and_what_comes_from_a_mapping_does_not() {
    let (dir, mut guest) = (folder(), Guest::new());
    fs::write(dir.path().join("log"), "0123").unwrap();
    let root = guest.volume(dir.path(), false);
    let log = guest.look_up(root, "log").unwrap();
    let flags = libc::O_WRONLY | libc::O_APPEND;
    let handle = guest.open(log, flags).unwrap();
    // The offset is of a guest that does not know what the host has added.
    guest.write(log, (handle, 0), b"45", (0, flags)).unwrap();
    guest.write(log, (handle, 1), b"X", (fuse::WRITE_CACHE, flags)).unwrap();
    assert_eq!(fs::read(dir.path().join("log")).unwrap(), b"0X2345");
}

#[test]
fn files_are_made_as_who_asked_with_the_mode_that_was_asked_for() {
    let (dir, mut guest) = (folder(), Guest::new());
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let root = guest.volume(dir.path(), false);
    guest.user = (1234, 5678);
    guest.create(root, "file", libc::O_WRONLY, 0o600).unwrap();
    guest.ask(op::MKDIR, root, &[&words([0o700, 0]), &text("folder")]).unwrap();
    guest.ask(op::SYMLINK, root, &[&text("link"), &text("/etc/shadow")]).unwrap();
    guest.ask(op::MKNOD, root, &[&words([libc::S_IFIFO | 0o600, 0, 0, 0]), &text("pipe")]).unwrap();
    for name in ["file", "folder", "link", "pipe"] {
        let made = fs::symlink_metadata(dir.path().join(name)).unwrap();
        assert_eq!((made.uid(), made.gid()), (1234, 5678), "{name}");
    }
    // And nothing that follows is.
    guest.user = (0, 0);
    guest.create(root, "other", libc::O_WRONLY, 0o600).unwrap();
    assert_eq!(fs::metadata(dir.path().join("other")).unwrap().uid(), 0);
    guest.user = (u32::MAX, 0);
    assert_eq!(guest.create(root, "nobody", libc::O_WRONLY, 0o600), Err(libc::EINVAL));
}

#[test]
fn no_device_is_made_and_nothing_but_files_and_folders_is_opened() {
    let (dir, mut guest) = (folder(), Guest::new());
    let root = guest.volume(dir.path(), false);
    for kind in [libc::S_IFCHR, libc::S_IFBLK, libc::S_IFDIR, libc::S_IFLNK] {
        let made = guest.ask(op::MKNOD, root, &[&words([kind | 0o666, 0x103, 0, 0]), &text("null")]);
        assert_eq!(made, Err(libc::EPERM), "{kind:o}");
    }
    let null = rustix::fs::makedev(1, 3);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        dir.path().join("null"),
        FileType::CharacterDevice,
        Mode::from_raw_mode(0o666),
        null,
    )
    .unwrap();
    guest.ask(op::MKNOD, root, &[&words([libc::S_IFIFO | 0o666, 0, 0, 0]), &text("pipe")]).unwrap();
    symlink("/etc/passwd", dir.path().join("link")).unwrap();
    for name in ["null", "pipe", "link"] {
        let node = guest.look_up(root, name).unwrap();
        assert_eq!(guest.open(node, libc::O_RDWR), Err(libc::ENXIO), "{name}");
        assert_eq!(guest.create(root, name, libc::O_RDWR, 0o666), Err(libc::ENXIO), "{name}");
        assert_eq!(guest.ask(op::OPENDIR, node, &[&words([0, 0])]), Err(libc::ENOTDIR));
        assert_eq!(guest.set(node, fattr::SIZE, (0, 0, 0)), Err(libc::EINVAL));
    }
    let told = guest.ask(op::LOOKUP, root, &[&text("null")]).unwrap();
    assert_eq!(u32_at(&told, 40 + 76), 0, "a device of the host has no number in the guest");
}

#[test]
fn no_name_leads_out_of_a_volume() {
    let (dir, mut guest) = (folder(), Guest::new());
    fs::create_dir_all(dir.path().join("volume/inner")).unwrap();
    fs::write(dir.path().join("secret"), "x").unwrap();
    symlink("..", dir.path().join("volume/up")).unwrap();
    symlink(dir.path(), dir.path().join("volume/away")).unwrap();
    let root = guest.volume(&dir.path().join("volume"), false);
    for name in ["..", ".", "", "../secret", "inner/..", "/etc", "inner/"] {
        assert_eq!(guest.look_up(root, name), Err(libc::EINVAL), "{name:?}");
        assert_eq!(guest.create(root, name, libc::O_RDWR, 0o600), Err(libc::EINVAL), "{name:?}");
        let made = guest.ask(op::MKDIR, root, &[&words([0o700, 0]), &text(name)]);
        assert_eq!(made, Err(libc::EINVAL), "{name:?}");
        assert_eq!(guest.ask(op::UNLINK, root, &[&text(name)]), Err(libc::EINVAL), "{name:?}");
        assert_eq!(guest.rename((root, "inner"), (root, name), 0), Err(libc::EINVAL), "{name:?}");
    }
    for link in ["up", "away"] {
        // It is what it says, and leads nowhere.
        let node = guest.look_up(root, link).unwrap();
        assert_eq!(guest.look_up(node, "secret"), Err(libc::ENOTDIR));
        assert!(guest.ask(op::READLINK, node, &[]).is_ok());
        assert_eq!(guest.create(node, "new", libc::O_RDWR, 0o600), Err(libc::ENOTDIR));
    }
    assert!(!dir.path().join("new").exists());
}

#[test]
fn nothing_goes_from_one_volume_to_another() {
    let (dir, mut guest) = (folder(), Guest::new());
    for name in ["a", "b"] {
        fs::create_dir(dir.path().join(name)).unwrap();
        fs::write(dir.path().join(name).join("file"), name).unwrap();
    }
    let a = guest.volume(&dir.path().join("a"), false);
    let b = guest.volume(&dir.path().join("b"), false);
    let file = guest.look_up(a, "file").unwrap();
    assert_eq!(guest.ask(op::LINK, b, &[&longs([file]), &text("mine")]), Err(libc::EXDEV));
    assert_eq!(guest.rename((a, "file"), (b, "mine"), 0), Err(libc::EXDEV));
    assert_eq!(guest.rename((a, "file"), (ROOT, "mine"), 0), Err(libc::EXDEV));
    assert_eq!(guest.rename((ROOT, "0"), (a, "mine"), 0), Err(libc::EROFS));
    assert_eq!(guest.create(ROOT, "mine", libc::O_RDWR, 0o600), Err(libc::EROFS));
    assert_eq!(guest.ask(op::LINK, a, &[&longs([file]), &text("mine")]).map(drop), Ok(()));
    assert_eq!(fs::read(dir.path().join("a/mine")).unwrap(), b"a");
    assert_eq!(guest.rename((a, "mine"), (a, "file"), 1), Err(libc::EEXIST), "RENAME_NOREPLACE");
    assert_eq!(guest.rename((a, "mine"), (a, "other"), 4), Err(libc::EINVAL), "RENAME_WHITEOUT");
    assert_eq!(guest.rename((a, "mine"), (a, "other"), 0).map(drop), Ok(()));
    assert!(dir.path().join("a/other").exists());
}

#[test]
fn a_read_only_volume_is_so_whatever_the_guest_asks_for() {
    let (dir, mut guest) = (folder(), Guest::new());
    fs::write(dir.path().join("file"), "as it was").unwrap();
    fs::create_dir(dir.path().join("folder")).unwrap();
    let writable = guest.volume(dir.path(), false);
    let root = guest.volume(dir.path(), true);
    let file = guest.look_up(root, "file").unwrap();
    assert_ne!(guest.look_up(writable, "file"), Ok(file), "what is writable there is not the same here");
    for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_RDONLY | libc::O_TRUNC] {
        assert_eq!(guest.open(file, flags), Err(libc::EROFS));
    }
    let handle = guest.open(file, libc::O_RDONLY).unwrap();
    assert_eq!(guest.write(file, (handle, 0), b"x", (0, libc::O_RDWR)), Err(libc::EBADF));
    let refused = [
        guest.create(root, "new", libc::O_RDWR, 0o600).map(|_| Vec::new()),
        guest.create(root, "file", libc::O_RDONLY, 0o600).map(|_| Vec::new()),
        guest.ask(op::MKDIR, root, &[&words([0o700, 0]), &text("new")]),
        guest.ask(op::MKNOD, root, &[&words([libc::S_IFREG | 0o600, 0, 0, 0]), &text("new")]),
        guest.ask(op::SYMLINK, root, &[&text("new"), &text("x")]),
        guest.ask(op::LINK, root, &[&longs([file]), &text("new")]),
        guest.ask(op::UNLINK, root, &[&text("file")]),
        guest.ask(op::RMDIR, root, &[&text("folder")]),
        guest.rename((root, "file"), (root, "new"), 0),
        guest.rename((writable, "file"), (root, "new"), 0),
        guest.set(file, fattr::SIZE, (0, 0, 0)),
        guest.set(file, fattr::MODE, (0, 0o777, 0)),
        guest.set(file, fattr::UID, (0, 0, 1)),
        guest.set(file, fattr::MTIME_NOW, (0, 0, 0)),
        guest.ask(op::SETXATTR, file, &[&words([1, 0]), &text("user.a"), b"x"]),
        guest.ask(op::REMOVEXATTR, file, &[&text("user.a")]),
    ];
    for (place, outcome) in refused.into_iter().enumerate() {
        assert_eq!(outcome, Err(libc::EROFS), "number {place}");
    }
    let copied = guest.ask(op::COPY_FILE_RANGE, file, &[&longs([handle, 0, file, handle, 0, 1, 0])]);
    assert_eq!(copied, Err(libc::EBADF));
    let allocated = guest.ask(op::FALLOCATE, file, &[&longs([handle, 0, 1 << 20]), &words([0, 0])]);
    assert_eq!(allocated, Err(libc::EBADF));
    assert_eq!(fs::read(dir.path().join("file")).unwrap(), b"as it was");
}

#[test]
fn attributes_are_set() {
    let (dir, mut guest) = (folder(), Guest::new());
    let path = dir.path().join("file");
    fs::write(&path, "0123456789").unwrap();
    let root = guest.volume(dir.path(), false);
    let file = guest.look_up(root, "file").unwrap();
    let told = guest.set(file, fattr::SIZE | fattr::MODE, (4, 0o4711, 0)).unwrap();
    assert_eq!((u64_at(&told, 24), u32_at(&told, 16 + 60) & 0o7777), (4, 0o4711));
    guest.set(file, fattr::UID | fattr::GID, (0, 0, 77)).unwrap();
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.size(), meta.mode() & 0o7000), (77, 77, 4, 0));
    let times =
        [&words([fattr::MTIME, 0])[..], &longs([0, 0, 0, 5, 1_000_000, 0]), &words([9, 8, 0, 0, 0, 0, 0, 0])];
    guest.ask(op::SETATTR, file, &times).unwrap();
    assert_eq!(
        (fs::metadata(&path).unwrap().mtime(), fs::metadata(&path).unwrap().mtime_nsec()),
        (1_000_000, 8)
    );
    assert_eq!(guest.set(root, fattr::SIZE, (0, 0, 0)), Err(libc::EISDIR));
    assert_eq!(guest.set(file, fattr::UID, (0, 0, u32::MAX)), Err(libc::EINVAL));
}

#[test]
fn set_user_bits_go_when_the_guest_says_so() {
    let (dir, mut guest) = (folder(), Guest::new());
    let path = dir.path().join("file");
    fs::write(&path, "x").unwrap();
    let root = guest.volume(dir.path(), false);
    let file = guest.look_up(root, "file").unwrap();
    let handle = guest.open(file, libc::O_RDWR).unwrap();
    let mode = || fs::metadata(&path).unwrap().mode() & 0o7777;
    let set = || fs::set_permissions(&path, fs::Permissions::from_mode(0o4755)).unwrap();
    set();
    guest.write(file, (handle, 0), b"y", (0, libc::O_RDWR)).unwrap();
    assert_eq!(mode(), 0o4755, "root may");
    guest.write(file, (handle, 0), b"y", (fuse::WRITE_KILL_SUIDGID, libc::O_RDWR)).unwrap();
    assert_eq!(mode(), 0o755);
    set();
    guest.set(file, fattr::SIZE | fattr::KILL_SUIDGID, (0, 0, 0)).unwrap();
    assert_eq!(mode(), 0o755);
    set();
    let truncate = words([(libc::O_WRONLY | libc::O_TRUNC).unsigned_abs(), fuse::OPEN_KILL_SUIDGID]);
    guest.ask(op::OPEN, file, &[&truncate]).unwrap();
    assert_eq!(mode(), 0o755);
}

#[test]
fn extended_attributes_are_kept_and_access_lists_are_not_known() {
    let (dir, mut guest) = (folder(), Guest::new());
    fs::write(dir.path().join("file"), "x").unwrap();
    let root = guest.volume(dir.path(), false);
    let file = guest.look_up(root, "file").unwrap();
    match guest.ask(op::SETXATTR, file, &[&words([5, 0]), &text("user.a"), b"value"]) {
        // A file system without them.
        Err(libc::EOPNOTSUPP) => return,
        set => drop(set.unwrap()),
    }
    let mut get = |size: u32, name: &str| guest.ask(op::GETXATTR, file, &[&words([size, 0]), &text(name)]);
    assert_eq!(get(100, "user.a").unwrap(), b"value");
    assert_eq!(u32_at(&get(0, "user.a").unwrap(), 0), 5);
    assert_eq!(get(4, "user.a"), Err(libc::ERANGE));
    assert_eq!(get(100, "user.b"), Err(libc::ENODATA));
    assert_eq!(get(100, "system.posix_acl_access"), Err(libc::EOPNOTSUPP));
    assert_eq!(guest.ask(op::LISTXATTR, file, &[&words([100, 0])]).unwrap(), b"user.a\0");
    guest.ask(op::REMOVEXATTR, file, &[&text("user.a")]).unwrap();
    assert_eq!(guest.ask(op::LISTXATTR, file, &[&words([100, 0])]).unwrap(), b"");
}

#[test]
fn a_folder_of_any_size_is_listed_whatever_the_room() {
    let (dir, mut guest) = (folder(), Guest::new());
    let mut names: Vec<String> = (0..300).map(|n| format!("{n:0width$}", width = 1 + n % 200)).collect();
    names.dedup();
    names.iter().for_each(|name| fs::write(dir.path().join(name), "").unwrap());
    let root = guest.volume(dir.path(), false);
    names.sort();
    for room in [512, 4096, 65536] {
        let mut listed: Vec<String> = guest.list(root, room).into_iter().map(|(name, _)| name).collect();
        listed.retain(|name| name != "." && name != "..");
        listed.sort();
        assert_eq!(listed, names, "with room for {room}");
    }
    let told = guest.ask(op::LOOKUP, root, &[&text(&names[7])]).unwrap();
    let listed = guest.list(root, 4096);
    let entry = listed.iter().find(|(name, _)| *name == names[7]).unwrap();
    assert_eq!(entry.1, u64_at(&told, 40), "its number is the same in the list and by itself");
}

#[test]
fn data_and_holes_are_found_and_space_is_taken() {
    let (dir, mut guest) = (folder(), Guest::new());
    let root = guest.volume(dir.path(), false);
    let (file, handle) = guest.create(root, "file", libc::O_RDWR, 0o600).unwrap();
    guest.write(file, (handle, 1 << 20), b"x", (0, libc::O_RDWR)).unwrap();
    let mut seek = |at: u64, whence: i32| {
        let told = guest.ask(op::LSEEK, file, &[&longs([handle, at]), &words([whence.unsigned_abs(), 0])]);
        told.map(|told| u64_at(&told, 0))
    };
    assert!(matches!(seek(0, libc::SEEK_DATA), Ok(0 | 0x10_0000)), "where the file system knows");
    assert_eq!(seek(2 << 20, libc::SEEK_DATA), Err(libc::ENXIO));
    assert_eq!(seek(0, libc::SEEK_SET), Err(libc::EINVAL));
    let (other, to) = guest.create(root, "copy", libc::O_RDWR, 0o600).unwrap();
    let copied =
        guest.ask(op::COPY_FILE_RANGE, file, &[&longs([handle, 0, other, to, 0, 2 << 20, 0])]).unwrap();
    assert_eq!(u32_at(&copied, 0), (1 << 20) + 1);
    assert_eq!(guest.read(other, to, 1 << 20, 10).unwrap(), b"x");
    let space = guest.ask(op::STATFS, root, &[]).unwrap();
    assert_eq!(space.len(), 80);
    assert!(u64_at(&space, 0) > 0);
    guest.ask(op::STATFS, ROOT, &[]).unwrap();
}

#[test]
fn a_single_file_is_a_volume() {
    let (dir, mut guest) = (folder(), Guest::new());
    let path = dir.path().join("hosts");
    fs::write(&path, "127.0.0.1 localhost\n").unwrap();
    let hosts = guest.volume(&path, false);
    let handle = guest.open(hosts, libc::O_RDWR).unwrap();
    assert_eq!(guest.read(hosts, handle, 0, 9).unwrap(), b"127.0.0.1");
    assert_eq!(guest.look_up(hosts, "x"), Err(libc::ENOTDIR));
    guest.write(hosts, (handle, 0), b"::1", (0, libc::O_RDWR)).unwrap();
    assert!(fs::read_to_string(&path).unwrap().starts_with("::1"));
}

#[test]
fn the_same_volume_is_shared_and_goes_with_its_last_owner() {
    let (dir, mut guest) = (folder(), Guest::new());
    fs::write(dir.path().join("file"), "x").unwrap();
    let root = guest.volume(dir.path(), false);
    let share = |guest: &Guest, identity: &str, owner: &str| {
        let root = rustix::fs::open(dir.path(), OFlags::PATH, Mode::empty()).unwrap();
        let (identity, owner) = (identity.to_owned(), owner.to_owned());
        guest.server.share(Share { root, read_only: false, identity, owner }).unwrap()
    };
    let same = format!("{} false", dir.path().display());
    assert_eq!(share(&guest, &same, "c2"), 0);
    assert_eq!(share(&guest, "other", "c2"), 1);
    let file = guest.look_up(root, "file").unwrap();
    let handle = guest.open(file, libc::O_RDONLY).unwrap();
    assert!(guest.server.release("c1").is_empty());
    assert_eq!(guest.look_up(root, "file"), Ok(file), "the other one still has it");
    assert_eq!(guest.server.release("c2"), [0, 1]);
    assert!(guest.server.release("c2").is_empty());
    assert_eq!(guest.look_up(root, "file"), Err(STALE));
    assert_eq!(guest.look_up(ROOT, "0"), Err(libc::ENOENT));
    assert_eq!(guest.read(file, handle, 0, 1), Err(STALE));
    eventually_none_open(&guest);
    assert_eq!(share(&guest, &same, "c3"), 2, "a number means one volume for ever");
}

/// Closing is done by another thread.
fn eventually_none_open(guest: &Guest) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while guest.server.open_now() != (0, 0) {
        assert!(std::time::Instant::now() < deadline, "{:?} stay open", guest.server.open_now());
        std::thread::yield_now();
    }
}

#[test]
fn what_a_guest_may_have_open_is_bounded() {
    let (dir, mut guest) = (folder(), Guest::with(Limits { nodes: 10, handles: 5 }));
    (0..20).for_each(|n| fs::write(dir.path().join(n.to_string()), "").unwrap());
    let root = guest.volume(dir.path(), false);
    let found: Vec<_> = (0..20).map(|n| guest.look_up(root, &n.to_string())).collect();
    assert_eq!(found.iter().filter(|node| **node == Err(libc::ENFILE)).count(), 11);
    let file = *found[0].as_ref().unwrap();
    let opened: Vec<_> = (0..8).map(|_| guest.open(file, libc::O_RDONLY)).collect();
    assert_eq!(opened.iter().filter(|handle| **handle == Err(libc::ENFILE)).count(), 3);
    // What it forgets it may have again, and it cannot forget what was never told.
    for node in found.iter().skip(1).flatten() {
        guest.ask(op::FORGET, *node, &[&longs([u64::MAX])]).unwrap();
    }
    guest.ask(op::BATCH_FORGET, 0, &[&words([2, 0]), &longs([root, 1000, ROOT, 1000])]).unwrap();
    guest.ask(op::BATCH_FORGET, 0, &[&words([u32::MAX, 0]), &longs([file])]).unwrap();
    let again = || guest.server.nodes.count();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while again() > 2 {
        assert!(std::time::Instant::now() < deadline);
        std::thread::yield_now();
    }
    assert!(guest.look_up(root, "15").is_ok());
}

#[test]
fn a_driver_that_begins_anew_finds_the_volumes_and_nothing_else() {
    let (dir, mut guest) = (folder(), Guest::new());
    fs::write(dir.path().join("file"), "x").unwrap();
    let root = guest.volume(dir.path(), false);
    let file = guest.look_up(root, "file").unwrap();
    let handle = guest.open(file, libc::O_RDONLY).unwrap();
    guest.ask(op::INIT, 0, &[&words([7, 41, 1 << 20, u32::MAX]), &[0; 48]]).unwrap();
    assert_eq!(guest.open(file, libc::O_RDONLY), Err(STALE));
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while guest.server.handles.count() > 0 {
        assert!(std::time::Instant::now() < deadline);
        std::thread::yield_now();
    }
    assert_eq!(guest.read(root, handle, 0, 1), Err(libc::EBADF));
    assert_eq!(guest.look_up(ROOT, "0"), Ok(root));
}

#[test]
fn file_systems_below_a_volume_do_not_share_numbers() {
    let mut guest = Guest::new();
    let [here, there] = [folder(), TempDir::new_in("/dev/shm").unwrap()];
    let a = guest.volume(here.path(), false);
    let b = guest.volume(there.path(), false);
    let mut number =
        |node| u64_at(&guest.ask(op::GETATTR, node, &[&words([0, 0]), &longs([0])]).unwrap(), 16);
    let (a, b) = (number(a), number(b));
    assert_eq!(a, fs::metadata(here.path()).unwrap().ino(), "of the first it is the host's own");
    let same_device = fs::metadata(here.path()).unwrap().dev() == fs::metadata(there.path()).unwrap().dev();
    assert_eq!(b == fs::metadata(there.path()).unwrap().ino(), same_device);
}

#[test]
fn what_is_no_request_is_refused_or_ignored() {
    let (dir, mut guest) = (folder(), Guest::new());
    let root = guest.volume(dir.path(), false);
    for opcode in (0..64)
        .chain([4096, u32::MAX])
        .filter(|opcode| ![op::FORGET, op::BATCH_FORGET, op::INTERRUPT, op::DESTROY].contains(opcode))
    {
        for node in [ROOT, root, 0, 999, u64::MAX] {
            // Without arguments; few calls need none.
            match guest.ask(opcode, node, &[]) {
                Ok(_) => assert!([op::GETATTR, op::STATFS, op::OPENDIR].contains(&opcode), "{opcode}"),
                Err(error) => assert!(error > 0),
            }
        }
    }
    let mut answer = Vec::new();
    guest.server.handle(&[0; 39], 4096, &mut answer);
    guest.server.handle(&[0xff; 100], 4096, &mut answer);
    assert!(answer.is_empty());
    // No room for what there is to say.
    let mut request = vec![0; 40];
    request[..4].copy_from_slice(&40_u32.to_ne_bytes());
    request[4..8].copy_from_slice(&op::STATFS.to_ne_bytes());
    request[16..24].copy_from_slice(&root.to_ne_bytes());
    guest.server.handle(&request, 8, &mut answer);
    assert!(answer.is_empty());
    guest.server.handle(&request, 20, &mut answer);
    assert_eq!((answer.len(), i32_at(&answer, 4)), (OUT_HEADER, -libc::EINVAL));
    assert_eq!(FOPEN_NOFLUSH, 32);
}

/// One that closes is in no table, and counts.
#[test]
fn what_is_being_closed_counts() {
    let (dir, mut guest) = (folder(), Guest::with(Limits { nodes: 10, handles: 2 }));
    fs::write(dir.path().join("file"), "").unwrap();
    let root = guest.volume(dir.path(), false);
    let file = guest.look_up(root, "file").unwrap();
    let first = guest.open(file, libc::O_RDONLY).unwrap();
    guest.open(file, libc::O_RDONLY).unwrap();
    let closing = guest.server.handles.remove(first).unwrap();
    assert_eq!(guest.open(file, libc::O_RDONLY), Err(libc::ENFILE));
    drop(closing);
    guest.open(file, libc::O_RDONLY).unwrap();
}

#[test]
fn an_owner_that_is_gone_gets_nothing_that_was_still_looked_at() {
    let guest = Guest::new();
    let [gone, other] = ["c1", "c2"].map(|owner| guest.server.volumes().begin(owner));
    guest.server.release("c1");
    assert_eq!(guest.server.volumes().finish(gone), Err(Errno::CANCELED));
    assert_eq!(guest.server.volumes().finish(other), Ok(()));
}

#[test]
fn what_hangs_is_not_waited_for() {
    let (_gate, never) = std::sync::mpsc::channel::<()>();
    let hangs = move || {
        let _ = never.recv();
        Ok(())
    };
    assert_eq!(super::in_time(std::time::Duration::from_millis(50), hangs), Err(Errno::TIMEDOUT));
    assert_eq!(super::in_time(std::time::Duration::from_secs(60), || Ok(7)), Ok(7));
}
