//! Which devices a container may open or make: OCI rules reduced to a set with one meaning on v1 and v2.
//!
//! v1's devices controller keeps a default and a set of exceptions to it, and takes no exception back in part. The reduced set
//! has that shape: rules that it cannot express are refused instead of being silently without effect.

use std::fmt;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

/// Why a device rule cannot be had.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceRuleError {
    #[error("device access {0:?} has other letters than r, w and m")]
    Access(String),
    #[error("device type {0} is not a, b or c")]
    Type(&'static str),
    #[error("device number {0} does not fit")]
    Number(i64),
    #[error("a rule for all devices that names numbers")]
    WildcardWithNumbers,
    #[error("cannot make an exception {inner} within the wider {outer}")]
    Hole { inner: String, outer: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Char,
    Block,
}

/// Bits as eBPF's `BPF_DEVCG_ACC_*` has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Access(u8);

impl Access {
    const MKNOD: u8 = 1;
    const READ: u8 = 2;
    const WRITE: u8 = 4;
    pub(super) const ALL: Self = Self(7);

    fn parse(text: Option<&str>) -> Result<Self, DeviceRuleError> {
        let text = text.unwrap_or("rwm");
        let mut bits = 0;
        for letter in text.chars() {
            bits |= match letter {
                'r' => Self::READ,
                'w' => Self::WRITE,
                'm' => Self::MKNOD,
                _ => return Err(DeviceRuleError::Access(text.to_owned())),
            };
        }
        Ok(Self(bits))
    }

    pub(super) fn bits(self) -> u8 {
        self.0
    }

    #[cfg(test)]
    pub(super) fn from_bits(bits: u8) -> Self {
        Self(bits)
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (bit, letter) in [(Self::READ, "r"), (Self::WRITE, "w"), (Self::MKNOD, "m")] {
            if self.0 & bit != 0 {
                f.write_str(letter)?;
            }
        }
        Ok(())
    }
}

/// Devices that differ from the default; a number of `None` stands for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Exception {
    pub(super) kind: Kind,
    pub(super) major: Option<u32>,
    pub(super) minor: Option<u32>,
    pub(super) access: Access,
}

impl Exception {
    const fn char(major: Option<u32>, minor: Option<u32>, access: Access) -> Self {
        Self { kind: Kind::Char, major, minor, access }
    }

    fn same_devices(&self, other: &Self) -> bool {
        (self.kind, self.major, self.minor) == (other.kind, other.major, other.minor)
    }

    /// Some device and access falls under both.
    fn meets(&self, other: &Self) -> bool {
        let meet = |a: Option<u32>, b: Option<u32>| a.is_none() || b.is_none() || a == b;
        self.kind == other.kind
            && self.access.0 & other.access.0 != 0
            && meet(self.major, other.major)
            && meet(self.minor, other.minor)
    }

    /// Every device of the other is one of this one's.
    fn covers(&self, other: &Self) -> bool {
        let cover = |a: Option<u32>, b: Option<u32>| a.is_none() || a == b;
        self.kind == other.kind && cover(self.major, other.major) && cover(self.minor, other.minor)
    }
}

/// As the v1 files have it: `c 1:3 rwm`.
impl fmt::Display for Exception {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |n: Option<u32>| n.map_or_else(|| "*".to_owned(), |n| n.to_string());
        let kind = if self.kind == Kind::Char { "c" } else { "b" };
        write!(f, "{kind} {}:{} {}", number(self.major), number(self.minor), self.access)
    }
}

/// Devices of every container: making any node (a node that may not be opened is harmless), the default devices of the
/// runtime spec (config-linux.md#default-devices), pseudo terminals, and `/dev/net/tun`, which runc allows since it took it
/// away once and broke users (opencontainers/runc#3468).
const DEFAULT: [Exception; 11] = [
    Exception::char(None, None, Access(Access::MKNOD)),
    Exception { kind: Kind::Block, major: None, minor: None, access: Access(Access::MKNOD) },
    Exception::char(Some(1), Some(3), Access::ALL),    // null
    Exception::char(Some(1), Some(5), Access::ALL),    // zero
    Exception::char(Some(1), Some(7), Access::ALL),    // full
    Exception::char(Some(1), Some(8), Access::ALL),    // random
    Exception::char(Some(1), Some(9), Access::ALL),    // urandom
    Exception::char(Some(5), Some(0), Access::ALL),    // tty
    Exception::char(Some(5), Some(2), Access::ALL),    // ptmx
    Exception::char(Some(136), None, Access::ALL),     // pts
    Exception::char(Some(10), Some(200), Access::ALL), // net/tun
];

/// A default and the exceptions to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DevicePolicy {
    pub(super) allow_by_default: bool,
    pub(super) exceptions: Vec<Exception>,
}

/// Everything is allowed.
impl Default for DevicePolicy {
    fn default() -> Self {
        Self { allow_by_default: true, exceptions: Vec::new() }
    }
}

impl DevicePolicy {
    pub(super) fn from_oci(rules: &[LinuxDeviceCgroup]) -> Result<Self, DeviceRuleError> {
        let mut policy = Self { allow_by_default: false, exceptions: Vec::new() };
        for rule in rules {
            policy.apply(rule)?;
        }
        // A spec that allows all but some devices means what it says.
        if !policy.allow_by_default {
            for device in DEFAULT {
                policy.add(device);
            }
        }
        Ok(policy)
    }

    pub(super) fn allows_everything(&self) -> bool {
        self.allow_by_default && self.exceptions.is_empty()
    }

    fn apply(&mut self, rule: &LinuxDeviceCgroup) -> Result<(), DeviceRuleError> {
        let access = Access::parse(rule.access().as_deref())?;
        let number = |n: Option<i64>| match n {
            None | Some(-1) => Ok(None),
            Some(n) => u32::try_from(n).map(Some).map_err(|_| DeviceRuleError::Number(n)),
        };
        let (major, minor) = (number(rule.major())?, number(rule.minor())?);
        let kinds: &[Kind] = match rule.typ().unwrap_or(LinuxDeviceType::A) {
            LinuxDeviceType::A if major.is_some() || minor.is_some() => {
                return Err(DeviceRuleError::WildcardWithNumbers);
            }
            // The kernel takes no access letters with `a`: the default is for all of them.
            LinuxDeviceType::A if access == Access::ALL => {
                *self = Self { allow_by_default: rule.allow(), exceptions: Vec::new() };
                return Ok(());
            }
            LinuxDeviceType::A => &[Kind::Char, Kind::Block],
            LinuxDeviceType::B => &[Kind::Block],
            LinuxDeviceType::C | LinuxDeviceType::U => &[Kind::Char],
            LinuxDeviceType::P => return Err(DeviceRuleError::Type("p")),
        };
        for kind in kinds {
            self.set(Exception { kind: *kind, major, minor, access }, rule.allow())?;
        }
        Ok(())
    }

    fn set(&mut self, rule: Exception, allow: bool) -> Result<(), DeviceRuleError> {
        if allow == self.allow_by_default {
            self.remove(rule)
        } else {
            self.add(rule);
            Ok(())
        }
    }

    fn add(&mut self, rule: Exception) {
        match self.exceptions.iter_mut().find(|e| e.same_devices(&rule)) {
            Some(same) => same.access.0 |= rule.access.0,
            None => self.exceptions.push(rule),
        }
    }

    /// Takes the rule's accesses off every exception whose devices it covers; a wider one cannot be cut.
    fn remove(&mut self, rule: Exception) -> Result<(), DeviceRuleError> {
        if let Some(wider) = self.exceptions.iter().find(|e| e.meets(&rule) && !rule.covers(e)) {
            return Err(DeviceRuleError::Hole { inner: rule.to_string(), outer: wider.to_string() });
        }
        for exception in &mut self.exceptions {
            if rule.covers(exception) {
                exception.access.0 &= !rule.access.0;
            }
        }
        self.exceptions.retain(|e| e.access.0 != 0);
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests;
