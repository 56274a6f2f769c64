//! Which file is executed: what execvp(3) does, as the user of the container, with messages that say what is wrong.

use std::ffi::{CStr, CString, OsStr};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD, FileType, accessat, stat};

use crate::errno::Errno;
use crate::failure::CommandError;

/// Where to look when the environment has no PATH; containerd gives images without one the same.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The path to execute for argv[0].
pub(crate) fn find(name: &CStr, env: &[CString]) -> Result<CString, CommandError> {
    let shown = || name.to_string_lossy().into_owned();
    let bytes = name.to_bytes();
    if bytes.contains(&b'/') {
        let refused = |errno| CommandError::Refused { name: shown(), errno };
        return executable(Path::new(OsStr::from_bytes(bytes))).map_err(refused).map(|()| name.to_owned());
    }
    if bytes.is_empty() {
        return Err(CommandError::NotInPath { name: shown() });
    }
    let path = env.iter().find_map(|v| v.to_bytes().strip_prefix(b"PATH=")).unwrap_or(DEFAULT_PATH);
    let mut denied = false;
    for folder in path.split(|b| *b == b':') {
        // An empty entry is the working directory.
        let folder = if folder.is_empty() { b"." } else { folder };
        let candidate = Path::new(OsStr::from_bytes(folder)).join(OsStr::from_bytes(bytes));
        match executable(&candidate) {
            Ok(()) => {
                let found = CString::new(candidate.into_os_string().into_encoded_bytes());
                return found.map_err(|_| CommandError::NotInPath { name: shown() });
            }
            Err(Errno::ACCES) => denied = true,
            Err(_) => {}
        }
    }
    Err(if denied {
        CommandError::Refused { name: shown(), errno: Errno::ACCES }
    } else {
        CommandError::NotInPath { name: shown() }
    })
}

fn executable(path: &Path) -> Result<(), Errno> {
    let kind = FileType::from_raw_mode(stat(path)?.st_mode);
    if kind.is_dir() {
        return Err(Errno::ISDIR);
    }
    if !kind.is_file() {
        return Err(Errno::ACCES);
    }
    Ok(accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn find_in(path: &str, name: &str) -> Result<String, String> {
        let env = [CString::new("A=PATH=/no").unwrap(), CString::new(format!("PATH={path}")).unwrap()];
        let found = find(&CString::new(name).unwrap(), &env);
        found.map(|p| p.into_string().unwrap()).map_err(|e| e.to_string())
    }

    #[test]
    fn the_messages_are_those_that_people_know() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        fs::write(at("tool"), "").unwrap();
        fs::write(at("data"), "").unwrap();
        fs::set_permissions(at("tool"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(at("data"), fs::Permissions::from_mode(0o644)).unwrap();
        let path = format!("/nowhere:{}", dir.path().display());
        assert_eq!(find_in(&path, "tool"), Ok(at("tool")));
        assert_eq!(find_in("/nowhere", &at("tool")), Ok(at("tool")));
        assert_eq!(find_in(&path, "foo").unwrap_err(), "exec \"foo\": no such file in $PATH");
        assert_eq!(find_in(&path, "").unwrap_err(), "exec \"\": no such file in $PATH");
        assert_eq!(find_in(&path, "data").unwrap_err(), "exec \"data\": permission denied");
        assert_eq!(find_in(&path, "/x").unwrap_err(), "exec \"/x\": no such file or directory");
        let folder = dir.path().to_str().unwrap();
        assert_eq!(find_in(&path, folder).unwrap_err(), format!("exec \"{folder}\": is a directory"));
    }

    #[test]
    fn exit_codes_are_the_shells() {
        let refused = |errno| CommandError::Refused { name: "x".into(), errno };
        assert_eq!(CommandError::NotInPath { name: "x".into() }.exit_code(), 127);
        assert_eq!(refused(Errno::NOENT).exit_code(), 127);
        assert_eq!(refused(Errno::ACCES).exit_code(), 126);
    }
}
