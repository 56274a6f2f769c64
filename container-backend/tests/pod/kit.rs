//! What scenarios are told with: an agent, specs, and containers that run to their end.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hartpod_container::cgroup::{ExecLeaf, Leaf, Tree};
use hartpod_container::{
    Child, ContainerProcess, ContainerRequest, Created, ExecRequest, Execing, Exit, GroupPolicy, IpcMode,
    LaunchError, Overlay, PidNamespace, Pod, PodPid, PodSetup, RootFs, Stdio, reap_orphans,
};
use hartpod_proto::{ContainerId, SandboxId};
use nix::mount::{MsFlags, mount};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};

/// The scenario's own folder on the host.
pub(crate) const HOME: &str = "HARTPOD_TEST_HOME";
/// A file there that names the agent's cgroup leaf, for the runner to remove.
const LEAF: &str = "leaf";
/// Longest wait for anything; nothing here takes a tenth of it.
const PATIENCE: Duration = Duration::from_secs(30);

/// This process as the agent of a pod, with one image.
pub(crate) struct Agent {
    pub(crate) pod: Pod,
    pub(crate) warnings: Vec<String>,
    pub(crate) layers: Vec<String>,
    made: Cell<u16>,
    salt: u8,
}

/// What a program did.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

pub(crate) fn home() -> PathBuf {
    std::env::var_os(HOME).expect("run by the test runner").into()
}

/// A pod whose containers have pid namespaces of their own.
pub(crate) fn agent() -> Agent {
    agent_with(|_| {})
}

/// A pod with a shared pid namespace.
pub(crate) fn agent_sharing_pids() -> Agent {
    agent_with(|setup| setup.pid = PodPid::Shared)
}

pub(crate) fn agent_with(change: impl FnOnce(&mut PodSetup)) -> Agent {
    let home = home();
    let (layers_dir, containers_dir) = (home.join("layers"), home.join("containers"));
    fs::create_dir_all(&containers_dir).unwrap();
    make_image(&layers_dir);
    // Distinct for every scenario that runs at the same time.
    let mut id = [0; 32];
    File::open("/dev/urandom").unwrap().read_exact(&mut id).unwrap();
    let salt = id[0];
    let mut setup = PodSetup {
        pod_id: SandboxId::from_bytes(id),
        hostname: "test-pod".into(),
        netns: None,
        ipc: IpcMode::Pod,
        pid: PodPid::PerContainer,
        cgroup_parent: format!("/hartpod-pods-{}", std::process::id()),
        layers_dir,
        containers_dir,
        shm_size: 0,
        sysctls: std::collections::BTreeMap::new(),
        mount_label: String::new(),
        users: None,
    };
    change(&mut setup);
    fs::write(home.join(LEAF), format!("{}\n{}", setup.cgroup_parent, setup.pod_id)).unwrap();
    let (pod, warnings) = Pod::set_up(setup).unwrap();
    Agent { pod, warnings, layers: vec!["bottom".into(), "top".into()], made: Cell::new(0), salt }
}

/// A tmpfs in the scenario's folder, in a mount namespace that the scenario has to itself: what the agent will take for the
/// host's.
pub(crate) fn new_mount_on_the_host(name: &str, propagation: MsFlags) -> PathBuf {
    let path = home().join(name);
    fs::create_dir(&path).unwrap();
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    mount(None::<&str>, &path, None::<&str>, propagation, None::<&str>).unwrap();
    path
}

/// Two layers: busybox with its links, and some users.
fn make_image(layers: &Path) {
    let bottom = layers.join("bottom");
    for folder in ["bin", "etc", "proc", "sys", "tmp", "root"] {
        fs::create_dir_all(bottom.join(folder)).unwrap();
    }
    fs::copy("/bin/busybox", bottom.join("bin/busybox")).expect("package busybox-static");
    for applet in [
        "sh", "cat", "ls", "id", "echo", "sleep", "true", "stat", "grep", "touch", "mount", "umount", "kill",
        "pwd", "env", "readlink", "ps", "hostname", "mkdir", "setsid", "tty", "ulimit", "wc", "tail", "sort",
        "rm", "dd", "head",
    ] {
        std::os::unix::fs::symlink("busybox", bottom.join("bin").join(applet)).unwrap();
    }
    let top = layers.join("top/etc");
    fs::create_dir_all(&top).unwrap();
    fs::write(top.join("passwd"), "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv/www:/bin/sh\n").unwrap();
    fs::write(top.join("group"), "root:x:0:\nwww:x:34:\nlogs:x:40:web\n").unwrap();
}

/// What Kubernetes' containers usually have, as an OCI spec.
pub(crate) fn spec(args: &[&str]) -> Value {
    let caps = [
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_KILL",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_NET_BIND_SERVICE",
    ];
    json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs"},
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
        ],
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

/// A shell command in a usual container.
pub(crate) fn shell(command: &str) -> Value {
    spec(&["sh", "-c", command])
}

/// What a child says that goes to the host's mounts, as log writers do.
pub(crate) fn on_host(agent: &Agent, work: &dyn Fn() -> String) -> String {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let child = hartpod_container::fork_role("on-host", &[agent.pod.host().as_fd(), writer.as_fd()], || {
        agent.pod.host().enter().unwrap();
        rustix::io::write(&writer, work().as_bytes()).unwrap();
        0
    });
    drop(writer);
    wait(&child.unwrap());
    let mut text = String::new();
    File::from(reader).read_to_string(&mut text).unwrap();
    text
}

/// Adds to a list of a spec.
pub(crate) fn add(spec: &mut Value, list: &str, value: Value) {
    let list = spec.pointer_mut(list).expect("a list of the spec");
    list.as_array_mut().expect("a list").push(value);
}

pub(crate) fn set(spec: &mut Value, at: &str, key: &str, value: Value) {
    spec.pointer_mut(at).expect("an object of the spec")[key] = value;
}

pub(crate) fn bind(spec: &mut Value, source: &Path, destination: &str, options: &[&str]) {
    let mount = json!({"destination": destination, "type": "bind", "source": source, "options": options});
    add(spec, "/mounts", mount);
}

/// Polls a stage to its end.
pub(crate) fn finish<S: AsFd, T>(
    stage: &mut S,
    mut step: impl FnMut(&mut S) -> Result<Option<T>, LaunchError>,
) -> Result<T, LaunchError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(done) = step(stage)? {
            return Ok(done);
        }
        wait_readable(stage.as_fd(), deadline);
    }
}

pub(crate) fn wait_readable(fd: impl AsFd, deadline: Instant) {
    let left = deadline.checked_duration_since(Instant::now()).expect("done in time");
    let limit = Timespec::try_from(left).unwrap();
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit)).unwrap();
}

/// Waits for a child's end.
pub(crate) fn wait(child: &Child) -> Exit {
    let deadline = Instant::now() + PATIENCE;
    loop {
        wait_readable(child, deadline);
        if let Some(exit) = child.try_wait().unwrap() {
            return exit;
        }
    }
}

pub(crate) struct Streams {
    pub(crate) stdio: Stdio,
    pub(crate) stdin: OwnedFd,
    out: File,
    err: File,
}

pub(crate) fn streams() -> Streams {
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let ((stdin, to_stdin), (out, stdout), (err, stderr)) = (pipe(), pipe(), pipe());
    Streams { stdio: Stdio::Fds { stdin, stdout, stderr }, stdin: to_stdin, out: out.into(), err: err.into() }
}

/// The agent's ends.
pub(crate) struct Output {
    out: File,
    err: File,
}

impl Streams {
    pub(crate) fn split(self) -> (Stdio, OwnedFd, Output) {
        (self.stdio, self.stdin, Output { out: self.out, err: self.err })
    }
}

impl Output {
    /// Reads one line of stdout.
    pub(crate) fn line(&mut self) -> String {
        let mut line = Vec::new();
        let mut byte = [0];
        while self.out.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    }

    pub(crate) fn rest(mut self) -> (String, String) {
        let (mut out, mut err) = (String::new(), String::new());
        self.out.read_to_string(&mut out).unwrap();
        self.err.read_to_string(&mut err).unwrap();
        (out, err)
    }
}

/// A container that runs.
pub(crate) struct Running {
    pub(crate) container: Arc<ContainerProcess>,
    pub(crate) child: Child,
    pub(crate) output: Output,
    pub(crate) warnings: Vec<String>,
    pub(crate) stdin: OwnedFd,
}

impl Running {
    pub(crate) fn end(self) -> Outcome {
        let exit = wait(&self.child);
        let (out, err) = self.output.rest();
        Outcome { code: exit.code(), out, err }
    }

    /// Kills it and all that it has started.
    pub(crate) fn kill(self) {
        self.container.leaf().kill().unwrap();
        // Its end waits for that of failed execs, which nobody else reaps.
        eventually("it dies", || {
            reap_orphans(|pid| pid == self.child.pid()).unwrap();
            self.child.try_wait().unwrap().is_some()
        });
    }
}

impl Agent {
    pub(crate) fn next_id(&self) -> ContainerId {
        self.made.set(self.made.get() + 1);
        self.last_id()
    }

    fn last_id(&self) -> ContainerId {
        self.id(self.made.get())
    }

    fn id(&self, n: u16) -> ContainerId {
        let mut id = [self.salt; 32];
        id[30..].copy_from_slice(&n.to_be_bytes());
        ContainerId::from_bytes(id)
    }

    /// Of the container that was asked for last.
    pub(crate) fn last_leaf(&self) -> Leaf {
        self.pod.container_leaf(&self.last_id()).unwrap()
    }

    /// Of the exec that was asked for last.
    pub(crate) fn last_exec_leaf(&self, container: &ContainerProcess) -> ExecLeaf {
        container.leaf().exec_leaf(self.last_id().as_str()).unwrap()
    }

    pub(crate) fn request<'a>(&self, spec: Value, stdio: Stdio) -> ContainerRequest<'a> {
        let id = self.next_id();
        let overlay = Overlay { layers: self.layers.clone(), scratch: id.to_string() };
        ContainerRequest {
            id,
            spec: serde_json::from_value(spec).unwrap(),
            rootfs: RootFs::Overlay(overlay),
            images: Vec::new(),
            user: String::new(),
            groups: GroupPolicy::Merge,
            pid: if self.pod.holder().is_some() { PidNamespace::Pod } else { PidNamespace::Container },
            bundle: None,
            stdio,
        }
    }

    pub(crate) fn create(&self, request: ContainerRequest<'_>) -> Result<Created, LaunchError> {
        let mut creating = self.pod.begin_create(request)?;
        finish(&mut creating, |c| c.poll())
    }

    pub(crate) fn start(&self, spec: Value) -> Result<Running, LaunchError> {
        self.start_with(spec, |_| {})
    }

    pub(crate) fn start_with<'a>(
        &self,
        spec: Value,
        change: impl FnOnce(&mut ContainerRequest<'a>),
    ) -> Result<Running, LaunchError> {
        let (stdio, stdin, output) = streams().split();
        let mut request = self.request(spec, stdio);
        change(&mut request);
        let created = self.create(request)?;
        let mut starting = created.waiting.open_gate()?;
        let child = finish(&mut starting, |s| s.poll())?;
        Ok(Running { container: created.container, child, output, warnings: created.warnings, stdin })
    }

    /// Runs to the end.
    pub(crate) fn run(&self, spec: Value) -> Outcome {
        self.start(spec).unwrap().end()
    }

    /// Standard output of a shell command in a usual container, which must succeed.
    pub(crate) fn sh(&self, command: &str) -> String {
        let outcome = self.run(shell(command));
        assert_eq!(outcome.code, 0, "{outcome:?}");
        outcome.out
    }

    pub(crate) fn begin_exec(
        &self,
        container: &ContainerProcess,
        args: &[&str],
        stdio: Stdio,
    ) -> Result<Execing, LaunchError> {
        let args = args.iter().map(ToString::to_string).collect();
        let id = self.next_id().to_string();
        self.pod.begin_exec(container, ExecRequest { id, args, stdio })
    }

    pub(crate) fn exec(&self, container: &ContainerProcess, args: &[&str]) -> Result<Outcome, LaunchError> {
        let (stdio, _stdin, output) = streams().split();
        let mut execing = self.begin_exec(container, args, stdio)?;
        let executed = finish(&mut execing, |e| e.poll())?;
        let exit = wait(&executed.child);
        let (out, err) = output.rest();
        Ok(Outcome { code: exit.code(), out, err })
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        eprintln!("warnings: {:?}", self.warnings);
        for n in 1..=self.made.get() {
            let leaf = self.pod.container_leaf(&self.id(n)).unwrap();
            if let Err(e) = leaf.destroy_blocking(Instant::now() + PATIENCE) {
                eprintln!("{e}");
            }
        }
    }
}

/// Removes what a scenario that is over has left: its agent was in that leaf.
pub(crate) fn clean_up(home: &Path) -> Result<(), String> {
    let Ok(text) = fs::read_to_string(home.join(LEAF)) else { return Ok(()) };
    let (parent, id) = text.split_once('\n').expect("two lines");
    let tree = Tree::detect(Path::new("/sys/fs/cgroup")).map_err(|e| e.to_string())?;
    let leaf = tree.leaf(parent, id).map_err(|e| e.to_string())?;
    leaf.destroy_blocking(Instant::now() + PATIENCE).map_err(|e| e.to_string())?;
    let parent = Path::new("/sys/fs/cgroup/unified").join(parent.trim_start_matches('/'));
    if parent.exists() { Err(format!("{} is left", parent.display())) } else { Ok(()) }
}

/// Retries until it holds.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}
