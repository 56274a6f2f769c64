pub(crate) const SCENARIOS: &[(&str, fn())] = &[];
pub(crate) fn inside(_name: &str) -> std::process::ExitCode {
    std::process::ExitCode::FAILURE
}
