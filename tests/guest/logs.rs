//! Logs of containers: written by the VMM, whatever becomes of the daemon.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hartpod_tests::eventually::{eventually, patient};
use hartpod_tests::smaps::Memory;
use hartpod_tests::{Lab, Need, tests};
use hartpod_vm::guest_image::GuestImage;
use hartpod_vm::launcher::{Control, LogTokens};
use hartpod_vm::status::ExitReason;
use nix::mount::{MsFlags, mount, umount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::container::{SPARE, pod, shut_down};
use crate::disk::Layers;
use crate::guest::{Guest, image};
use crate::pod::{Pod, Terminal};

tests![
    what_a_container_says_is_in_its_log needs Need::Kvm,
    no_line_is_lost_over_rotations needs Need::Kvm,
    a_full_disk_stops_no_other_log needs Need::Kvm,
    a_log_goes_on_without_a_daemon needs Need::Kvm,
    logs_that_came_and_went_leave_no_memory needs Need::Kvm,
];

/// From the end of a container to that of its log.
const LOG_END: Duration = Duration::from_secs(20);

/// A guest with a pod, and what containers in it are made of.
struct World {
    image: GuestImage,
    layers: Layers,
    guest: Guest,
    pod: Pod,
    control: Control,
    dir: PathBuf,
}

impl World {
    async fn new(lab: &Lab) -> Result<Self> {
        let image = image()?;
        let layers = Layers::make(lab.dir())?;
        let (guest, pod) = pod(lab, &image).await?;
        let control = guest.control()?;
        Ok(Self { image, layers, guest, pod, control, dir: lab.dir().to_owned() })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Starts a container on the disk in this slot, with its log in a file of this name; its id.
    async fn start(&mut self, slot: u32, script: &str, terminal: Terminal, log: &Path) -> Result<String> {
        self.layers.fill(&self.control, &self.image, slot)?;
        let created = self.pod.create(slot, Layers::COUNT, script, terminal).await?;
        let tokens = LogTokens { stdout: Some(&created.out), stderr: created.err.as_deref() };
        self.control.log(&created.id, tokens, append(log)?.as_fd())?;
        self.pod.begin(&created.id).await?;
        Ok(created.id)
    }

    /// Waits for a container's end and then for its log's, and removes it; its exit code.
    async fn end(&mut self, slot: u32, id: &str) -> Result<i32> {
        let code = self.pod.exited(id).await?;
        finished(&self.control, id)?;
        self.pod.remove(id).await?;
        self.control.empty(slot)?;
        Ok(code)
    }

    /// Runs a container to its end; what is in its log, and its exit code.
    async fn run(&mut self, script: &str, terminal: Terminal) -> Result<(Vec<Line>, i32)> {
        let path = self.path("log");
        let id = self.start(SPARE, script, terminal, &path).await?;
        let code = self.end(SPARE, &id).await?;
        let lines = lines(&path)?;
        fs::remove_file(&path)?;
        Ok((lines, code))
    }
}

/// As the daemon opens a log.
fn append(path: &Path) -> Result<File> {
    let file = File::options().create(true).read(true).append(true).open(path);
    file.with_context(|| format!("open {}", path.display()))
}

/// Waits until a log was written to its end.
fn finished(control: &Control, id: &str) -> Result<()> {
    let (over, done) = nix::unistd::pipe()?;
    control.await_log(id, done.as_fd())?;
    drop(done);
    let mut fds = [PollFd::new(over.as_fd(), PollFlags::POLLIN)];
    let count = poll(&mut fds, PollTimeout::try_from(patient(LOG_END))?)?;
    ensure!(count == 1, "the log does not end");
    Ok(())
}

/// A line of a log.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Line {
    stream: String,
    tag: String,
    content: String,
}

fn lines(path: &Path) -> Result<Vec<Line>> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    ensure!(text.is_empty() || text.ends_with('\n'), "the last line of {} is torn", path.display());
    text.lines().map(line).collect()
}

fn line(text: &str) -> Result<Line> {
    let words: Vec<&str> = text.splitn(4, ' ').collect();
    let &[stamp, stream, tag, content] = words.as_slice() else { anyhow::bail!("{text:?} is no line") };
    ensure!(stamp.len() == 30 && stamp.ends_with('Z'), "{text:?} has no time");
    Ok(Line { stream: stream.into(), tag: tag.into(), content: content.into() })
}

/// What one stream said, `|` where a line is not ended.
fn said(lines: &[Line], stream: &str) -> String {
    let of_it = lines.iter().filter(|line| line.stream == stream);
    of_it.map(|line| format!("{}{}", line.content, if line.tag == "F" { "\n" } else { "|" })).collect()
}

async fn what_a_container_says_is_in_its_log(lab: &Lab) -> Result<()> {
    let mut world = World::new(lab).await?;
    let script =
        "echo one; echo two >&2; printf three; sleep 0.3; echo ' and'; echo oops >&2; printf end; exit 3";
    let (lines, code) = world.run(script, Terminal::No).await?;
    ensure!(code == 3 && said(&lines, "stdout") == "one\nthree and\nend|", "{code} {lines:?}");
    ensure!(said(&lines, "stderr") == "two\noops\n", "{lines:?}");

    let (lines, _) = world.run("echo out; echo err >&2; sleep 0.1; echo '  last '", Terminal::Yes).await?;
    ensure!(said(&lines, "stdout") == "out\nerr\n  last \n", "{lines:?}");

    // Much, and then nothing more: the end of a pipe's worth is there, too.
    let script = "/bin/busybox awk 'BEGIN { for (i = 0; i < 3000; i++) print \"line\", i }'";
    let (lines, _) = world.run(script, Terminal::No).await?;
    ensure!(lines.len() == 3000 && lines[2999].content == "line 2999", "{} lines", lines.len());

    // The guest takes its containers along, and leaves what they said.
    let path = world.path("last");
    world.start(SPARE, "echo last words; sleep 1; echo c >/proc/sysrq-trigger", Terminal::No, &path).await?;
    let exit = world.guest.exited(Duration::from_secs(20))?;
    ensure!(exit.reason == ExitReason::Panic, "{exit:?}");
    let lines = self::lines(&path)?;
    ensure!(said(&lines, "stdout") == "last words\n", "{lines:?}");
    Ok(())
}

/// Lines of 100 bytes, each thousandth longer than a line of a log may be.
const MANY: &str = "/bin/busybox awk 'BEGIN { for (i = 0; i < 200000; i++) \
    if (i % 1000) printf \"%07d %091d\\n\", i, 0; else printf \"%07d %020000d\\n\", i, 0 }'";

async fn no_line_is_lost_over_rotations(lab: &Lab) -> Result<()> {
    let mut world = World::new(lab).await?;
    let began = Instant::now();
    let id = world.start(SPARE, MANY, Terminal::No, &world.path("log.0")).await?;
    let mut files = 1;
    let (over, done) = nix::unistd::pipe()?;
    world.control.await_log(&id, done.as_fd())?;
    drop(done);
    loop {
        let mut fds = [PollFd::new(over.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, 200_u8)? == 1 {
            break;
        }
        world.control.reopen_log(&id, append(&world.path(&format!("log.{files}")))?.as_fd())?;
        files += 1;
        ensure!(began.elapsed() < patient(Duration::from_secs(60)), "the log does not end");
    }
    let took = began.elapsed();
    ensure!(world.end(SPARE, &id).await? == 0);
    let (mut number, mut bytes, mut open) = (0, 0, String::new());
    for file in 0..files {
        for line in lines(&world.path(&format!("log.{file}")))? {
            open.push_str(&line.content);
            if line.tag == "F" {
                ensure!(open.starts_with(&format!("{number:07} 0")), "{open:.20} instead of line {number}");
                (number, bytes) = (number + 1, bytes + open.len() + 1);
                open.clear();
            }
        }
        ensure!(open.is_empty(), "a line begins in file {file} and ends in another");
    }
    ensure!(number == 200_000 && bytes == 199_800 * 100 + 200 * 20_009, "{number} lines, {bytes} bytes");
    eprintln!("{bytes} bytes in {number} lines and {files} files took {took:.1?}");
    shut_down(world.guest, world.pod).await
}

async fn a_full_disk_stops_no_other_log(lab: &Lab) -> Result<()> {
    let mut world = World::new(lab).await?;
    let small = world.path("small");
    fs::create_dir(&small)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), &small, Some("tmpfs"), flags, Some("size=1m")).context("mount a small tmpfs")?;
    fs::write(small.join("ballast"), vec![0; 800 << 10])?;

    let print = "/bin/busybox awk 'BEGIN { for (i = 0; i < 10000; i++) print \"line\", i }'";
    let full = format!("{print}; while [ ! -e /go ]; do sleep 0.1; done; echo after");
    let first = world.start(SPARE, &full, Terminal::No, &small.join("log")).await?;
    // The other container begins when the disk is full.
    let complaint = async || Ok(fs::read_to_string(world.guest.dir().join("daemon.log"))?);
    eventually("a full disk", complaint, |log| log.contains("dropping lines")).await?;
    let other = world.path("other");
    let second = world.start(SPARE + 1, print, Terminal::No, &other).await?;
    ensure!(world.end(SPARE + 1, &second).await? == 0);
    ensure!(lines(&other)?.len() == 10_000);

    fs::remove_file(small.join("ballast"))?;
    let go = world.pod.exec(&first, &["touch", "/go"]).await?;
    world.pod.wait(go).await?;
    ensure!(world.end(SPARE, &first).await? == 0);
    let text = fs::read_to_string(small.join("log"))?;
    let last = line(text.lines().next_back().context("an empty log")?)?;
    ensure!(text.ends_with('\n') && last.content == "after" && last.tag == "F", "{last:?}");
    let log = fs::read_to_string(world.guest.dir().join("daemon.log"))?;
    ensure!(log.contains("lines were lost"), "{log}");
    shut_down(world.guest, world.pod).await?;
    umount(&small).context("unmount the small tmpfs")
}

async fn a_log_goes_on_without_a_daemon(lab: &Lab) -> Result<()> {
    const LINES: usize = 150;
    let mut world = World::new(lab).await?;
    let script =
        format!("i=0; while [ $i -lt {LINES} ]; do echo line $i; i=$((i+1)); sleep 0.2; done; echo end");
    let path = world.path("log");
    let id = world.start(SPARE, &script, Terminal::No, &path).await?;
    drop(world.control);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(30) {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let meanwhile = lines(&path)?.len();
    ensure!(meanwhile > 20, "{meanwhile} lines in 30 seconds");
    // The next daemon.
    world.control = world.guest.control()?;
    ensure!(world.end(SPARE, &id).await? == 0);
    let lines = lines(&path)?;
    let expected: String = (0..LINES).map(|n| format!("line {n}\n")).collect();
    ensure!(said(&lines, "stdout") == format!("{expected}end\n"), "{lines:?}");
    shut_down(world.guest, world.pod).await
}

/// What the VMM has beside the guest's RAM, in KiB.
fn own_kib(guest: &Guest) -> Result<f64> {
    let smaps = fs::read_to_string(format!("/proc/{}/smaps", guest.pid()))?;
    // 256 MiB, as for all guests of the tests.
    Ok(Memory::parse(&smaps, 256 << 10)?.own_pss_mib() * 1024.0)
}

fn threads(guest: &Guest) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{}/task", guest.pid()))?.count())
}

/// Fifty at once, with tokens that nobody expects: the agent hangs up on them. Returns the memory when only `few` threads are left.
async fn fifty_logs(world: &mut World, few: usize) -> Result<f64> {
    let ids: Vec<String> = (100..150_u8).map(|n| format!("{n:02x}").repeat(32)).collect();
    for (number, id) in ids.iter().enumerate() {
        let (out, err) = (format!("{number:032x}"), format!("{:032x}", number + 1000));
        let tokens = LogTokens { stdout: Some(&out), stderr: Some(&err) };
        world.control.log(id, tokens, append(&world.path("none"))?.as_fd())?;
    }
    for id in &ids {
        finished(&world.control, id)?;
    }
    eventually("the threads' end", async || threads(&world.guest), |count| *count == few).await?;
    own_kib(&world.guest)
}

async fn logs_that_came_and_went_leave_no_memory(lab: &Lab) -> Result<()> {
    let mut world = World::new(lab).await?;
    // The first of everything.
    world.run("echo warm", Terminal::No).await?;
    let before = own_kib(&world.guest)?;
    let few = threads(&world.guest)?;
    for _ in 0..4 {
        let (lines, _) = world.run(&MANY.replace("200000", "5000"), Terminal::No).await?;
        ensure!(lines.len() == 5005, "{} lines", lines.len());
    }
    let mut last = fifty_logs(&mut world, few).await?;
    // glibc keeps an arena for each thread that was there at a time, up to 8 per processor, and gives it to the next ones.
    ensure!(last < before + 1024.0, "{before} KiB before, {last} KiB after");
    // Which thread gets which arena is luck, so more are touched for some time; a page of each log would be 200 KiB every time.
    for _ in 0..6 {
        let now = fifty_logs(&mut world, few).await?;
        eprintln!("own memory: {before:.0} KiB, {last:.0} KiB after some logs, {now:.0} KiB after 50 more");
        if now < last + 100.0 {
            return shut_down(world.guest, world.pod).await;
        }
        last = now;
    }
    bail!("it grows with each log: {before} KiB before, {last} KiB in the end")
}
