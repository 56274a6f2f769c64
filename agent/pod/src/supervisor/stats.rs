//! What the pod and its containers have used.

use hartpod_container::cgroup::{Depth, FileLooks, Meter, open_files_limit};
use hartpod_container::net_dev;
use hartpod_proto::pod::v1::stats_request;
use hartpod_proto::pod::v1::{ContainerStats, InterfaceStats, Sample, StatsResponse};
use tracing::debug;

use super::Supervisor;
use crate::call::CallError;
use crate::stats::{depth, message};

/// Open files that are looked at for sockets in one answer: some ten milliseconds, in which this one thread does nothing else.
const LOOKS: u32 = 8192;
/// Interfaces that are told.
const MOST_INTERFACES: usize = 32;

impl Supervisor {
    /// Reads the kernel's files, none of which waits for anything.
    pub(super) fn stats(&self, wanted: stats_request::Depth) -> Result<StatsResponse, CallError> {
        let set_up = self.set_up.as_ref().ok_or(CallError::NotSetUp)?;
        let depth = depth(wanted);
        let (mut buffer, mut looks) = (Vec::new(), FileLooks::new(LOOKS));
        let mut sample = |meter: &Meter| -> Option<Sample> {
            match meter.read(depth, &mut buffer) {
                Ok(sample) => sample.map(message),
                Err(error) => {
                    debug!(%error, cgroup = meter.cgroup_path(), "no numbers");
                    None
                }
            }
        };
        let containers = self.containers.values().filter(|c| c.phase.is_alive()).filter_map(|container| {
            let meter = container.meter.get_or_init(|| container.leaf.meter());
            let mut stats = ContainerStats {
                container_id: container.id.to_string(),
                sample: Some(sample(meter)?),
                ..Default::default()
            };
            if let Some(found) = (depth == Depth::All).then(|| meter.processes(&mut looks)).flatten() {
                stats.processes = Some(found.processes);
                (stats.files, stats.sockets) = (found.files, found.sockets);
                stats.files_limit = open_files_limit(container.told.pid);
            }
            Some(stats)
        });
        let containers = containers.collect();
        let interfaces = match depth {
            Depth::Cpu => Vec::new(),
            _ => interfaces(set_up.interface.as_deref().unwrap_or_default()),
        };
        let pod = sample(set_up.meter.get_or_init(|| set_up.pod.leaf().parent_meter()));
        Ok(StatsResponse { containers, pod, interfaces })
    }
}

/// Of the network namespace that the agent is in, which is the pod's; `own` comes first.
fn interfaces(own: &str) -> Vec<InterfaceStats> {
    let found = net_dev::read("/proc/thread-self/net/dev".as_ref()).unwrap_or_else(|error| {
        debug!(%error, "no numbers of interfaces");
        Vec::new()
    });
    let told = net_dev::told(found, own, MOST_INTERFACES).into_iter().map(|i| InterfaceStats {
        name: i.name,
        rx_bytes: i.receive.bytes,
        rx_packets: i.receive.packets,
        rx_errors: i.receive.errors,
        rx_dropped: i.receive.dropped,
        tx_bytes: i.transmit.bytes,
        tx_packets: i.transmit.packets,
        tx_errors: i.transmit.errors,
        tx_dropped: i.transmit.dropped,
    });
    told.collect()
}
