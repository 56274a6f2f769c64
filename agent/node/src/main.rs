#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    hartpod::cli::main()
}
