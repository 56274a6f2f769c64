//! The file server and Linux's own FUSE driver, of the kernel that this runs on: by /dev/fuse, where a guest has a virtio device. Needs root.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::thread;

use hartpod_vm::share::server::{Limits, Server, Share};
use hartpod_vm::share::wire::{MAX_ANSWER, MAX_REQUEST};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

/// A mount that only its thread sees, and two views of one folder in it: one that may be written, and one that may not.
struct World {
    host: tempfile::TempDir,
    point: tempfile::TempDir,
}

impl World {
    /// Whether there is FUSE here is for the machine to say.
    fn open() -> Option<Self> {
        let device = OFlags::RDWR | OFlags::CLOEXEC;
        let Ok(device) = rustix::fs::open("/dev/fuse", device, Mode::empty()) else {
            eprintln!("skipped: needs /dev/fuse");
            return None;
        };
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).unwrap();
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        let [host, point] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        fs::set_permissions(host.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other",
            device.as_raw_fd()
        );
        let options = std::ffi::CString::new(options).unwrap();
        mount("hartpod", point.path(), "fuse", MountFlags::NODEV, options.as_c_str()).unwrap();
        let server = Server::new(Limits::default());
        for read_only in [false, true] {
            let root = rustix::fs::open(host.path(), OFlags::PATH, Mode::empty()).unwrap();
            let identity = read_only.to_string();
            server.share(Share { root, read_only, identity, owner: "c1".to_owned() }).unwrap();
        }
        thread::spawn(move || serve(&device, &server));
        Some(Self { host, point })
    }

    fn host(&self, name: &str) -> PathBuf {
        self.host.path().join(name)
    }

    /// By the volume that may be written.
    fn guest(&self, name: &str) -> PathBuf {
        self.point.path().join("0").join(name)
    }

    fn read_only(&self, name: &str) -> PathBuf {
        self.point.path().join("1").join(name)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.point.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

fn serve(device: &OwnedFd, server: &Server) {
    let mut request = vec![0; MAX_REQUEST];
    let mut answer = Vec::new();
    loop {
        let count = match rustix::io::read(device, &mut request) {
            Ok(count) => count,
            Err(rustix::io::Errno::INTR | rustix::io::Errno::NOENT | rustix::io::Errno::AGAIN) => continue,
            // Unmounted.
            Err(_) => return,
        };
        answer.clear();
        server.handle(&request[..count], MAX_ANSWER, &mut answer);
        if !answer.is_empty() {
            // Of a request that was interrupted nobody wants to hear.
            let _ = rustix::io::write(device, &answer);
        }
    }
}

#[test]
fn a_kernel_reads_and_writes_what_is_there() {
    let Some(world) = World::open() else { return };
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[2]).collect();
    fs::write(world.guest("large"), &bytes).unwrap();
    assert!(fs::read(world.host("large")).unwrap() == bytes);
    assert!(fs::read(world.guest("large")).unwrap() == bytes);
    assert!(fs::read(world.read_only("large")).unwrap() == bytes);
    let meta = fs::metadata(world.guest("large")).unwrap();
    assert_eq!((meta.len(), meta.ino()), (3_000_000, fs::metadata(world.host("large")).unwrap().ino()));
    let mut log = OpenOptions::new().append(true).create(true).open(world.guest("log")).unwrap();
    for line in ["one\n", "two\n"] {
        log.write_all(line.as_bytes()).unwrap();
        let mut theirs = OpenOptions::new().append(true).open(world.host("log")).unwrap();
        theirs.write_all(b"host\n").unwrap();
    }
    assert_eq!(fs::read_to_string(world.host("log")).unwrap(), "one\nhost\ntwo\nhost\n");
    log.sync_all().unwrap();
}

#[test]
fn what_changes_on_the_host_is_seen_at_once() {
    let Some(world) = World::open() else { return };
    fs::write(world.host("file"), "old").unwrap();
    let mut held = File::open(world.guest("file")).unwrap();
    let mut text = String::new();
    held.read_to_string(&mut text).unwrap();
    assert_eq!(text, "old");
    for new in ["longer than before", "x", "another"] {
        fs::write(world.host("file"), new).unwrap();
        assert_eq!(fs::metadata(world.guest("file")).unwrap().len(), new.len() as u64);
        assert_eq!(fs::read_to_string(world.guest("file")).unwrap(), new);
        // By one who had it open all the time, too.
        held.seek(SeekFrom::Start(0)).unwrap();
        text.clear();
        held.read_to_string(&mut text).unwrap();
        assert_eq!(text, new);
    }
    // As the kubelet swaps a generation.
    for generation in ["1", "2", "3"] {
        fs::create_dir(world.host(generation)).unwrap();
        fs::write(world.host(generation).join("token"), generation).unwrap();
        symlink(generation, world.host("..data_tmp")).unwrap();
        fs::rename(world.host("..data_tmp"), world.host("..data")).unwrap();
        assert_eq!(fs::read_to_string(world.guest("..data/token")).unwrap(), generation);
    }
    fs::remove_file(world.host("file")).unwrap();
    assert!(!world.guest("file").exists());
    fs::write(world.guest("by-guest"), "x").unwrap();
    assert!(world.read_only("by-guest").exists());
}

#[test]
fn a_mapping_is_written_back() {
    let Some(world) = World::open() else { return };
    fs::write(world.host("mapped"), vec![b'a'; 10_000]).unwrap();
    // dd would not map; what maps and is everywhere is the loader of programs.
    fs::copy("/bin/true", world.guest("true")).unwrap();
    fs::set_permissions(world.guest("true"), fs::Permissions::from_mode(0o755)).unwrap();
    assert!(std::process::Command::new(world.guest("true")).status().unwrap().success());
    let file = OpenOptions::new().read(true).append(true).open(world.guest("mapped")).unwrap();
    {
        use vm_memory_map as map;
        let mut mapping = map::Mapping::shared(&file, 10_000);
        mapping.bytes()[5000] = b'B';
        mapping.sync();
    }
    let seen = fs::read(world.host("mapped")).unwrap();
    assert_eq!((seen.len(), seen[4999], seen[5000], seen[5001]), (10_000, b'a', b'B', b'a'));
}

#[test]
fn names_links_and_modes_are_as_on_any_file_system() {
    let Some(world) = World::open() else { return };
    fs::create_dir_all(world.guest("a/b/c")).unwrap();
    fs::write(world.guest("a/b/file"), "x").unwrap();
    fs::hard_link(world.guest("a/b/file"), world.guest("a/hard")).unwrap();
    symlink("b/file", world.guest("a/soft")).unwrap();
    assert_eq!(fs::read_to_string(world.guest("a/soft")).unwrap(), "x");
    assert_eq!(fs::metadata(world.guest("a/hard")).unwrap().nlink(), 2);
    fs::rename(world.guest("a"), world.guest("z")).unwrap();
    assert_eq!(fs::read_to_string(world.host("z/hard")).unwrap(), "x");
    let names = |path: PathBuf| {
        let mut names: Vec<_> = fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    (0..700).for_each(|n| fs::write(world.guest(&format!("z/b/c/{n}")), "").unwrap());
    assert_eq!(names(world.guest("z/b/c")), names(world.host("z/b/c")));
    fs::set_permissions(world.guest("z/hard"), fs::Permissions::from_mode(0o4755)).unwrap();
    assert_eq!(fs::metadata(world.host("z/hard")).unwrap().mode() & 0o7777, 0o4755);
    std::os::unix::fs::chown(world.guest("z/hard"), Some(77), Some(88)).unwrap();
    let meta = fs::metadata(world.host("z/hard")).unwrap();
    assert_eq!(
        (meta.uid(), meta.gid(), meta.mode() & 0o7777),
        (77, 88, 0o755),
        "and it is no one's program any more"
    );
    let file = OpenOptions::new().write(true).open(world.guest("z/hard")).unwrap();
    file.set_len(100_000).unwrap();
    file.write_all_at(b"end", 99_997).unwrap();
    assert_eq!(fs::metadata(world.host("z/hard")).unwrap().len(), 100_000);
    fs::remove_file(world.guest("z/hard")).unwrap();
    file.write_all_at(b"still", 0).unwrap();
    fs::remove_dir_all(world.guest("z")).unwrap();
    assert_eq!(names(world.host(".")).len(), 0);
    assert_eq!(fs::read_dir(world.point.path()).unwrap_err().raw_os_error(), Some(libc::EACCES));
}

#[test]
fn what_may_not_be_written_is_not() {
    let Some(world) = World::open() else { return };
    fs::write(world.host("file"), "x").unwrap();
    let refused =
        |outcome: std::io::Result<()>| assert_eq!(outcome.unwrap_err().raw_os_error(), Some(libc::EROFS));
    refused(fs::write(world.read_only("file"), "y"));
    refused(fs::write(world.read_only("new"), "y"));
    refused(fs::remove_file(world.read_only("file")));
    refused(fs::create_dir(world.read_only("folder")));
    refused(fs::set_permissions(world.read_only("file"), fs::Permissions::from_mode(0o777)));
    let moved = fs::rename(world.guest("file"), world.read_only("file"));
    assert!(matches!(moved.unwrap_err().raw_os_error(), Some(libc::EXDEV | libc::EROFS)));
    let linked = fs::hard_link(world.read_only("file"), world.guest("linked"));
    assert_eq!(linked.unwrap_err().raw_os_error(), Some(libc::EXDEV));
    assert_eq!(fs::read_to_string(world.host("file")).unwrap(), "x");
}

#[test]
fn users_may_what_modes_let_them() {
    let Some(world) = World::open() else { return };
    fs::write(world.host("roots"), "secret").unwrap();
    fs::set_permissions(world.host("roots"), fs::Permissions::from_mode(0o600)).unwrap();
    // For this thread alone; the kernel checks on behalf of the file system.
    nix::unistd::setfsgid(nix::unistd::Gid::from_raw(2345));
    nix::unistd::setfsuid(nix::unistd::Uid::from_raw(1234));
    let read = fs::read(world.guest("roots"));
    let made = fs::write(world.guest("mine"), "x");
    nix::unistd::setfsuid(nix::unistd::Uid::from_raw(0));
    nix::unistd::setfsgid(nix::unistd::Gid::from_raw(0));
    assert_eq!(read.unwrap_err().raw_os_error(), Some(libc::EACCES));
    made.unwrap();
    let meta = fs::metadata(world.host("mine")).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (1234, 2345));
}

/// A mapping that is written, which no safe wrapper has.
mod vm_memory_map {
    #![allow(unsafe_code)]

    use std::fs::File;
    use std::num::NonZeroUsize;
    use std::os::fd::AsFd as _;
    use std::ptr::NonNull;

    use nix::sys::mman::{MapFlags, MsFlags, ProtFlags, mmap, msync, munmap};

    pub(crate) struct Mapping(NonNull<libc::c_void>, usize);

    impl Mapping {
        pub(crate) fn shared(file: &File, length: usize) -> Self {
            let size = NonZeroUsize::new(length).unwrap();
            let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
            // SAFETY: a new mapping at a place that the kernel chooses overlaps nothing.
            let at = unsafe { mmap(None, size, access, MapFlags::MAP_SHARED, file.as_fd(), 0) };
            Self(at.unwrap(), length)
        }

        pub(crate) fn bytes(&mut self) -> &mut [u8] {
            // SAFETY: the mapping is as long as that, lives as long as `self`, and nobody else has it.
            unsafe { std::slice::from_raw_parts_mut(self.0.as_ptr().cast(), self.1) }
        }

        pub(crate) fn sync(&mut self) {
            // SAFETY: the range is the mapping.
            unsafe { msync(self.0, self.1, MsFlags::MS_SYNC) }.unwrap();
        }
    }

    impl Drop for Mapping {
        fn drop(&mut self) {
            // SAFETY: nothing of it is used afterwards.
            let _ = unsafe { munmap(self.0, self.1) };
        }
    }
}

#[test]
fn the_point_is_no_place_for_files() {
    let Some(world) = World::open() else { return };
    let made = fs::write(world.point.path().join("new"), "x").unwrap_err();
    assert!(matches!(made.raw_os_error(), Some(libc::EROFS | libc::EACCES | libc::ENOENT)), "{made}");
    assert!(!Path::new(&world.point.path().join("2")).exists());
    assert!(!Path::new(&world.point.path().join("00")).exists());
}
