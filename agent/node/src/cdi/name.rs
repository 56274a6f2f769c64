//! Names of CDI devices: VENDOR/CLASS=DEVICE.

use std::fmt;
use std::str::FromStr;

/// A device's whole name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeviceName {
    /// VENDOR/CLASS.
    pub(super) kind: String,
    pub(super) device: String,
}

impl FromStr for DeviceName {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (kind, device) = text.split_once('=').ok_or(())?;
        let (vendor, class) = kind.split_once('/').ok_or(())?;
        let good = is_vendor(vendor) && is_class(class) && is_device(device);
        good.then(|| Self { kind: kind.to_owned(), device: device.to_owned() }).ok_or(())
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.kind, self.device)
    }
}

fn made_of(text: &str, first: impl Fn(char) -> bool, others: &str) -> bool {
    text.starts_with(first)
        && text.ends_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || others.contains(c))
}

pub(super) fn is_vendor(text: &str) -> bool {
    made_of(text, |c| c.is_ascii_alphabetic(), "_-.")
}

pub(super) fn is_class(text: &str) -> bool {
    made_of(text, |c| c.is_ascii_alphabetic(), "_-.")
}

pub(super) fn is_device(text: &str) -> bool {
    made_of(text, |c| c.is_ascii_alphanumeric(), "_-.:")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_by_table() {
        for good in ["vendor.com/gpu=0", "v/c=all", "a-b.c/d_e=GPU-1:2.3"] {
            assert_eq!(good.parse::<DeviceName>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "vendor.com/gpu",
            "gpu=0",
            "1v/c=d",
            "v/1c=d",
            "v/c=",
            "v/c=-d",
            "v/c=d-",
            "v/c=a b",
            "v./c=d",
            "v/c/e=d",
        ] {
            bad.parse::<DeviceName>().unwrap_err();
        }
    }
}
