//! `hartpod-pod`: the agent of one pod.

mod log_writer;
mod peer;
mod stream;
mod sys;
#[cfg(test)]
mod test_random;

fn main() {}
