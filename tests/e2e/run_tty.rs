//! `hartpod run -i` and `-t`: a container with the standard streams of whoever runs it, or with their terminal.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::process::{ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hartpod_tests::eventually::{patient, within};
use hartpod_tests::{Lab, Node, guest, node, process, tests};
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::Signal;
use nix::sys::termios::{self, LocalFlags, Termios};
use nix::unistd::pipe2;
use rustix::io::FdFlags;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

tests![
    a_shell_gets_the_terminal_its_size_and_its_keys,
    ctrl_c_is_a_key_for_the_container,
    a_terminal_without_input_shows_the_output,
    a_flood_is_shown_whole,
    the_terminal_is_itself_again_after_a_signal,
    a_terminal_that_hangs_up_ends_the_container,
    a_missing_program_leaves_the_terminal_as_it_was,
    a_daemon_that_dies_breaks_it_off_and_the_pod_is_named,
    input_is_piped_to_its_end,
    input_may_be_a_file_or_more_than_is_wanted,
    a_reader_that_comes_late_gets_everything,
    every_byte_goes_both_ways,
    what_a_fast_command_says_is_not_missed,
    a_terminal_is_needed_for_one,
];

const PATIENCE: Duration = Duration::from_secs(60);

/// `hartpod run` of the test image.
fn run(node: &Node, flags: &str, command: &[&str]) -> Result<Vec<String>> {
    if guest::by_default() {
        guest::provide_image(&node.root())?;
    }
    let socket = node.socket().display().to_string();
    let handler = guest::default_handler();
    let arguments = ["run", "--socket", &socket, "--handler", &handler, flags, node.image()];
    Ok(arguments.iter().chain(command).map(|argument| (*argument).to_owned()).collect())
}

/// `hartpod run` with pipes.
fn piped(node: &Node, flags: &str, command: &[&str]) -> Result<Child> {
    let mut hartpod = Command::new(node::bin_dir().join("hartpod"));
    hartpod.args(run(node, flags, command)?).kill_on_drop(true);
    hartpod.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    hartpod.spawn().context("start hartpod run")
}

async fn finished(child: Child) -> Result<Output> {
    let output = tokio::time::timeout(patient(PATIENCE), child.wait_with_output());
    output.await.context("hartpod run goes on")?.context("wait for hartpod run")
}

/// `hartpod run` in a terminal of its own.
struct Terminal {
    master: File,
    slave: OwnedFd,
    before: Termios,
    said: Arc<Mutex<Vec<u8>>>,
    /// Closed, it makes who reads the terminal let go of it.
    reading: OwnedFd,
    child: Child,
}

fn window(columns: u16, rows: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

/// Keeps what comes until `closed` is.
fn read_until(closed: &OwnedFd, mut reader: File, heard: &Mutex<Vec<u8>>) {
    let mut buffer = [0; 4096];
    loop {
        let mut fds = [closed.as_fd(), reader.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let _ = poll(&mut fds, PollTimeout::NONE);
        if fds[0].any() == Some(true) {
            return;
        }
        match reader.read(&mut buffer) {
            Ok(count @ 1..) => {
                heard.lock().unwrap_or_else(PoisonError::into_inner).extend(&buffer[..count]);
            }
            _ => return,
        }
    }
}

impl Terminal {
    fn run(node: &Node, flags: &str, command: &[&str]) -> Result<Self> {
        let pty = openpty(&window(100, 40), None).context("open a terminal")?;
        for end in [&pty.master, &pty.slave] {
            rustix::io::fcntl_setfd(end, FdFlags::CLOEXEC)?;
        }
        let end = || Ok::<_, std::io::Error>(Stdio::from(pty.slave.try_clone()?));
        // In a session whose terminal it is, so that the kernel tells of new sizes.
        let mut setsid = Command::new("setsid");
        setsid.arg("--ctty").arg(node::bin_dir().join("hartpod")).args(run(node, flags, command)?);
        setsid.stdin(end()?).stdout(end()?).stderr(end()?).kill_on_drop(true);
        let said = Arc::new(Mutex::new(Vec::new()));
        let (reader, heard) = (File::from(pty.master.try_clone()?), Arc::clone(&said));
        let (closed, reading) = pipe2(OFlag::O_CLOEXEC)?;
        std::thread::spawn(move || read_until(&closed, reader, &heard));
        let before = termios::tcgetattr(&pty.slave)?;
        let child = setsid.spawn().context("start setsid")?;
        Ok(Self { master: File::from(pty.master), slave: pty.slave, before, said, reading, child })
    }

    fn said(&self) -> String {
        String::from_utf8_lossy(&self.said.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// Waits until it says this, and forgets what it has said.
    async fn says(&self, text: &str) -> Result<()> {
        let said = async || Ok(self.said());
        within(PATIENCE, &format!("{text:?} on the terminal"), said, |said| said.contains(text)).await?;
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clear();
        Ok(())
    }

    fn types(&mut self, keys: &str) -> Result<()> {
        self.master.write_all(keys.as_bytes()).context("type")
    }

    fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&self.master, size).context("change the terminal's size")
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.child.id().context("it has ended")?;
        process::signal(i32::try_from(pid)?, signal)
    }

    fn is_raw(&self) -> Result<bool> {
        let flags = termios::tcgetattr(&self.slave)?.local_flags;
        Ok(!flags.intersects(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG))
    }

    /// Takes the terminal away from it, and waits for its end.
    async fn hung_up(self) -> Result<ExitStatus> {
        let Self { master, slave, reading, mut child, .. } = self;
        drop((master, slave, reading));
        tokio::time::timeout(patient(PATIENCE), child.wait())
            .await
            .context("hartpod run goes on")?
            .context("wait")
    }

    /// Waits for its end, and looks whether the terminal is as it was.
    async fn ended(mut self) -> Result<(ExitStatus, String)> {
        let ended = tokio::time::timeout(patient(PATIENCE), self.child.wait()).await;
        let status = ended.with_context(|| format!("hartpod run goes on: {}", self.said()))??;
        let after = termios::tcgetattr(&self.slave)?;
        ensure!(after == self.before, "the terminal was left otherwise than it was: {after:?}");
        // What was shown last may still be on its way to the thread that reads.
        let marker = "\u{1}";
        File::from(self.slave.try_clone()?).write_all(marker.as_bytes())?;
        let said =
            within(PATIENCE, "the last output", async || Ok(self.said()), |said| said.ends_with(marker));
        let said = said.await?;
        Ok((status, said.trim_end_matches(marker).to_owned()))
    }
}

async fn a_shell_gets_the_terminal_its_size_and_its_keys(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let mut terminal = Terminal::run(&node, "-it", &["sh"])?;
    terminal.says("/ # ").await?;
    ensure!(terminal.is_raw()?, "the terminal still edits lines itself");
    terminal.types("stty size\r")?;
    terminal.says("40 100\r\n").await?;
    terminal.resize(70, 30)?;
    // A new size comes by itself, not behind what is typed.
    let mut typed = async || {
        terminal.types("echo size is $(stty size)\r")?;
        within(PATIENCE, "a size", async || Ok(terminal.said()), |said| said.contains("\nsize is ")).await?;
        let said = terminal.said();
        terminal.says("/ # ").await?;
        Ok(said)
    };
    within(PATIENCE, "the new size", &mut typed, |said| said.contains("\nsize is 30 70\r\n")).await?;
    terminal.types("exit 7\r")?;
    let (status, _) = terminal.ended().await?;
    assert_eq!(status.code(), Some(7));
    assert!(node.client().pods().await?.is_empty(), "the pod is removed");
    Ok(())
}

async fn ctrl_c_is_a_key_for_the_container(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let script = "trap 'echo caught; exit 3' INT; echo ready; while :; do sleep 0.1; done";
    let mut terminal = Terminal::run(&node, "-it", &["sh", "-c", script])?;
    terminal.says("ready\r\n").await?;
    terminal.types("\u{3}")?;
    let (status, said) = terminal.ended().await?;
    assert_eq!(status.code(), Some(3), "{said}");
    ensure!(said.contains("caught\r\n") && !said.contains("asking the container"), "{said}");
    Ok(())
}

async fn a_terminal_without_input_shows_the_output(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    // It is told the size before the start, but by another way.
    let script = "while [ \"$(stty size)\" = '0 0' ]; do :; done; stty size; exit 4";
    let (status, said) = Terminal::run(&node, "-t", &["sh", "-c", script])?.ended().await?;
    // A terminal that nobody types on is not taken over, and does its own to the ends of lines.
    assert_eq!((status.code(), said.replace('\r', "")), (Some(4), "40 100\n".to_owned()));
    Ok(())
}

async fn a_flood_is_shown_whole(lab: &Lab) -> Result<()> {
    const LINES: u32 = 300_000;
    let node = lab.node().await?;
    let (status, said) = Terminal::run(&node, "-it", &["seq", &LINES.to_string()])?.ended().await?;
    let expected: String = (1..=LINES).map(|line| format!("{line}\r\n")).collect();
    ensure!(said == expected, "{} of {} bytes, or others", said.len(), expected.len());
    assert_eq!(status.code(), Some(0));
    Ok(())
}

async fn the_terminal_is_itself_again_after_a_signal(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let script = "trap 'exit 5' TERM; echo ready; while :; do sleep 0.1; done";
        let terminal = Terminal::run(&node, "-it", &["sh", "-c", script])?;
        terminal.says("ready\r\n").await?;
        ensure!(terminal.is_raw()?);
        terminal.signal(signal)?;
        let (status, said) = terminal.ended().await?;
        assert_eq!(status.code(), Some(5), "{said}");
        ensure!(said.contains("asking the container to end"), "{said}");
    }
    assert!(node.client().pods().await?.is_empty(), "the pods are removed");
    Ok(())
}

async fn a_terminal_that_hangs_up_ends_the_container(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let script = "trap 'exit 0' TERM; echo ready; while :; do sleep 0.1; done";
    let terminal = Terminal::run(&node, "-it", &["sh", "-c", script])?;
    terminal.says("ready\r\n").await?;
    assert_eq!(terminal.hung_up().await?.code(), Some(0));
    assert!(node.client().pods().await?.is_empty(), "the pod is removed");
    Ok(())
}

async fn a_missing_program_leaves_the_terminal_as_it_was(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let (status, said) = Terminal::run(&node, "-it", &["no-such-program"])?.ended().await?;
    assert_eq!(status.code(), Some(1));
    ensure!(said.contains("no-such-program"), "{said}");
    assert!(node.client().pods().await?.is_empty(), "the pod is removed");
    Ok(())
}

async fn a_daemon_that_dies_breaks_it_off_and_the_pod_is_named(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let terminal = Terminal::run(&node, "-it", &["sh"])?;
    terminal.says("/ # ").await?;
    node.kill().await?;
    let (status, said) = terminal.ended().await?;
    assert_eq!(status.code(), Some(1), "{said}");
    node.start().await?;
    let pods = node.client().pods().await?;
    ensure!(said.contains(&format!("stop the pod {}", pods[0].id)), "{said}");
    ensure!(said.contains("the connection to the container broke off"), "{said}");
    Ok(())
}

async fn input_is_piped_to_its_end(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    for (command, said, code) in [("cat", "hi\n", 0), ("cat >&2; exit 9", "", 9), ("exit 6", "", 6)] {
        let mut child = piped(&node, "-i", &["sh", "-c", command])?;
        let mut stdin = child.stdin.take().context("no stdin")?;
        stdin.write_all(b"hi\n").await?;
        // With a command that does not read, it is hartpod that has to see the end.
        let held = (code == 6).then_some(stdin);
        let output = finished(child).await?;
        drop(held);
        assert_eq!((output.status.code(), &*String::from_utf8_lossy(&output.stdout)), (Some(code), said));
        assert_eq!(String::from_utf8_lossy(&output.stderr), if code == 9 { "hi\n" } else { "" });
    }
    assert!(node.client().pods().await?.is_empty(), "the pods are removed");
    Ok(())
}

async fn input_may_be_a_file_or_more_than_is_wanted(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let file = lab.dir().join("input");
    std::fs::write(&file, "from a file\n".repeat(10_000))?;
    for (path, command, expected) in [
        (&*file, "wc -l", "10000\n"),
        (Path::new("/dev/null"), "wc -c", "0\n"),
        (Path::new("/dev/zero"), "head -c 3 | wc -c", "3\n"),
    ] {
        let mut hartpod = Command::new(node::bin_dir().join("hartpod"));
        hartpod.args(run(&node, "-i", &["sh", "-c", command])?).kill_on_drop(true);
        hartpod.stdin(File::open(path)?).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = finished(hartpod.spawn()?).await?;
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{}: {output:?}", path.display());
        assert_eq!(output.status.code(), Some(0));
    }
    Ok(())
}

async fn a_reader_that_comes_late_gets_everything(lab: &Lab) -> Result<()> {
    const LINES: u32 = 2_000_000;
    let node = lab.node().await?;
    let mut child = piped(&node, "-i", &["seq", &LINES.to_string()])?;
    let mut stdout = child.stdout.take().context("no stdout")?;
    // Once the first pipe is full all else fills, up to the container's own.
    let waiting = async || Ok(rustix::io::ioctl_fionread(&stdout)?);
    within(PATIENCE, "a full pipe", waiting, |bytes| *bytes >= 64 << 10).await?;
    let mut said = String::new();
    tokio::time::timeout(patient(PATIENCE), stdout.read_to_string(&mut said)).await.context("no end")??;
    let mut lines = said.lines().zip(1_u32..);
    ensure!(lines.all(|(line, number)| line == number.to_string()), "a line is missing");
    assert_eq!(said.lines().count(), LINES as usize);
    assert_eq!(finished(child).await?.status.code(), Some(0));
    Ok(())
}

/// More than all that is between holds: whoever is slow makes the others wait.
async fn every_byte_goes_both_ways(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let mut child = piped(&node, "-i", &["cat"])?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let (mut stdin, mut stdout) = (stdin.context("no stdin")?, stdout.context("no stdout")?);
    // Carriage returns, newlines and zeros among them.
    let sent: Vec<u8> = (0..4_000_000_u32).flat_map(|i| (i / 3).to_be_bytes()).collect();
    let mut received = Vec::new();
    let both = async {
        let send = async {
            for piece in sent.chunks(1 << 20) {
                stdin.write_all(piece).await?;
            }
            drop(stdin);
            anyhow::Ok(())
        };
        tokio::try_join!(send, async { Ok(stdout.read_to_end(&mut received).await?) })
    };
    tokio::time::timeout(2 * patient(PATIENCE), both).await.context("not all comes back")??;
    assert!(received == sent, "{} of {} bytes, or others", received.len(), sent.len());
    assert_eq!(finished(child).await?.status.code(), Some(0));
    Ok(())
}

async fn what_a_fast_command_says_is_not_missed(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    for _ in 0..3 {
        let mut child = piped(&node, "-i", &["sh", "-c", "echo out; echo err >&2; printf rest"])?;
        drop(child.stdin.take());
        let output = finished(child).await?;
        let [stdout, stderr] =
            [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        assert_eq!((&*stdout, &*stderr, output.status.code()), ("out\nrest", "err\n", Some(0)));
        let (status, said) = Terminal::run(&node, "-it", &["echo", "fast"])?.ended().await?;
        assert_eq!((&*said, status.code()), ("fast\r\n", Some(0)));
    }
    Ok(())
}

async fn a_terminal_is_needed_for_one(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    for flags in ["-it", "-t"] {
        let output = finished(piped(&node, flags, &["sh"])?).await?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1));
        ensure!(said.starts_with("hartpod: the input device is not a TTY"), "{said}");
    }
    Ok(())
}
