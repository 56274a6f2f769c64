use oci_spec::runtime::LinuxResources;

use super::*;

fn parse(json: &str) -> Result<Limits, LimitError> {
    let resources: LinuxResources = serde_json::from_str(json).expect(json);
    Limits::from_oci(&resources)
}

#[test]
fn zero_is_unset_and_minus_one_unlimited() {
    let limits = parse(
        r#"{"cpu":{"shares":0,"quota":-1,"period":0,"cpus":" ","mems":"0"},
            "memory":{"limit":0,"reservation":-1},"pids":{"limit":-1}}"#,
    )
    .expect("valid");
    let cpu = Cpu { quota_us: Some(Max::Unlimited), mems: Some("0".into()), ..Cpu::default() };
    assert_eq!(limits.cpu, cpu);
    assert_eq!(limits.memory, Memory { reservation: Some(Max::Unlimited), ..Memory::default() });
    assert_eq!(limits.pids, Some(Max::Unlimited));
    assert_eq!(limits.needs(), [Controller::Cpu, Controller::Cpuset, Controller::Memory, Controller::Pids]);
}

#[test]
fn no_resources_need_no_controller() {
    assert!(parse("{}").expect("empty").needs().is_empty());
    assert!(Limits::default().needs().is_empty() && Limits::default().devices.allows_everything());
}

#[test]
fn lifting_the_memory_limit_lifts_swap_with_it() {
    let limits = parse(r#"{"memory":{"limit":-1}}"#).expect("valid");
    assert_eq!(limits.memory.with_swap, Some(Max::Unlimited));
}

#[test]
fn senseless_values_are_named() {
    for (json, error) in [
        (r#"{"cpu":{"period":999}}"#, LimitError::CpuPeriod(999)),
        (r#"{"cpu":{"period":18446744073709551615}}"#, LimitError::CpuPeriod(u64::MAX)),
        (r#"{"cpu":{"quota":1}}"#, LimitError::CpuQuota(1)),
        (r#"{"cpu":{"quota":-5}}"#, LimitError::CpuQuota(-5)),
        (r#"{"memory":{"limit":-2}}"#, LimitError::Negative { what: "memory limit", value: -2 }),
        (r#"{"memory":{"limit":8,"swap":7}}"#, LimitError::SwapBelowMemory { swap: 7, limit: 8 }),
        (r#"{"memory":{"swap":7}}"#, LimitError::SwapWithoutMemory),
        (r#"{"memory":{"swappiness":101}}"#, LimitError::Swappiness(101)),
        (r#"{"blockIO":{"weight":9}}"#, LimitError::IoWeight(9)),
        (r#"{"hugepageLimits":[{"pageSize":"2MB/..","limit":1}]}"#, LimitError::PageSize("2MB/..".into())),
        (r#"{"hugepageLimits":[{"pageSize":"MB","limit":1}]}"#, LimitError::PageSize("MB".into())),
        (
            r#"{"hugepageLimits":[{"pageSize":"2MB","limit":-1}]}"#,
            LimitError::Negative { what: "huge page limit", value: -1 },
        ),
        (r#"{"cpu":{"cpus":"0\n1"}}"#, LimitError::CpuList { what: "cpuset cpus", list: "0\n1".into() }),
        (
            r#"{"blockIO":{"throttleReadBpsDevice":[{"major":-8,"minor":0,"rate":1}]}}"#,
            LimitError::DeviceNumber { major: -8, minor: 0 },
        ),
    ] {
        assert_eq!(parse(json).expect_err(json), error, "{json}");
    }
}

#[test]
fn unified_keys_are_plain_files_of_controllers() {
    let limits = parse(r#"{"unified":{"memory.high":"1","cgroup.max.depth":"3"}}"#).expect("valid");
    assert_eq!(limits.unified.len(), 2);
    for key in
        ["cgroup.procs", "cgroup.kill", "cgroup.freeze", "../x", "a/b.c", "tasks", ".x", "", "a\u{e9}.b"]
    {
        let json = format!(r#"{{"unified":{{"{key}":"1"}}}}"#);
        assert_eq!(parse(&json).expect_err(key), LimitError::UnifiedKey(key.to_owned()));
    }
}

#[test]
fn what_cgroups_cannot_do_is_said() {
    let limits =
        parse(r#"{"network":{"classID":7},"rdma":{"mlx":{"hcaHandles":1}},"cpu":{"realtimeRuntime":5}}"#)
            .expect("valid");
    assert_eq!(limits.ignored().count(), 3);
}
