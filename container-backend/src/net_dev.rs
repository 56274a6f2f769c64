//! What network interfaces have carried, from a namespace's /proc/net/dev (proc_net(5)).

use std::io;
use std::path::Path;

/// One interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub receive: Traffic,
    pub transmit: Traffic,
}

/// One direction, since the interface was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    pub bytes: u64,
    pub packets: u64,
    pub errors: u64,
    pub dropped: u64,
}

/// Reads `/proc/PID/net/dev`: the interfaces of that process's network namespace. The file is closed again, since it would keep the
/// namespace. An interface whose name is not UTF-8 is left out: names are text wherever they are told.
///
/// # Errors
/// When there is no such process (any more).
pub fn read(file: &Path) -> io::Result<Vec<Interface>> {
    Ok(interfaces(&std::fs::read(file)?))
}

fn interfaces(text: &[u8]) -> Vec<Interface> {
    let lines = text.split(|byte| *byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok());
    lines.filter_map(interface).collect()
}

/// Those to tell of, `most` at most: the pod's own first, however many some container has made besides; `lo` is none.
#[must_use]
pub fn told(mut found: Vec<Interface>, own: &str, most: usize) -> Vec<Interface> {
    found.retain(|interface| interface.name != "lo");
    found.sort_by_key(|interface| interface.name != own);
    found.truncate(most);
    found
}

/// `eth0: bytes packets errs drop fifo frame compressed multicast`, and the same sent; the two lines above have no such shape.
fn interface(line: &str) -> Option<Interface> {
    let (name, numbers) = line.split_once(':')?;
    let mut numbers = numbers.split_whitespace().map(str::parse::<u64>);
    let mut traffic = || -> Option<Traffic> {
        let mut next = || numbers.next()?.ok();
        let traffic = Traffic { bytes: next()?, packets: next()?, errors: next()?, dropped: next()? };
        numbers.nth(3)?.ok()?;
        Some(traffic)
    };
    Some(Interface { name: name.trim().to_owned(), receive: traffic()?, transmit: traffic()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_are_told() {
        let text = "Inter-|   Receive                                                |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
            lo:       1       2    3    4    0     0          0         0        5       6    7    8    0     0       0          0\n  \
            eth0: 10 20 30 40 50 60 70 80 90 100 110 120 130 140 150 160\n";
        let found = interfaces(text.as_bytes());
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].transmit, Traffic { bytes: 5, packets: 6, errors: 7, dropped: 8 });
        assert_eq!(found[1].name, "eth0");
        assert_eq!(found[1].receive, Traffic { bytes: 10, packets: 20, errors: 30, dropped: 40 });
        assert_eq!(found[1].transmit, Traffic { bytes: 90, packets: 100, errors: 110, dropped: 120 });
    }

    #[test]
    fn a_name_that_is_no_text_hides_no_other() {
        let found =
            interfaces(b"\xff: 1 0 0 0 0 0 0 0 1 0 0 0 0 0 0 0\neth0: 1 0 0 0 0 0 0 0 1 0 0 0 0 0 0 0\n");
        assert_eq!(found.iter().map(|i| i.name.as_str()).collect::<Vec<_>>(), ["eth0"]);
    }

    #[test]
    fn the_own_interface_is_told_however_many_there_are() {
        let none = Traffic::default();
        let names = ["lo", "dummy0", "dummy1", "eth0", "dummy2"];
        let found = names.map(|name| Interface { name: name.into(), receive: none, transmit: none });
        let names = |most| told(found.to_vec(), "eth0", most).into_iter().map(|i| i.name).collect::<Vec<_>>();
        assert_eq!(names(2), ["eth0", "dummy0"]);
        assert_eq!(names(9), ["eth0", "dummy0", "dummy1", "dummy2"]);
    }

    #[test]
    fn the_own_namespace_has_lo() {
        assert!(read(Path::new("/proc/self/net/dev")).unwrap().iter().any(|i| i.name == "lo"));
        assert!(read(Path::new("/proc/0/net/dev")).is_err());
    }
}
