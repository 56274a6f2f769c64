//! Against the kernel. These need root and a writable cgroup tree, and fail without.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Pid;

use super::make::below;
use super::*;

/// The node's tree, and a parent of the test's own, which every test must leave removed.
struct Fixture {
    tree: Tree,
    parent: String,
}

impl Fixture {
    fn new() -> Self {
        Self::at("/sys/fs/cgroup")
    }

    /// The v2 tree alone, wherever it is mounted: on a hybrid host a v2 node with few controllers.
    fn unified() -> Self {
        let hybrid = Path::new("/sys/fs/cgroup/unified");
        Self::at(if hybrid.exists() { "/sys/fs/cgroup/unified" } else { "/sys/fs/cgroup" })
    }

    fn at(root: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let parent =
            format!("/hartpod-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        Self { tree: Tree::detect(Path::new(root)).expect("a cgroup tree"), parent }
    }

    fn leaf(&self, id: &str) -> Leaf {
        self.tree.leaf(&self.parent, id).expect("valid names")
    }

    /// Folders of this parent in all hierarchies.
    fn left(&self) -> Vec<PathBuf> {
        let h = &self.leaf("x").hierarchies;
        let roots = h.v1.iter().map(|v1| v1.dir.clone()).chain([h.unified.clone()]);
        roots.map(|root| below(&root, &self.parent)).filter(|dir| dir.exists()).collect()
    }
}

/// What a failed test left; a test that passed left nothing.
impl Drop for Fixture {
    fn drop(&mut self) {
        let left = self.left();
        for dir in &left {
            let node = node::Node { dir: dir.clone() };
            let _ = node.kill();
            let _ = node.wait_empty_blocking(soon());
        }
        for dir in &left {
            let _ = remove::tree(dir);
        }
    }
}

fn limits(json: &str) -> Limits {
    Limits::from_oci(&serde_json::from_str(json).expect(json)).expect(json)
}

/// Long enough for a slow machine, short enough for a test that fails.
fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

/// A shell that runs `script` once [`Gated::go`] is called, so that it can be moved before.
struct Gated(Child);

impl Gated {
    fn spawn(script: &str) -> Self {
        let script = format!("read line; {script}");
        let child =
            Command::new("sh").args(["-c", &script]).stdin(Stdio::piped()).stderr(Stdio::null()).spawn();
        Self(child.expect("sh"))
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.0)
    }

    fn go(&mut self) {
        self.0.stdin.take().expect("once").write_all(b"\n").expect("gate");
    }

    fn wait(mut self) -> std::process::ExitStatus {
        self.0.wait().expect("wait")
    }
}

impl Drop for Gated {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_leaf_lives_and_goes_with_everything_in_it() {
    let fixture = Fixture::new();
    let leaf = fixture.leaf("c1");
    leaf.create(&limits(r#"{"pids":{"limit":64},"cpu":{"shares":512}}"#)).expect("create");
    assert!(!leaf.populated().expect("events"));
    let child = Gated::spawn("sleep 60");
    leaf.add_pid(child.pid()).expect("add");
    assert!(leaf.populated().expect("events"));
    let membership = std::fs::read_to_string(format!("/proc/{}/cgroup", child.0.id())).expect("proc");
    let lines = membership.lines().filter(|l| l.ends_with(leaf.cgroup_path())).count();
    assert_eq!(lines, leaf.hierarchies.v1.len() + 1, "{membership}");
    assert!(matches!(leaf.create(&Limits::default()), Err(CgroupError::InUse { .. })));
    assert!(leaf.remove().is_err(), "remove does not kill");

    let (meter, mut buffer) = (leaf.meter(), Vec::new());
    let sample = meter.read(Depth::All, &mut buffer).expect("sample").expect("it is there");
    assert!(
        sample.cpu.usage_ns.is_some() && sample.tasks == Some(1) && sample.tasks_limit == Some(64),
        "{sample:?}"
    );
    assert!(sample.memory.working_set().is_some() && sample.memory.rss.is_some(), "{sample:?}");
    let mut looks = FileLooks::new(1000);
    let processes = meter.processes(&mut looks).expect("it is there");
    assert!(
        processes.processes == 1 && processes.files >= Some(3) && processes.sockets == Some(0),
        "{processes:?}"
    );
    let pod = leaf.parent_meter().read(Depth::Stats, &mut buffer).expect("sample").expect("it is there");
    assert!(pod.tasks >= sample.tasks && pod.cpu.usage_ns >= sample.cpu.usage_ns, "{pod:?}");

    leaf.destroy_blocking(soon()).expect("destroy");
    assert_eq!(meter.read(Depth::All, &mut buffer).expect("a leaf that is gone"), None);
    assert_eq!(leaf.meter().read(Depth::Stats, &mut buffer).expect("a leaf that is gone"), None);
    assert_eq!(meter.processes(&mut looks), None);
    assert!(!child.wait().success());
    assert_eq!(fixture.left(), Vec::<PathBuf>::new());
    leaf.destroy_blocking(soon()).expect("a leaf that is gone");
    leaf.kill().expect("a leaf that is gone");
    assert!(!leaf.populated().expect("a leaf that is gone"));
}

#[test]
fn a_create_that_fails_leaves_nothing() {
    let fixture = Fixture::new();
    let error = fixture.leaf("c1").create(&limits(r#"{"cpu":{"cpus":"4000"}}"#)).expect_err("no such CPU");
    assert!(matches!(&error, CgroupError::Write { .. }), "{error:?}");
    assert_eq!(fixture.left(), Vec::<PathBuf>::new());
}

#[test]
fn an_empty_leaf_of_a_crash_is_taken_over() {
    let fixture = Fixture::new();
    let leaf = fixture.leaf("c1");
    leaf.create(&Limits::default()).expect("first");
    leaf.create(&limits("{}")).expect("second");
    leaf.destroy_blocking(soon()).expect("destroy");
    assert_eq!(fixture.left(), Vec::<PathBuf>::new());
}

#[test]
fn a_parent_that_somebody_else_made_stays() {
    let fixture = Fixture::new();
    let leaf = fixture.leaf("c1");
    let foreign = below(&leaf.hierarchies.unified, &fixture.parent);
    std::fs::create_dir(&foreign).expect("needs root");
    leaf.create(&Limits::default()).expect("create");
    leaf.destroy_blocking(soon()).expect("destroy");
    assert_eq!(fixture.left(), std::slice::from_ref(&foreign));
    std::fs::remove_dir(foreign).expect("cleanup");
}

#[test]
fn leaves_come_and_go_beside_each_other() {
    let fixture = Fixture::new();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let leaf = fixture.leaf(&format!("c{thread}"));
            scope.spawn(move || {
                for _ in 0..25 {
                    leaf.create(&Limits::default()).expect("create");
                    leaf.destroy_blocking(soon()).expect("destroy");
                }
            });
        }
    });
    assert_eq!(fixture.left(), Vec::<PathBuf>::new());
}

#[test]
fn a_thread_joins_v1_by_itself() {
    let fixture = Fixture::new();
    let leaf = fixture.leaf("c1");
    leaf.create(&Limits::default()).expect("create");
    let membership = std::thread::scope(|scope| {
        let joined = scope.spawn(|| {
            leaf.join_v1_self().expect("join");
            std::fs::read_to_string("/proc/thread-self/cgroup").expect("proc")
        });
        joined.join().expect("thread")
    });
    let lines = membership.lines().filter(|l| l.ends_with(leaf.cgroup_path())).count();
    assert_eq!(lines, leaf.hierarchies.v1.len(), "{membership}");
    leaf.destroy_blocking(soon()).expect("destroy");
    assert_eq!(fixture.left(), Vec::<PathBuf>::new());
}

#[test]
fn an_exec_leaf_dies_alone() {
    let fixture = Fixture::new();
    let leaf = fixture.leaf("c1");
    leaf.create(&Limits::default()).expect("create");
    let exec = leaf.exec_leaf("e1").expect("name");
    exec.create().expect("create exec");
    let container = Gated::spawn("sleep 60");
    leaf.add_pid(container.pid()).expect("add");
    let mut inside = Gated::spawn("setsid sleep 60 & sleep 60");
    std::fs::write(exec.node.dir.join("cgroup.procs"), inside.0.id().to_string()).expect("move");
    inside.go();
    assert!(matches!(exec.create(), Err(CgroupError::InUse { .. })));
    exec.destroy_blocking(soon()).expect("destroy exec");
    assert!(!inside.wait().success());
    assert!(leaf.populated().expect("events"), "the container lives on");
    exec.destroy_blocking(soon()).expect("gone already");
    // Sub-leaves of the container's own making go with the leaf.
    std::fs::create_dir_all(leaf.node().dir.join("a/b/c")).expect("nested");
    leaf.destroy_blocking(soon()).expect("destroy");
    assert!(!container.wait().success());
    assert_eq!(fixture.left(), Vec::<PathBuf>::new());
}

#[test]
fn events_tell_when_a_leaf_becomes_empty() {
    let fixture = Fixture::new();
    let leaf = fixture.leaf("c1");
    leaf.create(&Limits::default()).expect("create");
    let mut child = Gated::spawn("exit 0");
    leaf.add_pid(child.pid()).expect("add");
    let events = leaf.open_events().expect("events");
    assert!(is_populated(&events).expect("read"));
    child.go();
    let timeout = Timespec { tv_sec: 10, tv_nsec: 0 };
    let ready = poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&timeout)).expect("poll");
    assert_eq!(ready, 1, "POLLPRI came");
    assert!(!is_populated(&events).expect("read"));
    assert!(child.wait().success());
    leaf.destroy_blocking(soon()).expect("destroy");
    assert!(!is_populated(&events).expect("of a leaf that is gone"));
}

#[test]
fn waiting_for_a_leaf_ends_at_the_deadline_and_costs_no_cpu_time() {
    let fixture = Fixture::new();
    let leaf = fixture.leaf("c1");
    leaf.create(&Limits::default()).expect("create");
    let child = Gated::spawn("exit 0");
    leaf.add_pid(child.pid()).expect("add");
    let cpu = || rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let (before, deadline) = (cpu(), Instant::now() + Duration::from_millis(200));
    assert!(!leaf.node().wait_empty_blocking(deadline).expect("wait"));
    let after = cpu();
    assert!(Instant::now() >= deadline);
    let spent = (after.tv_sec - before.tv_sec) * 1_000_000_000 + after.tv_nsec - before.tv_nsec;
    assert!(spent < 50_000_000, "{spent} ns");
    leaf.destroy_blocking(soon()).expect("destroy");
}

#[test]
fn devices_are_denied_but_the_default_ones() {
    for fixture in [Fixture::new(), Fixture::unified()] {
        let leaf = fixture.leaf("c1");
        let warnings = leaf.create(&limits("{}")).expect("create");
        assert!(warnings.iter().all(|w| !matches!(w, Warning::DeviceDenied { .. })), "{warnings:?}");
        // 0: as it should be; 1: /dev/null is denied; 2: /dev/kmsg is allowed.
        let mut child = Gated::spawn("(: >/dev/null) || exit 1; (: </dev/kmsg) && exit 2; exit 0");
        leaf.add_pid(child.pid()).expect("add");
        child.go();
        assert_eq!(child.wait().code(), Some(0), "{}", fixture.tree.mode());
        leaf.destroy_blocking(soon()).expect("destroy");
        assert_eq!(fixture.left(), Vec::<PathBuf>::new());
    }
}

/// Needs the memory controller, which every node that runs pods has.
#[test]
fn memory_limits_move_up_and_down() {
    let fixture = Fixture::new();
    let leaf = fixture.leaf("c1");
    leaf.create(&limits(r#"{"memory":{"limit":33554432,"swap":33554432}}"#)).expect("create");
    for (limit, swap) in
        [(67_108_864, 67_108_864), (16_777_216, 16_777_216), (16_777_216, 33_554_432), (-1, -1)]
    {
        let json = format!(r#"{{"memory":{{"limit":{limit},"swap":{swap}}}}}"#);
        leaf.update_blocking(&Update { limits: limits(&json), oom_score: None }).expect(&json);
        let (version, root) = leaf.hierarchies.home(Controller::Memory).expect("memory controller");
        let name = if version == tree::Version::V1 { "memory.limit_in_bytes" } else { "memory.max" };
        let text = std::fs::read_to_string(below(root, leaf.cgroup_path()).join(name)).expect(name);
        assert_eq!(
            text.trim().parse().ok().filter(|n| *n < i64::MAX - 4096),
            (limit > 0).then_some(limit),
            "{json}"
        );
    }
    leaf.destroy_blocking(soon()).expect("destroy");
}

/// Needs the memory controller.
#[test]
fn a_limit_below_what_is_in_use_is_refused_and_nothing_changes() {
    let fixture = Fixture::new();
    let leaf = fixture.leaf("c1");
    leaf.create(&limits(r#"{"memory":{"limit":134217728,"swap":134217728},"pids":{"limit":50}}"#))
        .expect("create");
    // What cannot be taken back: memory of a process, without swap.
    let mut hog = Gated::spawn(
        "a=$(head -c 33554432 /dev/zero | tr '\\0' x); echo $a >/dev/null; read line <&3; sleep 60",
    );
    leaf.add_pid(hog.pid()).expect("add");
    hog.go();
    let holds = |bytes: u64| leaf.memory_in_use().expect("usage").is_some_and(|usage| usage > bytes);
    let deadline = soon();
    while !holds(33_554_432) {
        assert!(Instant::now() < deadline, "{:?}", leaf.memory_in_use());
        std::thread::sleep(Duration::from_millis(5));
    }
    let before = (leaf.oom_kills().expect("count"), leaf.parent_bounds().expect("bounds"));
    let update = |json: &str| leaf.update_blocking(&Update { limits: limits(json), oom_score: None });
    let refused =
        update(r#"{"memory":{"limit":8388608,"swap":8388608},"pids":{"limit":40}}"#).expect_err("too low");
    assert!(matches!(refused, UpdateError::BelowUsage { limit: 8_388_608, .. }), "{refused:?}");
    assert_eq!(refused.fault(), UpdateFault::State);
    assert_eq!((leaf.oom_kills().expect("count"), leaf.parent_bounds().expect("bounds")), before);
    assert!(leaf.populated().expect("events"), "nobody was killed");
    let text = |controller, name: &str| {
        let (_, root) = leaf.hierarchies.home(controller).expect("controller");
        std::fs::read_to_string(below(root, leaf.cgroup_path()).join(name)).expect("file").trim().to_owned()
    };
    let v1 = fixture.tree.mode() == Mode::Hybrid;
    let limit = if v1 { "memory.limit_in_bytes" } else { "memory.max" };
    assert_eq!(text(Controller::Memory, limit), "134217728");
    assert_eq!(text(Controller::Pids, "pids.max"), "50");
    // Memory is in force by then, and is taken back.
    let refused =
        update(r#"{"memory":{"limit":268435456,"swap":268435456},"unified":{"memory.no_such_file":"1"}}"#);
    assert!(matches!(refused, Err(UpdateError::Limit(CgroupError::NoUnifiedKey { .. }))), "{refused:?}");
    assert_eq!(text(Controller::Memory, limit), "134217728");
    leaf.destroy_blocking(soon()).expect("destroy");
    assert!(matches!(update(r#"{"pids":{"limit":40}}"#), Err(UpdateError::Gone { .. })));
    assert_eq!(fixture.left(), Vec::<PathBuf>::new());
}

#[test]
fn the_score_of_a_containers_processes_changes_but_not_of_those_that_chose_theirs() {
    let fixture = Fixture::new();
    let leaf = fixture.leaf("c1");
    leaf.create(&Limits::default()).expect("create");
    let mut init = Gated::spawn("sleep 60 & sh -c 'echo 900 >/proc/self/oom_score_adj; sleep 60' & wait");
    leaf.add_pid(init.pid()).expect("add");
    init.go();
    let outside = Gated::spawn("true");
    let score = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap_or_default();
    let scores = || {
        let pids = std::fs::read_to_string(leaf.node().dir.join("cgroup.procs")).expect("procs");
        let mut scores: Vec<i32> = pids.lines().filter_map(|pid| score(pid).trim().parse().ok()).collect();
        scores.sort_unstable();
        scores
    };
    let own: i32 = score("self").trim().parse().expect("score");
    let deadline = soon();
    while scores() != [own, own, 900, 900] {
        assert!(Instant::now() < deadline, "{:?}", scores());
        std::thread::sleep(Duration::from_millis(5));
    }
    let update = |score| {
        leaf.update_blocking(&Update {
            oom_score: Some(OomScore { init: init.pid(), score }),
            ..Update::default()
        })
    };
    update(500).expect("raised");
    assert_eq!(scores(), [500, 500, 900, 900]);
    assert_eq!(score(&outside.0.id().to_string()).trim(), own.to_string(), "another's stays");
    // The limits that fail take the score back with them.
    let limits = limits(r#"{"unified":{"memory.no_such_file":"1"}}"#);
    let oom_score = Some(OomScore { init: init.pid(), score: 600 });
    leaf.update_blocking(&Update { limits, oom_score }).expect_err("no such file");
    assert_eq!(scores(), [500, 500, 900, 900]);
    leaf.destroy_blocking(soon()).expect("destroy");
    assert!(matches!(update(1), Err(UpdateError::Gone { .. })));
    assert_eq!(fixture.left(), Vec::<PathBuf>::new());
}

/// Needs the memory controller too.
#[test]
fn the_oom_killer_is_noticed_and_counted() {
    let fixture = Fixture::new();
    let leaf = fixture.leaf("c1");
    leaf.create(&limits(r#"{"memory":{"limit":16777216,"swap":16777216}}"#)).expect("create");
    let watch = leaf.oom_watch().expect("watch");
    assert_eq!(leaf.oom_kills().expect("count"), 0);
    let mut hog = Gated::spawn("exec tail /dev/zero");
    leaf.add_pid(hog.pid()).expect("add");
    hog.go();
    let interest = match watch.readiness() {
        Readiness::Readable => PollFlags::IN,
        Readiness::Priority => PollFlags::PRI,
    };
    let timeout = Timespec { tv_sec: 30, tv_nsec: 0 };
    assert_eq!(poll(&mut [PollFd::new(&watch, interest)], Some(&timeout)).expect("poll"), 1, "told in time");
    assert!(!hog.wait().success());
    watch.clear().expect("clear");
    assert!(leaf.oom_kills().expect("count") >= 1);
    let cgroup = leaf.cgroup_path().to_owned();
    assert_eq!(leaf.oom_limit(&OomsBefore::default()).expect("limit"), OomLimit::Own { cgroup });
    leaf.destroy_blocking(soon()).expect("destroy");
    assert_eq!(fixture.left(), Vec::<PathBuf>::new());
}

/// Needs the memory controller too.
#[test]
fn a_limit_above_is_told_from_the_leafs_own() {
    let fixture = Fixture::new();
    let leaf = fixture.leaf("c1");
    leaf.create(&Limits::default()).expect("create");
    leaf.parent()
        .apply(&limits(r#"{"memory":{"limit":16777216,"swap":16777216}}"#), super::apply::When::Update)
        .expect("limit");
    let mut hog = Gated::spawn("exec tail /dev/zero");
    leaf.add_pid(hog.pid()).expect("add");
    hog.go();
    assert!(!hog.wait().success());
    assert!(leaf.oom_kills().expect("count") >= 1);
    assert_eq!(
        leaf.oom_limit(&OomsBefore::default()).expect("limit"),
        OomLimit::Shared { cgroup: fixture.parent.clone() }
    );
    leaf.destroy_blocking(soon()).expect("destroy");
    assert_eq!(fixture.left(), Vec::<PathBuf>::new());
}
