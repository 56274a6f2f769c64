//! Starts the real agent as the daemon does, and speaks pod/v1 with it. Needs root.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hartpod_container::launcher::{self, AgentImage, AgentProcess};
use hartpod_proto::pod::v1::pod_agent_client::PodAgentClient;
use hartpod_proto::pod::v1::root_fs::Kind;
use hartpod_proto::pod::v1::{
    ContainerState, CreateContainerRequest, DescribeRequest, NamespaceMode, Overlay, RemoveContainerRequest,
    RootFs, SetUpPodRequest, ShutDownRequest, StartContainerRequest, StartExecRequest, WaitExecRequest,
    WaitExecResponse,
};
use hartpod_proto::{ContainerId, SandboxId};
use hyper_util::rt::TokioIo;
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

/// Longest that anything of a test may take.
pub(crate) const LONG: Duration = Duration::from_secs(20);

static IMAGE: LazyLock<AgentImage> =
    LazyLock::new(|| AgentImage::load(Path::new(env!("CARGO_BIN_EXE_hartpod-pod"))).unwrap());
static NUMBER: AtomicU32 = AtomicU32::new(1);

/// A running agent; it is killed with all that is left of its pod when this is dropped.
pub(crate) struct Agent {
    pub(crate) client: PodAgentClient<Channel>,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) process: AgentProcess,
    pub(crate) number: u32,
}

impl Agent {
    pub(crate) async fn start() -> Self {
        assert!(rustix::process::getuid().is_root(), "these tests need root");
        let dir = tempfile::tempdir().unwrap();
        let log = fs::File::create(dir.path().join("agent.log")).unwrap();
        let process = launcher::spawn(&IMAGE, dir.path(), log.as_fd(), None).unwrap();
        let socket = dir.path().join(launcher::CONTROL_SOCKET);
        let connect = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let channel =
            Endpoint::from_static("http://localhost").connect_with_connector(connect).await.unwrap();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Self { client: PodAgentClient::new(channel), dir, process, number }
    }

    /// An agent whose pod is set up, with layer `base` (busybox) and log folder `logs`.
    pub(crate) async fn with_pod(change: impl FnOnce(&mut SetUpPodRequest)) -> Self {
        let mut agent = Self::start().await;
        for folder in ["layers", "containers", "logs"] {
            fs::create_dir(agent.path(folder)).unwrap();
        }
        lay_busybox(&agent.path("layers/base"));
        let mut request = agent.set_up_request();
        change(&mut request);
        agent.client.set_up_pod(request).await.unwrap();
        agent
    }

    /// What [`Agent::with_pod`] asks for unless it is changed.
    pub(crate) fn set_up_request(&self) -> SetUpPodRequest {
        SetUpPodRequest {
            pod_id: pod_id().to_string(),
            hostname: "testpod".to_owned(),
            cgroup_parent: self.cgroup(),
            layers_dir: self.text("layers"),
            containers_dir: self.text("containers"),
            log_directory: self.text("logs"),
            pid: NamespaceMode::Container.into(),
            ..SetUpPodRequest::default()
        }
    }

    /// The agent and its children.
    pub(crate) fn process_ids(&self) -> Vec<i32> {
        let pid = self.process.pid;
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        std::iter::once(pid).chain(children.split_whitespace().map(|pid| pid.parse().unwrap())).collect()
    }

    /// Parent of the pod's cgroups, of this process and agent alone.
    pub(crate) fn cgroup(&self) -> String {
        format!("/hartpod-test-{}-{}", std::process::id(), self.number)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// A container that runs `script` in a shell and logs to `<number>.log`.
    pub(crate) fn shell(&self, number: u8, script: &str) -> CreateContainerRequest {
        self.command(number, &["/bin/sh", "-c", script])
    }

    pub(crate) fn command(&self, number: u8, args: &[&str]) -> CreateContainerRequest {
        let args: Vec<_> = args.iter().map(|arg| format!("{arg:?}")).collect();
        let spec = format!(
            r#"{{"ociVersion":"1.1.0","process":{{"cwd":"/","user":{{"uid":0,"gid":0}},
                "env":["PATH=/bin"],"args":[{}]}},
                "mounts":[{{"destination":"/proc","type":"proc","source":"proc"}},
                    {{"destination":"/dev","type":"tmpfs","source":"tmpfs","options":["nosuid","mode=755"]}},
                    {{"destination":"/dev/pts","type":"devpts","source":"devpts",
                        "options":["newinstance","ptmxmode=0666","mode=0620","gid=5"]}}],
                "linux":{{"namespaces":[{{"type":"mount"}}]}}}}"#,
            args.join(",")
        );
        let id = id(number);
        let scratch = id.to_string();
        fs::create_dir_all(self.path("containers").join(&scratch)).unwrap();
        CreateContainerRequest {
            container_id: scratch.clone(),
            spec_json: spec.into_bytes(),
            rootfs: Some(RootFs {
                kind: Some(Kind::Overlay(Overlay { layers: vec!["base".to_owned()], scratch })),
            }),
            pid: NamespaceMode::Container.into(),
            log_path: format!("c/{number}.log"),
            ..CreateContainerRequest::default()
        }
    }

    /// Creates and starts.
    pub(crate) async fn run(&mut self, request: CreateContainerRequest) -> Result<ContainerState, Status> {
        let container_id = request.container_id.clone();
        self.client.create_container(request).await?;
        let started = self.client.start_container(StartContainerRequest { container_id }).await?;
        Ok(started.into_inner().state.unwrap())
    }

    /// The state of a container as Describe tells it.
    pub(crate) async fn state(&mut self, number: u8) -> Option<ContainerState> {
        let described = self.client.describe(DescribeRequest {}).await.unwrap().into_inner();
        described.containers.into_iter().find(|state| state.container_id == id(number).to_string())
    }

    /// Waits until the state of a container is as `wanted`.
    pub(crate) async fn until(
        &mut self,
        number: u8,
        wanted: impl Fn(&ContainerState) -> bool,
    ) -> ContainerState {
        let watch = async {
            let mut watch =
                self.client.watch(hartpod_proto::pod::v1::WatchRequest {}).await.unwrap().into_inner();
            loop {
                let change = watch.message().await.unwrap().expect("the watch ended").change.unwrap();
                if let hartpod_proto::pod::v1::watch_response::Change::Container(state) = change {
                    if state.container_id == id(number).to_string() && wanted(&state) {
                        return state;
                    }
                }
            }
        };
        tokio::time::timeout(LONG, watch).await.expect("the container never came to that state")
    }

    pub(crate) async fn remove(&mut self, number: u8) -> Result<(), Status> {
        let container_id = id(number).to_string();
        self.client.remove_container(RemoveContainerRequest { container_id }).await.map(drop)
    }

    /// Runs an exec to its end: its result, and what it wrote to stdout and stderr.
    pub(crate) async fn exec(
        &mut self,
        number: u8,
        script: &str,
        input: &str,
    ) -> (WaitExecResponse, String, String) {
        let request = StartExecRequest {
            stdin_token: token(),
            stdout_token: token(),
            stderr_token: token(),
            ..exec(number, script)
        };
        let exec_id = request.exec_id.clone();
        self.client.start_exec(request.clone()).await.unwrap();
        let mut stdin = self.stream(&request.stdin_token).await;
        let (mut stdout, mut stderr) =
            (self.stream(&request.stdout_token).await, self.stream(&request.stderr_token).await);
        stdin.write_all(input.as_bytes()).await.unwrap();
        stdin.shutdown().await.unwrap();
        let (mut out, mut err) = (String::new(), String::new());
        let reads = async { tokio::join!(stdout.read_to_string(&mut out), stderr.read_to_string(&mut err)) };
        tokio::time::timeout(LONG, reads).await.expect("the output never ended").0.unwrap();
        let wait = WaitExecRequest { container_id: id(number).to_string(), exec_id };
        (self.client.wait_exec(wait).await.unwrap().into_inner(), out, err)
    }

    /// A raw stream that begins with `token`.
    pub(crate) async fn stream(&self, token: &str) -> UnixStream {
        let mut stream = UnixStream::connect(self.path(launcher::STREAM_SOCKET)).await.unwrap();
        stream.write_all(format!("{token}\n").as_bytes()).await.unwrap();
        stream
    }

    pub(crate) async fn shut_down(&mut self) {
        self.client.shut_down(ShutDownRequest {}).await.unwrap();
    }

    /// Waits for the end of the agent's process; its exit code.
    pub(crate) async fn exit_code(&self) -> i32 {
        let ended = async {
            loop {
                let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
                match waitid(WaitId::PidFd(self.process.pidfd.as_fd()), options).unwrap() {
                    Some(status) => return status.exit_status().unwrap_or(-1),
                    None => tokio::time::sleep(Duration::from_millis(2)).await,
                }
            }
        };
        tokio::time::timeout(LONG, ended).await.expect("the agent does not end")
    }

    /// Lines of a container's log, without their stamps.
    pub(crate) fn log(&self, number: u8) -> Vec<String> {
        let text = fs::read_to_string(self.path(&format!("logs/c/{number}.log"))).unwrap();
        text.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
    }

    /// What the agent itself had to say.
    pub(crate) fn agent_log(&self) -> String {
        fs::read_to_string(self.path("agent.log")).unwrap()
    }

    /// Cgroup folders of the pod that exist.
    pub(crate) fn cgroups(&self) -> Vec<PathBuf> {
        let roots = fs::read_dir("/sys/fs/cgroup").unwrap().map(|entry| entry.unwrap().path());
        let parents =
            roots.chain([PathBuf::from("/sys/fs/cgroup")]).map(|root| root.join(&self.cgroup()[1..]));
        parents.filter(|path| path.is_dir()).collect()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = pidfd_send_signal(&self.process.pidfd, Signal::KILL);
        let _ = waitid(WaitId::PidFd(self.process.pidfd.as_fd()), WaitIdOptions::EXITED);
        if let Ok(tree) = hartpod_container::cgroup::Tree::detect(Path::new("/sys/fs/cgroup")) {
            for entry in self.cgroups().iter().filter_map(|path| fs::read_dir(path).ok()).flatten().flatten()
            {
                let name = entry.file_name();
                if let Ok(leaf) = tree.leaf(&self.cgroup(), &name.to_string_lossy()) {
                    let _ = leaf.destroy_blocking(std::time::Instant::now() + Duration::from_secs(5));
                }
            }
        }
        if std::thread::panicking() {
            eprintln!("--- the agent's log\n{}---", self.agent_log());
        }
    }
}

/// Waits until `holds`.
pub(crate) async fn eventually(holds: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !holds() {
        assert!(begun.elapsed() < LONG, "it never came to that");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// The id of a test's pod; no container has it.
pub(crate) fn pod_id() -> SandboxId {
    SandboxId::from_bytes([0xff; 32])
}

/// The id of a test's container.
pub(crate) fn id(number: u8) -> ContainerId {
    ContainerId::from_bytes([number; 32])
}

/// An exec of `script` in a shell, without streams.
pub(crate) fn exec(number: u8, script: &str) -> StartExecRequest {
    StartExecRequest {
        container_id: id(number).to_string(),
        exec_id: format!("e{}", NUMBER.fetch_add(1, Ordering::Relaxed)),
        args: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        ..StartExecRequest::default()
    }
}

/// A token that no other stream has.
pub(crate) fn token() -> String {
    format!("{:032x}", NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// A layer with busybox and the folders that a container wants.
fn lay_busybox(layer: &Path) {
    for folder in ["bin", "dev", "etc", "proc", "sys", "tmp", "root"] {
        fs::create_dir_all(layer.join(folder)).unwrap();
    }
    fs::copy("/bin/busybox", layer.join("bin/busybox")).expect("busybox-static is installed");
    for applet in [
        "sh", "cat", "echo", "sleep", "true", "id", "kill", "ls", "setsid", "ps", "seq", "yes", "head", "wc",
        "nohup", "stty", "dd",
    ] {
        symlink("busybox", layer.join("bin").join(applet)).unwrap();
    }
    fs::write(layer.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n").unwrap();
    fs::write(layer.join("etc/group"), "root:x:0:\nuser:x:1000:\n").unwrap();
}
