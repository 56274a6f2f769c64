//! A guest starts, runs and ends, and its VMM says how.

use std::time::Duration;

use anyhow::{Result, ensure};
use hartpod_tests::{Lab, Need, tests};
use hartpod_vm::status::ExitReason;

use crate::guest::{Guest, image, spec};
use crate::initramfs::with_init;

tests![
    a_guest_boots_and_powers_off needs Need::Kvm,
    a_panic_is_told_with_its_line needs Need::Kvm,
    a_guest_is_powered_off_from_outside needs Need::Kvm,
    a_killed_vmm_is_told_as_killed needs Need::Kvm,
    two_vcpus_under_load_both_advance needs Need::Kvm,
    five_guests_run_at_once needs Need::Kvm,
];

/// A script's whole life.
const LIFE: Duration = Duration::from_secs(30);

async fn a_guest_boots_and_powers_off(lab: &Lab) -> Result<()> {
    let image = image()?;
    let init = with_init(&image, lab.dir(), "say I run on $(uname -sm)")?;
    let mut guest = Guest::start(lab, "guest", spec(&image, init)?)?;
    guest.running()?;
    let exit = guest.exited(LIFE)?;
    ensure!(guest.console().contains("test: I run on Linux riscv64"), "{}", guest.console());
    ensure!(exit.reason == ExitReason::PowerOff, "{exit:?}");
    Ok(())
}

async fn a_panic_is_told_with_its_line(lab: &Lab) -> Result<()> {
    let image = image()?;
    let init = with_init(&image, lab.dir(), "exit 3")?;
    let mut guest = Guest::start(lab, "guest", spec(&image, init)?)?;
    guest.running()?;
    let exit = guest.exited(LIFE)?;
    ensure!(exit.reason == ExitReason::Panic, "{exit:?}");
    ensure!(exit.detail.contains("Attempted to kill init"), "{exit:?}");
    Ok(())
}

async fn a_guest_is_powered_off_from_outside(lab: &Lab) -> Result<()> {
    let image = image()?;
    let init = with_init(&image, lab.dir(), "say up; sleep 100000")?;
    let mut guest = Guest::start(lab, "guest", spec(&image, init)?)?;
    guest.running()?;
    guest.says("test: up", LIFE)?;
    guest.control()?.power_off()?;
    let exit = guest.exited(Duration::from_secs(5))?;
    ensure!(exit.reason == ExitReason::PowerOff, "{exit:?}");
    Ok(())
}

async fn a_killed_vmm_is_told_as_killed(lab: &Lab) -> Result<()> {
    let image = image()?;
    let init = with_init(&image, lab.dir(), "say up; sleep 100000")?;
    let mut guest = Guest::start(lab, "guest", spec(&image, init)?)?;
    guest.running()?;
    guest.kill()?;
    let exit = guest.exited(Duration::from_secs(5))?;
    ensure!(exit.reason == ExitReason::Killed, "{exit:?}");
    Ok(())
}

/// Each second the script says how many jiffies each vCPU has worked.
const LOAD: &str = r"
for cpu in 0 1; do taskset -c $cpu sh -c 'while :; do :; done' & done
second=0
while [ $second -le 60 ]; do
    say second $second $(sed -n 's/^cpu[0-9]* \([0-9]*\) .*/\1/p' /proc/stat | tail -n 2)
    sleep 1
    second=$((second + 1))
done
say done";

async fn two_vcpus_under_load_both_advance(lab: &Lab) -> Result<()> {
    let image = image()?;
    let init = with_init(&image, lab.dir(), LOAD)?;
    let mut guest =
        Guest::start(lab, "guest", hartpod_vm::launcher::GuestSpec { vcpus: 2, ..spec(&image, init)? })?;
    guest.running()?;
    guest.says("test: done", LIFE + Duration::from_secs(60))?;
    guest.exited(LIFE)?;
    let console = guest.console();
    for complaint in ["rcu:", "soft lockup", "blocked for more than", "stall"] {
        let said = console.lines().find(|line| line.contains(complaint) && line.contains("detected"));
        ensure!(said.is_none(), "the kernel complains: {said:?}");
    }
    let seconds: Vec<Vec<u64>> = console
        .lines()
        .filter_map(|line| line.split_once("test: second "))
        .map(|(_, numbers)| numbers.split_whitespace().filter_map(|number| number.parse().ok()).collect())
        .collect();
    ensure!(seconds.len() == 61, "{} seconds were told", seconds.len());
    for pair in seconds.windows(2) {
        let advanced =
            pair[0].len() == 3 && pair[1].len() == 3 && pair[0][1] < pair[1][1] && pair[0][2] < pair[1][2];
        ensure!(advanced, "second, and jiffies of each vCPU: {pair:?}");
    }
    Ok(())
}

async fn five_guests_run_at_once(lab: &Lab) -> Result<()> {
    let image = image()?;
    let init = with_init(&image, lab.dir(), "say up; sleep 100000")?;
    let mut guests = Vec::new();
    for number in 0..5 {
        let mut guest = Guest::start(lab, &format!("guest{number}"), spec(&image, init.clone())?)?;
        guest.running()?;
        guests.push(guest);
    }
    for guest in &guests {
        guest.says("test: up", LIFE * 5)?;
    }
    for guest in &mut guests {
        guest.control()?.power_off()?;
        let exit = guest.exited(LIFE)?;
        ensure!(exit.reason == ExitReason::PowerOff, "{exit:?}");
    }
    Ok(())
}
