//! The node's side of a pod's network: what CNI makes, a resolver, a server of bytes, and a machine beyond the node.

use std::fs::File;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use hartpod_tests::cni::{CniDir, SUBNET, SUBNET6};
use hartpod_tests::eventually::patient;
use hartpod_tests::skip::CNI_BIN_DIR;
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// The bridge's addresses, the first of its networks.
pub(crate) const GATEWAY: &str = "10.244.7.1";
pub(crate) const GATEWAY_V6: &str = "fd00:7::1";
/// Leads to port 80 of the pod.
pub(crate) const HOST_PORT: u16 = 18080;
/// A machine that knows the node only.
pub(crate) const OUTSIDE: &str = "192.0.2.2";
const NODE: &str = "192.0.2.1";

/// A pod's network namespace, and one of a machine beyond the node.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) netns: PathBuf,
    outside: PathBuf,
    /// Configurations of the plugins, in order.
    plugins: Vec<Value>,
}

impl Network {
    pub(crate) fn make(dir: &Path) -> Result<Self> {
        let mut list = CniDir::create(&dir.join("cni"))?.bridge(&[SUBNET, SUBNET6]);
        list["plugins"][0]["ipam"]["routes"] = json!([{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }]);
        let mappings = json!([{ "hostPort": HOST_PORT, "containerPort": 80, "protocol": "tcp" }]);
        list["plugins"][1]["runtimeConfig"] = json!({ "portMappings": mappings });
        let mut plugins = list["plugins"].as_array().context("plugins")?.clone();
        for plugin in &mut plugins {
            (plugin["name"], plugin["cniVersion"]) = (list["name"].clone(), list["cniVersion"].clone());
        }
        let this = Self { netns: dir.join("pod.netns"), outside: dir.join("outside.netns"), plugins };
        for path in [&this.netns, &this.outside] {
            File::create(path)?;
            command(Command::new("unshare").arg(format!("--net={}", path.display())).arg("true"))?;
        }
        // Made there, so that its other end can come here: to the namespace of the first process here.
        within(&this.outside, "ip link add out1 type veth peer name out0 netns 1")?;
        within(&this.outside, &format!("ip addr add {OUTSIDE}/24 dev out1"))?;
        within(&this.outside, "ip link set out1 up")?;
        ip(&format!("addr add {NODE}/24 dev out0"))?;
        ip("link set out0 up")?;
        Ok(this)
    }

    /// CNI ADD.
    pub(crate) fn add(&self) -> Result<()> {
        let mut previous = Value::Null;
        for plugin in &self.plugins {
            let mut config = plugin.clone();
            if !previous.is_null() {
                config["prevResult"] = previous;
            }
            previous = self.call("ADD", &config)?;
        }
        Ok(())
    }

    /// CNI DEL, and nothing is left.
    pub(crate) fn delete(&self) -> Result<()> {
        for plugin in self.plugins.iter().rev() {
            self.call("DEL", plugin)?;
        }
        ip("link delete out0")?;
        for path in [&self.netns, &self.outside] {
            command(Command::new("umount").arg(path))?;
        }
        Ok(())
    }

    fn call(&self, what: &str, config: &Value) -> Result<Value> {
        let name = config["type"].as_str().context("type")?;
        let mut plugin = Command::new(Path::new(CNI_BIN_DIR).join(name));
        plugin.env("CNI_COMMAND", what).env("CNI_CONTAINERID", "guest").env("CNI_IFNAME", "eth0");
        plugin.env("CNI_NETNS", &self.netns).env("CNI_PATH", CNI_BIN_DIR);
        let mut child = plugin.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        child.stdin.take().context("stdin")?.write_all(config.to_string().as_bytes())?;
        let output = child.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{name} {what}: {text}");
        Ok(serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    /// The pod's addresses of both families.
    pub(crate) fn addresses(&self) -> Result<(IpAddr, IpAddr)> {
        let shown: Vec<Value> = serde_json::from_str(&within(&self.netns, "ip -json addr show dev eth0")?)?;
        let address = |family: &str| -> Result<IpAddr> {
            let all = shown[0]["addr_info"].as_array().context("addr_info")?;
            let one = all.iter().find(|one| one["family"] == family && one["scope"] == "global");
            Ok(one.and_then(|one| one["local"].as_str()).context("no address")?.parse()?)
        };
        Ok((address("inet")?, address("inet6")?))
    }

    /// Of the pod's interface.
    pub(crate) fn mac(&self) -> Result<String> {
        let shown: Vec<Value> = serde_json::from_str(&within(&self.netns, "ip -json link show dev eth0")?)?;
        Ok(shown[0]["address"].as_str().context("no address")?.to_owned())
    }

    /// A listening socket on the machine beyond the node.
    pub(crate) fn outside(&self) -> Result<std::net::TcpListener> {
        let netns = File::open(&self.outside)?;
        let bind = move || -> Result<std::net::TcpListener> {
            setns(netns, CloneFlags::CLONE_NEWNET)?;
            Ok(std::net::TcpListener::bind((OUTSIDE, 8000))?)
        };
        std::thread::spawn(bind).join().unwrap_or_else(|_| bail!("the thread panicked"))
    }
}

/// Runs a command in a network namespace; what it said.
fn within(netns: &Path, what: &str) -> Result<String> {
    command(Command::new("nsenter").arg(format!("--net={}", netns.display())).args(what.split(' ')))
}

fn ip(what: &str) -> Result<String> {
    command(Command::new("ip").args(what.split(' ')))
}

fn command(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}: {stderr}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

/// Ends with it.
#[derive(Debug)]
pub(crate) struct Served(JoinHandle<()>);

impl Drop for Served {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Serves these bytes over HTTP, whatever is asked for.
pub(crate) fn serve(listener: std::net::TcpListener, data: Vec<u8>) -> Result<Served> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    Ok(Served(tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Err(error) = answer_with(stream, &data).await {
                eprintln!("a client of the test's server: {error}");
            }
        }
    })))
}

async fn answer_with(mut stream: TcpStream, data: &[u8]) -> std::io::Result<()> {
    read_until_blank_line(&mut stream).await?;
    let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", data.len());
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(data).await?;
    stream.shutdown().await
}

async fn read_until_blank_line(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut asked = Vec::new();
    while !asked.ends_with(b"\r\n\r\n") {
        asked.push(stream.read_u8().await?);
    }
    Ok(())
}

/// What an HTTP server has at this path.
pub(crate) async fn get(address: SocketAddr, path: &str) -> Result<Vec<u8>> {
    let exchange = async {
        let mut stream =
            TcpStream::connect(address).await.with_context(|| format!("connect to {address}"))?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").context("no end of the head")?;
        let head = String::from_utf8_lossy(&answer[..end]).into_owned();
        ensure!(head.lines().next().is_some_and(|line| line.contains(" 200 ")), "{address}{path}: {head}");
        Ok(answer.split_off(end + 4))
    };
    let limit = patient(Duration::from_secs(20));
    tokio::time::timeout(limit, exchange).await.with_context(|| format!("{address}{path} does not end"))?
}

/// Answers each question for an IPv4 address with the gateway's, others with nothing. Ends with its socket's timeout.
pub(crate) fn resolver() -> Result<()> {
    let socket = UdpSocket::bind((GATEWAY, 53)).context("bind the resolver")?;
    socket.set_read_timeout(Some(patient(Duration::from_secs(60))))?;
    std::thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut question) {
            if let Some(answer) = answer(&question[..length]) {
                let _ = socket.send_to(&answer, from);
            }
        }
    });
    Ok(())
}

/// RFC 1035, section 4.1.
fn answer(question: &[u8]) -> Option<Vec<u8>> {
    const ADDRESS: [u8; 2] = [0, 1];
    let gateway: Ipv4Addr = GATEWAY.parse().ok()?;
    let name = question.get(12..)?.iter().position(|byte| *byte == 0)?;
    let end = 12 + name + 1 + 4;
    let asked = question.get(end - 4..end - 2)?;
    let count = u8::from(asked == ADDRESS);
    let mut answer = question.get(..2)?.to_vec();
    // It is an answer, recursion was wished for and done; one question, so many answers.
    answer.extend([0x81, 0x80, 0, 1, 0, count, 0, 0, 0, 0]);
    answer.extend(question.get(12..end)?);
    if count == 1 {
        // The name of the question, an address, of the Internet, for a minute.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(gateway.octets());
    }
    Some(answer)
}
