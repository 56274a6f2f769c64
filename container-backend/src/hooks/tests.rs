use std::io::Read as _;
use std::time::Instant;

use oci_spec::runtime::HookBuilder;

use super::*;

fn shell(script: &str) -> Hook {
    let args = ["sh", "-c", script].map(str::to_owned).to_vec();
    HookBuilder::default().path("/bin/sh").args(args).build().unwrap()
}

fn state() -> HookState {
    let mut spec = Spec::default();
    spec.set_version("1.2.0".to_owned()).set_annotations(Some([("k".to_owned(), "v".to_owned())].into()));
    HookState::new("abc", Path::new("/tmp"), &spec)
}

/// In the place of the daemon's program.
struct Daemon(tempfile::TempDir);

impl Daemon {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        let script = r#"[ "$3" = $PPID ] || exit 98
            path=$4; count=$5; shift 5
            [ -z "$A" ] || exit 99
            while [ $count -gt 0 ]; do export "$1"; shift; count=$((count - 1)); done
            shift; exec "$path" "$@""#;
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        Self(dir)
    }

    fn run(&self, hook: &Hook, stdin: std::os::fd::OwnedFd) -> Result<(), HookFailure> {
        let launcher = Launcher { program: &self.0.path().join("program"), role: "hook" };
        run_blocking(hook, Path::new("/tmp"), stdin, launcher, Budget::of_call())
    }
}

fn run(hook: &Hook) -> Result<(), String> {
    let stdin = state().file(Moment::Poststop, None).unwrap();
    Daemon::new().run(hook, stdin).map_err(|error| error.to_string())
}

#[test]
fn a_state_is_what_the_specification_says() {
    let mut text = String::new();
    let file = state().file(Moment::Poststart, Some(7)).unwrap();
    std::fs::File::from(file).read_to_string(&mut text).unwrap();
    let told: serde_json::Value = serde_json::from_str(&text).unwrap();
    let expected = serde_json::json!({"ociVersion": "1.2.0", "id": "abc", "status": "running", "pid": 7, "bundle": "/tmp",
        "annotations": {"k": "v"}});
    assert_eq!(told, expected);
}

#[test]
fn a_hook_has_its_state_its_folder_and_nothing_else() {
    let script = r#"grep -q '"status":"stopped"' && [ "$PWD" = /tmp ] && [ "$(env | grep -c '^CARGO')" = 0 ] && [ "$A" = b=c ]"#;
    let mut hook = shell(script);
    hook.set_env(Some(vec!["A=b=c".to_owned()]));
    run(&hook).unwrap();
}

#[test]
fn a_hook_that_fails_is_quoted() {
    assert_eq!(
        run(&shell("echo one >&2; echo two >&2; exit 3")).unwrap_err(),
        "it ended with code 3: one; two"
    );
    assert_eq!(run(&shell("kill -9 $$")).unwrap_err(), "it ended with code 137");
    let long = run(&shell("yes | head -c 1000000 >&2; printf '\\033end' >&2; exit 1")).unwrap_err();
    assert!(long.len() < 2100 && long.ends_with("y;  end"), "{long}");
}

#[test]
fn a_hook_that_hangs_is_killed_with_what_it_started() {
    let mut hook = shell("echo waiting >&2; sleep 1000 & sleep 1000");
    hook.set_timeout(Some(1));
    let began = Instant::now();
    assert_eq!(run(&hook).unwrap_err(), "it was killed: it did not end within 1 s: waiting");
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn what_a_hook_leaves_in_the_background_is_not_waited_for() {
    let began = Instant::now();
    run(&shell("sleep 5 &")).unwrap();
    assert!(began.elapsed() < Duration::from_secs(4));
}

#[test]
fn a_hook_that_does_not_read_its_state_is_fine() {
    let mut spec = Spec::default();
    spec.set_annotations(Some([("k".to_owned(), "v".repeat(300_000))].into()));
    let stdin = HookState::new("abc", Path::new("/tmp"), &spec).file(Moment::Poststop, None).unwrap();
    Daemon::new().run(&shell("true"), stdin).unwrap();
}

#[test]
fn odd_hooks_are_refused() {
    let mut hook = shell("true");
    check(&hook).unwrap();
    hook.set_timeout(Some(0));
    assert_eq!(check(&hook).unwrap_err(), "timeout 0 is not greater than 0");
    hook.set_timeout(None).set_env(Some(vec!["A=\0".to_owned()]));
    assert_eq!(check(&hook).unwrap_err(), "args or env hold a NUL byte");
    hook.set_path("bin/sh".into());
    assert_eq!(check(&hook).unwrap_err(), "path bin/sh is not absolute");
}

#[test]
fn every_moment_has_its_list() {
    let mut hooks = Hooks::default();
    for (number, moment) in Moment::ALL.into_iter().enumerate() {
        moment.add(&mut hooks, shell(&number.to_string()));
    }
    for (number, moment) in Moment::ALL.into_iter().enumerate() {
        assert_eq!(moment.of(&hooks), [shell(&number.to_string())]);
        let json = serde_json::to_value(&hooks).unwrap();
        assert!(json.get(moment.name()).is_some(), "{json}");
    }
}

#[test]
fn what_all_hooks_have_together_bounds_each() {
    let hook = shell("true");
    let (call, little) = (Budget::of_call(), Budget::of(Duration::from_secs(3)));
    assert_eq!(call.timeout(&hook), TIMEOUT);
    let mut slow = shell("true");
    slow.set_timeout(Some(i64::MAX));
    assert!((TIMEOUT..=TIMEOUT_IN_ALL).contains(&call.timeout(&slow)));
    for hook in [hook, slow] {
        assert!(little.timeout(&hook) <= Duration::from_secs(3));
    }
    let (hook, least) = (shell("true"), Duration::from_secs(20));
    let nothing = Budget::of(Duration::ZERO);
    assert_eq!(nothing.timeout(&hook), Duration::ZERO);
    assert!((Duration::from_secs(10)..=least).contains(&nothing.or_at_least(least).timeout(&hook)));
    assert!(call.or_at_least(least).timeout(&hook) > least);
}
