//! `attacker pose SECONDS`: stands where the pod agent of a guest does, on its vsock ports, and answers with garbage.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind, listen, socket};

/// Any, that of a guest, that of loopback: a socket that names its address may be preferred to one that does not.
const ADDRESSES: [u32; 3] = [u32::MAX, 3, 1];
/// pod/v1, raw streams, and the echo by which the daemon knows that a guest lives (pod.proto).
const PORTS: [u32; 3] = [1024, 1025, 1026];

/// Says on which ports it listens, and how many callers it had.
pub(crate) fn as_agent(time: Duration) {
    let mut listeners = Vec::new();
    for (address, port) in ADDRESSES.iter().flat_map(|address| PORTS.map(|port| (*address, port))) {
        match listener(address, port) {
            Ok(socket) => {
                println!("listens: {address}:{port}");
                listeners.push(socket);
            }
            Err(errno) => println!("refused: {address}:{port}: {errno}"),
        }
    }
    let end = Instant::now() + time;
    let mut callers = 0;
    while Instant::now() < end {
        for socket in &listeners {
            let Ok(caller) = rustix::net::accept(socket) else { continue };
            callers += 1;
            let _ = File::from(caller).write_all(&[0xff; 4096]);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("callers: {callers}");
}

fn listener(address: u32, port: u32) -> Result<OwnedFd, Errno> {
    let socket = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_NONBLOCK, None)?;
    bind(socket.as_raw_fd(), &VsockAddr::new(address, port))?;
    listen(&socket, Backlog::new(16)?)?;
    Ok(socket)
}
