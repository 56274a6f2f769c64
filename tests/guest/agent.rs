//! The pod agent as a guest's init.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hartpod_tests::eventually::patient;
use hartpod_tests::{Lab, Need, tests};
use hartpod_vm::launcher::connect;
use hartpod_vm::status::ExitReason;

use crate::guest::{Guest, image, spec};
use crate::initramfs::with_index;

tests![
    the_agent_tells_that_it_is_ready_and_answers needs Need::Kvm,
    an_agent_that_cannot_begin_says_why needs Need::Kvm,
];

/// Where the agent echoes every byte (pod.proto).
const HEARTBEAT: u32 = 1026;

async fn the_agent_tells_that_it_is_ready_and_answers(lab: &Lab) -> Result<()> {
    let image = image()?;
    let mut guest = Guest::start(lab, "guest", spec(&image, image.initramfs())?)?;
    guest.running()?;
    guest.ready()?;

    let patience = patient(Duration::from_secs(10));
    let mut heart = connect(guest.dir(), HEARTBEAT, patience).context("connect to the heartbeat")?;
    heart.set_read_timeout(Some(patience))?;
    for number in 0..20_u8 {
        heart.write_all(&[number; 32])?;
        let mut echo = [0; 32];
        heart.read_exact(&mut echo).with_context(|| format!("the echo of beat {number}"))?;
        ensure!(echo == [number; 32], "{echo:?}");
    }
    let nobody = connect(guest.dir(), 99, patience);
    ensure!(nobody.is_err(), "somebody listens on port 99");
    guest.control()?.power_off()?;
    guest.exited(Duration::from_secs(5))?;
    Ok(())
}

async fn an_agent_that_cannot_begin_says_why(lab: &Lab) -> Result<()> {
    let image = image()?;
    let initramfs = with_index(&image, lab.dir(), "early\n")?;
    let mut guest = Guest::start(lab, "guest", spec(&image, initramfs)?)?;
    guest.running()?;
    let exit = guest.exited(Duration::from_secs(20))?;
    ensure!(exit.reason == ExitReason::Panic, "{exit:?}");
    let console = guest.console();
    let words = console.lines().find(|line| line.contains("hartpod-pod: "));
    ensure!(words.is_some_and(|line| line.contains("line `early` of the index")), "{console}");
    Ok(())
}
