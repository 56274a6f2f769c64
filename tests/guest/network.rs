//! A guest in a pod's network: CNI's bridge and portmap on the host, a tap joined to the pod's interface, the guest's card in its place.

mod host;

use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::AsFd as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hartpod_proto::pod::v1::{GuestNeighbour, GuestNetwork, GuestRoute, IpPrefix, PodFile, SetUpPodRequest};
use hartpod_tests::eventually::patient;
use hartpod_tests::{Lab, Need, tests};
use hartpod_vm::command_line;
use hartpod_vm::guest_image::GuestImage;
use hartpod_vm::launcher::GuestSpec;
use hartpod_vm::tap::{self, Interface};
use tokio::io::AsyncReadExt as _;

use crate::bulk::noise;
use crate::container::{SPARE, shut_down};
use crate::disk::{self, Layers};
use crate::guest::{Guest, image, spec};
use crate::pod::Pod;
use host::{GATEWAY, GATEWAY_V6, HOST_PORT, Network, OUTSIDE, get, serve};

tests![
    a_pod_in_a_guest_is_in_the_pods_network needs Need::Kvm,
    containers_set_up_the_network_of_their_guest needs Need::Kvm,
    sysctls_of_a_guest_may_be_any needs Need::Kvm,
];

/// The slot of the modules' disk.
const MODULES: u32 = 3;

/// Much more than a window, a ring or a segment holds.
const BULK: usize = 20 << 20;

/// How long a program in a container may take.
const PROGRAM: Duration = Duration::from_secs(30);

const SERVE: &str = "mkdir /www; echo page >/www/index.html; exec busybox httpd -f -p 80 -h /www";

/// What the daemon makes of an interface.
fn guest_network(interface: Interface) -> GuestNetwork {
    let bytes = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let prefix = |ip, length: u8| IpPrefix { ip: bytes(ip), length: length.into() };
    let addresses = interface.addresses.iter().map(|address| prefix(address.ip, address.prefix)).collect();
    let routes = interface.routes.iter().map(|route| GuestRoute {
        destination: Some(prefix(route.destination.0, route.destination.1)),
        gateway: route.gateway.map(bytes).unwrap_or_default(),
        source: route.source.map(bytes).unwrap_or_default(),
        metric: route.metric,
        mtu: route.mtu,
        scope: route.scope.into(),
        on_link: route.on_link,
    });
    let neighbours = interface.neighbours.iter();
    let neighbours = neighbours.map(|one| GuestNeighbour { ip: bytes(one.ip), mac: one.mac.to_vec() });
    GuestNetwork {
        interface: interface.name,
        mac: interface.mac.to_vec(),
        mtu: interface.mtu,
        addresses,
        routes: routes.collect(),
        neighbours: neighbours.collect(),
        no_ipv6: interface.no_ipv6,
        router_advertisements: interface.router_advertisements,
    }
}

/// A pod in a guest in `network`, with the disk of modules and two spare slots.
async fn pod(lab: &Lab, image: &GuestImage, network: &Network) -> Result<(Guest, Pod)> {
    let netns = File::open(&network.netns)?;
    let tap = tap::open_blocking(netns.as_fd())?;
    let spec = GuestSpec {
        command_line: format!("{} hartpod.modules={MODULES}", command_line::with_messages()),
        net: Some(tap.device()?),
        disks: vec![disk::modules(image)?],
        spare_slots: 2,
        ..spec(image, image.initramfs())?
    };
    let mut guest = Guest::start(lab, "guest", spec)?;
    network.add()?;
    let interface = tap::connect_blocking(&tap, "eth0")?;
    drop(tap);
    guest.running()?;
    guest.ready()?;
    let resolv = format!("nameserver {GATEWAY}\noptions timeout:5 attempts:5\n");
    let request = SetUpPodRequest {
        network: Some(guest_network(interface)),
        files: vec![PodFile { name: "resolv.conf".into(), content: resolv.into_bytes(), mode: 0 }],
        ..SetUpPodRequest::default()
    };
    let pod = Pod::set_up_as(&guest, request).await?;
    Ok((guest, pod))
}

/// Runs a script in a container that runs; what it said.
async fn run(pod: &mut Pod, container: &str, script: &str) -> Result<String> {
    let script = format!("exec 2>&1; {script}");
    let mut exec = pod.exec(container, &["sh", "-c", &script]).await?;
    let mut said = String::new();
    let read = exec.stdout.read_to_string(&mut said);
    tokio::time::timeout(patient(PROGRAM), read)
        .await
        .with_context(|| format!("`{script}` does not end"))??;
    let code = pod.wait(exec).await?;
    ensure!(code == 0, "`{script}` ended with {code}: {said}");
    Ok(said)
}

/// Waits until the container's HTTP server answers.
async fn page(address: SocketAddr) -> Result<Vec<u8>> {
    // Refused, until it listens.
    let get = async || Ok(get(address, "/").await.unwrap_or_default());
    hartpod_tests::eventually::within(PROGRAM, "the page", get, |page| !page.is_empty()).await
}

async fn a_pod_in_a_guest_is_in_the_pods_network(lab: &Lab) -> Result<()> {
    let image = image()?;
    let layers = Layers::make(lab.dir())?;
    let network = Network::make(lab.dir())?;
    let (guest, mut pod) = pod(lab, &image, &network).await?;
    let control = guest.control()?;
    layers.fill(&control, &image, SPARE)?;
    let (id, _out, _err) = pod.start(SPARE, Layers::COUNT, SERVE).await?;
    let (ip, ip_v6) = network.addresses()?;

    let said = run(&mut pod, &id, "ip addr show dev eth0; ip route; ip -6 route").await?;
    for part in [&format!("{ip}/24"), &format!("{ip_v6}/64"), &network.mac()?, "mtu 1500", "LOWER_UP"] {
        ensure!(said.contains(part), "no {part} in {said}");
    }
    ensure!(said.contains(&format!("default via {GATEWAY} ")), "{said}");
    ensure!(!said.contains("tentative"), "{said}");
    run(&mut pod, &id, &format!("busybox ping -c 1 -W 20 {GATEWAY} && busybox ping -c 1 -W 20 {GATEWAY_V6}"))
        .await?;

    host::resolver()?;
    let data: Vec<u8> = noise().take(BULK / 8).flat_map(u64::to_le_bytes).collect();
    let _server = serve(TcpListener::bind("[::]:8000")?, data.clone())?;
    // There and back, and the other way there and back.
    run(&mut pod, &id, "busybox wget -q -O /www/data http://web.test:8000/").await?;
    let web = SocketAddr::new(ip, 80);
    ensure!(page(web).await? == b"page\n");
    ensure!(get(web, "/data").await? == data, "other bytes than were sent came back");
    run(&mut pod, &id, &format!("busybox wget -q -O /www/data6 'http://[{GATEWAY_V6}]:8000/'")).await?;
    ensure!(get(SocketAddr::new(ip_v6, 80), "/data6").await? == data, "over IPv6");

    // Beyond the node: the bridge's network is not known there.
    let _far = serve(network.outside()?, data.clone())?;
    run(&mut pod, &id, &format!("busybox wget -q -O /www/far http://{OUTSIDE}:8000/")).await?;
    ensure!(get(SocketAddr::new(GATEWAY.parse()?, HOST_PORT), "/far").await? == data, "by hostPort");

    // All containers share it, and nobody else is in it.
    layers.fill(&control, &image, SPARE + 1)?;
    let said = pod.run(SPARE + 1, Layers::COUNT, "busybox wget -q -O - http://127.0.0.1/").await?;
    ensure!(said.success()? == "page\n");

    shut_down(guest, pod).await?;
    network.delete()
}

/// The distribution's own programs, with their libraries.
fn iptables(tree: &Path) -> Result<()> {
    let copy = |what: &[&str]| -> Result<()> {
        let mut cp = Command::new("cp");
        cp.args(["--recursive", "--dereference", "--parents"]).args(what).arg(tree);
        ensure!(cp.status()?.success(), "{cp:?}");
        Ok(())
    };
    fs::create_dir(tree)?;
    for (kind, program) in
        [("nft", "/usr/sbin/xtables-nft-multi"), ("legacy", "/usr/sbin/xtables-legacy-multi")]
    {
        let ldd = Command::new("ldd").arg(program).output().context("run ldd")?;
        let text = String::from_utf8(ldd.stdout)?;
        let libraries: Vec<&str> = text.split_whitespace().filter(|word| word.starts_with('/')).collect();
        ensure!(!libraries.is_empty(), "ldd {program}: {text}");
        copy(&[&libraries[..], &[program]].concat())?;
        for name in ["iptables", "ip6tables"] {
            symlink(program, tree.join(format!("usr/sbin/{name}-{kind}")))?;
        }
    }
    // For the lock of the older ones.
    fs::create_dir(tree.join("run"))?;
    let plugins = glob("/usr/lib", "xtables")?;
    copy(&[&plugins])
}

/// `dir/*/name`
fn glob(dir: &str, name: &str) -> Result<String> {
    let folders = fs::read_dir(dir)?.flatten().map(|entry| entry.path().join(name));
    let found = folders.into_iter().find(|path| path.is_dir());
    Ok(found.with_context(|| format!("no {name} below {dir}"))?.to_string_lossy().into_owned())
}

async fn containers_set_up_the_network_of_their_guest(lab: &Lab) -> Result<()> {
    let image = image()?;
    let mut layers = Layers::make(lab.dir())?;
    let tools = lab.dir().join("tools");
    iptables(&tools)?;
    layers.add(&tools)?;
    let network = Network::make(lab.dir())?;
    let (guest, mut pod) = pod(lab, &image, &network).await?;
    let control = guest.control()?;
    layers.fill(&control, &image, SPARE)?;
    let (_server, _out, _err) = pod.start(SPARE, Layers::COUNT + 1, SERVE).await?;
    let (ip, ip_v6) = network.addresses()?;
    page(SocketAddr::new(ip, 80)).await?;

    // Another container, as a mesh's init container does it: what it leaves holds for the pod.
    for (port, kind) in [(81, "nft"), (82, "legacy")] {
        let rule = format!("-p tcp --dport {port} -m comment --comment mesh -j REDIRECT --to-ports 80");
        let refuse = "-p tcp --dport 83 -m conntrack --ctstate NEW -j REJECT --reject-with tcp-reset";
        let program = |name: &str, rest: &str| format!("/usr/sbin/{name}-{kind} -w {rest}");
        let script = [
            program("iptables", &format!("-t nat -A PREROUTING {rule}")),
            program("ip6tables", &format!("-t nat -A PREROUTING {rule}")),
            program("iptables", &format!("-A INPUT {refuse}")),
            program("iptables", "-t mangle -A PREROUTING -p tcp -j MARK --set-mark 7"),
            program("iptables", "-t nat -S"),
        ];
        layers.fill(&control, &image, SPARE + 1)?;
        let said = pod.run(SPARE + 1, Layers::COUNT + 1, &format!("set -e; {}", script.join("; "))).await?;
        ensure!(said.code == 0 && said.out.contains("REDIRECT"), "{kind}: {said:?}\n{}", guest.console());
        control.empty(SPARE + 1)?;
        for ip in [ip, ip_v6] {
            let page = get(SocketAddr::new(ip, port), "/").await;
            ensure!(page.with_context(|| format!("{kind}, {ip}"))? == b"page\n");
        }
    }
    shut_down(guest, pod).await?;
    network.delete()
}

async fn sysctls_of_a_guest_may_be_any(lab: &Lab) -> Result<()> {
    let image = image()?;
    let layers = Layers::make(lab.dir())?;
    let spec = GuestSpec { spare_slots: 1, ..spec(&image, image.initramfs())? };
    let mut guest = Guest::start(lab, "guest", spec)?;
    guest.running()?;
    guest.ready()?;
    // Of the network, of the IPC namespace, and of the kernel as a whole.
    let sysctls = [
        ("net.ipv4.ip_unprivileged_port_start", "80"),
        ("kernel.shm_rmid_forced", "1"),
        ("vm.max_map_count", "262144"),
    ];
    let request = SetUpPodRequest {
        sysctls: sysctls.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect(),
        ..SetUpPodRequest::default()
    };
    let mut pod = Pod::set_up_as(&guest, request).await?;
    layers.fill(&guest.control()?, &image, SPARE - 1)?;
    let paths = sysctls.map(|(key, _)| format!("/proc/sys/{}", key.replace('.', "/"))).join(" ");
    let said = pod.run(SPARE - 1, Layers::COUNT, &format!("cat {paths}")).await?.success()?;
    ensure!(said.lines().eq(sysctls.map(|(_, value)| value)), "{said}");
    shut_down(guest, pod).await
}
