//! Who a container's process is and what it may do.

use std::fs;

use hartpod_container::GroupPolicy;
use serde_json::json;

use crate::kit::{Agent, add, agent, agent_sharing_pids, set, shell, spec};

pub(crate) const SCENARIOS: &[(&str, fn())] = &[
    ("users_by_name_and_number_with_their_groups", || users(&agent())),
    ("users_by_name_and_number_with_their_groups_with_shared_pids", || users(&agent_sharing_pids())),
    ("capabilities_are_exactly_those_of_the_spec", capabilities),
    ("ambient_capabilities_survive_a_users_execve", ambient),
    ("no_new_privileges_and_seccomp", || no_new_privileges(&agent())),
    ("no_new_privileges_and_seccomp_with_shared_pids", || no_new_privileges(&agent_sharing_pids())),
    ("the_profile_holds_with_and_without_no_new_privileges", || profile(&agent())),
    ("the_profile_holds_with_and_without_no_new_privileges_with_shared_pids", || {
        profile(&agent_sharing_pids())
    }),
    ("limits_that_cannot_be_raised_are_clamped", limits),
    ("oom_scores_are_the_containers", oom_score),
    ("standard_streams_belong_to_the_user", streams_owner),
    ("the_umask_of_the_spec", umask),
    ("a_container_has_its_own_keyring", keyring),
];

fn users(agent: &Agent) {
    let id = |user: &str, groups: GroupPolicy, extra: &[u32]| {
        let mut who = spec(&["sh", "-c", "id -u; id -g; id -G; echo $HOME"]);
        set(&mut who, "/process/user", "additionalGids", json!(extra));
        let running = agent.start_with(who, |r| {
            r.user = user.into();
            r.groups = groups;
        });
        running.unwrap().end().out
    };
    assert_eq!(id("web", GroupPolicy::Merge, &[2000]), "33\n34\n34 40 2000\n/srv/www\n");
    assert_eq!(id("33", GroupPolicy::Merge, &[]), "33\n34\n34 40\n/srv/www\n");
    assert_eq!(id("web", GroupPolicy::Strict, &[2000]), "33\n34\n34 2000\n/srv/www\n");
    assert_eq!(id("33:40", GroupPolicy::Strict, &[]), "33\n40\n40\n/srv/www\n");
    assert_eq!(id("4242", GroupPolicy::Merge, &[]), "4242\n0\n0\n/\n");
    assert_eq!(id("", GroupPolicy::Merge, &[5]), "0\n0\n0 5\n/root\n");
}

fn status(agent: &Agent, spec: serde_json::Value, user: &str) -> Vec<String> {
    let out = agent.start_with(spec, |r| r.user = user.into()).unwrap().end().out;
    let caps = out.lines().filter(|line| line.starts_with("Cap"));
    caps.map(|line| line.split('\t').nth(1).unwrap().trim_start_matches('0').to_owned()).collect()
}

fn capabilities() {
    let agent = agent();
    let mut some = spec(&["cat", "/proc/self/status"]);
    some["process"]["capabilities"] = json!({
        "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID"],
        "permitted": ["CAP_CHOWN", "CAP_KILL"],
        "effective": ["CAP_CHOWN"],
        "inheritable": ["CAP_CHOWN"],
    });
    // Root's execve: permitted = bounding | inheritable, effective the same; Inh, Prm, Eff, Bnd, Amb.
    assert_eq!(status(&agent, some.clone(), ""), ["1", "a1", "a1", "a1", ""]);
    assert_eq!(status(&agent, some, "web"), ["1", "", "", "a1", ""]);
    let mut none = spec(&["cat", "/proc/self/status"]);
    none["process"].as_object_mut().unwrap().remove("capabilities");
    assert_eq!(status(&agent, none, ""), ["", "", "", "", ""]);
    let mut all = spec(&["true"]);
    for set in ["bounding", "effective", "permitted"] {
        add(&mut all, &format!("/process/capabilities/{set}"), json!("CAP_SYS_RESOURCE"));
    }
    let warned = agent.start(all).unwrap();
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let have: u64 =
        u64::from_str_radix(own.split("CapPrm:\t").nth(1).unwrap().lines().next().unwrap(), 16).unwrap();
    let expected = "this node cannot give CAP_SYS_RESOURCE";
    assert_eq!(warned.warnings.iter().any(|w| w == expected), have & 1 << 24 == 0, "{:?}", warned.warnings);
    warned.end();
}

fn ambient() {
    let agent = agent();
    let mut some = spec(&["cat", "/proc/self/status"]);
    let caps = ["CAP_NET_BIND_SERVICE"];
    some["process"]["capabilities"] =
        json!({"bounding": caps, "permitted": caps, "effective": caps, "inheritable": caps, "ambient": caps});
    assert_eq!(status(&agent, some, "web"), ["400", "400", "400", "400", "400"]);
}

fn no_new_privileges(agent: &Agent) {
    for (nnp, seccomp) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut probe = shell("cat /proc/self/status");
        set(&mut probe, "/process", "noNewPrivileges", json!(nnp));
        if seccomp {
            probe["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW"});
        }
        let running = agent.start(probe).unwrap();
        let out = running.end().out;
        assert!(out.contains(&format!("NoNewPrivs:\t{}", u8::from(nnp))), "{out}");
        let mode = if seccomp { 2 } else { 0 };
        assert!(out.contains(&format!("Seccomp:\t{mode}")), "{out}");
    }
}

fn profile(agent: &Agent) {
    for nnp in [false, true] {
        let mut probe = shell("mkdir /made; echo $?; sleep 1000");
        set(&mut probe, "/process", "noNewPrivileges", json!(nnp));
        let caps = serde_json::from_value(probe["process"]["capabilities"]["bounding"].clone()).unwrap();
        let mut profile = serde_json::to_value(hartpod_container::seccomp::default_profile(&caps)).unwrap();
        add(
            &mut profile,
            "/syscalls",
            json!({"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}),
        );
        probe["linux"]["seccomp"] = profile;
        let mut running = agent.start(probe).unwrap();
        assert_eq!(running.output.line(), "1");
        let exec = agent.exec(&running.container, &["mkdir", "/other"]).unwrap();
        assert!(exec.err.contains("No space left on device"), "{exec:?}");
        running.kill();
    }
}

fn limits() {
    let agent = agent();
    let mut limited = shell("ulimit -n; ulimit -H -n; ulimit -c");
    limited["process"]["rlimits"] = json!([
        {"type": "RLIMIT_NOFILE", "soft": 123, "hard": 456},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
    ]);
    assert_eq!(agent.run(limited.clone()).out, "123\n456\n0\n");
    // As high as no process may go without CAP_SYS_RESOURCE (and nr_open is above it).
    limited["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 10, "hard": 1_048_576_000}]);
    let running = agent.start(limited).map(|r| (r.warnings.clone(), r.end().out));
    // EPERM is clamped; above nr_open even root gets EPERM.
    let (warnings, out) = running.unwrap();
    assert!(warnings[0].starts_with("limit Nofile stays at "), "{warnings:?}");
    assert!(out.starts_with("10\n"), "{out}");
}

fn oom_score() {
    let agent = agent();
    let mut scored = shell("cat /proc/self/oom_score_adj");
    set(&mut scored, "/process", "oomScoreAdj", json!(987));
    assert_eq!(agent.run(scored.clone()).out, "987\n");
    // Not the agent's.
    assert_eq!(agent.sh("cat /proc/self/oom_score_adj"), "0\n");
    set(&mut scored, "/process", "oomScoreAdj", json!(-997));
    let running = agent.start(scored).unwrap();
    let warned = running.warnings.iter().any(|w| w.starts_with("oom_score_adj stays at"));
    let out = running.end().out;
    assert_eq!(out == "-997\n", !warned, "{out}");
}

fn streams_owner() {
    let agent = agent();
    let running = agent.start_with(
        shell("echo again > /dev/stdout; echo err > /dev/stderr; stat -L -c %u /dev/stdout"),
        |r| {
            r.user = "web".into();
        },
    );
    let outcome = running.unwrap().end();
    assert_eq!((outcome.out.as_str(), outcome.err.as_str()), ("again\n33\n", "err\n"));
}

fn umask() {
    let agent = agent();
    let mut open = shell("umask");
    set(&mut open, "/process/user", "umask", json!(0o077));
    assert_eq!(agent.run(open).out, "0077\n");
}

fn keyring() {
    let agent = agent();
    let keys = |file: &str| {
        let mut look = spec(&["cat", file]);
        look["linux"]["maskedPaths"] = json!([]);
        agent.run(look).out
    };
    let seen = keys("/proc/keys");
    assert!(seen.contains("hartpod-"), "{seen}");
}
