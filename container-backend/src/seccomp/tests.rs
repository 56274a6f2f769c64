//! Programs run by an interpreter against a plain reading of their profile, and by the kernel.

use libc::{SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO};
use oci_spec::runtime::{Arch, Capabilities, Capability, LinuxSeccomp};
use syscalls::Sysno;

use super::abi::{Abi, Numbers, X32_BIT};
use super::*;
use plain::{ALL, Args, Plain, run};

pub(super) mod plain;

/// Every number that means something, and those around the edges.
fn all_numbers() -> impl Iterator<Item = u32> {
    (0..600)
        .chain(X32_BIT - 2..X32_BIT + 600)
        .chain(u32::MAX - 2..=u32::MAX)
        .chain([0x8000_0000, X32_BIT | 0x8000_0000])
}

fn compare(profile: &LinuxSeccomp, native: Abi, tuples: &[Args]) {
    let program = Program::compile_for(profile, native).expect("compiles");
    let plain = Plain::new(profile, native);
    for arch in [0xc000_003e, 0x4000_0003, 0xc000_00f3, 0, 0x4000_0028] {
        for number in all_numbers() {
            for args in tuples {
                let (got, wanted) =
                    (run(program.filter(), arch, number, *args), plain.answer(arch, number, *args));
                assert_eq!(got, wanted, "arch {arch:#x} call {number:#x} args {args:x?} native {native:?}");
            }
        }
    }
}

fn profile(json: &str) -> LinuxSeccomp {
    serde_json::from_str(json).expect(json)
}

const SOME_ARGS: [Args; 8] = [
    [0; 6],
    [1; 6],
    [38, 0, 0, 0, 0, 0],
    [0x1_0000_0026, 0, 0, 0, 0, 0],
    [40, 0, 0, 0, 0, 0],
    [0x2_0008, 0x7e02_0000, 0, 0, 0, 0],
    [0xffff_ffff, 0, 0, 0, 0, 0],
    [u64::MAX; 6],
];

#[test]
fn the_default_profile_does_what_it_says() {
    let some: Capabilities = [Capability::SysAdmin, Capability::SysTime].into_iter().collect();
    for bounding in [Capabilities::new(), some] {
        compare(&default_profile(&bounding), Abi::NATIVE, &SOME_ARGS);
    }
}

#[test]
fn other_machines_get_the_same_treatment() {
    let mut profile = default_profile(&Capabilities::new());
    for (arch, native) in ALL.into_iter().filter(|(_, abi)| matches!(abi, Abi::X86_64 | Abi::Riscv64)) {
        compare(&profile, native, &SOME_ARGS);
        profile.set_architectures(None);
        compare(&profile, native, &SOME_ARGS);
        profile.set_architectures(Some(vec![arch, Arch::ScmpArchX86, Arch::ScmpArchArm]));
    }
}

#[test]
fn small_profiles_do_what_they_say() {
    for json in [
        r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#,
        r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"architectures":["SCMP_ARCH_X86"]}"#,
        r#"{"defaultAction":"SCMP_ACT_KILL_PROCESS","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}"#,
        // A refused argument stays refused, whatever the order of rules.
        r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86"],"syscalls":[
            {"names":["socket"],"action":"SCMP_ACT_ALLOW"},
            {"names":["socket"],"action":"SCMP_ACT_ERRNO","args":[{"index":0,"value":38,"op":"SCMP_CMP_EQ"}]}]}"#,
        // Twice the same argument: either.
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["personality","nosuch"],"action":"SCMP_ACT_LOG","args":[
            {"index":0,"value":38,"op":"SCMP_CMP_EQ"},{"index":0,"value":40,"op":"SCMP_CMP_EQ"}]}]}"#,
        // An interface without rules beside one with: both end in the same returns.
        r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86","SCMP_ARCH_X32"],"syscalls":[
            {"names":["socketcall"],"action":"SCMP_ACT_KILL"}]}"#,
        // Behind socketcall and ipc too.
        r#"{"defaultAction":"SCMP_ACT_TRACE","architectures":["SCMP_ARCH_X86","SCMP_ARCH_X32"],"syscalls":[
            {"names":["socketcall"],"action":"SCMP_ACT_ALLOW"},
            {"names":["socket","semop","rt_sigaction"],"action":"SCMP_ACT_TRAP"}]}"#,
    ] {
        for native in [Abi::X86_64, Abi::Riscv64] {
            compare(&profile(json), native, &SOME_ARGS);
        }
    }
}

/// Xorshift: the same profiles on every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).expect("31 bits") % sides
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.roll(of.len())]
    }
}

const VALUES: [u64; 9] =
    [0, 1, 2, 0xffff_fffe, 0xffff_ffff, 0x1_0000_0000, 0x1_0000_0001, u64::MAX - 1, u64::MAX];
const NAMES: [&str; 12] = [
    "read",
    "write",
    "socket",
    "clone",
    "ioctl",
    "execve",
    "mseal",
    "socketcall",
    "ipc",
    "semop",
    "fchmodat2",
    "getpid",
];
const OPS: [&str; 7] = ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"];
const ACTIONS: [&str; 8] = ["KILL", "KILL_PROCESS", "TRAP", "ERRNO", "TRACE", "LOG", "ALLOW", "ALLOW"];

fn random_profile(dice: &mut Dice, rules: usize) -> String {
    let rule = |dice: &mut Dice| {
        let names = format!("{:?}", [dice.pick(&NAMES), dice.pick(&NAMES)]);
        let args: Vec<String> = (0..dice.roll(5))
            .map(|_| {
                let (index, value, two) = (dice.roll(6), dice.pick(&VALUES), dice.pick(&VALUES));
                let op = dice.pick(&OPS);
                format!(r#"{{"index":{index},"value":{value},"valueTwo":{two},"op":"SCMP_CMP_{op}"}}"#)
            })
            .collect();
        let (action, errno) = (dice.pick(&ACTIONS), dice.roll(4096));
        format!(
            r#"{{"names":{names},"action":"SCMP_ACT_{action}","errnoRet":{errno},"args":[{}]}}"#,
            args.join(",")
        )
    };
    let syscalls: Vec<String> = (0..rules).map(|_| rule(dice)).collect();
    format!(
        r#"{{"defaultAction":"SCMP_ACT_{}","architectures":["SCMP_ARCH_X86","SCMP_ARCH_X32"],"syscalls":[{}]}}"#,
        dice.pick(&ACTIONS),
        syscalls.join(",")
    )
}

#[test]
fn random_profiles_do_what_they_say() {
    let mut dice = Dice(0x5eed_2026_1122_0001);
    let mut longest = 0;
    let mut names: Vec<(Abi, u32)> = Vec::new();
    for (_, abi) in &ALL[..3] {
        let table = Numbers::of(*abi);
        names.extend(NAMES.iter().filter_map(|name| Some((*abi, table.get(name)?))));
    }
    for round in 0..150 {
        // Some are long enough for every kind of jump to go beyond its reach.
        let rules = if round % 10 == 0 { 60 } else { 8 };
        let json = random_profile(&mut dice, rules);
        let profile = profile(&json);
        let program = match Program::compile_for(&profile, Abi::X86_64) {
            Ok(program) => program,
            Err(ProfileError::TooLarge { .. }) => continue,
            Err(e) => panic!("{e} in {json}"),
        };
        longest = longest.max(program.filter().len());
        let plain = Plain::new(&profile, Abi::X86_64);
        for _ in 0..3000 {
            let args = std::array::from_fn(|_| dice.pick(&VALUES));
            let (_, abi) = dice.pick(&ALL[..3]);
            let known = names.iter().filter(|(a, _)| *a == abi).map(|(_, n)| *n).collect::<Vec<_>>();
            let number = dice.pick(&known) + u32::from(dice.roll(8) == 0);
            let arch = abi.audit_arch();
            let got = run(program.filter(), arch, number, args);
            assert_eq!(
                got,
                plain.answer(arch, number, args),
                "{number:#x} of {abi:?} {args:x?}, round {round}"
            );
        }
    }
    assert!(longest > 1000, "long programs were among them: {longest}");
}

#[test]
fn hostile_profiles_are_errors() {
    let with_rule =
        |rule: &str| profile(&format!(r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{rule}]}}"#));
    for (rule, error) in [
        (
            r#"{"names":["read"],"action":"SCMP_ACT_ALLOW","args":[{"index":9,"value":0,"op":"SCMP_CMP_EQ"}]}"#,
            ProfileError::ArgumentIndex(9),
        ),
        (r#"{"names":[""],"action":"SCMP_ACT_ALLOW"}"#, ProfileError::EmptyName),
        (r#"{"names":["read"],"action":"SCMP_ACT_ERRNO","errnoRet":4096}"#, ProfileError::Errno(4096)),
        (r#"{"names":["read"],"action":"SCMP_ACT_NOTIFY"}"#, ProfileError::Notify),
    ] {
        assert_eq!(Program::compile(&with_rule(rule)).expect_err(rule), error);
    }
    // Ten thousand rules on one call, each with a value of its own.
    let rules: Vec<String> = (0..10_000)
        .map(|n| {
            format!(
                r#"{{"names":["read"],"action":"SCMP_ACT_ALLOW","args":[{{"index":1,"value":{n},"op":"SCMP_CMP_EQ"}}]}}"#
            )
        })
        .collect();
    let error = Program::compile(&with_rule(&rules.join(","))).expect_err("too large");
    assert!(matches!(error, ProfileError::TooLarge { limit: 4096, .. }), "{error}");
    // A thousand names times a thousand values.
    let args = vec![r#"{"index":0,"value":1,"op":"SCMP_CMP_EQ"}"#; 1000].join(",");
    let rule = format!(r#"{{"names":{:?},"action":"SCMP_ACT_ALLOW","args":[{args}]}}"#, ["read"; 1000]);
    let error = Program::compile(&with_rule(&rule)).expect_err("multiplies");
    assert!(matches!(error, ProfileError::TooManyChecks { .. }), "{error}");
    // As many rules that say the same are no trouble.
    let rules = vec![r#"{"names":["read","nosuch"],"action":"SCMP_ACT_ALLOW"}"#; 10_000].join(",");
    assert!(Program::compile(&with_rule(&rules)).expect("fits").filter().len() < 20);
}

#[test]
fn the_default_profile_is_small_and_lets_the_usual_through_unasked() {
    let program = Program::compile(&default_profile(&Capabilities::new())).expect("compiles");
    assert!(program.filter().len() < 1000, "{} instructions", program.filter().len());
    assert_eq!(program.flags(), sys::SPEC_ALLOW);
    let numbers = Numbers::of(Abi::NATIVE);
    for name in ["read", "execve", "openat", "newfstatat", "exit_group", "rt_sigreturn", "brk", "mmap"] {
        let number = numbers.get(name).expect(name);
        let answer = run(program.filter(), Abi::NATIVE.audit_arch(), number, [u64::MAX; 6]);
        assert_eq!(answer, SECCOMP_RET_ALLOW, "{name}");
    }
    for name in ["mount", "bpf", "keyctl", "io_uring_setup", "userfaultfd", "kexec_load", "pivot_root"] {
        let number = numbers.get(name).expect(name);
        let answer = run(program.filter(), Abi::NATIVE.audit_arch(), number, [0; 6]);
        assert_eq!(answer, SECCOMP_RET_ERRNO | 1, "{name}");
    }
}

#[test]
fn threads_may_be_made_and_namespaces_may_not() {
    let program = Program::compile(&default_profile(&Capabilities::new())).expect("compiles");
    let clone = Numbers::of(Abi::NATIVE).get("clone").expect("clone");
    let answer = |flags: i32| {
        let args = [u64::from(flags as u32), 0, 0, 0, 0, 0];
        run(program.filter(), Abi::NATIVE.audit_arch(), clone, args)
    };
    for flag in [
        libc::CLONE_NEWNS,
        libc::CLONE_NEWCGROUP,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
    ] {
        assert_eq!(answer(flag | libc::SIGCHLD), SECCOMP_RET_ERRNO | 1, "{flag:#x}");
    }
    let thread =
        libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD;
    let more =
        libc::CLONE_SYSVSEM | libc::CLONE_SETTLS | libc::CLONE_PARENT_SETTID | libc::CLONE_CHILD_CLEARTID;
    assert_eq!(
        [answer(thread | more), answer(libc::SIGCHLD), answer(libc::CLONE_PIDFD)],
        [SECCOMP_RET_ALLOW; 3]
    );
}

/// What a thread of its own gets back under a filter: the filter goes with the thread. Needs CAP_SYS_ADMIN.
fn filtered<T: Send>(profile: &LinuxSeccomp, probe: impl FnOnce() -> T + Send) -> T {
    let program = Program::compile(profile).expect("compiles");
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            program.load().expect("loads (needs root)");
            probe()
        });
        thread.join().expect("thread")
    })
}

#[test]
fn the_kernel_enforces_the_default_profile() {
    let answers = filtered(&default_profile(&Capabilities::new()), || {
        [
            sys::probe(Sysno::clone3, [0; 3]),
            sys::probe(Sysno::keyctl, [0; 3]),
            sys::probe(Sysno::unshare, [0; 3]),
            sys::probe(Sysno::socket, [40, 1, 0]),
            sys::probe(Sysno::socket, [1 << 32 | 40, 1, 0]),
            sys::probe(Sysno::socket, [38, 5, 0]),
            sys::probe(Sysno::personality, [1, 0, 0]),
        ]
    });
    let (eperm, enosys) = (Err(libc::EPERM), Err(libc::ENOSYS));
    assert_eq!(answers, [enosys, eperm, eperm, eperm, eperm, eperm, eperm]);
    let unix = filtered(&default_profile(&Capabilities::new()), || {
        rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, None).is_ok()
    });
    assert!(unix);
}

#[test]
fn the_kernel_is_not_asked_about_calls_newer_than_the_profile() {
    // openat2 (437) is the newest that the profile knows; statmount (457) is newer, keyctl (250) is not.
    let mut old = default_profile(&Capabilities::new());
    let numbers = Numbers::of(Abi::NATIVE);
    let mut syscalls = old.syscalls().clone().expect("rules");
    for rule in &mut syscalls {
        let names = rule.names().iter().filter(|n| numbers.get(n).is_some_and(|number| number <= 437));
        rule.set_names(names.cloned().collect());
    }
    old.set_syscalls(Some(syscalls));
    let answers =
        filtered(&old, || [sys::probe(Sysno::statmount, [0; 3]), sys::probe(Sysno::keyctl, [0; 3])]);
    assert_eq!(answers, [Err(libc::ENOSYS), Err(libc::EPERM)]);
}
