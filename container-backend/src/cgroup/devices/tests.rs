use super::*;

fn policy(json: &str) -> Result<DevicePolicy, DeviceRuleError> {
    let rules: Vec<LinuxDeviceCgroup> = serde_json::from_str(json).expect(json);
    DevicePolicy::from_oci(&rules)
}

fn lines(policy: &DevicePolicy) -> Vec<String> {
    policy.exceptions.iter().map(ToString::to_string).collect()
}

/// What both v1 and the eBPF program make of a policy.
pub(in crate::cgroup) fn allows(policy: &DevicePolicy, wanted: &Exception) -> bool {
    let number = |rule: Option<u32>, n: Option<u32>| rule.is_none() || rule == n;
    let exceptional = policy.exceptions.iter().any(|e| {
        let access = if policy.allow_by_default {
            wanted.access.0 & e.access.0 != 0
        } else {
            wanted.access.0 & !e.access.0 == 0
        };
        access && e.kind == wanted.kind && number(e.major, wanted.major) && number(e.minor, wanted.minor)
    });
    exceptional != policy.allow_by_default
}

#[test]
fn default_devices_come_on_top_of_deny_all() {
    for rules in ["[]", r#"[{"allow":false,"access":"rwm"}]"#] {
        let policy = policy(rules).expect(rules);
        assert!(!policy.allow_by_default);
        assert_eq!(lines(&policy)[..3], ["c *:* m", "b *:* m", "c 1:3 rwm"]);
        let kmsg = Exception::char(Some(1), Some(11), Access(Access::READ));
        assert!(!allows(&policy, &kmsg));
        assert!(allows(&policy, &Exception::char(Some(136), Some(7), Access(Access::READ | Access::WRITE))));
    }
}

#[test]
fn a_privileged_container_may_use_everything() {
    assert!(policy(r#"[{"allow":true,"access":"rwm"}]"#).expect("all").allows_everything());
    assert!(policy(r#"[{"allow":true,"type":"a"}]"#).expect("all").allows_everything());
}

#[test]
fn later_rules_add_to_and_take_from_earlier_ones() {
    let policy = policy(
        r#"[{"allow":true,"type":"c","major":10,"minor":229,"access":"r"},
            {"allow":true,"type":"c","major":10,"minor":229,"access":"w"},
            {"allow":true,"type":"b","major":8,"minor":-1},
            {"allow":false,"type":"b","major":8,"access":"m"}]"#,
    )
    .expect("valid");
    assert_eq!(lines(&policy)[..2], ["c 10:229 rw", "b 8:* rw"]);
}

#[test]
fn a_hole_in_a_wider_rule_is_refused() {
    let error = policy(
        r#"[{"allow":true,"type":"b","major":8},{"allow":false,"type":"b","major":8,"minor":1,"access":"w"}]"#,
    )
    .expect_err("hole");
    assert_eq!(error, DeviceRuleError::Hole { inner: "b 8:1 w".into(), outer: "b 8:* rwm".into() });
}

#[test]
fn all_but_some_keeps_the_exceptions() {
    let policy = policy(r#"[{"allow":true},{"allow":false,"type":"c","major":1,"minor":11,"access":"w"}]"#)
        .expect("valid");
    assert_eq!(lines(&policy), ["c 1:11 w"]);
    assert!(policy.allow_by_default);
}

#[test]
fn hostile_rules_are_errors() {
    for (json, error) in [
        (r#"[{"allow":true,"type":"c","access":"rx"}]"#, DeviceRuleError::Access("rx".into())),
        (r#"[{"allow":true,"type":"c","major":-2}]"#, DeviceRuleError::Number(-2)),
        (r#"[{"allow":true,"type":"c","minor":4294967296}]"#, DeviceRuleError::Number(1 << 32)),
        (r#"[{"allow":true,"type":"a","major":1}]"#, DeviceRuleError::WildcardWithNumbers),
        (r#"[{"allow":true,"type":"p"}]"#, DeviceRuleError::Type("p")),
    ] {
        assert_eq!(policy(json).expect_err(json), error, "{json}");
    }
}
