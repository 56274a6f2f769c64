use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketType, bind, connect, getsockname, listen, socket_with,
};
use serde_json::{Value, json};

use super::*;

/// Slot 3 is empty, slot 4 is not.
#[derive(Default)]
struct Fake {
    calls: Vec<(u32, Vec<bool>)>,
}

impl Slots for Fake {
    fn fill(&mut self, slot: u32, disk: Vec<BlockExtent>) -> Result<(), SlotRefused> {
        if slot != 3 {
            return Err(SlotRefused { slot, source: "something is in it".into() });
        }
        self.calls.push((slot, disk.iter().map(|extent| extent.read_only).collect()));
        Ok(())
    }

    fn fill_files(&mut self, slot: u32, _server: OwnedFd) -> Result<(), SlotRefused> {
        self.fill(slot, vec![])
    }

    fn empty(&mut self, slot: u32) -> Result<(), SlotRefused> {
        self.calls.push((slot, vec![]));
        Ok(())
    }
}

struct Server {
    address: SocketAddrUnix,
    stop: Arc<StopSignal>,
    thread: JoinHandle<(io::Result<()>, Fake)>,
}

impl Server {
    fn start() -> Self {
        let listener =
            socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        bind(&listener, &SocketAddrUnix::new_unnamed()).unwrap();
        listen(&listener, 64).unwrap();
        let address = getsockname(&listener).unwrap().try_into().unwrap();
        let stop = Arc::new(StopSignal::new().unwrap());
        let signal = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut slots = Fake::default();
            let mut logs = Logs::new(None);
            let counters = Counters::default();
            counters.of_device(19).requests.add(3);
            let mut services =
                Services { stop: &signal, slots: &mut slots, logs: &mut logs, counters: &counters };
            (serve(&listener, &mut services), slots)
        });
        Self { address, stop, thread }
    }

    fn connect(&self) -> OwnedFd {
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        connect(&socket, &self.address).unwrap();
        socket
    }

    fn end(self) -> Fake {
        self.stop.request(Stop::Asked);
        let (result, slots) = self.thread.join().unwrap();
        result.unwrap();
        slots
    }
}

fn ask(socket: &OwnedFd, request: &Value, fds: &[BorrowedFd<'_>]) -> Value {
    channel::send(socket.as_fd(), request.to_string().as_bytes(), fds).unwrap();
    serde_json::from_slice(&channel::receive(socket.as_fd()).unwrap().unwrap().bytes).unwrap()
}

fn fill(slot: u32) -> Value {
    json!({"fill": {"slot": slot, "disk": {"extents": [
        {"file": 1, "read_only": true}, {"file": 0, "read_only": false},
    ]}}})
}

#[test]
fn slots_are_filled_and_emptied_on_request() {
    let server = Server::start();
    let (client, file) = (server.connect(), tempfile::tempfile().unwrap());
    assert_eq!(ask(&client, &fill(3), &[file.as_fd(), file.as_fd()]), json!({"ok": {}}));
    assert_eq!(ask(&client, &json!({"empty": {"slot": 3}}), &[]), json!({"ok": {}}));
    assert_eq!(server.end().calls, [(3, vec![true, false]), (3, vec![])]);
}

#[test]
fn a_refusal_says_why_and_the_connection_goes_on() {
    let server = Server::start();
    let (client, file) = (server.connect(), tempfile::tempfile().unwrap());
    let refused = |request: &Value, fds: &[BorrowedFd<'_>]| {
        ask(&client, request, fds)["error"].as_str().expect("a refusal").to_owned()
    };
    assert_eq!(refused(&fill(4), &[file.as_fd(), file.as_fd()]), "slot 4: something is in it");
    assert!(refused(&fill(3), &[file.as_fd()]).contains("descriptor 1"));
    assert!(refused(&fill(3), &[file.as_fd(); 3]).contains("nothing is said of 1"));
    assert!(refused(&json!({"empty": {"slot": 3}}), &[file.as_fd()]).contains("nothing is said"));
    assert!(refused(&json!({"empty": {"slot": -1}}), &[]).contains("invalid value"));
    assert!(refused(&json!({"format": {}}), &[]).contains("unknown variant"));
    assert!(refused(&json!({"power_off": {"now": true}}), &[]).contains("unknown field"));
    channel::send(client.as_fd(), &[b' '; channel::MAX_BYTES + 1], &[]).unwrap();
    let answer = channel::receive(client.as_fd()).unwrap().unwrap().bytes;
    assert_eq!(answer, br#"{"error":"the packet is too large"}"#);
    assert_eq!(ask(&client, &fill(3), &[file.as_fd(), file.as_fd()]), json!({"ok": {}}));
    assert_eq!(server.end().calls.len(), 1);
}

#[test]
fn requests_for_logs_are_checked() {
    let server = Server::start();
    let (client, file) = (server.connect(), tempfile::NamedTempFile::new().unwrap());
    let log = std::fs::File::options().append(true).open(file.path()).unwrap();
    let (_reader, pipe) = rustix::pipe::pipe().unwrap();
    let (id, token) = ("0a".repeat(32), "0b".repeat(16));
    let refused = |request: &Value, fds: &[BorrowedFd<'_>]| {
        ask(&client, request, fds)["error"].as_str().expect("a refusal").to_owned()
    };
    let begin =
        |id: &str, token: &str| json!({"log": {"id": id, "stdout": token, "stderr": null, "file": 0}});
    assert!(refused(&begin("../x", &token), &[log.as_fd()]).contains("not 64 lower-case hex"));
    assert!(refused(&begin(&id, &id), &[log.as_fd()]).contains("not 32 lower-case hex"));
    assert!(refused(&begin(&id, &token), &[]).contains("the log file is to be descriptor 0"));
    assert!(refused(&begin(&id, &token), &[log.as_fd(); 2]).contains("nothing is said of 1"));
    assert!(refused(&begin(&id, &token), &[pipe.as_fd()]).contains("not a regular file"));
    assert_eq!(refused(&begin(&id, &token), &[log.as_fd()]), "this guest has no vsock");
    let reopen = json!({"reopen_log": {"id": id, "file": 0, "done": 0}});
    assert!(refused(&reopen, &[log.as_fd()]).contains("something else as well"));
    let reopen = json!({"reopen_log": {"id": id, "file": 0, "done": 1}});
    assert_eq!(ask(&client, &reopen, &[log.as_fd(), pipe.as_fd()]), json!({"ok": {}}));
    let wait = json!({"await_log": {"id": id, "done": 0}});
    assert!(refused(&wait, &[log.as_fd()]).contains("no pipe"));
    assert_eq!(ask(&client, &wait, &[pipe.as_fd()]), json!({"ok": {}}));
    server.end();
}

#[test]
fn power_off_is_answered_and_ends_the_service() {
    let server = Server::start();
    let client = server.connect();
    assert_eq!(ask(&client, &json!({"power_off": {}}), &[]), json!({"ok": {}}));
    let (result, _) = server.thread.join().unwrap();
    result.unwrap();
    assert_eq!(server.stop.reason(), Some(Stop::Asked));
}

#[test]
fn the_daemon_comes_and_goes_and_cannot_use_up_the_vmm() {
    let server = Server::start();
    for _ in 0..100 {
        let client = server.connect();
        assert!(ask(&client, &json!({}), &[])["error"].is_string());
    }
    // Connections that say nothing: those over the limit are closed.
    let idle: Vec<OwnedFd> = (0..MAX_CONNECTIONS).map(|_| server.connect()).collect();
    let one_more = server.connect();
    assert!(channel::receive(one_more.as_fd()).unwrap().is_none());
    assert!(ask(&idle[0], &json!({}), &[])["error"].is_string());
    drop(idle);
    assert!(server.end().calls.is_empty());
}

#[test]
fn what_a_refusal_quotes_fits_a_packet() {
    let server = Server::start();
    let client = server.connect();
    let request = format!("{{\"{}\": {{}}}}", "\\u0001".repeat(10_000));
    channel::send(client.as_fd(), request.as_bytes(), &[]).unwrap();
    let answer = channel::receive(client.as_fd()).unwrap().expect("an answer").bytes;
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!(answer["error"].as_str().unwrap().len(), crate::status::MAX_DETAIL);
    server.end();
}

#[test]
fn where_nobody_can_be_accepted_nothing_spins() {
    const WATCHED: Duration = Duration::from_millis(300);
    // Always ready, never a connection: as a listener whose process has no descriptors left.
    let deaf = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let stop = Arc::new(StopSignal::new().unwrap());
    let signal = Arc::clone(&stop);
    let thread = thread::spawn(move || {
        let (mut slots, mut logs) = (Fake::default(), Logs::new(None));
        let counters = Counters::default();
        let mut services =
            Services { stop: &signal, slots: &mut slots, logs: &mut logs, counters: &counters };
        serve(&deaf, &mut services).unwrap();
        // Nanoseconds on a CPU (Documentation/scheduler/sched-stats.rst).
        let used = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        Duration::from_nanos(used.split_ascii_whitespace().next().unwrap().parse().unwrap())
    });
    thread::sleep(WATCHED);
    stop.request(Stop::Asked);
    let used = thread.join().unwrap();
    assert!(used < WATCHED / 10, "{used:?} of {WATCHED:?}");
}

#[test]
fn what_the_guest_has_done_is_told() {
    let server = Server::start();
    let client = server.connect();
    let told = ask(&client, &json!({"counts": {}}), &[]);
    assert_eq!(told["counts"]["vsock"]["requests"], json!(3), "{told}");
    let told: Response = serde_json::from_value(told).unwrap();
    assert!(
        matches!(told, Response::Counts(counts) if counts.vsock.requests == 3 && counts.net.requests == 0)
    );
    server.end();
}
