//! Against a systemd that only writes down what it is told.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use hartpod_container::cgroup::Tree;

use super::wire::{FIXED, size};
use super::*;

/// How it answers.
#[derive(Clone, Copy)]
enum Fake {
    /// A job that ends like this, announced before the answer or after it.
    Job {
        result: &'static str,
        early: bool,
    },
    Refuses(&'static str),
    HangsUp,
    /// At the second call.
    AnswersOnce,
}

/// Serves one connection, until the caller hangs up; every call's bytes come out of the channel.
fn serve(listener: UnixListener, fake: Fake) -> Receiver<Vec<u8>> {
    let (sender, calls) = channel();
    std::thread::spawn(move || {
        let (socket, _) = listener.accept().unwrap();
        converse(&socket, fake, &sender);
    });
    calls
}

fn converse(socket: &UnixStream, fake: Fake, calls: &Sender<Vec<u8>>) {
    let mut reader = BufReader::new(socket);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert_eq!(line, "\0AUTH EXTERNAL 30\r\n");
    let mut writer = socket;
    writer.write_all(b"OK 1234\r\n").unwrap();
    line.clear();
    reader.read_line(&mut line).unwrap();
    assert_eq!(line, "BEGIN\r\n");
    let mut done = false;
    while let Some(message) = next_call(&mut reader) {
        let serial = u32::from_le_bytes(message[8..12].try_into().unwrap());
        let _ = calls.send(message);
        let Some(answer) = answer(fake, serial).filter(|_| !done) else { return };
        writer.write_all(&answer).unwrap();
        done = matches!(fake, Fake::AnswersOnce);
    }
}

fn next_call(reader: &mut impl Read) -> Option<Vec<u8>> {
    let mut message = vec![0; FIXED];
    reader.read_exact(&mut message).ok()?;
    let size = size(message.as_slice().try_into().unwrap()).unwrap();
    message.resize(size, 0);
    reader.read_exact(&mut message[FIXED..]).unwrap();
    Some(message)
}

fn answer(fake: Fake, serial: u32) -> Option<Vec<u8>> {
    let (answer, signal) = match fake {
        Fake::HangsUp => return None,
        Fake::AnswersOnce => (message_of(2, serial, &[], "", Writer::default()), Vec::new()),
        Fake::Refuses(name) => {
            let mut body = Writer::default();
            body.text("Unit a.scope was already loaded");
            (message_of(3, serial, &[(4, "s", name)], "s", body), Vec::new())
        }
        Fake::Job { result, .. } => {
            let mut body = Writer::default();
            body.text("/job/1");
            let mut removed = Writer::default();
            removed.bool(true);
            for text in ["/job/1", "a.scope", result] {
                removed.text(text);
            }
            let signal = message_of(4, serial, &[(3, "s", "JobRemoved")], "uoss", removed);
            (message_of(2, serial, &[], "o", body), signal)
        }
    };
    let both = match fake {
        Fake::Job { early: true, .. } => [signal, answer],
        _ => [answer, signal],
    };
    Some(both.concat())
}

/// A message of systemd's.
fn message_of(kind: u8, serial: u32, fields: &[(u8, &str, &str)], signature: &str, body: Writer) -> Vec<u8> {
    wire::message(kind, 77, (kind != 4).then_some(serial), fields, signature, body)
}

fn leaf(parent: &str) -> Option<Leaf> {
    Tree::detect(Path::new("/sys/fs/cgroup")).ok()?.leaf(parent, "ab").ok()
}

fn limits(json: &str) -> Limits {
    Limits::from_oci(&serde_json::from_str(json).unwrap()).unwrap()
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

fn systemd(dir: &Path, fake: Fake) -> (Systemd, Receiver<Vec<u8>>) {
    let socket = dir.join("private");
    let calls = serve(UnixListener::bind(&socket).unwrap(), fake);
    // In the place of this program: it need not be anything but a process.
    let program = dir.join("program");
    std::fs::write(&program, "#!/bin/sh\nexec /bin/cat\n").unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    (Systemd { socket, program }, calls)
}

#[test]
fn a_scope_is_made_around_a_placeholder_with_its_limits() {
    for early in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (systemd, calls) = systemd(dir.path(), Fake::Job { result: "done", early });
        let leaf = leaf("kubepods-pod1.slice").unwrap();
        let made =
            systemd.make_blocking(&leaf, &limits(r#"{"memory":{"limit":4096},"cpu":{"shares":1024}}"#));
        let placeholder = made.unwrap().unwrap();
        let call = calls.recv().unwrap();
        for text in [
            "StartTransientUnit",
            "cri-hartpod-ab.scope",
            "kubepods-pod1.slice",
            "DefaultDependencies",
            "Delegate",
            "inactive-or-failed",
            "TimeoutStopUSec",
            "MemoryMax",
            "CPUWeight",
            "TasksMax",
        ] {
            assert!(contains(&call, text.as_bytes()), "{text}");
        }
        let pid = placeholder.0.id();
        assert!(contains(&call, &pid.to_le_bytes()));
        let folder = format!("/proc/{pid}");
        assert!(Path::new(&folder).exists());
        drop(placeholder);
        assert!(!Path::new(&folder).exists(), "it is reaped");
    }
}

#[test]
fn what_systemd_does_not_do_is_told() {
    for (fake, words) in [
        (Fake::Job { result: "failed", early: false }, "ended with \"failed\""),
        (
            Fake::Refuses("org.freedesktop.systemd1.UnitExists"),
            "org.freedesktop.systemd1.UnitExists: Unit a.scope was already loaded",
        ),
        (Fake::HangsUp, "talk to systemd"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (systemd, _calls) = systemd(dir.path(), fake);
        let error = systemd.make_blocking(&leaf("a.slice").unwrap(), &Limits::default()).unwrap_err();
        let text = crate::chain(&error);
        assert!(text.starts_with("make cri-hartpod-ab.scope in a.slice: ") && text.contains(words), "{text}");
    }
    let nobody = Systemd { socket: "/nonexistent".into(), program: "/bin/cat".into() };
    let error = nobody.make_blocking(&leaf("a.slice").unwrap(), &Limits::default()).unwrap_err();
    assert!(crate::chain(&error).contains("connect to systemd at /nonexistent"), "{error}");
}

#[test]
fn a_systemd_that_takes_no_connections_is_given_up_on() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("private");
    let listener = UnixListener::bind(&socket).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let _first = UnixStream::connect(&socket).unwrap();
    let began = Instant::now();
    let refused = bus::connect_blocking(&socket, Duration::from_millis(200)).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_leaf_below_a_path_is_no_business_of_systemds() {
    let nobody = Systemd { socket: "/nonexistent".into(), program: "/nonexistent".into() };
    let leaf = leaf("/kubepods/pod1").unwrap();
    assert!(nobody.make_blocking(&leaf, &Limits::default()).unwrap().is_none());
    assert!(nobody.set_blocking(&leaf, &limits(r#"{"pids":{"limit":5}}"#)).is_empty());
}

#[test]
fn new_limits_are_told_for_this_boot() {
    let dir = tempfile::tempdir().unwrap();
    let (systemd, calls) = systemd(dir.path(), Fake::Job { result: "done", early: false });
    let failed = systemd.set_blocking(&leaf("a.slice").unwrap(), &limits(r#"{"pids":{"limit":5}}"#));
    assert!(failed.is_empty(), "{failed:?}");
    let call = calls.recv().unwrap();
    assert!(contains(&call, b"SetUnitProperties") && contains(&call, b"TasksMax\0\x01t\0"));
    // systemd has written them when it answers the next call.
    assert!(contains(&calls.recv().unwrap(), b"GetUnit"));
}

#[test]
fn half_a_talk_about_new_limits_is_told_as_that() {
    for (fake, words) in [
        (Fake::AnswersOnce, "systemd knows the new limits, but"),
        (Fake::HangsUp, "systemd may not know the new limits"),
        (Fake::Refuses("org.freedesktop.DBus.Error.AccessDenied"), "systemd may not know the new limits"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (systemd, _calls) = systemd(dir.path(), fake);
        let failed = systemd.set_blocking(&leaf("a.slice").unwrap(), &limits(r#"{"pids":{"limit":5}}"#));
        let [error] = &failed[..] else { panic!("{failed:?}") };
        assert!(crate::chain(error).starts_with(words), "{error}");
    }
}

#[test]
fn a_quota_is_set_back_whatever_systemd_answers() {
    let dir = tempfile::tempdir().unwrap();
    let (systemd, calls) = systemd(dir.path(), Fake::AnswersOnce);
    let quota = std::cell::Cell::new("rounded");
    let tell = || systemd.set_properties("a.scope", &[("TasksMax", UnitValue::Number(5))]);
    let set = |exact| {
        quota.set(exact);
        Err(CgroupError::NoController { controller: hartpod_container::cgroup::Controller::Cpu, limit: "it" })
    };
    let failed = told_and_set_back(Some("exact"), tell, set);
    assert_eq!((calls.iter().count(), quota.get()), (2, "exact"));
    assert!(matches!(failed[..], [TellError::Unwritten(_), TellError::Quota(_)]), "{failed:?}");
}

#[test]
fn a_scope_that_systemd_has_forgotten_is_stopped() {
    for (fake, fails) in [
        (Fake::Job { result: "done", early: false }, false),
        (Fake::Refuses("org.freedesktop.systemd1.NoSuchUnit"), false),
        (Fake::Refuses("org.freedesktop.DBus.Error.AccessDenied"), true),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (systemd, calls) = systemd(dir.path(), fake);
        assert_eq!(systemd.stop_blocking(&leaf("a.slice").unwrap()).is_err(), fails);
        let call = calls.recv().unwrap();
        assert!(contains(&call, b"StopUnit") && contains(&call, b"cri-hartpod-ab.scope"));
    }
}
