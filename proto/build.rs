//! Compiles the two protocols without protoc.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    for (file, feature) in [("pod/v1/pod.proto", None), ("cri/v1/api.proto", Some("CARGO_FEATURE_CRI"))] {
        println!("cargo:rerun-if-changed={file}");
        if feature.is_some_and(|f| std::env::var_os(f).is_none()) {
            continue;
        }
        let descriptors = protox::compile([file], ["."])?;
        tonic_prost_build::configure().build_transport(false).compile_fds(descriptors)?;
    }
    Ok(())
}
