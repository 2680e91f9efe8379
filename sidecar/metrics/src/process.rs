//! What the kernel says of this process: CPU, memory, descriptors, when it began. The names are those of Prometheus' own
//! client libraries.

use std::fs;

use crate::{
    registry::Registry,
    snapshot::{Collector, Labels, float},
};

/// Adds the metrics of the process to a registry.
pub fn register(registry: &Registry) {
    registry.source(|out| {
        collect(out);
        true
    });
}

fn collect(out: &mut Collector) {
    let none = Labels::new(&[]);
    let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let seconds = u64::try_from(cpu.tv_sec).unwrap_or_default();
    let nanos = u32::try_from(cpu.tv_nsec).unwrap_or_default();
    let cpu = float(seconds) + f64::from(nanos) / 1e9;
    out.counter_seconds("process_cpu_seconds_total", "User and system CPU time", &none, cpu);
    if let Some(pages) = word("/proc/self/statm", 1) {
        let bytes = pages.saturating_mul(u64::try_from(rustix::param::page_size()).unwrap_or_default());
        out.gauge("process_resident_memory_bytes", "Memory in use", &none, float(bytes));
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        // One of them is the directory itself.
        let open = u64::try_from(open.count().saturating_sub(1)).unwrap_or_default();
        out.gauge("process_open_fds", "Open file descriptors", &none, float(open));
    }
    if let Some(limit) = limit() {
        out.gauge("process_max_fds", "Most file descriptors that may be open", &none, float(limit));
    }
    if let Some(start) = start() {
        let help = "When the process began, in seconds since the Unix epoch";
        out.gauge("process_start_time_seconds", help, &none, start);
    }
}

/// A word of a file of numbers.
fn word(path: &str, index: usize) -> Option<u64> {
    fs::read_to_string(path).ok()?.split_whitespace().nth(index)?.parse().ok()
}

fn limit() -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// From the time of boot and field 22 of `stat` (proc(5)); the name of the program, field 2, may have spaces.
fn start() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let after_name = stat.rsplit_once(')')?.1;
    let ticks: u64 = after_name.split_whitespace().nth(19)?.parse().ok()?;
    let kernel = fs::read_to_string("/proc/stat").ok()?;
    let boot: u64 = kernel.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    let second = rustix::param::clock_ticks_per_second().max(1);
    Some(float(boot) + float(ticks) / float(second))
}
