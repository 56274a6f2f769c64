use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, bind, listen, socket_with};
use serde_json::{Value, json};

use super::*;
use crate::boot::{Extent, Fd};

fn regular() -> OwnedFd {
    tempfile::tempfile().unwrap().into()
}

fn device() -> OwnedFd {
    File::open("/dev/null").unwrap().into()
}

fn listener(kind: SocketType) -> OwnedFd {
    let socket = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
    // An empty name: the kernel chooses an abstract one.
    bind(&socket, &SocketAddrUnix::new_unnamed()).unwrap();
    listen(&socket, 1).unwrap();
    socket
}

/// A message that uses everything, and its descriptors.
fn good() -> (Value, Vec<OwnedFd>) {
    let message = json!({
        "user": 300_000, "memory_mib": 256, "vcpus": 2, "kvm": 0, "kernel": 1, "initramfs": 2, "command_line": "quiet rdinit=/init",
        "status": 3, "console": 4, "console_limit": 65536, "control": 5, "vsock": 6,
        "net": {"tap": 7, "mac": [2, 0, 0, 0, 0, 1], "mtu": 1500}, "balloon": true, "spare_slots": 4,
        "disks": [{"extents": [{"file": 8, "read_only": true}, {"file": 9, "read_only": false}]}],
        "interrupts": "plic",
    });
    let fds = vec![
        device(),
        regular(),
        regular(),
        regular(),
        regular(),
        listener(SocketType::SEQPACKET),
        listener(SocketType::STREAM),
        device(),
        regular(),
        regular(),
    ];
    (message, fds)
}

fn parse(message: &Value, fds: Vec<OwnedFd>) -> Result<Guest, BootError> {
    Guest::parse(message.to_string().as_bytes(), fds).map_err(|refused| refused.error)
}

/// The good message with one value changed.
fn with(pointer: &str, value: Value) -> Result<Guest, BootError> {
    let (mut message, fds) = good();
    *message.pointer_mut(pointer).unwrap_or_else(|| panic!("no {pointer}")) = value;
    parse(&message, fds)
}

#[test]
fn a_good_message_becomes_a_guest() {
    let (message, fds) = good();
    let guest = parse(&message, fds).unwrap();
    assert_eq!((guest.memory, guest.vcpus, guest.devices.slots), (256 << 20, 2, 8));
    assert_eq!(guest.devices.disks[0].iter().map(|e| e.read_only).collect::<Vec<_>>(), [true, false]);
    assert!(guest.devices.vsock.is_some() && guest.devices.net.is_some());
}

#[test]
fn the_message_type_and_the_json_agree() {
    let (message, _) = good();
    let typed: BootMessage = serde_json::from_value(message.clone()).unwrap();
    assert_eq!(typed.disks[0].extents[1], Extent { file: Fd(9), read_only: false });
    assert_eq!(serde_json::to_value(&typed).unwrap(), message);
}

#[test]
fn numbers_out_of_range_are_refused_by_name() {
    let long = "x".repeat(1024);
    for (pointer, value) in [
        ("/user", json!(0)),
        ("/user", json!(u32::MAX)),
        ("/memory_mib", json!(31)),
        ("/memory_mib", json!(1_048_577)),
        ("/memory_mib", json!(u32::MAX)),
        ("/vcpus", json!(0)),
        ("/vcpus", json!(65)),
        ("/command_line", json!(long)),
        ("/spare_slots", json!(29)),
        ("/spare_slots", json!(u32::MAX)),
        ("/net/mtu", json!(67)),
        ("/disks/0/extents", json!([])),
    ] {
        let refused = with(pointer, value.clone());
        assert!(matches!(refused, Err(BootError::Range { .. })), "{pointer} {value}: {refused:?}");
    }
    with("/spare_slots", json!(28)).unwrap();
    assert_eq!(with("/user", Value::Null).unwrap().user, None);
    with("/command_line", json!("x".repeat(1023))).unwrap();
}

#[test]
fn each_descriptor_has_one_name_and_each_name_a_descriptor() {
    assert!(matches!(
        with("/kernel", json!(10)),
        Err(BootError::Claim(ClaimError::NoSuch { index: 10, .. }))
    ));
    assert!(matches!(with("/kernel", json!(usize::MAX)), Err(BootError::Claim(ClaimError::NoSuch { .. }))));
    assert!(matches!(with("/console", json!(3)), Err(BootError::Claim(ClaimError::Taken { index: 3, .. }))));
    assert!(matches!(
        with("/disks/0/extents/1/file", json!(8)),
        Err(BootError::Claim(ClaimError::Taken { index: 8, .. }))
    ));
    let (mut message, fds) = good();
    message["net"] = Value::Null;
    assert!(matches!(parse(&message, fds), Err(BootError::Claim(ClaimError::Unnamed { count: 1 }))));
}

#[test]
fn descriptors_of_another_kind_are_refused() {
    for index in [0, 1, 2, 5, 6, 7, 8] {
        let (message, mut fds) = good();
        // A socket that does not listen is none of what is wanted anywhere.
        fds[index] =
            socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        let refused = parse(&message, fds);
        assert!(matches!(refused, Err(BootError::Kind { .. })), "{index}: {refused:?}");
    }
    let (message, mut fds) = good();
    fds.swap(5, 6);
    assert!(matches!(parse(&message, fds), Err(BootError::Kind { .. })), "stream and seqpacket exchanged");
}

#[test]
fn a_command_line_of_control_characters_is_refused() {
    for bad in ["a\nb", "a\0", "ä"] {
        assert!(matches!(with("/command_line", json!(bad)), Err(BootError::CommandLine { .. })), "{bad:?}");
    }
}

#[test]
fn a_group_address_is_no_card() {
    assert!(matches!(with("/net/mac", json!([1, 0, 0, 0, 0, 1])), Err(BootError::Mac { .. })));
    assert!(matches!(with("/net/mac", json!([0, 0, 0, 0, 0, 0])), Err(BootError::Mac { .. })));
}

#[test]
fn what_is_no_message_is_refused() {
    let (mut message, fds) = good();
    message["extra"] = json!(1);
    assert!(matches!(parse(&message, fds), Err(BootError::Parse { .. })));
    for bytes in [&b""[..], b"{}", b"[]", b"\xff\xfe", b"null", &[b'['; 60_000]] {
        assert!(matches!(Guest::parse(bytes, vec![]).unwrap_err().error, BootError::Parse { .. }));
    }
}

#[test]
fn a_refusal_says_where_to_report_it() {
    let (mut message, fds) = good();
    message["vcpus"] = json!(0);
    assert!(Guest::parse(message.to_string().as_bytes(), fds).unwrap_err().status.is_some());
    message["status"] = json!(99);
    assert!(Guest::parse(message.to_string().as_bytes(), vec![]).unwrap_err().status.is_none());
}

#[test]
fn a_parent_that_closes_without_a_word_is_told_apart() {
    let (a, b) = channel::tests::pair();
    drop(a);
    assert!(matches!(Guest::receive(b.as_fd()).unwrap_err().error, BootError::Closed));
}
