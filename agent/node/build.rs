//! Compiles the program of the demo's image: a static one of its own, whatever the daemon is linked against.

use std::env;
use std::error::Error;
use std::path::PathBuf;
use std::process::Command;

const SOURCE: &str = "demo/main.rs";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={SOURCE}");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=RUSTC_LINKER");
    let program = PathBuf::from(env::var("OUT_DIR")?).join("hartpod-demo");
    let mut rustc = Command::new(env::var("RUSTC")?);
    rustc.args(["--edition=2024", "--crate-name=hartpod_demo", "--crate-type=bin"]);
    rustc.args(["-Copt-level=s", "-Cpanic=abort", "-Cstrip=symbols", "-Clto=fat", "-Ccodegen-units=1"]);
    rustc.arg("-Ctarget-feature=+crt-static");
    rustc.arg(format!("--target={}", env::var("TARGET")?));
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        rustc.arg(format!("-Clinker={linker}"));
    }
    let status = rustc.arg("-o").arg(&program).arg(SOURCE).status()?;
    if !status.success() {
        return Err(
            "cannot build the demo's static program: is the static C library (libc6-dev) installed?".into()
        );
    }
    Ok(())
}
