//! The files of v1 hierarchies (Documentation/admin-guide/cgroup-v1).

use super::files::What;
use super::numbers::{device, one, pairs, v1_limit};
use crate::cgroup::sample::{DeviceSample, Sample};

/// Nanoseconds in a tick as the kernel shows times to programs (USER_HZ is 100 on every architecture that hartpod runs on).
const TICK: u64 = 10_000_000;

pub(super) fn take(what: What, text: &str, sample: &mut Sample) {
    match what {
        What::CpuUsage => sample.cpu.usage_ns = one(text),
        What::CpuTimes => {
            for (key, ticks) in pairs(text) {
                match key {
                    "user" => sample.cpu.user_ns = Some(ticks.saturating_mul(TICK)),
                    "system" => sample.cpu.system_ns = Some(ticks.saturating_mul(TICK)),
                    _ => {}
                }
            }
        }
        What::CpuThrottling => {
            for (key, value) in pairs(text) {
                match key {
                    "nr_periods" => sample.cpu.periods = Some(value),
                    "nr_throttled" => sample.cpu.throttled_periods = Some(value),
                    "throttled_time" => sample.cpu.throttled_ns = Some(value),
                    _ => {}
                }
            }
        }
        What::MemoryUsage => sample.memory.usage = one(text),
        What::MemoryStat => memory(text, sample),
        What::MemoryPeak => sample.memory.peak = one(text),
        What::MemoryKernel => sample.memory.kernel = one(text),
        What::MemoryLimitHits => sample.memory.limit_hits = one(text),
        What::MemoryOom => {
            sample.memory.oom_kills = pairs(text).find(|(key, _)| *key == "oom_kill").map(|(_, kills)| kills);
        }
        What::Tasks => sample.tasks = one(text),
        What::TasksLimit => sample.tasks_limit = one(text),
        What::IoBytes => {
            io(text, sample, |d, reading| if reading { &mut d.read_bytes } else { &mut d.write_bytes })
        }
        What::IoOperations => {
            io(text, sample, |d, reading| if reading { &mut d.reads } else { &mut d.writes })
        }
        // v2 alone has these.
        What::MemoryLimit
        | What::Swap
        | What::SwapLimit
        | What::CpuPressure
        | What::MemoryPressure
        | What::IoPressure => {}
    }
}

fn memory(text: &str, sample: &mut Sample) {
    let memory = &mut sample.memory;
    let mut with_swap = None;
    for (key, value) in pairs(text) {
        let field = match key {
            "total_rss" => &mut memory.rss,
            "total_cache" => &mut memory.cache,
            "total_mapped_file" => &mut memory.mapped_file,
            "total_inactive_file" => &mut memory.inactive_file,
            "total_swap" => &mut memory.swap,
            "total_pgfault" => &mut memory.page_faults,
            "total_pgmajfault" => &mut memory.major_page_faults,
            "hierarchical_memory_limit" => {
                memory.limit = v1_limit(value);
                continue;
            }
            "hierarchical_memsw_limit" => &mut with_swap,
            _ => continue,
        };
        *field = Some(value);
    }
    // v1 limits memory and swap together.
    memory.swap_limit =
        with_swap.and_then(v1_limit).zip(memory.limit).map(|(both, limit)| both.saturating_sub(limit));
}

/// `8:0 Read 4096`, `8:0 Write 0`, .. `Total 4096`
fn io(text: &str, sample: &mut Sample, field: fn(&mut DeviceSample, bool) -> &mut u64) {
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(name), Some(operation), Some(value)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        let (Some((major, minor)), Ok(value)) = (device(name), value.parse()) else { continue };
        let reading = match operation {
            "Read" => true,
            "Write" => false,
            _ => continue,
        };
        let known = sample.io.iter().position(|d| (d.major, d.minor) == (major, minor));
        let at = known.unwrap_or_else(|| {
            sample.io.push(DeviceSample { major, minor, ..Default::default() });
            sample.io.len() - 1
        });
        *field(&mut sample.io[at], reading) = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swap_is_what_the_common_limit_leaves() {
        let mut sample = Sample::default();
        let text = "cache 1\nhierarchical_memory_limit 1000\nhierarchical_memsw_limit 1500\ntotal_rss 300\ntotal_swap 100\n\
            total_inactive_file 20\n";
        take(What::MemoryStat, text, &mut sample);
        take(What::MemoryUsage, "400\n", &mut sample);
        let memory = sample.memory;
        assert_eq!((memory.limit, memory.swap, memory.swap_limit), (Some(1000), Some(100), Some(500)));
        assert_eq!((memory.swap_available(), memory.available()), (Some(400), Some(620)));
        assert_eq!(memory.rss, Some(300));
    }

    #[test]
    fn reads_and_writes_of_a_device_come_from_two_files() {
        let mut sample = Sample::default();
        take(What::IoBytes, "8:0 Read 4096\n8:0 Write 10\n8:0 Sync 1\nTotal 4106\n", &mut sample);
        take(What::IoOperations, "8:0 Read 2\n8:0 Write 1\n8:16 Read 5\nTotal 8\n", &mut sample);
        let expected = [
            DeviceSample { major: 8, minor: 0, read_bytes: 4096, write_bytes: 10, reads: 2, writes: 1 },
            DeviceSample { major: 8, minor: 16, reads: 5, ..Default::default() },
        ];
        assert_eq!(sample.io, expected);
    }
}
