//! What pods and containers use, as CRI shows it. What is not counted is left out: a 0 is a zero.

use hartpod_container::cgroup::{Pressure, Stall};
use hartpod_container::net_dev::Interface;
use hartpod_proto::cri::v1 as cri;

use crate::pod::INTERFACE;
use crate::stats::{ContainerReading, DiskUse, PodReading, Reading};

/// Numbers of a container. `mountpoint` is where its writable layer is.
pub(super) fn container(read: &ContainerReading, mountpoint: &str) -> cri::ContainerStats {
    let info = &read.target.container.info;
    let reading = read.reading.as_ref();
    cri::ContainerStats {
        attributes: Some(cri::ContainerAttributes {
            id: info.id.to_string(),
            metadata: info.config.metadata.clone(),
            labels: info.config.labels.clone(),
            annotations: info.config.annotations.clone(),
        }),
        cpu: reading.map(cpu),
        memory: reading.map(memory),
        swap: reading.and_then(swap),
        io: reading.and_then(io),
        writable_layer: read.disk.map(|disk| writable_layer(disk, mountpoint)),
    }
}

/// Numbers of a pod and of its containers.
pub(super) fn pod(read: &PodReading, mountpoint: &str) -> cri::PodSandboxStats {
    let info = &read.pod.info;
    let reading = read.reading.as_ref();
    let linux = cri::LinuxPodSandboxStats {
        cpu: reading.map(cpu),
        memory: reading.map(memory),
        io: reading.and_then(io),
        network: read.interfaces.as_deref().map(network),
        process: read.tasks.map(|tasks| cri::ProcessUsage {
            timestamp: crate::clock::now(),
            process_count: value(Some(tasks)),
        }),
        containers: read.containers.iter().map(|c| container(c, mountpoint)).collect(),
    };
    cri::PodSandboxStats {
        attributes: Some(cri::PodSandboxAttributes {
            id: info.id.to_string(),
            metadata: info.config.metadata.clone(),
            labels: info.config.labels.clone(),
            annotations: info.config.annotations.clone(),
        }),
        linux: Some(linux),
        windows: None,
    }
}

fn value(number: Option<u64>) -> Option<cri::UInt64Value> {
    number.map(|value| cri::UInt64Value { value })
}

fn cpu(reading: &Reading) -> cri::CpuUsage {
    cri::CpuUsage {
        timestamp: reading.at,
        usage_core_nano_seconds: value(reading.sample.cpu.usage_ns),
        usage_nano_cores: value(reading.nano_cores),
        psi: reading.sample.cpu_pressure.map(psi),
    }
}

fn memory(reading: &Reading) -> cri::MemoryUsage {
    let memory = &reading.sample.memory;
    cri::MemoryUsage {
        timestamp: reading.at,
        working_set_bytes: value(memory.working_set()),
        available_bytes: value(memory.available()),
        usage_bytes: value(memory.usage),
        rss_bytes: value(memory.rss),
        page_faults: value(memory.page_faults),
        major_page_faults: value(memory.major_page_faults),
        psi: reading.sample.memory_pressure.map(psi),
    }
}

fn swap(reading: &Reading) -> Option<cri::SwapUsage> {
    let memory = &reading.sample.memory;
    Some(cri::SwapUsage {
        timestamp: reading.at,
        swap_available_bytes: value(memory.swap_available()),
        swap_usage_bytes: Some(cri::UInt64Value { value: memory.swap? }),
    })
}

fn io(reading: &Reading) -> Option<cri::IoUsage> {
    Some(cri::IoUsage { timestamp: reading.at, psi: Some(psi(reading.sample.io_pressure?)) })
}

fn psi(pressure: Pressure) -> cri::PsiStats {
    cri::PsiStats { some: Some(stall(pressure.some)), full: pressure.full.map(stall) }
}

/// CRI's total is in nanoseconds, the kernel's in microseconds.
fn stall(stall: Stall) -> cri::PsiData {
    cri::PsiData {
        total: stall.total_us.saturating_mul(1000),
        avg10: stall.avg10,
        avg60: stall.avg60,
        avg300: stall.avg300,
    }
}

fn writable_layer(disk: DiskUse, mountpoint: &str) -> cri::FilesystemUsage {
    cri::FilesystemUsage {
        timestamp: disk.at,
        fs_id: Some(cri::FilesystemIdentifier { mountpoint: mountpoint.to_owned() }),
        used_bytes: value(Some(disk.bytes)),
        inodes_used: value(disk.inodes),
    }
}

fn network(interfaces: &[Interface]) -> cri::NetworkUsage {
    let usage = |interface: &Interface| cri::NetworkInterfaceUsage {
        name: interface.name.clone(),
        rx_bytes: value(Some(interface.receive.bytes)),
        rx_errors: value(Some(interface.receive.errors)),
        tx_bytes: value(Some(interface.transmit.bytes)),
        tx_errors: value(Some(interface.transmit.errors)),
    };
    let (default, others): (Vec<_>, Vec<_>) = interfaces.iter().partition(|i| i.name == INTERFACE);
    cri::NetworkUsage {
        timestamp: crate::clock::now(),
        default_interface: default.first().copied().map(usage),
        interfaces: others.into_iter().map(usage).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use hartpod_container::cgroup::{CpuSample, MemorySample, Sample};
    use hartpod_container::net_dev::Traffic;

    use super::*;
    use crate::container::{ContainerState, test_container};
    use crate::pod::{SandboxState, test_pod};
    use crate::stats::Target;

    fn target() -> Target {
        let pod = Arc::new(test_pod("ab", SandboxState::Ready, &[]));
        Target { pod, container: Arc::new(test_container("cd", ContainerState::Running, &[("a", "1")])) }
    }

    #[test]
    fn what_is_not_counted_is_left_out() {
        let sample = Sample {
            cpu: CpuSample { usage_ns: Some(9), ..Default::default() },
            memory: MemorySample { usage: Some(50), inactive_file: Some(20), ..Default::default() },
            ..Default::default()
        };
        let reading = Some(Reading { at: 7, sample, nano_cores: None, processes: None });
        let stats = container(&ContainerReading { target: target(), reading, disk: None }, "/i");
        let attributes = stats.attributes.unwrap();
        assert_eq!((attributes.id.len(), &*attributes.labels["a"]), (64, "1"));
        let cpu = stats.cpu.unwrap();
        assert_eq!((cpu.timestamp, cpu.usage_core_nano_seconds.unwrap().value), (7, 9));
        assert_eq!((cpu.usage_nano_cores, cpu.psi), (None, None));
        let memory = stats.memory.unwrap();
        assert_eq!(memory.working_set_bytes.unwrap().value, 30);
        assert_eq!((memory.available_bytes, memory.rss_bytes), (None, None));
        assert_eq!((stats.swap, stats.io, stats.writable_layer), (None, None, None));
    }

    #[test]
    fn time_lost_is_told_in_nanoseconds() {
        let some = Stall { total_us: 3, avg10: 1.5, ..Default::default() };
        let told = psi(Pressure { some, full: None });
        assert_eq!((told.some.unwrap().total, told.full), (3000, None));
    }

    #[test]
    fn the_pods_own_interface_is_the_default() {
        let interface = |name: &str, bytes| Interface {
            name: name.into(),
            receive: Traffic { bytes, ..Default::default() },
            transmit: Traffic::default(),
        };
        let told = network(&[interface("net1", 1), interface("eth0", 2)]);
        assert_eq!(told.default_interface.unwrap().rx_bytes.unwrap().value, 2);
        assert_eq!(told.interfaces.len(), 1);
        assert_eq!(network(&[]).default_interface, None);
    }
}
