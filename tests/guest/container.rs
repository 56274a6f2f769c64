//! Containers in a guest: their disks, what is in them, and what they are refused.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hartpod_tests::{Lab, Need, tests};
use hartpod_vm::command_line;
use hartpod_vm::guest_image::GuestImage;
use hartpod_vm::launcher::GuestSpec;
use hartpod_vm::status::ExitReason;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::disk::{self, Layers, taken};
use crate::guest::{Guest, image, spec};
use crate::pod::Pod;

tests![
    a_container_runs_from_layers_and_a_scratch_disk_that_came_at_run_time needs Need::Kvm,
    a_slot_is_for_one_container_at_a_time needs Need::Kvm,
    a_module_is_loaded_when_a_container_needs_it needs Need::Kvm,
];

/// After the three fixed ones: the disk of modules.
const MODULES: u32 = 3;
/// The first spare one.
pub(crate) const SPARE: u32 = 4;

/// A guest with two spare slots, and a pod in it.
pub(crate) async fn pod(lab: &Lab, image: &GuestImage) -> Result<(Guest, Pod)> {
    let spec = GuestSpec {
        command_line: format!("{} hartpod.modules={MODULES}", command_line::with_messages()),
        balloon: true,
        disks: vec![disk::modules(image)?],
        spare_slots: 2,
        ..spec(image, image.initramfs())?
    };
    let mut guest = Guest::start(lab, "guest", spec)?;
    guest.running()?;
    guest.ready()?;
    let pod = Pod::set_up(&guest).await?;
    Ok((guest, pod))
}

/// Ends both politely.
pub(crate) async fn shut_down(mut guest: Guest, pod: Pod) -> Result<()> {
    pod.shut_down().await?;
    let exit = guest.exited(Duration::from_secs(10))?;
    ensure!(exit.reason == ExitReason::PowerOff, "{exit:?}");
    Ok(())
}

const WRITE: &str = "cat /etc/layer; [ -e /etc/hidden ] || echo hidden; \
    dd if=/dev/urandom of=/data bs=1M count=16 2>/dev/null && sync && md5sum </data; \
    echo 3 >/proc/sys/vm/drop_caches; md5sum </data; echo trouble >&2; exit 7";

async fn a_container_runs_from_layers_and_a_scratch_disk_that_came_at_run_time(lab: &Lab) -> Result<()> {
    let image = image()?;
    let layers = Layers::make(lab.dir())?;
    let (guest, mut pod) = pod(lab, &image).await?;
    let control = guest.control()?;

    let scratch = layers.fill(&control, &image, SPARE)?;
    let before = taken(&scratch)?;
    let said = pod.run(SPARE, Layers::COUNT, WRITE).await?;
    ensure!(said.code == 7 && said.err == "trouble\n", "{said:?}");
    let lines: Vec<&str> = said.out.lines().collect();
    ensure!(lines.len() == 4 && lines[..2] == ["upper", "hidden"], "{said:?}");
    ensure!(lines[2] == lines[3], "what was written reads differently: {said:?}");
    let after = taken(&scratch)?;
    ensure!(
        after >= before + (16 << 20),
        "16 MiB were written, the file went from {before} to {after} bytes"
    );

    // Another container has the slot, and nothing of the first one's.
    control.empty(SPARE).context("empty the slot of a removed container")?;
    layers.fill(&control, &image, SPARE)?;
    let said = pod.run(SPARE, Layers::COUNT, "[ ! -e /data ] && cat /etc/layer").await?;
    ensure!(said.success()? == "upper\n");

    control.empty(SPARE)?;
    layers.fill(&control, &image, SPARE)?;
    let (id, _out, _err) = pod.start(SPARE, Layers::COUNT, "touch /mine; sleep 100000").await?;
    let mut exec =
        pod.exec(&id, &["sh", "-c", "while [ ! -e /mine ]; do sleep 0.1; done; cat; exit 9"]).await?;
    exec.stdin.write_all(b"to and fro").await?;
    exec.stdin.shutdown().await?;
    let mut echo = String::new();
    exec.stdout.read_to_string(&mut echo).await?;
    ensure!(echo == "to and fro", "{echo:?}");
    ensure!(pod.wait(exec).await? == 9);
    // A container that runs does not keep the guest.
    shut_down(guest, pod).await
}

async fn a_slot_is_for_one_container_at_a_time(lab: &Lab) -> Result<()> {
    let image = image()?;
    let layers = Layers::make(lab.dir())?;
    let (guest, mut pod) = pod(lab, &image).await?;
    let control = guest.control()?;

    for slot in [SPARE, 31] {
        let refused = pod.run(slot, Layers::COUNT, "").await.err().context("a container without a disk")?;
        ensure!(format!("{refused:#}").contains(&format!("slot {slot}")), "{refused:#}");
    }
    layers.fill(&control, &image, SPARE)?;
    let full = layers.fill(&control, &image, SPARE);
    ensure!(full.is_err(), "a full slot was filled");
    // The disk has fewer layers than that.
    ensure!(
        pod.run(SPARE, Layers::COUNT + 1, "").await.is_err(),
        "a container with a layer that is not there"
    );

    let (id, _out, _err) = pod.start(SPARE, Layers::COUNT, "sleep 100000").await?;
    ensure!(pod.run(SPARE, Layers::COUNT, "").await.is_err(), "a second container on the same disk");
    ensure!(control.empty(SPARE).is_err(), "a disk in use was taken");
    pod.remove(&id).await?;
    control.empty(SPARE).context("empty the slot of a removed container")?;

    layers.fill(&control, &image, SPARE)?;
    pod.run(SPARE, Layers::COUNT, "").await?.success()?;
    shut_down(guest, pod).await
}

async fn a_module_is_loaded_when_a_container_needs_it(lab: &Lab) -> Result<()> {
    let image = image()?;
    let layers = Layers::make(lab.dir())?;
    let (guest, mut pod) = pod(lab, &image).await?;
    layers.fill(&guest.control()?, &image, SPARE)?;
    let said = pod.run(SPARE, Layers::COUNT, "ip link add module type dummy && ip link show module").await?;
    ensure!(said.success()?.contains("module"));
    shut_down(guest, pod).await
}
