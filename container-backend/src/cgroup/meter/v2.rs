//! The unified tree's files (Documentation/admin-guide/cgroup-v2.rst).

use super::files::What;
use super::numbers::{device, one, pairs, pressure};
use crate::cgroup::sample::{DeviceSample, Sample};

pub(super) fn take(what: What, text: &str, sample: &mut Sample) {
    match what {
        What::CpuUsage => cpu(text, sample),
        What::MemoryUsage => sample.memory.usage = one(text),
        What::MemoryStat => memory(text, sample),
        What::MemoryLimit => sample.memory.limit = one(text),
        What::MemoryPeak => sample.memory.peak = one(text),
        What::MemoryOom => {
            for (key, value) in pairs(text) {
                match key {
                    "max" => sample.memory.limit_hits = Some(value),
                    "oom_kill" => sample.memory.oom_kills = Some(value),
                    _ => {}
                }
            }
        }
        What::Swap => sample.memory.swap = one(text),
        What::SwapLimit => sample.memory.swap_limit = one(text),
        What::Tasks => sample.tasks = one(text),
        What::TasksLimit => sample.tasks_limit = one(text),
        What::IoBytes => sample.io = io(text),
        What::CpuPressure => sample.cpu_pressure = pressure(text),
        What::MemoryPressure => sample.memory_pressure = pressure(text),
        What::IoPressure => sample.io_pressure = pressure(text),
        // In the files above.
        What::CpuTimes
        | What::CpuThrottling
        | What::MemoryKernel
        | What::MemoryLimitHits
        | What::IoOperations => {}
    }
}

fn cpu(text: &str, sample: &mut Sample) {
    let cpu = &mut sample.cpu;
    for (key, value) in pairs(text) {
        let nanos = Some(value.saturating_mul(1000));
        match key {
            "usage_usec" => cpu.usage_ns = nanos,
            "user_usec" => cpu.user_ns = nanos,
            "system_usec" => cpu.system_ns = nanos,
            "nr_periods" => cpu.periods = Some(value),
            "nr_throttled" => cpu.throttled_periods = Some(value),
            "throttled_usec" => cpu.throttled_ns = nanos,
            _ => {}
        }
    }
}

fn memory(text: &str, sample: &mut Sample) {
    let memory = &mut sample.memory;
    for (key, value) in pairs(text) {
        let field = match key {
            "anon" => &mut memory.rss,
            "file" => &mut memory.cache,
            "file_mapped" => &mut memory.mapped_file,
            "inactive_file" => &mut memory.inactive_file,
            "kernel" => &mut memory.kernel,
            "pgfault" => &mut memory.page_faults,
            "pgmajfault" => &mut memory.major_page_faults,
            _ => continue,
        };
        *field = Some(value);
    }
}

/// `8:16 rbytes=1459200 wbytes=314773504 rios=192 wios=353 dbytes=0 dios=0`
fn io(text: &str) -> Vec<DeviceSample> {
    let devices = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (major, minor) = device(words.next()?)?;
        let mut sample = DeviceSample { major, minor, ..Default::default() };
        for (key, value) in words.filter_map(|w| w.split_once('=')) {
            let field = match key {
                "rbytes" => &mut sample.read_bytes,
                "wbytes" => &mut sample.write_bytes,
                "rios" => &mut sample.reads,
                "wios" => &mut sample.writes,
                _ => continue,
            };
            *field = value.parse().ok()?;
        }
        Some(sample)
    });
    devices.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_told_in_nanoseconds() {
        let mut sample = Sample::default();
        let text = "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 10\nnr_throttled 3\nthrottled_usec 7\n";
        take(What::CpuUsage, text, &mut sample);
        let cpu = sample.cpu;
        assert_eq!(
            (cpu.usage_ns, cpu.user_ns, cpu.system_ns),
            (Some(1_500_000), Some(1_000_000), Some(500_000))
        );
        assert_eq!((cpu.periods, cpu.throttled_periods, cpu.throttled_ns), (Some(10), Some(3), Some(7000)));
    }

    #[test]
    fn the_working_set_leaves_out_the_inactive_page_cache() {
        let mut sample = Sample::default();
        take(What::MemoryUsage, "1000\n", &mut sample);
        take(What::MemoryStat, "anon 300\nfile 600\nkernel 50\ninactive_file 400\npgfault 9\n", &mut sample);
        take(What::MemoryLimit, "max\n", &mut sample);
        assert_eq!(sample.memory.working_set(), Some(600));
        assert_eq!(
            (sample.memory.rss, sample.memory.cache, sample.memory.kernel),
            (Some(300), Some(600), Some(50))
        );
        assert_eq!(sample.memory.available(), None, "without a limit everything is");
        take(What::MemoryLimit, "4096\n", &mut sample);
        assert_eq!(sample.memory.available(), Some(3496));
    }

    #[test]
    fn devices_are_told_apart() {
        let mut sample = Sample::default();
        take(
            What::IoBytes,
            "8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n254:0 rbytes=5\nbad\n",
            &mut sample,
        );
        let expected = [
            DeviceSample { major: 8, minor: 16, read_bytes: 1, write_bytes: 2, reads: 3, writes: 4 },
            DeviceSample { major: 254, minor: 0, read_bytes: 5, ..Default::default() },
        ];
        assert_eq!(sample.io, expected);
    }
}
