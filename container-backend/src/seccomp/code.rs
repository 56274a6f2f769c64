//! Classic BPF, written from its last instruction to its first: jumps only go forward, so every target is already there and its
//! distance known.

use std::collections::HashMap;

use super::rules::{ARGS, Action, Check, Comparison, Condition};

// Offsets in struct seccomp_data (linux/seccomp.h); both machines are little-endian, so an argument's lower half comes first.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

// linux/bpf_common.h and linux/filter.h.
const LOAD: u16 = 0x20; // LD | W | ABS
const AND: u16 = 0x54; // ALU | AND | K
const JUMP: u16 = 0x05; // JMP | JA
const JUMP_EQUAL: u16 = 0x15; // JMP | JEQ | K
const JUMP_GREATER: u16 = 0x25; // JMP | JGT | K
const JUMP_GREATER_OR_EQUAL: u16 = 0x35; // JMP | JGE | K
const RETURN: u16 = 0x06; // RET | K

/// A conditional jump's distance has eight bits.
const REACH: usize = u8::MAX as usize;

/// An instruction's place, counted from the end of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Label(usize);

/// What happens with a number.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Decision {
    Return(Action),
    /// The first check that holds, or else the fallback.
    Checks(Vec<Check>, Action),
}

/// A decision for all numbers from `start` up to the next range's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: u32,
    pub(super) decision: Decision,
}

/// A program in the making, reversed.
#[derive(Debug, Default)]
pub(super) struct Code {
    reversed: Vec<libc::sock_filter>,
    decisions: HashMap<Decision, Label>,
}

impl Code {
    /// The program, first instruction first.
    pub(super) fn finish(mut self) -> Vec<libc::sock_filter> {
        self.reversed.reverse();
        self.reversed
    }

    /// The program's head: loads the architecture value and goes on at `then`.
    pub(super) fn load_arch(&mut self, then: Label) {
        self.fall_into(then);
        self.push(LOAD, 0, 0, ARCH);
    }

    pub(super) fn load_number(&mut self, then: Label) -> Label {
        self.fall_into(then);
        self.push(LOAD, 0, 0, NUMBER)
    }

    /// A load goes on at the instruction behind it, which need not be the wanted one.
    fn fall_into(&mut self, target: Label) {
        let distance = self.distance(target);
        if distance > 0 {
            self.push(JUMP, 0, 0, u32::try_from(distance).unwrap_or(u32::MAX));
        }
    }

    pub(super) fn jump_equal(&mut self, value: u32, then: Label, or: Label) -> Label {
        self.branch(JUMP_EQUAL, value, then, or)
    }

    /// A binary search over ranges that begin at 0 and ascend, with the number loaded.
    pub(super) fn search(&mut self, ranges: &[Range]) -> Label {
        match ranges {
            [] => self.decide(&Decision::Return(Action::KILL_THREAD)),
            [one] => self.decide(&one.decision),
            _ => {
                let (low, high) = ranges.split_at(ranges.len() / 2);
                let start = high.first().map_or(0, |range| range.start);
                let high = self.search(high);
                let low = self.search(low);
                self.branch(JUMP_GREATER_OR_EQUAL, start, high, low)
            }
        }
    }

    pub(super) fn decide(&mut self, decision: &Decision) -> Label {
        if let Some(label) = self.decisions.get(decision) {
            // Behind a long way, a return is written again: one instruction either way, and no jump to it.
            if self.distance(*label) < REACH || matches!(decision, Decision::Checks(..)) {
                return *label;
            }
        }
        let label = match decision {
            Decision::Return(action) => self.push(RETURN, 0, 0, action.0),
            Decision::Checks(checks, fallback) => {
                let mut next = self.decide(&Decision::Return(*fallback));
                for check in checks.iter().rev() {
                    next = self.check(check, next);
                }
                next
            }
        };
        self.decisions.insert(decision.clone(), label);
        label
    }

    fn check(&mut self, check: &Check, otherwise: Label) -> Label {
        let mut then = self.decide(&Decision::Return(check.action));
        for condition in check.conditions.iter().rev() {
            then = self.condition(condition, then, otherwise);
        }
        then
    }

    /// Compares a 64-bit argument in halves, the upper one first.
    fn condition(&mut self, condition: &Condition, yes: Label, no: Label) -> Label {
        let (high, low) = halves(condition.value);
        let high = (!condition.narrow).then_some(high);
        let argument = condition.argument;
        match condition.comparison {
            Comparison::Equal => self.equal(argument, high, low, yes, no),
            Comparison::NotEqual => self.equal(argument, high, low, no, yes),
            Comparison::GreaterOrEqual => self.ordered(JUMP_GREATER_OR_EQUAL, argument, (high, low), yes, no),
            Comparison::Less => self.ordered(JUMP_GREATER_OR_EQUAL, argument, (high, low), no, yes),
            Comparison::Greater => self.ordered(JUMP_GREATER, argument, (high, low), yes, no),
            Comparison::LessOrEqual => self.ordered(JUMP_GREATER, argument, (high, low), no, yes),
            Comparison::MaskedEqual { mask } => {
                let (mask_high, mask_low) = halves(mask);
                let lower = self.masked(argument, Half::Low, (mask_low, low), yes, no);
                match high {
                    Some(high) if mask_high != 0 => {
                        self.masked(argument, Half::High, (mask_high, high), lower, no)
                    }
                    _ => lower,
                }
            }
        }
    }

    fn equal(&mut self, argument: usize, high: Option<u32>, low: u32, yes: Label, no: Label) -> Label {
        self.branch(JUMP_EQUAL, low, yes, no);
        let lower = self.load(argument, Half::Low);
        let Some(high) = high else { return lower };
        self.branch(JUMP_EQUAL, high, lower, no);
        self.load(argument, Half::High)
    }

    /// `>` or `>=`, by what the lower halves are compared with where the upper ones are equal.
    fn ordered(
        &mut self,
        last: u16,
        argument: usize,
        (high, low): (Option<u32>, u32),
        yes: Label,
        no: Label,
    ) -> Label {
        self.branch(last, low, yes, no);
        let lower = self.load(argument, Half::Low);
        let Some(high) = high else { return lower };
        let same = self.branch(JUMP_EQUAL, high, lower, no);
        self.branch(JUMP_GREATER, high, yes, same);
        self.load(argument, Half::High)
    }

    fn masked(
        &mut self,
        argument: usize,
        half: Half,
        (mask, value): (u32, u32),
        yes: Label,
        no: Label,
    ) -> Label {
        self.branch(JUMP_EQUAL, value, yes, no);
        self.push(AND, 0, 0, mask);
        self.load(argument, half)
    }

    fn load(&mut self, argument: usize, half: Half) -> Label {
        // Checked when the profile was read.
        let argument = u32::try_from(argument.min(ARGS - 1)).unwrap_or(0);
        self.push(LOAD, 0, 0, ARGUMENTS + 8 * argument + if half == Half::High { 4 } else { 0 })
    }

    /// A conditional jump; targets out of reach get a long jump in between.
    fn branch(&mut self, code: u16, value: u32, then: Label, or: Label) -> Label {
        // One short of the reach, since the second target's long jump would push the first away.
        let then = self.within(then, REACH - 1);
        let or = self.within(or, REACH);
        let (jt, jf) = (self.distance(then), self.distance(or));
        self.push(code, short(jt), short(jf), value)
    }

    fn within(&mut self, target: Label, reach: usize) -> Label {
        let distance = self.distance(target);
        if distance <= reach {
            return target;
        }
        self.push(JUMP, 0, 0, u32::try_from(distance).unwrap_or(u32::MAX))
    }

    /// How many instructions the next one would jump over to get there.
    fn distance(&self, target: Label) -> usize {
        self.reversed.len() - target.0 - 1
    }

    fn push(&mut self, code: u16, jt: u8, jf: u8, k: u32) -> Label {
        self.reversed.push(libc::sock_filter { code, jt, jf, k });
        Label(self.reversed.len() - 1)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Half {
    High,
    Low,
}

#[expect(clippy::cast_possible_truncation, reason = "that is what a half is")]
fn halves(value: u64) -> (u32, u32) {
    ((value >> 32) as u32, value as u32)
}

fn short(distance: usize) -> u8 {
    // `branch` brought it within reach.
    u8::try_from(distance).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp::tests::plain::run;

    /// Both targets at every distance around what eight bits can tell.
    #[test]
    fn a_branch_reaches_as_far_as_it_must() {
        for gap in 200..300 {
            for between in [0, 1, 2, 60] {
                let mut code = Code::default();
                let yes = code.push(RETURN, 0, 0, 1);
                for _ in 0..between {
                    code.push(RETURN, 0, 0, 99);
                }
                let no = code.push(RETURN, 0, 0, 2);
                for _ in 0..gap {
                    code.push(RETURN, 0, 0, 99);
                }
                // The nearer target may be either.
                let branch = code.branch(JUMP_EQUAL, 7, yes, no);
                let swapped = code.branch(JUMP_EQUAL, 8, no, yes);
                let branch = code.branch(JUMP_GREATER, 8, branch, swapped);
                code.load_number(branch);
                let program = code.finish();
                let answers = [7, 8, 9].map(|number| run(&program, 0, number, [0; 6]));
                assert_eq!(answers, [1, 2, 2], "{gap} instructions away, {between} between");
            }
        }
    }
}
