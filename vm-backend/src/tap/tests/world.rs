//! Namespaces for a host, a pod and a guest.

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hartpod_netlink::{Address, LinkChange, Neighbour, Request, Route, Socket, flag};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::tap::{Interface, Tap, device, netns, sys};

pub(super) const MAC: [u8; 6] = [2, 0, 0, 0, 7, 7];
pub(super) const POD: &str = "10.9.0.2";
pub(super) const HOST: &str = "10.9.0.1";
pub(super) const POD_V6: &str = "fd00:9::2";
pub(super) const HOST_V6: &str = "fd00:9::1";

/// A network namespace.
#[derive(Debug)]
pub(super) struct Space(OwnedFd);

impl Space {
    fn new() -> Self {
        Self(netns::apart(netns::current).expect("a network namespace: needs root"))
    }

    pub(super) fn netns(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    pub(super) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        netns::inside(self.netns(), || Ok(work())).unwrap()
    }

    /// Enters a neighbour at its one interface.
    pub(super) fn knows(&self, neighbour: &str, mac: [u8; 6]) {
        self.inside(|| {
            let mut socket = Socket::open().unwrap();
            let index = socket.link("host0").unwrap().unwrap().index;
            let ip = neighbour.parse().unwrap();
            assert_eq!(socket.neighbours(index).unwrap(), []);
            socket.add_neighbour(index, &Neighbour { ip, mac }).unwrap();
        });
    }
}

pub(super) fn poke(interface: &str, key: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/{key}"), value).unwrap();
}

/// A host with an interface that leads to a pod's, set up as CNI would.
#[derive(Debug)]
pub(super) struct World {
    pub(super) host: Space,
    pub(super) pod: Space,
}

impl World {
    pub(super) fn new() -> Self {
        let (host, pod) = (Space::new(), Space::new());
        host.inside(|| {
            let mut request = Request::change(16, flag::CREATE | flag::EXCL, &[0; 16]);
            request.put(3, b"host0\0");
            request.nest(18, |info| {
                info.put(1, b"veth");
                // The other end: its name, address and namespace.
                info.nest(2, |data| data.put(1, &peer(pod.netns())));
            });
            Socket::open().unwrap().request(request).unwrap();
            set_up("host0", &[(HOST, 24), (HOST_V6, 64)], &[]);
        });
        pod.inside(|| {
            poke("eth0", "accept_dad", "0");
            set_up("eth0", &[(POD, 24), (POD_V6, 64)], &[("0.0.0.0", HOST), ("::", HOST_V6)]);
        });
        Self { host, pod }
    }
}

/// struct ifinfomsg and attributes.
fn peer(netns: BorrowedFd<'_>) -> Vec<u8> {
    let mut bytes = vec![0; 16];
    let mut put = |kind: u16, value: &[u8]| {
        bytes.extend(u16::try_from(value.len() + 4).unwrap().to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    };
    put(3, b"eth0\0");
    put(1, &MAC);
    put(28, &netns.as_raw_fd().to_ne_bytes());
    bytes
}

fn set_up(name: &str, addresses: &[(&str, u8)], gateways: &[(&str, &str)]) {
    let mut socket = Socket::open().unwrap();
    let index = socket.link(name).unwrap().unwrap().index;
    let change = LinkChange { mtu: Some(1400), up: Some(true), ..LinkChange::default() };
    socket.change_link(index, &change).unwrap();
    let route = |destination| Route {
        destination,
        gateway: None,
        source: None,
        metric: 0,
        mtu: 0,
        scope: 0,
        on_link: false,
    };
    for &(ip, prefix) in addresses {
        let ip: IpAddr = ip.parse().unwrap();
        socket.add_address(index, &Address { ip, prefix }).unwrap();
        let network = match ip {
            IpAddr::V4(ip) => IpAddr::from((ip.to_bits() & !0xff).to_be_bytes()),
            IpAddr::V6(ip) => IpAddr::from((ip.to_bits() >> 64 << 64).to_be_bytes()),
        };
        let scope = if ip.is_ipv4() { 253 } else { 0 };
        socket.add_route(index, &Route { scope, ..route((network, prefix)) }).unwrap();
    }
    for (everything, gateway) in gateways {
        let gateway = Some(gateway.parse().unwrap());
        socket.add_route(index, &Route { gateway, ..route((everything.parse().unwrap(), 0)) }).unwrap();
    }
}

/// The next packet at a tap that is as wanted, without its virtio header.
pub(super) fn next_packet(tap: &Tap, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        assert!(Instant::now() < end, "the packet comes");
        poll(&mut [PollFd::new(tap.fd.as_fd(), PollFlags::POLLIN)], PollTimeout::from(100_u8)).unwrap();
        let mut packet = vec![0; 70_000];
        let Ok(length) = rustix::io::read(&tap.fd, &mut packet[..]) else { continue };
        if wanted(&packet[HEADER..length]) {
            return packet[HEADER..length].to_vec();
        }
    }
}

/// struct virtio_net_hdr, as taps have it unless they are told otherwise.
const HEADER: usize = 10;

/// A namespace whose one card is the other end of a tap.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) space: Space,
    carrier: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    end: AtomicBool,
    /// Length of the longest packet to the guest, and from it.
    longest: [AtomicUsize; 2],
}

impl Guest {
    /// One with all offloads of virtio-net.
    pub(super) fn start(tap: &Tap, interface: &Interface) -> Self {
        Self::with_offloads(tap, interface, libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6)
    }

    pub(super) fn start_plain(tap: &Tap, interface: &Interface) -> Self {
        Self::with_offloads(tap, interface, 0)
    }

    fn with_offloads(tap: &Tap, interface: &Interface, offloads: libc::c_uint) -> Self {
        let space = Space::new();
        let outer = tap.device().unwrap().tap;
        let inner = space.inside(|| {
            let (card, name) = device::open().unwrap();
            take_over(&name, interface);
            card
        });
        sys::set_offloads(outer.as_fd(), offloads).unwrap();
        sys::set_offloads(inner.as_fd(), offloads).unwrap();
        let shared = Arc::new(Shared::default());
        let carried = Arc::clone(&shared);
        let carrier = thread::spawn(move || carry(&outer, &inner, &carried));
        Self { space, carrier: Some(carrier), shared }
    }

    /// Of the longest packet to the guest, and from it, with its Ethernet header.
    pub(super) fn longest(&self) -> [usize; 2] {
        [0, 1].map(|way| self.shared.longest[way].load(Ordering::SeqCst))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::SeqCst);
        let ended = self.carrier.take().map(JoinHandle::join);
        assert!(matches!(ended, Some(Ok(()))) || thread::panicking(), "{ended:?}");
    }
}

/// As the agent does it.
fn take_over(card: &str, interface: &Interface) {
    poke(card, "accept_dad", "0");
    let mut socket = Socket::open().unwrap();
    let index = socket.link(card).unwrap().unwrap().index;
    let change = LinkChange {
        name: Some(&interface.name),
        mac: Some(interface.mac),
        mtu: Some(interface.mtu),
        up: Some(true),
    };
    socket.change_link(index, &change).unwrap();
    for address in &interface.addresses {
        socket.add_address(index, address).unwrap();
    }
    for route in &interface.routes {
        socket.add_route(index, route).unwrap();
    }
}

fn carry(outer: &OwnedFd, inner: &OwnedFd, shared: &Shared) {
    let mut packet = vec![0; 70_000];
    while !shared.end.load(Ordering::SeqCst) {
        let mut fds = [outer, inner].map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN));
        poll(&mut fds, PollTimeout::from(20_u8)).unwrap();
        for (way, (from, to)) in [(outer, inner), (inner, outer)].into_iter().enumerate() {
            while let Ok(length) = rustix::io::read(from, &mut packet[..]) {
                shared.longest[way].fetch_max(length - HEADER, Ordering::SeqCst);
                // Full: it is dropped, as on a wire.
                let _ = rustix::io::write(to, &packet[..length]);
            }
        }
    }
}
