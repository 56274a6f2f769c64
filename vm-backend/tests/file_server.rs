//! hartpod-fs as the process that it is, in its jail: asked what a guest's kernel asks, told of volumes as by the daemon. Needs root.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::fs::{self, File};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use hartpod_vm::launcher::{FileServer, VOLUMES_SOCKET, VmmProcess, is_file_server_gone, start_file_server};
use hartpod_vm::share::fuse::{IN_HEADER, OUT_HEADER, ROOT, fattr, op};
use hartpod_vm::share::wire::{ANSWER_HEADER, MAX_ANSWER, MAX_DATA, Request, answer};
use rustix::fs::{Mode, OFlags};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

const PATIENCE: Duration = Duration::from_secs(10);

struct Served {
    dir: tempfile::TempDir,
    process: VmmProcess,
    vmm: Option<OwnedFd>,
    number: u64,
    user: u32,
}

impl Served {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = File::create(dir.path().join("log")).unwrap();
        let program = Path::new(env!("CARGO_BIN_EXE_hartpod-vmm"));
        let (waiting, vmm) = start_file_server(program, dir.path(), log.into()).unwrap();
        assert!(!is_file_server_gone(dir.path()), "nobody knows it yet");
        let process = waiting.boot().unwrap();
        FileServer::publish(dir.path()).unwrap();
        rustix::net::sockopt::set_socket_timeout(&vmm, rustix::net::sockopt::Timeout::Recv, Some(PATIENCE))
            .unwrap();
        Self { dir, process, vmm: Some(vmm), number: 0, user: 0 }
    }

    fn daemon(&self) -> FileServer {
        FileServer::connect_within(self.dir.path(), PATIENCE).unwrap()
    }

    fn share(&self, path: &Path, read_only: bool, owner: &str) -> u64 {
        let root = rustix::fs::open(path, OFlags::PATH, Mode::empty()).unwrap();
        let identity = format!("{} {read_only}", path.display());
        self.daemon().share(root.as_fd(), read_only, &identity, owner).unwrap()
    }

    fn send(&mut self, opcode: u32, node: u64, parts: &[&[u8]]) -> u64 {
        self.number += 1;
        let rest = parts.concat();
        let length = u32::try_from(IN_HEADER + rest.len()).unwrap();
        let header = Request { number: self.number, room: u32::try_from(MAX_ANSWER).unwrap() };
        let packet = [
            &header.to_bytes()[..],
            &length.to_ne_bytes(),
            &opcode.to_ne_bytes(),
            &self.number.to_ne_bytes(),
            &node.to_ne_bytes(),
            &words([self.user, self.user, 1, 0]),
            &rest,
        ];
        send(self.vmm.as_ref().unwrap(), &packet.concat(), SendFlags::NOSIGNAL).unwrap();
        self.number
    }

    fn hear(&self) -> (u64, Result<Vec<u8>, i32>) {
        let mut packet = vec![0; ANSWER_HEADER + MAX_ANSWER];
        let count = recv(self.vmm.as_ref().unwrap(), &mut packet, RecvFlags::empty());
        let count = count.unwrap_or_else(|error| panic!("no answer ({error}): {}", self.log())).0;
        assert!(count > 0, "it has ended: {}", self.log());
        let (number, answer) = answer(&packet[..count]).unwrap();
        let error = i32::from_ne_bytes(answer[4..8].try_into().unwrap());
        (number, if error == 0 { Ok(answer[OUT_HEADER..].to_vec()) } else { Err(-error) })
    }

    fn ask(&mut self, opcode: u32, node: u64, parts: &[&[u8]]) -> Result<Vec<u8>, i32> {
        let asked = self.send(opcode, node, parts);
        let (number, told) = self.hear();
        assert_eq!(number, asked);
        told
    }

    fn look_up(&mut self, folder: u64, name: &str) -> Result<u64, i32> {
        self.ask(op::LOOKUP, folder, &[&text(name)]).map(|told| u64_at(&told, 0))
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    fn ended(&self) -> rustix::process::WaitIdStatus {
        waitid(WaitId::PidFd(self.process.pidfd.as_fd()), WaitIdOptions::EXITED).unwrap().unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = pidfd_send_signal(&self.process.pidfd, Signal::KILL);
        let _ = waitid(WaitId::PidFd(self.process.pidfd.as_fd()), WaitIdOptions::EXITED);
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

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Each call once: what the jail forbids would end the process.
#[test]
fn everything_that_a_guest_asks_for_is_done_in_the_jail() {
    let (volume, mut served) = (tempfile::tempdir().unwrap(), Served::start());
    fs::set_permissions(volume.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let number = served.share(volume.path(), false, "c1");
    served.ask(op::INIT, 0, &[&words([7, 41, 1 << 20, u32::MAX]), &[0; 48]]).unwrap();
    let root = served.look_up(ROOT, &number.to_string()).unwrap();
    served.user = 1234;
    let flags = libc::O_RDWR.unsigned_abs();
    let created = served.ask(op::CREATE, root, &[&words([flags, 0o4755, 0, 0]), &text("file")]).unwrap();
    let (file, handle) = (u64_at(&created, 0), u64_at(&created, 128));
    served.user = 0;
    let made = fs::metadata(volume.path().join("file")).unwrap();
    assert_eq!((made.uid(), made.gid(), made.mode() & 0o7777), (1234, 1234, 0o4755));
    let data: Vec<u8> = (0..MAX_DATA).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
    let size = u32::try_from(MAX_DATA).unwrap();
    for (at, how, open) in [(0, 0, 2), (1, 4, 2), (0, 0, 2 | 0o2000)] {
        let written =
            served.ask(op::WRITE, file, &[&longs([handle, at]), &words([size, how, 0, 0, open, 0]), &data]);
        assert_eq!(written.unwrap(), [words([size]), words([0])].concat());
    }
    assert_eq!(fs::metadata(volume.path().join("file")).unwrap().mode() & 0o7777, 0o755);
    let read = served.ask(op::READ, file, &[&longs([handle, 1]), &words([size, 0, 0, 0, 0, 0])]).unwrap();
    assert!(read == data);
    let small = [&words([0o700, 0])[..], &text("folder")];
    let folder = u64_at(&served.ask(op::MKDIR, root, &small).unwrap(), 0);
    served.ask(op::SYMLINK, folder, &[&text("link"), &text("../file")]).unwrap();
    let link = served.look_up(folder, "link").unwrap();
    assert_eq!(served.ask(op::READLINK, link, &[]).unwrap(), b"../file");
    served.ask(op::MKNOD, root, &[&words([libc::S_IFIFO | 0o600, 0, 0, 0]), &text("pipe")]).unwrap();
    served.ask(op::LINK, folder, &[&longs([file]), &text("hard")]).unwrap();
    served.ask(op::RENAME2, root, &[&longs([folder]), &words([1, 0]), &text("pipe"), &text("tube")]).unwrap();
    served.ask(op::GETATTR, file, &[&words([0, 0]), &longs([0])]).unwrap();
    let everything =
        fattr::MODE | fattr::UID | fattr::GID | fattr::SIZE | fattr::MTIME_NOW | fattr::KILL_SUIDGID;
    let set =
        [&words([everything, 0])[..], &longs([0, 7, 0, 0, 0, 0]), &words([0, 0, 0, 0o2640, 0, 55, 66, 0])];
    served.ask(op::SETATTR, file, &set).unwrap();
    let meta = fs::metadata(volume.path().join("folder/hard")).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.size()), (55, 66, 7));
    // An owner without a right to it: the guest's kernel decides.
    let sized = [&words([fattr::SIZE, 0])[..], &longs([0, 9, 0, 0, 0, 0]), &words([0, 0, 0, 0, 0, 0, 0, 0])];
    served.ask(op::SETATTR, file, &sized).unwrap();
    let xattr = served.ask(op::SETXATTR, file, &[&words([1, 0]), &text("user.a"), b"x"]);
    if xattr != Err(libc::EOPNOTSUPP) {
        xattr.unwrap();
        assert_eq!(served.ask(op::GETXATTR, file, &[&words([10, 0]), &text("user.a")]).unwrap(), b"x");
        served.ask(op::LISTXATTR, file, &[&words([100, 0])]).unwrap();
        served.ask(op::REMOVEXATTR, file, &[&text("user.a")]).unwrap();
    }
    let capability =
        served.ask(op::SETXATTR, file, &[&words([20, 0]), &text("security.capability"), &[0; 20]]);
    assert!(capability.is_err(), "a file got a capability");
    served.ask(op::STATFS, file, &[]).unwrap();
    served.ask(op::LSEEK, file, &[&longs([handle, 0]), &words([3, 0])]).unwrap();
    served.ask(op::COPY_FILE_RANGE, file, &[&longs([handle, 0, file, handle, 100, 5, 0])]).unwrap();
    let allocated = served.ask(op::FALLOCATE, file, &[&longs([handle, 0, 4096]), &words([0, 0])]);
    assert!(matches!(allocated, Ok(_) | Err(libc::EOPNOTSUPP)), "{allocated:?}");
    served.ask(op::FSYNC, file, &[&longs([handle]), &words([0, 0])]).unwrap();
    served.ask(op::FSYNC, file, &[&longs([handle]), &words([1, 0])]).unwrap();
    served.ask(op::FLUSH, file, &[&longs([handle, 0, 0])]).unwrap();
    let opened = u64_at(&served.ask(op::OPENDIR, folder, &[&words([0, 0])]).unwrap(), 0);
    let listed =
        served.ask(op::READDIR, folder, &[&longs([opened, 0]), &words([4096, 0, 0, 0, 0, 0])]).unwrap();
    assert!(listed.windows(4).any(|name| name == b"tube"));
    served.ask(op::FSYNCDIR, folder, &[&longs([opened]), &words([0, 0])]).unwrap();
    served.ask(op::RELEASEDIR, folder, &[&longs([opened, 0, 0])]).unwrap();
    served.ask(op::UNLINK, folder, &[&text("tube")]).unwrap();
    served.ask(op::MKDIR, root, &[&words([0o700, 0]), &text("gone")]).unwrap();
    served.ask(op::RMDIR, root, &[&text("gone")]).unwrap();
    let truncate = (libc::O_RDWR | libc::O_TRUNC).unsigned_abs();
    served.ask(op::OPEN, file, &[&words([truncate, 1])]).unwrap();
    served.ask(op::RELEASE, file, &[&longs([handle, 0, 0])]).unwrap();
    served.send(op::FORGET, link, &[&longs([1])]);
    served.send(op::BATCH_FORGET, 0, &[&words([1, 0]), &longs([folder, 99])]);
    served.send(op::INTERRUPT, 0, &[&longs([1])]);
    assert_eq!(served.ask(99, root, &[]), Err(libc::ENOSYS));
    served.ask(op::DESTROY, 0, &[]).unwrap();
    served.daemon().release("c1").unwrap();
    assert_eq!(served.look_up(ROOT, &number.to_string()), Err(libc::ENOENT));
}

#[test]
fn many_requests_of_several_volumes_are_answered_in_any_order() {
    let mut served = Served::start();
    let volumes: Vec<_> = (0..5).map(|_| tempfile::tempdir().unwrap()).collect();
    let mut roots = Vec::new();
    for volume in &volumes {
        let number = served.share(volume.path(), false, "c1");
        roots.push(served.look_up(ROOT, &number.to_string()).unwrap());
    }
    let mut asked: Vec<u64> = Vec::new();
    for round in 0..20 {
        for root in &roots {
            asked.push(served.send(op::MKDIR, *root, &[&words([0o700, 0]), &text(&round.to_string())]));
        }
    }
    let mut answered: Vec<u64> = asked
        .iter()
        .map(|_| {
            let (number, told) = served.hear();
            told.unwrap();
            number
        })
        .collect();
    answered.sort_unstable();
    assert_eq!(answered, asked);
    assert!(volumes.iter().all(|volume| fs::read_dir(volume.path()).unwrap().count() == 20));
}

#[test]
fn a_read_only_volume_is_shared_by_two_and_refuses_writes() {
    let mut served = Served::start();
    let volume = tempfile::tempdir().unwrap();
    fs::write(volume.path().join("file"), "x").unwrap();
    let number = served.share(volume.path(), true, "c1");
    let root = served.look_up(ROOT, &number.to_string()).unwrap();
    let file = served.look_up(root, "file").unwrap();
    assert_eq!(served.ask(op::OPEN, file, &[&words([libc::O_RDWR.unsigned_abs(), 0])]), Err(libc::EROFS));
    assert_eq!(served.ask(op::UNLINK, root, &[&text("file")]), Err(libc::EROFS));
    assert_eq!(served.share(volume.path(), true, "c2"), number, "the same for another container");
    served.daemon().release("c1").unwrap();
    assert_eq!(served.look_up(root, "file"), Ok(file));
}

/// As one is that waits for slow storage.
#[test]
fn a_conversation_that_takes_its_time_holds_up_no_other() {
    let (served, volume) = (Served::start(), tempfile::tempdir().unwrap());
    let quick = || FileServer::connect_within(served.dir.path(), Duration::from_secs(3)).unwrap();
    let root = rustix::fs::open(volume.path(), OFlags::PATH, Mode::empty()).unwrap();
    let _others: Vec<_> = (0..20).map(|_| served.daemon()).collect();
    quick().share(root.as_fd(), false, "it", "c1").unwrap();
    quick().release("c1").unwrap();
}

#[test]
fn it_ends_with_the_vmm_and_its_end_is_seen() {
    let mut served = Served::start();
    assert!(!is_file_server_gone(served.dir.path()));
    served.vmm = None;
    assert_eq!(served.ended().exit_status(), Some(0), "{}", served.log());
    assert!(is_file_server_gone(served.dir.path()));
    assert!(served.dir.path().join(VOLUMES_SOCKET).exists());
}

/// What is left to it of the node, as the node sees it.
#[test]
fn the_jail_holds_what_it_should() {
    let served = Served::start();
    // It has answered, so it is in its jail.
    let volume = tempfile::tempdir().unwrap();
    served.share(volume.path(), false, "c1");
    let proc = Path::new("/proc").join(served.process.pid.to_string());
    let status = fs::read_to_string(proc.join("status")).unwrap();
    let line = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim_start_matches(':').trim().to_owned()
    };
    // CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETGID, SETUID: capabilities(7).
    let kept = format!("{:016x}", 1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7);
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(line(set), kept, "{set}");
    }
    assert_eq!((line("CapInh"), line("CapAmb")), ("0".repeat(16), "0".repeat(16)));
    assert_eq!((line("NoNewPrivs"), line("Seccomp")), ("1".to_owned(), "2".to_owned()));
    assert!(line("NSpid").ends_with("\t1"), "{}", line("NSpid"));
    let mounts = fs::read_to_string(proc.join("mountinfo")).unwrap();
    let roots: Vec<&str> = mounts.lines().collect();
    assert!(roots.len() <= 1 && roots.iter().all(|line| line.contains(" - proc ")), "{mounts}");
    for namespace in ["mnt", "net", "ipc", "uts", "pid"] {
        let of = |path: &Path| fs::read_link(path.join("ns").join(namespace)).unwrap();
        assert_ne!(of(&proc), of(Path::new("/proc/self")), "{namespace}");
    }
}
