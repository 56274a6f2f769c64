//! The real `hartpod-pod`, started and driven as the daemon does it. Needs root, busybox and cgroups.

mod kit;
mod process;
