//! What cannot be is refused with a clear error, and leaves nothing behind.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use hartpod_container::{Blame, Errno, Failure, LaunchError, PidNamespace, UserError, reap_orphans};
use serde_json::{Value, json};

use nix::mount::MsFlags;

use crate::kit::{
    Agent, add, agent, agent_with, bind, eventually, new_mount_on_the_host, set, shell, spec, streams,
};

pub(crate) const SCENARIOS: &[(&str, fn())] = &[
    ("a_command_that_cannot_run_is_named_at_the_start", commands),
    ("a_missing_mount_source_is_named", missing_source),
    ("mount_points_over_proc_are_refused", over_proc),
    ("unknown_users_are_named", users),
    ("a_missing_layer_is_named", missing_layer),
    ("what_is_not_supported_is_refused_by_name", unsupported),
    ("a_failed_container_leaves_no_process_and_no_mount", nothing_left),
    ("propagation_needs_a_shared_source", propagation),
    ("a_working_directory_through_proc_is_refused", cwd_through_proc),
];

/// The error of making, or else of starting, a container.
fn failure(agent: &Agent, spec: Value) -> LaunchError {
    let error = agent.start(spec).map(|running| running.end()).expect_err("it fails");
    eventually("the child is reaped", || {
        reap_orphans(|_| false).unwrap() == 0 && !agent.last_leaf().populated().unwrap()
    });
    error
}

fn commands() {
    let agent = agent();
    for (args, message) in [
        (vec!["foo"], "exec \"foo\": no such file in $PATH"),
        (vec!["/x"], "exec \"/x\": no such file or directory"),
        (vec!["/etc/passwd"], "exec \"/etc/passwd\": permission denied"),
        (vec!["/etc"], "exec \"/etc\": is a directory"),
        (vec![""], "exec \"\": no such file in $PATH"),
    ] {
        let error = failure(&agent, spec(&args));
        assert_eq!(error.to_string(), message);
        let LaunchError::Failed(failure) = error else { panic!("{error:?}") };
        assert_eq!(failure.blame(), Blame::Missing);
    }
    assert_eq!(failure(&agent, spec(&[])).to_string(), "no command given");
}

fn missing_source() {
    let agent = agent();
    let mut missing = shell("true");
    bind(&mut missing, Path::new("/no/such/volume"), "/data", &["rbind", "rprivate", "rw"]);
    let error = failure(&agent, missing);
    assert_eq!(error.to_string(), "mount of /no/such/volume on /data: source");
    let LaunchError::Failed(failure) = error else { panic!("{error:?}") };
    assert!(matches!(failure, Failure::MountSource { errno: Errno::NOENT, .. }));
    assert_eq!(failure.blame(), Blame::Missing);
}

fn over_proc() {
    let mut agent = agent_with(|setup| {
        let layer = setup.layers_dir.join("evil");
        fs::create_dir_all(&layer).unwrap();
        symlink("/tmp", layer.join("proc")).unwrap();
        // Replaces the folder of the layer below.
    });
    for (destination, why) in [
        ("/proc/sys", "it lies in /proc"),
        ("/proc", "it lies in /proc"),
        ("/", "it must be an absolute path below /"),
    ] {
        let mut hidden = shell("true");
        bind(&mut hidden, Path::new("/etc"), destination, &["rbind"]);
        let error = failure(&agent, hidden);
        assert_eq!(error.to_string(), format!("mount on {destination} is not allowed: {why}"));
    }
    // An image whose /proc leads elsewhere.
    agent.layers.push("evil".into());
    let error = failure(&agent, shell("true"));
    assert_eq!(
        error.to_string(),
        "mount on /proc is not allowed: it is reached through a symlink of the image"
    );
}

fn users() {
    let agent = agent();
    for (user, expected) in [
        ("eve", UserError::NoUser { name: "eve".into() }),
        ("web:eve", UserError::NoGroup { name: "eve".into() }),
        ("web:", UserError::Malformed { text: "web:".into() }),
    ] {
        let error = agent.start_with(shell("true"), |r| r.user = user.into()).map(|r| r.end()).unwrap_err();
        assert!(matches!(&error, LaunchError::Failed(Failure::User(e)) if *e == expected), "{error:?}");
    }
}

fn missing_layer() {
    let mut agent = agent();
    agent.layers.push("gone".into());
    let error = failure(&agent, shell("true"));
    assert_eq!(error.to_string(), "root file system: layer gone");
    agent.layers.pop();
    agent.layers.push("../etc".into());
    let error = agent.start(shell("true")).map(|r| r.end()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the container's spec: `../etc` is not the name of a layer or scratch folder"
    );
}

fn unsupported() {
    let agent = agent();
    let mut option = shell("true");
    add(
        &mut option,
        "/mounts",
        json!({"destination": "/t", "type": "tmpfs", "source": "t", "options": ["frobnicate"]}),
    );
    let mut fstype = shell("true");
    add(&mut fstype, "/mounts", json!({"destination": "/t", "type": "nfs", "source": "server:/"}));
    let mut terminal = shell("true");
    set(&mut terminal, "/process", "terminal", json!(true));
    for (spec, message) in [
        (option, "mount tmpfs on /t"),
        (fstype, "mount on /t: type `nfs` is not supported"),
        (terminal, "the container's spec: process.terminal and the standard streams disagree"),
    ] {
        let error = agent.start(spec).map(|r| r.end()).unwrap_err();
        assert_eq!(error.to_string(), message);
    }
    let error = agent.start_with(shell("true"), |r| r.pid = PidNamespace::Pod).map(|r| r.end()).unwrap_err();
    assert_eq!(error.to_string(), "the container's spec: the pod has no pid namespace to share");
}

fn nothing_left() {
    let agent = agent();
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap();
    let (before, fds) = (mounts(), fs::read_dir("/proc/self/fd").unwrap().count());
    for _ in 0..20 {
        failure(&agent, spec(&["foo"]));
        let mut missing = shell("true");
        bind(&mut missing, Path::new("/no/such/volume"), "/data", &["rbind"]);
        failure(&agent, missing);
        // Given up at the gate.
        let (stdio, _stdin, _output) = streams().split();
        drop(agent.create(agent.request(shell("true"), stdio)).unwrap());
    }
    assert_eq!(mounts(), before);
    assert_eq!(fs::read_dir("/proc/self/fd").unwrap().count(), fds);
    eventually("no child is left", || reap_orphans(|_| false).unwrap() == 0);
}

fn propagation() {
    let private = new_mount_on_the_host("private", MsFlags::MS_PRIVATE);
    let shared = new_mount_on_the_host("shared", MsFlags::MS_SHARED);
    let agent = agent();
    for (source, option, wanted) in [
        (&private, "rshared", Some("shared")),
        (&private, "rslave", Some("shared or slave")),
        (&private, "rprivate", None),
        (&shared, "rshared", None),
        (&shared, "rslave", None),
    ] {
        let mut volume = shell("true");
        bind(&mut volume, source, "/data", &["rbind", option]);
        match (agent.start(volume).map(|r| r.end()), wanted) {
            (Ok(outcome), None) => assert_eq!(outcome.code, 0),
            (Err(error), Some(wanted)) => {
                let message =
                    format!("mount of {} on /data: the source is not on a {wanted} mount", source.display());
                assert_eq!(error.to_string(), message);
            }
            (other, _) => panic!("{option}: {other:?}"),
        }
    }
}

fn cwd_through_proc() {
    let agent = agent();
    let mut leaky = shell("true");
    for cwd in ["/proc/self/fd/3", "/proc/self/root", "/proc/1/cwd"] {
        set(&mut leaky, "/process", "cwd", json!(cwd));
        let error = failure(&agent, leaky.clone());
        assert!(error.to_string().starts_with("working directory /proc/"), "{error}");
    }
}
