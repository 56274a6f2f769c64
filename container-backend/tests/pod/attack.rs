//! A container that shares its pod's pid namespace and may trace tries to get at the agent through every process that
//! appears: while containers start, while execs do, and through the holder.
//!
//! The attacker is this program, inside a container (`--inside attack`). It guesses the next pids, attaches to each as soon
//! as it exists, and tells what it finds in it: descriptors, memory, root. The agent has planted a secret wherever a process
//! keeps things; the attacker knows it and looks for it.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::OnceLock;

use hartpod_container::reap_orphans;
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::kit::{Agent, Running, add, agent_sharing_pids, bind, eventually, shell, spec};

pub(crate) const SCENARIOS: &[(&str, fn())] = &[
    ("a_tracer_finds_nothing_of_the_agent_in_new_processes", new_processes),
    ("a_tracer_finds_nothing_in_the_holder", holder),
    ("the_search_for_the_secret_works", search_works),
];

/// Executions watched at most; a window between clone and execve is short, and the attacker must have been in some.
const ROUNDS: usize = 2000;
const ENOUGH: usize = 8;

/// Built when needed and spelled backwards here, so that the program's text does not hold it.
fn secret() -> String {
    "aeh-eht-fo-terces-dopsnetra".chars().rev().collect()
}

static IN_BSS: OnceLock<[u8; 32]> = OnceLock::new();

thread_local! {
    static IN_TLS: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Puts the secret into the heap, a large mapping, .bss and thread-local storage of this process.
#[allow(clippy::box_collection)] // it is the heap that matters
fn plant() -> (Box<String>, String) {
    let mut fixed = [0; 32];
    fixed[..secret().len()].copy_from_slice(secret().as_bytes());
    IN_BSS.get_or_init(|| fixed);
    IN_TLS.set(secret());
    (Box::new(secret()), secret().repeat(100_000))
}

fn attacker(agent: &Agent, mode: &str, exe: &Path) -> Running {
    let mut evil = spec(&["/attacker", "--inside", mode]);
    for set in ["bounding", "effective", "permitted"] {
        add(&mut evil, &format!("/process/capabilities/{set}"), json!("CAP_SYS_PTRACE"));
        add(&mut evil, &format!("/process/capabilities/{set}"), json!("CAP_SYS_ADMIN"));
    }
    bind(&mut evil, exe, "/attacker", &["bind", "ro"]);
    // Not every architecture has the second.
    let libraries = if cfg!(target_arch = "x86_64") { &["/lib", "/lib64"][..] } else { &["/lib"] };
    for folder in libraries {
        bind(&mut evil, Path::new(folder), folder, &["rbind", "ro"]);
    }
    agent.start(evil).unwrap()
}

fn exe() -> std::path::PathBuf {
    fs::read_link("/proc/self/exe").unwrap()
}

fn new_processes() {
    let planted = plant();
    let exe = exe();
    let agent = agent_sharing_pids();
    let victim = agent.start(slow_to_execute()).unwrap();
    let mut attacker = attacker(&agent, "attack", &exe);
    assert_eq!(attacker.output.line(), "ready");
    // It has to run at the very moment that a process is born.
    let pid = rustix::process::Pid::from_raw(attacker.child.pid());
    rustix::process::setpriority_process(pid, -20).unwrap();
    let mut caught = 0;
    for round in 0..ROUNDS {
        if round % 10 == 0 {
            assert_eq!(agent.run(shell("exit 3")).code, 3);
        }
        let outcome = agent.exec(&victim.container, &["true"]).unwrap();
        assert_eq!(outcome.code, 0);
        rustix::io::write(&attacker.stdin, b".").unwrap();
        let report = attacker.output.line();
        let report: Value = serde_json::from_str(&report).unwrap_or_else(|e| panic!("{e}: {report}"));
        for one in report.as_array().unwrap() {
            check(one);
            caught += 1;
        }
        if caught >= ENOUGH {
            break;
        }
    }
    assert!(caught >= ENOUGH, "the attacker was in time for {caught} of {ROUNDS} processes only");
    attacker.kill();
    victim.kill();
    eventually("no child is left", || reap_orphans(|_| false).unwrap() == 0);
    drop(planted);
}

/// A container whose execs take their time between clone and execve: they load a profile of some thousand instructions.
fn slow_to_execute() -> Value {
    let mut slow = spec(&["sleep", "1000"]);
    crate::kit::set(&mut slow, "/process", "noNewPrivileges", json!(true));
    let condition = |value| json!({"index": 0, "value": value, "op": "SCMP_CMP_EQ"});
    let rules = (0..1000)
        .map(|n| json!({"names": ["personality"], "action": "SCMP_ACT_ERRNO", "args": [condition(n)]}));
    slow["linux"]["seccomp"] =
        json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules.collect::<Vec<_>>()});
    slow
}

/// What was found in a process that had not executed anything yet.
fn check(found: &Value) {
    assert_eq!(found["secrets"], json!([]), "{found}");
    let fds = found["fds"].as_array().unwrap();
    for fd in fds {
        let fd = fd.as_str().unwrap();
        assert!(fd.starts_with("pipe:[") || fd == "/dev/null" || fd == "(unreadable)", "{found}");
    }
    assert!(fds.len() <= 4, "{found}");
    // The root is a container's, not the agent's and not the host's.
    let root = found["root"].as_array().unwrap();
    assert!(!root.iter().any(|name| name == "layers" || name == "containers" || name == "home"), "{found}");
}

fn holder() {
    let planted = plant();
    let exe = exe();
    let agent = agent_sharing_pids();
    let mut attacker = attacker(&agent, "holder", &exe);
    let report: Value = serde_json::from_str(&attacker.output.line()).unwrap();
    assert_eq!(report["secrets"], json!([]), "{report}");
    assert_eq!(report["fds"], json!([]), "{report}");
    assert_eq!(report["root"], json!([]), "{report}");
    assert_eq!(agent.pod.holder().unwrap().try_wait().unwrap(), None);
    attacker.kill();
    drop(planted);
}

/// Without this, an attacker that finds nothing proves nothing.
fn search_works() {
    let planted = plant();
    let _agent = agent_sharing_pids();
    let found = inspect(rustix::process::getpid().as_raw_pid());
    let places = found["secrets"].as_array().unwrap().len();
    assert!(places >= 3, "{found}");
    assert!(found["root"].as_array().unwrap().iter().any(|name| name == "layers"), "{found}");
    drop(planted);
}

/// The attacker's main function.
pub(crate) fn inside(mode: &str) -> ExitCode {
    match mode {
        "attack" => attack(),
        "holder" => {
            let init = Pid::from_raw(1);
            ptrace::attach(init).unwrap();
            waitpid(init, None).unwrap();
            println!("{}", inspect(1));
            ptrace::detach(init, None).unwrap();
            loop {
                std::thread::park();
            }
        }
        other => panic!("no mode {other}"),
    }
}

fn attack() -> ExitCode {
    let own = fs::read_link("/proc/self/exe").unwrap();
    let agent_exe = fs::metadata(&own).unwrap();
    let mut next = newest_pid() + 1;
    println!("ready");
    loop {
        let mut found = Vec::new();
        let mut asked = false;
        while !asked {
            let exists = |pid: &i32| ptrace::seize(Pid::from_raw(*pid), ptrace::Options::empty()).is_ok();
            if let Some(pid) = (next..next + 4).find(exists) {
                next = pid + 1;
                found.extend(look_at(pid, &agent_exe));
            }
            asked = stdin_is_readable();
        }
        let mut byte = [0];
        if std::io::Read::read(&mut std::io::stdin(), &mut byte).unwrap_or(0) == 0 {
            return ExitCode::SUCCESS;
        }
        next = newest_pid() + 1;
        println!("{}", Value::Array(found));
        std::io::stdout().flush().unwrap();
    }
}

/// The last number that was given out in this pid namespace, alive or not.
fn newest_pid() -> i32 {
    fs::read_to_string("/proc/loadavg").unwrap().split_ascii_whitespace().last().unwrap().parse().unwrap()
}

fn stdin_is_readable() -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let stdin = std::io::stdin();
    poll(&mut [PollFd::new(&stdin, PollFlags::IN)], Some(&Timespec::default())).unwrap() > 0
}

/// Stops a process that was just seized; what is in it, if it still runs the agent's program.
fn look_at(pid: i32, agent_exe: &fs::Metadata) -> Option<Value> {
    use std::os::unix::fs::MetadataExt as _;
    let id = Pid::from_raw(pid);
    if ptrace::interrupt(id).is_err() || waitpid(id, Some(WaitPidFlag::__WALL)).is_err() {
        return None;
    }
    let exe = fs::metadata(format!("/proc/{pid}/exe"));
    let is_agent = exe.is_ok_and(|exe| (exe.dev(), exe.ino()) == (agent_exe.dev(), agent_exe.ino()));
    let found = is_agent.then(|| inspect(pid));
    let _ = ptrace::detach(id, None);
    found
}

/// Everything that a tracer can see of a process.
fn inspect(pid: i32) -> Value {
    let names = |folder: &str| -> Vec<String> {
        let entries = fs::read_dir(format!("/proc/{pid}/{folder}"));
        entries.into_iter().flatten().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    };
    let links = |fd: String| {
        let link = fs::read_link(format!("/proc/{pid}/fd/{fd}"));
        link.map_or_else(|_| "(unreadable)".to_owned(), |link| link.display().to_string())
    };
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let secret = secret();
    let secrets: Vec<&str> = maps.lines().filter(|line| holds(&memory, line, secret.as_bytes())).collect();
    json!({
        "pid": pid,
        "fds": names("fd").into_iter().map(links).collect::<Vec<_>>(),
        "root": names("root"),
        "cwd": names("cwd"),
        "secrets": secrets,
        "mappings": maps.lines().count(),
    })
}

fn holds(memory: &File, line: &str, secret: &[u8]) -> bool {
    let range = line.split(' ').next().unwrap();
    let (start, end) = range.split_once('-').unwrap();
    let (start, end) = (u64::from_str_radix(start, 16).unwrap(), u64::from_str_radix(end, 16).unwrap());
    let mut content = vec![0; usize::try_from(end - start).unwrap_or(0).min(64 << 20)];
    let read = memory.read_at(&mut content, start).unwrap_or(0);
    content[..read].windows(secret.len()).any(|window| window == secret)
}
