//! `hartpod guest build`: what guests boot is made once, and again when a part of it changes.

use std::fs::{self, OpenOptions};
use std::io::Write as _;

use anyhow::{Context, Result, ensure};
use hartpod_tests::{Lab, Need, node, tests};
use hartpod_vm::guest_image::GuestImage;

use hartpod_tests::guest::build_image;

tests![an_image_is_made_again_when_the_agent_changes needs Need::Kvm];

async fn an_image_is_made_again_when_the_agent_changes(lab: &Lab) -> Result<()> {
    let root = lab.dir().join("root");
    let agent = lab.dir().join("agent");
    fs::copy(node::bin_dir().join("hartpod-pod"), &agent).context("copy the agent")?;

    let said = build_image(&root, &agent)?;
    for part in ["kernel ", "initramfs ", "modules ", "scratch ", "built in "] {
        ensure!(said.contains(part), "no {part:?} in:\n{said}");
    }
    let first = GuestImage::current(&root)?.name;
    let said = build_image(&root, &agent)?;
    ensure!(said.contains("up to date") && said.contains(&first), "{said}");

    OpenOptions::new().append(true).open(&agent)?.write_all(b"another")?;
    let said = build_image(&root, &agent)?;
    let second = GuestImage::current(&root)?.name;
    ensure!(first != second && said.contains(&format!("removed {first}")), "{said}");

    fs::write(&agent, "#!/bin/sh")?;
    let refused = build_image(&root, &agent).err().context("an agent that is no program was taken")?;
    ensure!(format!("{refused:#}").contains(&agent.display().to_string()), "{refused:#}");
    ensure!(GuestImage::current(&root)?.name == second, "a build that failed changed the image");
    Ok(())
}
