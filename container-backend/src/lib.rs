//! Turns an OCI runtime spec into a running container: cgroups, namespaces, mounts, seccomp, exec.

pub mod cgroup;
