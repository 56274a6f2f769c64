//! The jail of a VMM: what a running one has of it, and what one that was taken over can do in it.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use hartpod_tests::{Lab, Need, tests};
use hartpod_vm::command_line;
use hartpod_vm::launcher::GuestSpec;

use crate::container::{SPARE, shut_down};
use crate::disk::{self, Layers};
use crate::guest::{Guest, free_user, image, spec};
use crate::jailbreak::{self, ATTACKS, Defence, Else, KINDS, Outcome, World};
use crate::pod::Pod;

tests![
    a_running_vmm_has_all_of_its_jail needs Need::Kvm,
    every_kind_of_thread_is_ended_at_the_first_call_that_it_has_no_business_with,
    without_filters_the_other_lines_hold_by_themselves,
    a_vmm_that_stays_root_has_no_more_rights,
    what_a_thread_needs_it_may_and_its_panic_is_heard,
    a_jail_that_cannot_be_built_is_a_clear_error,
];

async fn a_running_vmm_has_all_of_its_jail(lab: &Lab) -> Result<()> {
    let image = image()?;
    let layers = Layers::make(lab.dir())?;
    let user = free_user();
    let spec = GuestSpec {
        user: Some(user),
        vcpus: 2,
        command_line: format!("{} hartpod.modules=3", command_line::with_messages()),
        balloon: true,
        disks: vec![disk::modules(&image)?],
        spare_slots: 2,
        ..spec(&image, image.initramfs())?
    };
    let mut guest = Guest::start(lab, "guest", spec)?;
    guest.running()?;
    guest.ready()?;
    let vmm = Vmm { proc: PathBuf::from(format!("/proc/{}", guest.pid())), user };
    vmm.check()?;

    // A life later it is the same.
    let mut pod = Pod::set_up(&guest).await?;
    let control = guest.control()?;
    for _ in 0..2 {
        layers.fill(&control, &image, SPARE)?;
        pod.run(SPARE, Layers::COUNT, "dd if=/dev/zero of=/data bs=1M count=8 && sync").await?.success()?;
        control.empty(SPARE)?;
    }
    layers.fill(&control, &image, SPARE)?;
    vmm.check()?;
    shut_down(guest, pod).await
}

/// A VMM as it shows in /proc.
struct Vmm {
    proc: PathBuf,
    user: u32,
}

impl Vmm {
    fn check(&self) -> Result<()> {
        self.check_threads()?;
        self.check_namespaces()?;
        self.check_root()?;
        self.check_limits()?;
        self.check_descriptors()
    }

    fn read(&self, name: &str) -> Result<String> {
        let path = self.proc.join(name);
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    }

    fn check_threads(&self) -> Result<()> {
        let mut names = Vec::new();
        for task in fs::read_dir(self.proc.join("task"))? {
            let task = task?.path();
            let status = Status::read(&task)?;
            let id = [self.user; 4].map(|id| id.to_string()).join("\t");
            let expected = [
                ("Uid", id.as_str()),
                ("Gid", &id),
                ("Groups", ""),
                ("CapInh", "0000000000000000"),
                ("CapPrm", "0000000000000000"),
                ("CapEff", "0000000000000000"),
                ("CapBnd", "0000000000000000"),
                ("CapAmb", "0000000000000000"),
                ("NoNewPrivs", "1"),
                ("Seccomp", "2"),
            ];
            for (key, value) in expected {
                ensure!(status.0[key] == value, "{key} of {} is {:?}", task.display(), status.0[key]);
            }
            // One without clone3, that of the set-up, its own.
            let filters: u32 = status.0["Seccomp_filters"].parse()?;
            ensure!(filters >= 3, "{} has {filters} filters", task.display());
            names.push(status.0["Name"].clone());
        }
        names.sort();
        // There is no network card, and one disk per container besides that of the modules.
        names.dedup();
        ensure!(names == ["balloon", "blk", "hartpod-vmm", "vcpu0", "vcpu1", "vsock"], "threads {names:?}");
        // Not its user's: nobody but root may look into it.
        let owner = fs::metadata(self.proc.join("ns"))?.uid();
        ensure!(owner == 0, "its files in /proc belong to {owner}: it is dumpable");
        Ok(())
    }

    fn check_namespaces(&self) -> Result<()> {
        for name in ["cgroup", "ipc", "mnt", "net", "pid", "uts"] {
            let of = |process: &Path| fs::read_link(process.join("ns").join(name));
            ensure!(of(&self.proc)? != of(Path::new("/proc/self"))?, "it shares the namespace {name}");
        }
        let ids = Status::read(&self.proc)?.0["NSpid"].clone();
        ensure!(ids.ends_with("\t1"), "in its pid namespace it is not the first one: {ids}");
        let interfaces = self.read("net/dev")?;
        let names: Vec<_> = interfaces.lines().skip(2).filter_map(|line| line.split(':').next()).collect();
        ensure!(names.len() == 1 && names[0].trim() == "lo", "interfaces {names:?}");
        let mut ip = Command::new("nsenter");
        ip.arg(format!("--net={}", self.proc.join("ns/net").display()))
            .args(["ip", "-o", "link", "show", "up"]);
        let up = ip.output().context("run nsenter")?;
        ensure!(up.status.success() && up.stdout.is_empty(), "an interface is up: {up:?}");
        Ok(())
    }

    fn check_root(&self) -> Result<()> {
        let root = self.proc.join("root");
        let inside: Vec<_> = fs::read_dir(&root)?.collect::<Result<_, _>>()?;
        ensure!(inside.is_empty(), "its root has {inside:?}");
        // By root, who may everything else.
        let written = fs::write(root.join("new"), "");
        let refused = written.err().context("its root can be written to")?;
        ensure!(refused.kind() == ErrorKind::ReadOnlyFilesystem, "{refused}");
        // What is mounted is not beneath it: it is a folder of the only file system that there is.
        let mounts = self.read("mountinfo")?;
        ensure!(mounts.is_empty(), "mounts {mounts}");
        Ok(())
    }

    fn check_limits(&self) -> Result<()> {
        let limits = self.read("limits")?;
        let zero = ["Max core file size", "Max locked memory", "Max msgqueue size", "Max realtime priority"];
        for name in zero {
            let line = limits.lines().find(|line| line.starts_with(name)).context(name)?;
            let values: Vec<_> = line[name.len()..].split_whitespace().take(2).collect();
            ensure!(values == ["0", "0"], "{line}");
        }
        let line = limits.lines().find(|line| line.starts_with("Max processes")).context("Max processes")?;
        let most: u32 = line.split_whitespace().nth(2).context("Max processes")?.parse()?;
        ensure!(most < 2000, "{line}");
        Ok(())
    }

    fn check_descriptors(&self) -> Result<()> {
        let mut kinds = BTreeMap::new();
        for fd in fs::read_dir(self.proc.join("fd"))? {
            let fd = fd?.path();
            let target = fs::read_link(&fd)?;
            let name = target.to_string_lossy().into_owned();
            let kind = match name.as_str() {
                "/dev/null" => "null",
                _ if name.starts_with("socket:[") => "socket",
                _ if name.starts_with("anon_inode:kvm-") => "kvm",
                _ if name.starts_with("anon_inode:[eventfd]") => "event",
                _ if name.starts_with("anon_inode:[eventpoll]") => "events",
                _ if fs::metadata(&fd)?.is_file() => "file",
                _ => bail!("it has {name} open"),
            };
            *kinds.entry(kind).or_insert(0) += 1;
        }
        // The status, the console, standard error, and the disks: modules, and perhaps two layers with a scratch file.
        ensure!(kinds["file"] <= 3 + 1 + 3, "{kinds:?}");
        Ok(())
    }
}

/// The lines of a file `status`.
struct Status(BTreeMap<String, String>);

impl Status {
    fn read(task: &Path) -> Result<Self> {
        let path = task.join("status");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let lines = text.lines().filter_map(|line| line.split_once(':'));
        Ok(Self(lines.map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect()))
    }
}

/// What a VMM must not reach.
struct Outside {
    world: World,
    victim: Child,
    _tcp: TcpListener,
    _unix: UnixListener,
}

impl Outside {
    fn new(lab: &Lab) -> Result<Self> {
        let tcp = TcpListener::bind("127.0.0.1:0")?;
        let abstract_name = format!("hartpod-jail-{}", std::process::id());
        let unix = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&abstract_name)?)?;
        let victim = Command::new("sleep").arg("100000").stdin(Stdio::null()).spawn()?;
        // As a VMM has its disks: open, of root, and no program.
        let path = lab.dir().join("disk");
        fs::write(&path, "secret")?;
        let file = fs::OpenOptions::new().read(true).write(true).open(&path)?;
        let tcp_port = tcp.local_addr()?.port();
        // There are two threads in the jail, and perhaps a child.
        ensure!(victim.id() > 3, "the victim's number may be one in the jail too");
        let world = World { victim: victim.id(), tcp_port, abstract_name, file };
        Ok(Self { world, victim, _tcp: tcp, _unix: unix })
    }

    fn still_there(&mut self) -> Result<()> {
        ensure!(self.victim.try_wait()?.is_none(), "the victim was killed");
        Ok(())
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = self.victim.kill();
        let _ = self.victim.wait();
    }
}

async fn every_kind_of_thread_is_ended_at_the_first_call_that_it_has_no_business_with(
    lab: &Lab,
) -> Result<()> {
    let mut outside = Outside::new(lab)?;
    for (kind, _) in KINDS {
        for (name, _, _) in ATTACKS {
            let defence = Defence { seccomp: Some(kind), user: Some(free_user()) };
            let (outcome, _) = jailbreak::attack(&outside.world, name, defence)?;
            ensure!(outcome == Outcome::Ended, "{name}, by {kind}: {outcome:?}");
        }
    }
    outside.still_there()
}

async fn without_filters_the_other_lines_hold_by_themselves(lab: &Lab) -> Result<()> {
    let mut outside = Outside::new(lab)?;
    hold(&outside.world, Some(free_user()))?;
    outside.still_there()
}

async fn a_vmm_that_stays_root_has_no_more_rights(lab: &Lab) -> Result<()> {
    let mut outside = Outside::new(lab)?;
    hold(&outside.world, None)?;
    outside.still_there()
}

/// Makes every attack without filters. All that fail otherwise than they should are told at once.
fn hold(world: &World, user: Option<u32>) -> Result<()> {
    let mut wrong = Vec::new();
    for (name, _, expected) in ATTACKS {
        let errors = match expected {
            Else::Fails(errors) => errors,
            Else::FailsForUser(errors) if user.is_some() => errors,
            _ => continue,
        };
        let (outcome, _) = jailbreak::attack(world, name, Defence { seccomp: None, user })?;
        if !errors.iter().any(|errno| outcome == Outcome::Refused(format!("{errno:?}"))) {
            wrong.push(format!("{name}: {outcome:?} instead of {errors:?}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

async fn what_a_thread_needs_it_may_and_its_panic_is_heard(lab: &Lab) -> Result<()> {
    let outside = Outside::new(lab)?;
    for (kind, _) in KINDS {
        let defence = Defence { seccomp: Some(kind), user: Some(free_user()) };
        let (outcome, _) = jailbreak::attack(&outside.world, jailbreak::NOTHING, defence)?;
        ensure!(outcome == Outcome::Reached, "{kind}: {outcome:?}");
        let output = jailbreak::run(&outside.world, jailbreak::PANIC, defence)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code().is_some_and(|code| code != 0), "{kind}: {output:?}");
        ensure!(said.contains("on purpose"), "{kind}: {output:?}");
    }
    Ok(())
}

async fn a_jail_that_cannot_be_built_is_a_clear_error(lab: &Lab) -> Result<()> {
    let outside = Outside::new(lab)?;
    let defence = Defence { seccomp: None, user: Some(free_user()) };
    // In the jail there is no right to build another one.
    let output = jailbreak::run(&outside.world, jailbreak::ENTER_AGAIN, defence)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1) && said.contains("make namespaces"), "{output:?}");
    // And nobody enters who shares a pid namespace with others.
    let alone = hartpod_vm::jail::Jail { user: None, threads: 1 }.enter();
    let refused = alone.err().context("the test itself entered the jail")?.to_string();
    ensure!(refused.contains("pid namespace"), "{refused}");
    Ok(())
}
