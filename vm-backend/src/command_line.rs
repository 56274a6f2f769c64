//! The kernel's command line of a guest.
//!
//! What each parameter is worth is measured by `make lab-bench`, which leaves out one at a time; docs/specification.md has the figures.

/// Only emergencies come to the console: each character is an exit to the VMM. First, because it counts for what the console repeats when
/// it is found.
const QUIET: &str = "loglevel=1";

/// The parameters in their order (Documentation/admin-guide/kernel-parameters.txt).
pub const PARAMETERS: [&str; 13] = [
    QUIET,
    // The only console, on which the VMM reads why a kernel panics. Without a driver for a serial port (there is none in a guest) nothing
    // replaces it, and the kernel must not give it up either.
    "earlycon=sbi",
    "keep_bootcon",
    // A panic ends the guest at once.
    "panic=-1",
    // Ports that are not there: the driver would make four devices that nobody can use.
    "8250.nr_uarts=0",
    // Debian's kernel tests its own ciphers at each boot.
    "cryptomgr.notests",
    // A generator of random numbers for ciphers that have no better one tests itself for a quarter of the kernel's start. A guest's random
    // numbers come from the host's seed; without this generator the kernel's DRBG works on as on machines that lack a timer for it.
    "initcall_blacklist=jent_mod_init",
    // RAM comes from the host full of zeros, and the kernel clears what it gives to user space in any case.
    "init_on_alloc=0",
    // Page tables of three levels (39 bits, more than any guest's memory): each level is walked through the host's tables too.
    "no4lvl",
    // A huge page would take 2 MiB of the host's memory for whatever little is used of it.
    "transparent_hugepage=madvise",
    // No device needs bounce buffers: the host sees all of the guest's memory.
    "swiotlb=noforce",
    // Grace periods end as fast as they can: mounts and modules wait for many.
    "rcupdate.rcu_expedited=1",
    "rdinit=/init",
];

/// What guests boot with.
#[must_use]
pub fn standard() -> String {
    PARAMETERS.join(" ")
}

/// The same for who wants to see the kernel's messages on the console.
#[must_use]
pub fn with_messages() -> String {
    let all: Vec<&str> = PARAMETERS.into_iter().filter(|parameter| *parameter != QUIET).collect();
    all.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_all_that_differs() {
        assert_eq!(standard().strip_prefix("loglevel=1 "), Some(with_messages().as_str()));
        assert!(standard().len() < 512, "there must be room for what a guest's own devices add");
    }
}
