use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use super::*;
use crate::status::{Event, Exit, ExitReason, StatusWriter};

const SOON: Duration = Duration::from_secs(20);

fn spec(dir: &Path) -> GuestSpec {
    let (kernel, initramfs) = (dir.join("kernel"), dir.join("initramfs"));
    std::fs::write(&kernel, "k").unwrap();
    std::fs::write(&initramfs, "i").unwrap();
    GuestSpec {
        user: Some(4_000_000),
        memory_mib: 128,
        vcpus: 1,
        interrupts: Interrupts::Plic,
        kernel,
        initramfs,
        command_line: "quiet".into(),
        console_limit: 1000,
        net: None,
        balloon: false,
        disks: vec![],
        spare_slots: 2,
    }
}

/// A VMM that does this.
fn spawn_script(dir: &Path, script: &str, socket: OwnedFd) -> VmmProcess {
    let path = dir.join("program");
    let mut file = File::create(&path).unwrap();
    write!(file, "#!/bin/sh\n{script}\n").unwrap();
    file.set_permissions(std::fs::Permissions::from_mode(0o755)).unwrap();
    drop(file);
    let deadline = Instant::now() + SOON;
    loop {
        match spawn(&path, None, socket.try_clone().unwrap(), null()) {
            // A child of another test has it open to write, until it calls exec.
            Err(e) if e.kind() == io::ErrorKind::ExecutableFileBusy && Instant::now() < deadline => {
                std::thread::yield_now();
            }
            other => return other.unwrap(),
        }
    }
}

fn null() -> OwnedFd {
    open(Path::new("/dev/null"), OFlags::RDWR).unwrap()
}

fn reap(vmm: &VmmProcess) {
    waitid(WaitId::PidFd(vmm.pidfd.as_fd()), WaitIdOptions::EXITED).unwrap();
}

/// The message and the descriptors as the VMM would get them, but /dev/null for KVM, which is not everywhere.
#[test]
fn what_the_launcher_sends_the_vmm_accepts() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let mut spec = spec(dir);
    let extent = |read_only| BlockExtent { file: tempfile::tempfile().unwrap().into(), read_only };
    spec.disks = vec![vec![extent(true), extent(false)], vec![extent(true)]];
    spec.net = Some(NetDevice { tap: null(), mac: [2, 0, 0, 0, 0, 9], mtu: 1500 });
    let files = Files {
        kvm: null(),
        kernel: open(&spec.kernel, OFlags::RDONLY).unwrap(),
        initramfs: open(&spec.initramfs, OFlags::RDONLY).unwrap(),
        status: create(&dir.join(STATUS_FILE)).unwrap(),
        console: create(&dir.join(CONSOLE_FILE)).unwrap(),
        control: bind(dir, CONTROL_SOCKET, SocketType::SEQPACKET).unwrap(),
        vsock: bind(dir, VSOCK_SOCKET, SocketType::STREAM).unwrap(),
    };
    let (a, b) = channel::tests::pair();
    let (message, fds) = message(spec, files);
    send(&a, &message, &fds).unwrap();
    let guest = crate::boot::Guest::receive(b.as_fd()).unwrap();
    assert_eq!(guest.devices.slots, 7);
    let kinds: Vec<Vec<bool>> =
        guest.devices.disks.iter().map(|disk| disk.iter().map(|e| e.read_only).collect()).collect();
    assert_eq!(kinds, [vec![true, false], vec![true]]);
    let mode = std::fs::metadata(dir.join(CONTROL_SOCKET)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_folder_that_holds_a_guest_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    create(&folder.path().join(STATUS_FILE)).unwrap();
    assert!(matches!(create(&folder.path().join(STATUS_FILE)), Err(LaunchError::Open { .. })));
    bind(folder.path(), CONTROL_SOCKET, SocketType::SEQPACKET).unwrap();
    let again = bind(folder.path(), CONTROL_SOCKET, SocketType::SEQPACKET);
    assert!(matches!(again, Err(LaunchError::Bind { .. })));
}

#[test]
fn the_program_gets_the_socket_as_its_input_no_environment_and_a_pid_namespace() {
    let folder = tempfile::tempdir().unwrap();
    let script = "[ -S /dev/stdin ] && [ -z \"$HOME\" ] && [ $$ = 1 ]";
    let (ours, theirs) = channel::tests::pair();
    let vmm = spawn_script(folder.path(), script, theirs);
    let status = waitid(WaitId::PidFd(vmm.pidfd.as_fd()), WaitIdOptions::EXITED).unwrap().unwrap();
    assert_eq!(status.exit_status(), Some(0));
    drop(ours);
}

/// What is left of one that never boots: nothing.
#[test]
fn a_vmm_that_is_gone_before_its_message_is_an_error_and_reaped() {
    let folder = tempfile::tempdir().unwrap();
    let (socket, theirs) = channel::tests::pair();
    let process = spawn_script(folder.path(), "exit 0", theirs);
    let pid = process.pid;
    // Until its end is closed everywhere: children of other tests have it too, between fork and exec.
    let mut fds = [rustix::event::PollFd::new(&socket, rustix::event::PollFlags::HUP)];
    rustix::event::poll(&mut fds, None).unwrap();
    let (message, _) = message_for_test(folder.path());
    let refused = WaitingVmm { process, socket, message, fds: vec![] }.boot();
    assert!(matches!(refused, Err(LaunchError::Send { .. })), "{refused:?}");
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn a_waiting_vmm_that_is_dropped_ends() {
    let folder = tempfile::tempdir().unwrap();
    let (socket, theirs) = channel::tests::pair();
    let process = spawn_script(folder.path(), "cat", theirs);
    let pidfd = process.pidfd.try_clone().unwrap();
    let (message, fds) = message_for_test(folder.path());
    drop(WaitingVmm { process, socket, message, fds });
    waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED).unwrap();
}

#[test]
fn nothing_is_left_of_a_waiting_vmm_that_is_cancelled() {
    let folder = tempfile::tempdir().unwrap();
    let (socket, theirs) = channel::tests::pair();
    let process = spawn_script(folder.path(), "exec sleep 100", theirs);
    let pid = process.pid;
    let (message, fds) = message_for_test(folder.path());
    WaitingVmm { process, socket, message, fds }.cancel();
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}

fn message_for_test(dir: &Path) -> (BootMessage, Vec<OwnedFd>) {
    let files = Files {
        kvm: null(),
        kernel: null(),
        initramfs: null(),
        status: null(),
        console: null(),
        control: null(),
        vsock: null(),
    };
    message(spec(dir), files)
}

#[test]
fn a_program_that_cannot_run_is_an_error() {
    let (_ours, theirs) = channel::tests::pair();
    assert!(spawn(Path::new("/nonexistent"), None, theirs, null()).is_err());
}

/// A VMM that ends only when told, and one status file.
fn following(dir: &Path, script: &str) -> (VmmProcess, StatusWriter, Follower, OwnedFd) {
    let (ours, theirs) = channel::tests::pair();
    let vmm = spawn_script(dir, script, theirs);
    let status = StatusWriter::new(create(&dir.join(STATUS_FILE)).unwrap().into());
    let follower = Follower::new(dir, vmm.pidfd.as_fd()).unwrap();
    (vmm, status, follower, ours)
}

#[test]
fn events_arrive_as_they_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let (vmm, status, mut follower, ours) = following(folder.path(), "cat");
    assert_eq!(follower.next_blocking(Duration::ZERO).unwrap(), None);
    let writer = std::thread::spawn(move || {
        status.write(&Event::Running);
        status.write(&Event::Ready);
        status
    });
    assert_eq!(follower.next_blocking(SOON).unwrap(), Some(Event::Running));
    assert_eq!(follower.next_blocking(SOON).unwrap(), Some(Event::Ready));
    let exit = Event::Exited(Exit::new(ExitReason::PowerOff, "\u{1}".repeat(MAX_DETAIL_FOR_TEST).as_str()));
    writer.join().unwrap().write(&exit);
    assert_eq!(follower.next_blocking(SOON).unwrap(), Some(exit));
    assert_eq!(follower.next_blocking(SOON).unwrap(), None, "nothing follows");
    drop(ours);
    reap(&vmm);
}

const MAX_DETAIL_FOR_TEST: usize = crate::status::MAX_DETAIL;

#[test]
fn a_vmm_that_dies_without_a_word_was_killed() {
    let folder = tempfile::tempdir().unwrap();
    let (vmm, status, mut follower, _ours) = following(folder.path(), "kill -9 $$");
    status.write(&Event::Running);
    assert_eq!(follower.next_blocking(SOON).unwrap(), Some(Event::Running));
    match follower.next_blocking(SOON).unwrap() {
        Some(Event::Exited(exit)) => assert_eq!(exit.reason, ExitReason::Killed),
        other => panic!("{other:?}"),
    }
    assert_eq!(follower.next_blocking(SOON).unwrap(), None);
    reap(&vmm);
}

#[test]
fn the_last_word_counts_though_the_vmm_has_gone() {
    let folder = tempfile::tempdir().unwrap();
    let (vmm, status, mut follower, _ours) = following(folder.path(), "exit 0");
    reap(&vmm);
    status.write(&Event::Running);
    status.write(&Event::Exited(Exit::new(ExitReason::Reset, "")));
    assert_eq!(follower.next_blocking(SOON).unwrap(), Some(Event::Running));
    assert!(
        matches!(follower.next_blocking(SOON).unwrap(), Some(Event::Exited(e)) if e.reason == ExitReason::Reset)
    );
}

#[test]
fn a_status_file_of_garbage_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let (vmm, _status, mut follower, ours) = following(folder.path(), "cat");
    std::fs::write(folder.path().join(STATUS_FILE), "x".repeat(20_000)).unwrap();
    assert!(follower.next_blocking(SOON).is_err());
    drop(ours);
    reap(&vmm);
}

mod clients {
    use std::io::{BufRead as _, BufReader, Read as _};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::thread;

    use super::*;

    /// Answers one connection as a VMM would.
    fn vsock(dir: &Path, answer: &'static [u8]) -> thread::JoinHandle<(String, UnixStream)> {
        let listener = UnixListener::from(bind(dir, VSOCK_SOCKET, SocketType::STREAM).unwrap());
        thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
            (&stream).write_all(answer).unwrap();
            (line, stream)
        })
    }

    #[test]
    fn a_stream_begins_after_the_greeting() {
        let folder = tempfile::tempdir().unwrap();
        let server = vsock(folder.path(), b"OK 1073741824\nhello");
        let mut stream = connect(folder.path(), 1024, SOON).unwrap();
        let (line, their_end) = server.join().unwrap();
        assert_eq!(line, "CONNECT 1024\n");
        drop(their_end);
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }

    #[test]
    fn refusals_and_nonsense_are_told_apart() {
        let error = |answer| {
            let folder = tempfile::tempdir().unwrap();
            let server = vsock(folder.path(), answer);
            // The server's end closes when it has answered.
            let joined = thread::spawn(move || drop(server.join()));
            let result = connect(folder.path(), 1, SOON);
            joined.join().unwrap();
            match result {
                Err(ClientError::Port { source, .. }) => source,
                other => panic!("{other:?}"),
            }
        };
        let kind = |answer| error(answer).kind();
        assert_eq!(error(b"ERROR there is no room\n").to_string(), "there is no room");
        assert_eq!(kind(b""), io::ErrorKind::ConnectionRefused);
        assert_eq!(kind(b"NO\n"), io::ErrorKind::InvalidData);
        assert_eq!(kind(&[b'x'; 200]), io::ErrorKind::InvalidData);
    }

    #[test]
    fn patience_ends() {
        let folder = tempfile::tempdir().unwrap();
        let server = vsock(folder.path(), b"OK");
        let result = connect(folder.path(), 1, Duration::from_millis(50));
        assert!(
            matches!(result, Err(ClientError::Port { source, .. }) if source.kind() == io::ErrorKind::TimedOut)
        );
        drop(server.join().unwrap());
    }

    /// As where a guest has unbound its vsock driver, or the VMM hangs.
    #[test]
    fn patience_ends_where_nobody_accepts() {
        let folder = tempfile::tempdir().unwrap();
        let listener = bind(folder.path(), VSOCK_SOCKET, SocketType::STREAM).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let knock = || connect(folder.path(), 1, Duration::from_millis(50)).unwrap_err();
        // The first ones still find room to wait in.
        let errors: Vec<_> = (0..4).map(|_| knock()).collect();
        let full = errors.last().unwrap();
        assert!(
            matches!(full, ClientError::Connect { source, .. } if source.kind() == io::ErrorKind::TimedOut),
            "{full:?}"
        );
    }

    /// A log from begin to end, by way of the VMM's own service.
    #[test]
    fn a_log_is_begun_reopened_and_awaited() {
        use crate::control::{Services, SlotRefused, Slots, serve};
        use crate::log::Logs;
        use crate::stop::{Stop, StopSignal};
        use crate::virtio::vsock::Dialer;

        struct None;
        impl Slots for None {
            fn fill(&mut self, slot: u32, _: Vec<BlockExtent>) -> Result<(), SlotRefused> {
                Err(SlotRefused { slot, source: "no slots".into() })
            }
            fn fill_files(&mut self, slot: u32, _: OwnedFd) -> Result<(), SlotRefused> {
                self.fill(slot, vec![])
            }
            fn empty(&mut self, slot: u32) -> Result<(), SlotRefused> {
                self.fill(slot, vec![])
            }
        }

        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            File::options().create(true).read(true).append(true).open(folder.path().join(name)).unwrap()
        };
        let text = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        let listener = bind(folder.path(), CONTROL_SOCKET, SocketType::SEQPACKET).unwrap();
        let (dialer, stop) = (Dialer::new().unwrap(), StopSignal::new().unwrap());
        let mut logs = Logs::new(Some(dialer.clone()));
        thread::scope(|scope| {
            scope.spawn(|| {
                let services = &mut Services {
                    stop: &stop,
                    slots: &mut None,
                    logs: &mut logs,
                    counters: &crate::counts::Counters::default(),
                };
                serve(&listener, services).unwrap();
            });
            let control = Control::connect(folder.path()).unwrap();
            let (id, token) = ("5c".repeat(32), "6d".repeat(16));
            let tokens = LogTokens { stdout: Some(&token), stderr: Option::None };
            let bad = control.log("5c", tokens, file("old").as_fd()).unwrap_err();
            assert!(matches!(bad, ClientError::Name { .. }), "{bad}");
            control.log(&id, tokens, file("old").as_fd()).unwrap();
            let deadline = Instant::now() + SOON;
            let guest = loop {
                match dialer.next() {
                    Some(socket) => break UnixStream::from(socket),
                    Option::None => assert!(Instant::now() < deadline),
                }
                thread::yield_now();
            };
            guest.set_nonblocking(false).unwrap();
            (&guest).read_exact(&mut [0; "CONNECT 1025\n".len() + 33]).unwrap();
            (&guest).write_all(b"OK 1025\nbefore\n").unwrap();
            while !text("old").ends_with(" stdout F before\n") {
                assert!(Instant::now() < deadline);
                thread::yield_now();
            }
            control.reopen_log(&id, file("new").as_fd()).unwrap();
            // A daemon that comes later.
            let control = Control::connect(folder.path()).unwrap();
            let (over, done) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
            control.await_log(&id, done.as_fd()).unwrap();
            drop(done);
            (&guest).write_all(b"after\n").unwrap();
            drop(guest);
            let mut fds = [rustix::event::PollFd::new(&over, rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut fds, Option::None).unwrap();
            assert!(text("new").ends_with(" stdout F after\n"));
            stop.request(Stop::Asked);
        });
    }

    #[test]
    fn without_a_vmm_there_is_no_connection() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(Control::connect(folder.path()), Err(ClientError::Connect { .. })));
        assert!(matches!(connect(folder.path(), 1, SOON), Err(ClientError::Connect { .. })));
    }
}
