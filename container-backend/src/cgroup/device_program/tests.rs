use super::*;
use crate::cgroup::devices::Access;
use crate::cgroup::devices::tests::allows;

#[expect(clippy::cast_possible_truncation, reason = "JMP32 compares the low half")]
fn low(register: u64) -> u32 {
    register as u32
}

/// Runs a program as the kernel would, on the handful of opcodes that are used.
fn run(program: &[Insn], kind: Kind, access: u32, major: u32, minor: u32) -> bool {
    let kind = if kind == Kind::Char { DEV_CHAR } else { DEV_BLOCK } as u32;
    let context = [access << 16 | kind, major, minor];
    let mut r = [0_u64; 16];
    let mut pc = 0;
    loop {
        let i = program[pc];
        pc += 1;
        let (dst, src) = (usize::from(i.registers & 15), usize::from(i.registers >> 4));
        let jump = match i.code {
            LOAD_WORD => {
                r[dst] = context[i.offset as usize / 4].into();
                false
            }
            MOV_IMM => {
                r[dst] = i.immediate as u64;
                false
            }
            MOV_REG => {
                r[dst] = r[src];
                false
            }
            AND_IMM => {
                r[dst] &= i.immediate as u64;
                false
            }
            SHIFT_RIGHT_IMM => {
                r[dst] >>= i.immediate;
                false
            }
            JUMP_NOT_EQUAL_IMM => low(r[dst]) != i.immediate as u32,
            JUMP_EQUAL_IMM => low(r[dst]) == i.immediate as u32,
            JUMP_NOT_EQUAL_REG => r[dst] != r[src],
            EXIT => return r[0] == 1,
            code => panic!("opcode {code:#x}"),
        };
        if jump {
            pc += usize::try_from(i.offset).expect("forward");
        }
    }
}

fn policies() -> Vec<DevicePolicy> {
    [
        "[]",
        r#"[{"allow":true,"type":"b","major":8,"access":"rw"},{"allow":true,"type":"c","major":4294967295,"minor":0}]"#,
        r#"[{"allow":true},{"allow":false,"type":"c","major":1,"access":"w"},{"allow":false,"type":"b","minor":3}]"#,
        r#"[{"allow":true}]"#,
    ]
    .into_iter()
    .map(|json| DevicePolicy::from_oci(&serde_json::from_str::<Vec<_>>(json).expect(json)).expect(json))
    .collect()
}

#[test]
fn the_program_decides_as_the_policy_does() {
    for policy in policies() {
        let program = assemble(&policy);
        for kind in [Kind::Char, Kind::Block] {
            for bits in 1..8_u8 {
                for major in [0, 1, 5, 8, 10, 136, u32::MAX] {
                    for minor in [0, 3, 5, 200, u32::MAX] {
                        let access = Access::from_bits(bits);
                        let wanted = Exception { kind, major: Some(major), minor: Some(minor), access };
                        assert_eq!(
                            run(&program, kind, bits.into(), major, minor),
                            allows(&policy, &wanted),
                            "{wanted} under {policy:?}"
                        );
                    }
                }
            }
        }
    }
}

/// Needs CAP_BPF, as root has it.
#[test]
fn the_verifier_takes_every_program() {
    for policy in policies() {
        sys::load_device_program(&assemble(&policy)).expect("loads (needs root)");
    }
}
