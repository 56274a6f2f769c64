//! What exec sessions and forwarded ports cost, over each transport.
//!
//! The client shares the machine with what it measures, so a rate is that of both together; the client is the same for all.

pub(crate) mod table;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures_util::future::try_join_all;
use hartpod_tests::cri;
use hartpod_tests::eventually::within;
use hartpod_tests::streaming::{Channel, Exec, Forward, Protocol};

use crate::drive::{Driver, Network};
use crate::samples::Samples;
use crate::weigh::{Peak, machine_cpu_seconds};

/// What is carried.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct StreamLoad {
    /// MiB of zeros through an exec, and through a port; 0 leaves streaming out
    #[arg(long, default_value_t = 1024, value_name = "MIB")]
    pub(crate) stream_mib: u32,
    /// Exec sessions at once
    #[arg(long, default_value_t = 100, value_name = "NUMBER")]
    pub(crate) sessions: u32,
    /// Connections to a port, one after another
    #[arg(long, default_value_t = 1000, value_name = "NUMBER")]
    pub(crate) connections: u32,
}

/// What came out.
#[derive(Debug)]
pub(crate) struct Streams {
    load: StreamLoad,
    /// ExecSync of `true`, and CPU seconds of the whole machine for each.
    exec_sync: Samples,
    exec_sync_cpu: f64,
    transports: Vec<(&'static str, Carried)>,
}

/// What one transport carried.
#[derive(Debug, Default)]
struct Carried {
    /// From the call of Exec of `true` to the end of its session.
    exec: Samples,
    output: Bulk,
    /// From the first call to the last end, in seconds, and the daemon's memory meanwhile.
    sessions: (f64, u64),
    /// Not every endpoint has ports for every transport.
    port: Option<Bulk>,
    connections: Option<Samples>,
}

/// Many bytes.
#[derive(Debug, Default)]
struct Bulk {
    mib_per_second: f64,
    /// Of the daemon, over what it had before, in KiB.
    memory: u64,
    /// Of the whole machine.
    cpu_seconds: f64,
}

/// How a client's streams are carried. All endpoints know these versions of exec.
const TRANSPORTS: &[(&str, Protocol, Protocol)] = &[
    ("SPDY", Protocol::SPDY, Protocol::SPDY_PORTS),
    ("WebSocket", Protocol::WebSocket("v4.channel.k8s.io"), Protocol::TUNNEL_PORTS),
];

/// Samples of an exec.
const EXECS: u32 = 100;
/// Where the pod serves a page, and bytes without end.
const PAGE_PORT: u16 = 8080;
const BULK_PORT: u16 = 8081;
const PAGE: &str = "a page\n";
/// For servers in the pod to listen.
const READY: Duration = Duration::from_secs(20);

/// A pod to carry things out of.
struct Subject<'a> {
    driver: &'a Driver<'a>,
    load: StreamLoad,
    pod: String,
    container: String,
}

/// Takes all figures of one endpoint.
pub(crate) async fn measure(driver: &Driver<'_>, load: StreamLoad) -> Result<Streams> {
    let serve = format!(
        "mkdir -p /www; echo 'a page' >/www/page; httpd -p {PAGE_PORT} -h /www; \
         exec nc -ll -p {BULK_PORT} -e dd if=/dev/zero bs=1M count={} 2>/dev/null",
        load.stream_mib
    );
    let one = driver.up_with("streams", Network::Pod, ["sh", "-c", &serve]).await?;
    let (pod, container) = (one.pod.clone(), one.container.clone());
    let streams = Subject { driver, load, pod, container }.all().await;
    driver.down(&one).await?;
    streams.context("streaming")
}

impl Subject<'_> {
    async fn all(&self) -> Result<Streams> {
        let mut transports = Vec::new();
        for &(name, commands, ports) in TRANSPORTS {
            transports.push((name, self.carried(commands, ports).await.context(name)?));
        }
        let (mut exec_sync, cpu) = (Samples::default(), machine_cpu_seconds()?);
        for _ in 0..EXECS {
            let start = Instant::now();
            let request = self.command(&["true"]);
            let (container_id, cmd) = (request.container_id, request.cmd);
            let request = cri::ExecSyncRequest { container_id, cmd, timeout: 30 };
            self.driver.endpoint.client.exec_sync(request).await?;
            exec_sync.add(start.elapsed());
        }
        let exec_sync_cpu = (machine_cpu_seconds()? - cpu) / f64::from(EXECS);
        Ok(Streams { load: self.load, exec_sync, exec_sync_cpu, transports })
    }

    async fn carried(&self, commands: Protocol, ports: Protocol) -> Result<Carried> {
        // What a daemon loads when it first does a thing is none of what doing it costs.
        self.exec_output(commands, 16).await?;
        let exec = self.execs(commands).await?;
        let output =
            self.bulk(self.exec_output(commands, self.load.stream_mib)).await.context("exec output")?;
        let sessions = self.sessions(commands).await.context("sessions at once")?;
        let (mut port, mut connections) = (None, None);
        if self.answers(ports).await? {
            port = Some(self.bulk(self.port_output(ports)).await.context("output of a port")?);
            connections = Some(self.connections(ports).await.context("connections")?);
        }
        Ok(Carried { exec, output, sessions, port, connections })
    }

    fn command(&self, cmd: &[&str]) -> cri::ExecRequest {
        let cmd = cmd.iter().map(|word| (*word).to_owned()).collect();
        cri::ExecRequest { container_id: self.container.clone(), cmd, stdout: true, ..Default::default() }
    }

    async fn open(&self, request: cri::ExecRequest, protocol: Protocol) -> Result<Exec> {
        Exec::start(&self.driver.endpoint.client, request, protocol).await
    }

    async fn execs(&self, protocol: Protocol) -> Result<Samples> {
        let mut samples = Samples::default();
        for _ in 0..EXECS {
            let start = Instant::now();
            let done = self.open(self.command(&["true"]), protocol).await?.finish().await?;
            samples.add(start.elapsed());
            ensure!(done.exit_code()? == 0, "{done:?}");
        }
        Ok(samples)
    }

    async fn bulk(&self, carry: impl Future<Output = Result<()>>) -> Result<Bulk> {
        let (peak, cpu, start) =
            (Peak::begin(self.driver.endpoint.daemon)?, machine_cpu_seconds()?, Instant::now());
        carry.await?;
        let mib_per_second = f64::from(self.load.stream_mib) / start.elapsed().as_secs_f64();
        Ok(Bulk { mib_per_second, memory: peak.above_kib()?, cpu_seconds: machine_cpu_seconds()? - cpu })
    }

    async fn exec_output(&self, protocol: Protocol, mib: u32) -> Result<()> {
        let zeros = ["dd", "if=/dev/zero", "bs=1M", &format!("count={mib}")];
        let mut exec = self.open(self.command(&zeros), protocol).await?;
        let mut count = 0;
        while let Some((channel, bytes)) = exec.read().await? {
            if channel == Channel::Stdout {
                count += bytes.len();
            }
        }
        ensure!(count == (mib as usize) << 20, "{count} bytes of {mib} MiB have arrived");
        Ok(())
    }

    /// Sessions that are all open before the first of them may end.
    async fn sessions(&self, protocol: Protocol) -> Result<(f64, u64)> {
        let (peak, start) = (Peak::begin(self.driver.endpoint.daemon)?, Instant::now());
        let request =
            cri::ExecRequest { stdin: true, ..self.command(&["sh", "-c", "echo here; read -r line"]) };
        let open = || async {
            let mut exec = self.open(request.clone(), protocol).await?;
            match exec.read().await? {
                Some((Channel::Stdout, bytes)) if &*bytes == b"here\n" => Ok(exec),
                other => bail!("a session begins with {other:?}"),
            }
        };
        let sessions = try_join_all((0..self.load.sessions).map(|_| open())).await?;
        let end = async |mut exec: Exec| {
            exec.write(b"go\n").await?;
            let done = exec.finish().await?;
            ensure!(done.exit_code()? == 0, "{done:?}");
            Ok(())
        };
        try_join_all(sessions.into_iter().map(end)).await?;
        Ok((start.elapsed().as_secs_f64(), peak.above_kib()?))
    }

    async fn forward(&self, port: u16, protocol: Protocol) -> Result<Forward> {
        Forward::start(&self.driver.endpoint.client, &self.pod, &[port], protocol).await
    }

    /// Whether ports are forwarded like this; the pod's servers listen then.
    async fn answers(&self, protocol: Protocol) -> Result<bool> {
        // Refused where there is no such protocol, and that has nothing to do with who listens.
        if self.forward(PAGE_PORT, protocol).await.is_err() {
            return Ok(false);
        }
        let ask = async || {
            let mut forward = self.forward(PAGE_PORT, protocol).await?;
            Ok(self.ask(&mut forward).await.unwrap_or(false))
        };
        within(READY, "the pod's page to be served", ask, |served| *served).await
    }

    /// Asks for the page and hangs up when it is there, as an HTTP client does. Whether it was.
    async fn ask(&self, forward: &mut Forward) -> Result<bool> {
        let mut connection = forward.connect(PAGE_PORT).await?;
        connection.write(b"GET /page HTTP/1.0\r\n\r\n").await?;
        let mut answer = Vec::new();
        while !answer.ends_with(PAGE.as_bytes()) {
            let Some(bytes) = connection.read().await else { return Ok(false) };
            answer.extend_from_slice(&bytes);
        }
        connection.end().await?;
        let (rest, error) = connection.finish().await;
        Ok(rest.is_empty() && error.is_empty())
    }

    async fn port_output(&self, protocol: Protocol) -> Result<()> {
        let mut forward = self.forward(BULK_PORT, protocol).await?;
        let mut connection = forward.connect(BULK_PORT).await?;
        let mut count = 0;
        while let Some(bytes) = connection.read().await {
            count += bytes.len();
        }
        let mib = self.load.stream_mib;
        ensure!(count == (mib as usize) << 20, "{count} bytes of {mib} MiB have arrived");
        Ok(())
    }

    async fn connections(&self, protocol: Protocol) -> Result<Samples> {
        let mut samples = Samples::default();
        let mut forward = self.forward(PAGE_PORT, protocol).await?;
        for number in 0..self.load.connections {
            let start = Instant::now();
            ensure!(self.ask(&mut forward).await?, "connection {number} gives something else");
            samples.add(start.elapsed());
        }
        Ok(samples)
    }
}
