//! A pod in a guest: its agent by pod/v1, and the raw streams beside it.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use hartpod_proto::pod::v1::pod_agent_client::PodAgentClient;
use hartpod_proto::pod::v1::{
    CreateContainerRequest, DescribeRequest, Disk, NamespaceMode, Phase, RemoveContainerRequest, RootFs,
    SetUpPodRequest, ShutDownRequest, StartContainerRequest, StartExecRequest, Stdio, WaitExecRequest,
    root_fs,
};
use hartpod_tests::eventually::{patient, within};
use hartpod_vm::launcher::connect;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use crate::guest::Guest;

/// pod/v1 (pod.proto).
const CONTROL: u32 = 1024;
/// Raw streams.
const STREAMS: u32 = 1025;

/// How long a container may take to do what a test's scripts do.
const SCRIPT: Duration = Duration::from_secs(20);

/// A set-up pod.
#[derive(Debug)]
pub(crate) struct Pod {
    agent: PodAgentClient<Channel>,
    guest: PathBuf,
    /// Containers and execs so far: each has an id of its own.
    begun: u8,
    /// Files of the pod, which its containers find in /etc.
    files: Vec<String>,
}

/// A container that waits for its start, and the tokens of its streams.
#[derive(Debug)]
pub(crate) struct Created {
    pub(crate) id: String,
    pub(crate) out: String,
    /// A terminal has none.
    pub(crate) err: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Terminal {
    No,
    Yes,
}

/// What a process said, and how it ended.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// Streams of an exec.
#[derive(Debug)]
pub(crate) struct Exec {
    pub(crate) stdin: UnixStream,
    pub(crate) stdout: UnixStream,
    container: String,
    id: String,
}

impl Pod {
    pub(crate) async fn set_up(guest: &Guest) -> Result<Self> {
        Self::set_up_as(guest, SetUpPodRequest::default()).await
    }

    /// With what `request` has besides names and time.
    pub(crate) async fn set_up_as(guest: &Guest, request: SetUpPodRequest) -> Result<Self> {
        let dir = guest.dir().to_owned();
        let connector = tower::service_fn({
            let dir = dir.clone();
            move |_| {
                let dir = dir.clone();
                async move { stream(&dir, CONTROL).await.map(TokioIo::new) }
            }
        });
        // Never resolved: the connector ignores it.
        let channel = Endpoint::from_static("http://guest").connect_with_connector(connector).await;
        let mut agent = PodAgentClient::new(channel.context("connect to pod/v1")?);
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
        let request = SetUpPodRequest {
            pod_id: "fe".repeat(32),
            hostname: "guest-pod".into(),
            pid: NamespaceMode::Container.into(),
            clock_ns: u64::try_from(now)?,
            ..request
        };
        let files = request.files.iter().map(|file| file.name.clone()).collect();
        agent.set_up_pod(request).await.context("SetUpPod")?;
        Ok(Self { agent, guest: dir, begun: 0, files })
    }

    /// Creates a container on the disk in `slot`, which waits for its start.
    pub(crate) async fn create(
        &mut self,
        slot: u32,
        layers: u32,
        script: &str,
        terminal: Terminal,
    ) -> Result<Created> {
        let number = self.next();
        let id = format!("{number:02x}").repeat(32);
        let tty = terminal == Terminal::Yes;
        let (out, err) = (token(number, 1), (!tty).then(|| token(number, 2)));
        let stdio = Stdio { tty, stdout_token: out.clone(), stderr_token: err.clone().unwrap_or_default() };
        let request = CreateContainerRequest {
            container_id: id.clone(),
            spec_json: spec(script, tty, &self.files),
            rootfs: Some(RootFs { kind: Some(root_fs::Kind::Disk(Disk { slot, layers, volume_layers: 0 })) }),
            pid: NamespaceMode::Container.into(),
            stdio: Some(stdio),
            ..CreateContainerRequest::default()
        };
        self.agent.create_container(request).await.context("CreateContainer")?;
        Ok(Created { id, out, err })
    }

    /// Lets a container begin that waits for it.
    pub(crate) async fn begin(&mut self, id: &str) -> Result<()> {
        let request = StartContainerRequest { container_id: id.to_owned() };
        self.agent.start_container(request).await.context("StartContainer")?;
        Ok(())
    }

    /// Creates a container on the disk in `slot` and starts it; its id and its two streams.
    pub(crate) async fn start(
        &mut self,
        slot: u32,
        layers: u32,
        script: &str,
    ) -> Result<(String, UnixStream, UnixStream)> {
        let Created { id, out, err } = self.create(slot, layers, script, Terminal::No).await?;
        let (out, err) = (self.open(&out).await?, self.open(&err.unwrap_or_default()).await?);
        self.begin(&id).await?;
        Ok((id, out, err))
    }

    /// Runs a container on the disk in `slot` to its end, and removes it.
    pub(crate) async fn run(&mut self, slot: u32, layers: u32, script: &str) -> Result<Said> {
        let (id, mut stdout, mut stderr) = self.start(slot, layers, script).await?;
        let (mut out, mut err) = (String::new(), String::new());
        let both =
            async { tokio::try_join!(stdout.read_to_string(&mut out), stderr.read_to_string(&mut err)) };
        tokio::time::timeout(patient(SCRIPT), both)
            .await
            .context("the container's output does not end")??;
        let code = self.exited(&id).await?;
        self.remove(&id).await?;
        Ok(Said { code, out, err })
    }

    /// The exit code of a container, once it has ended.
    pub(crate) async fn exited(&self, id: &str) -> Result<i32> {
        let agent = self.agent.clone();
        let look = async || {
            let described = agent.clone().describe(DescribeRequest {}).await?.into_inner();
            let state = described.containers.into_iter().find(|state| state.container_id == id);
            state.context("the agent has forgotten the container")
        };
        let done =
            within(SCRIPT, "the container's end", look, |state| state.phase() == Phase::Exited).await?;
        Ok(done.exit_code)
    }

    pub(crate) async fn remove(&mut self, id: &str) -> Result<()> {
        let request = RemoveContainerRequest { container_id: id.to_owned() };
        self.agent.remove_container(request).await.context("RemoveContainer")?;
        Ok(())
    }

    /// Runs a program in a container that runs.
    pub(crate) async fn exec(&mut self, container: &str, args: &[&str]) -> Result<Exec> {
        let number = self.next();
        let id = format!("exec-{number}");
        let (stdin, stdout) = (token(number, 3), token(number, 4));
        let request = StartExecRequest {
            container_id: container.to_owned(),
            exec_id: id.clone(),
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            stdin_token: stdin.clone(),
            stdout_token: stdout.clone(),
            ..StartExecRequest::default()
        };
        self.agent.start_exec(request).await.context("StartExec")?;
        let (stdin, stdout) = (self.open(&stdin).await?, self.open(&stdout).await?);
        Ok(Exec { stdin, stdout, container: container.to_owned(), id })
    }

    /// Its exit code, once its output was read to the end.
    pub(crate) async fn wait(&mut self, exec: Exec) -> Result<i32> {
        let request = WaitExecRequest { container_id: exec.container, exec_id: exec.id };
        Ok(self.agent.wait_exec(request).await.context("WaitExec")?.into_inner().exit_code)
    }

    pub(crate) async fn shut_down(mut self) -> Result<()> {
        self.agent.shut_down(ShutDownRequest {}).await.context("ShutDown")?;
        Ok(())
    }

    fn next(&mut self) -> u8 {
        self.begun += 1;
        self.begun
    }

    /// The stream that the agent expects under `token`.
    async fn open(&self, token: &str) -> Result<UnixStream> {
        let mut stream = stream(&self.guest, STREAMS).await.context("connect to the streams")?;
        stream.write_all(format!("{token}\n").as_bytes()).await.context("send a token")?;
        Ok(stream)
    }
}

async fn stream(guest: &Path, port: u32) -> Result<UnixStream> {
    let guest = guest.to_owned();
    let connected =
        tokio::task::spawn_blocking(move || connect(&guest, port, patient(Duration::from_secs(10))));
    let stream = connected.await??;
    stream.set_nonblocking(true)?;
    Ok(UnixStream::from_std(stream)?)
}

fn token(number: u8, stream: u8) -> String {
    format!("{number:02x}{stream:02x}").repeat(8)
}

/// What the daemon would ask for, for a privileged shell script.
fn spec(script: &str, terminal: bool, files: &[String]) -> Vec<u8> {
    let capabilities = ["CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SYS_ADMIN"];
    let mut mounts = vec![
        json!({ "destination": "/proc", "type": "proc", "source": "proc" }),
        json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"] }),
        json!({ "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"] }),
        json!({ "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"] }),
        json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"] }),
    ];
    mounts.extend(files.iter().map(|file| {
        let (source, destination) = (format!("/run/hartpod/files/{file}"), format!("/etc/{file}"));
        json!({ "destination": destination, "type": "bind", "source": source, "options": ["bind", "ro"] })
    }));
    let spec = json!({
        "ociVersion": "1.1.0",
        "process": {
            "terminal": terminal,
            "cwd": "/",
            "user": { "uid": 0, "gid": 0 },
            "env": ["PATH=/bin"],
            "args": ["/bin/busybox", "sh", "-c", script],
            "capabilities": { "bounding": capabilities, "permitted": capabilities, "effective": capabilities },
        },
        "mounts": mounts,
        "linux": { "namespaces": [{ "type": "mount" }, { "type": "cgroup" }] },
    });
    spec.to_string().into_bytes()
}

impl Said {
    /// What a script said that went well.
    pub(crate) fn success(self) -> Result<String> {
        ensure!(self.code == 0, "{self:?}");
        Ok(self.out)
    }
}
