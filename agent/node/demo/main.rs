//! The program in the image of `hartpod demo`: says what it sees from inside a container, and waits to be stopped.
//!
//! Built by the daemon's build script as a static program without dependencies. Called by the name of a network plugin it is
//! one: see [`plugin`].

use std::fmt::Write as _;
use std::io::{self, Read as _, Write as _};
use std::process::ExitCode;

fn main() -> ExitCode {
    if let Ok(command) = std::env::var("CNI_COMMAND") {
        return plugin(&command);
    }
    let mut args = std::env::args().skip(1);
    let said = match args.next().as_deref() {
        None => print(&greeting()).and_then(|()| wait()),
        Some("hello") => print(&hello(&args.collect::<Vec<_>>().join(" "))),
        Some(other) => {
            eprintln!("demo: {other:?} is not a command; there is: hello [NAME]");
            return ExitCode::from(2);
        }
    };
    // Whoever read the output may be gone; that is an end like any other.
    said.map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS)
}

/// `println!` would panic on a closed pipe.
fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

fn greeting() -> String {
    let mut text = String::from("hello from inside a container\n");
    let facts = [
        ("host name", read("/proc/sys/kernel/hostname")),
        ("kernel", format!("Linux {}, {}", read("/proc/sys/kernel/osrelease"), std::env::consts::ARCH)),
        ("process", format!("{} of {} in sight", std::process::id(), processes())),
        ("user", user()),
        ("network", interfaces()),
        ("host up", format!("{} s", read("/proc/uptime").split('.').next().unwrap_or_default())),
    ];
    for (name, value) in facts {
        let _ = writeln!(text, "  {name:<10} {value}");
    }
    text
}

fn hello(name: &str) -> String {
    let name = if name.is_empty() { "you" } else { name };
    format!("hello {name}, I am process {} of {} in sight\n", std::process::id(), processes())
}

fn wait() -> io::Result<()> {
    sys::wait_for_sigterm();
    print("asked to stop: goodbye\n")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).map(|t| t.trim().to_owned()).unwrap_or_else(|_| "unknown".to_owned())
}

fn processes() -> usize {
    let Ok(entries) = std::fs::read_dir("/proc") else { return 0 };
    entries.flatten().filter(|e| e.file_name().to_string_lossy().parse::<u32>().is_ok()).count()
}

fn user() -> String {
    let status = read("/proc/self/status");
    let field = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name));
        line.and_then(|l| l.split_whitespace().next()).unwrap_or("?").to_owned()
    };
    let capabilities = match field("CapEff:").trim_start_matches('0') {
        "" => "no capabilities".to_owned(),
        mask => format!("capabilities {mask}"),
    };
    format!("uid {}, gid {}, {capabilities}", field("Uid:"), field("Gid:"))
}

fn interfaces() -> String {
    let text = read("/proc/net/dev");
    let names: Vec<&str> = text.lines().skip(2).filter_map(|l| l.split(':').next()).map(str::trim).collect();
    names.join(", ")
}

/// A network plugin that changes nothing: `hartpod demo` has no network to offer, yet its pod gets a network namespace the
/// way that every pod does. The address is the one of the loopback interface, which hartpod brings up itself.
fn plugin(command: &str) -> ExitCode {
    let mut config = String::new();
    let _ = io::stdin().read_to_string(&mut config);
    let result = match command {
        "ADD" => r#"{"cniVersion":"1.0.0","ips":[{"address":"127.0.0.1/8"}]}"#,
        "VERSION" => r#"{"cniVersion":"1.0.0","supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]}"#,
        _ => "",
    };
    print(result).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS)
}

/// The two calls to the C library that the standard library does not offer.
#[allow(unsafe_code)]
mod sys {
    use std::sync::atomic::{AtomicBool, Ordering};

    static STOP: AtomicBool = AtomicBool::new(false);
    const SIGINT: i32 = 2;
    const SIGTERM: i32 = 15;

    extern "C" fn on_signal(_: i32) {
        STOP.store(true, Ordering::Relaxed);
    }

    unsafe extern "C" {
        fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
        fn usleep(microseconds: u32) -> i32;
    }

    /// Returns after SIGTERM or SIGINT. (The first process of a pid namespace is not killed by a signal that it does not
    /// handle.)
    pub fn wait_for_sigterm() {
        for number in [SIGTERM, SIGINT] {
            // SAFETY: the handler is an `extern "C" fn` of the type that signal(2) calls, lives for ever, and only stores to an
            // atomic, which is allowed in a signal handler.
            unsafe { signal(number, on_signal) };
        }
        while !STOP.load(Ordering::Relaxed) {
            // A signal between the check and the sleep delays the end by this much, at most.
            // SAFETY: no pointers; interrupted by a signal it returns early.
            unsafe { usleep(200_000) };
        }
    }
}
