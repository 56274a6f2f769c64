//! The life of pods and containers: every state, every time, every field.

use anyhow::Result;
use hartpod_tests::{Lab, cri, tests};

tests![a_pod_and_a_container_live_and_die];

async fn a_pod_and_a_container_live_and_die(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().run().await?;
    assert_eq!(main.exec(["id", "-u"]).await?.stdout, "0\n");
    assert_eq!(main.state().await?, cri::ContainerState::ContainerRunning);
    pod.stop().await?;
    pod.remove().await?;
    Ok(())
}
