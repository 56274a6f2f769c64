//! Containers and execs with a terminal.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;

use hartpod_container::{Stdio, TerminalSize};
use rustix::termios::{Winsize, tcsetwinsize};
use serde_json::{Value, json};

use crate::kit::{Agent, agent, agent_sharing_pids, finish, set, shell, wait};

pub(crate) const SCENARIOS: &[(&str, fn())] = &[
    ("a_container_has_a_terminal_of_its_own", own),
    ("a_container_in_a_shared_pid_namespace_has_one_too", own_shared),
    ("an_exec_has_a_terminal_of_its_own", || exec(&agent())),
    ("an_exec_has_a_terminal_of_its_own_with_shared_pids", || exec(&agent_sharing_pids())),
    ("a_hostile_container_cannot_pass_off_a_file_as_terminal", hostile),
    ("the_terminal_belongs_to_the_user", owner),
];

/// What is seen until the program ends, carriage returns left out.
fn read_all(console: OwnedFd) -> String {
    let mut text = Vec::new();
    // EIO when the other side is closed.
    let _ = File::from(console).read_to_end(&mut text);
    String::from_utf8(text).unwrap().replace('\r', "")
}

fn with_terminal(command: &str) -> Value {
    let mut spec = shell(command);
    set(&mut spec, "/process", "terminal", json!(true));
    spec
}

fn check(agent: &Agent) {
    let command = "tty; ls -l /dev/console | head -c 1; echo; stat -c %t,%T /dev/console; read line; echo got $line; echo there > /dev/tty; ls /proc/self/fd | wc -l";
    let created =
        agent.create(agent.request(with_terminal(command), Stdio::Tty(TerminalSize::default()))).unwrap();
    let console = created.console.unwrap();
    tcsetwinsize(&console, Winsize { ws_row: 40, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    let mut starting = created.waiting.open_gate().unwrap();
    let child = finish(&mut starting, |s| s.poll()).unwrap();
    File::from(console.try_clone().unwrap()).write_all(b"hello\n").unwrap();
    let text = read_all(console);
    assert_eq!(wait(&child).code(), 0);
    let shown: Vec<&str> = text.lines().filter(|line| *line != "hello").collect();
    assert_eq!(shown, ["/dev/pts/0", "c", "88,0", "got hello", "there", "4"], "{text}");
}

fn own() {
    check(&agent());
}

fn own_shared() {
    check(&agent_sharing_pids());
}

fn exec(agent: &Agent) {
    let running = agent.start(shell("sleep 1000")).unwrap();
    let command = ["sh", "-c", "tty; echo > /dev/tty; cat /proc/self/stat; sleep 1000"];
    let mut execing =
        agent.begin_exec(&running.container, &command, Stdio::Tty(TerminalSize::default())).unwrap();
    let executed = finish(&mut execing, |e| e.poll()).unwrap();
    let console = executed.console.unwrap();
    let mut seen = String::new();
    let mut reader = File::from(console.try_clone().unwrap());
    while !seen.contains(") ") || !seen.ends_with('\n') {
        let mut chunk = [0; 512];
        let n = reader.read(&mut chunk).unwrap();
        seen.push_str(std::str::from_utf8(&chunk[..n]).unwrap());
    }
    assert!(seen.starts_with("/dev/pts/0\r\n"), "{seen}");
    // Interrupted by the terminal, as the foreground of its session.
    reader.write_all(&[3]).unwrap();
    assert_eq!(wait(&executed.child).code(), 130);
    drop((console, reader));
    running.kill();
}

fn hostile() {
    let agent = agent();
    let command =
        "rm /dev/ptmx; umount /dev/pts; mkdir -p /dev/pts; echo > /dev/pts/ptmx; echo ready; sleep 1000";
    let mut evil = shell(command);
    for set in ["bounding", "effective", "permitted"] {
        crate::kit::add(&mut evil, &format!("/process/capabilities/{set}"), json!("CAP_SYS_ADMIN"));
    }
    let mut running = agent.start(evil).unwrap();
    assert_eq!(running.output.line(), "ready");
    let error = agent
        .begin_exec(&running.container, &["sh"], Stdio::Tty(TerminalSize::default()))
        .and_then(|mut execing| finish(&mut execing, |e| e.poll()))
        .unwrap_err();
    assert_eq!(error.to_string(), "open a terminal");
    running.kill();
}

fn owner() {
    let agent = agent();
    let mut request =
        agent.request(with_terminal("stat -c '%u %a' $(tty)"), Stdio::Tty(TerminalSize::default()));
    request.user = "web".into();
    let created = agent.create(request).unwrap();
    let mut starting = created.waiting.open_gate().unwrap();
    let child = finish(&mut starting, |s| s.poll()).unwrap();
    assert_eq!(read_all(created.console.unwrap()), "33 620\n");
    assert_eq!(wait(&child).code(), 0);
}
