//! Why the VMM does not do something about a log.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, FileType, OFlags, StatxFlags, fcntl_getfl, statx};

use super::post::{MAX_AWAITING, MAX_SWITCHES};
use crate::jail::JailError;

/// Why a log stays as it is.
#[derive(Debug, thiserror::Error)]
pub enum LogRefused {
    #[error("this guest has no vsock")]
    NoVsock,
    #[error("a log without a stream")]
    NoStreams,
    #[error("there are {most} logs, and no more can be had")]
    TooMany { most: usize },
    #[error("the log file is not a regular file that is open for appending")]
    NotForAppending,
    #[error("what is to be closed afterwards is no pipe")]
    NotAPipe,
    #[error("{MAX_SWITCHES} log files wait for it already: its disk does not answer")]
    Stuck,
    #[error("its end is awaited {MAX_AWAITING} times already")]
    Awaited,
    #[error("its thread")]
    Thread(#[from] JailError),
    #[error("{what}")]
    Io {
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

/// A log may be nothing but a regular file that is open for appending. Waits for no disk.
pub(super) fn check_log(file: impl AsFd) -> Result<(), LogRefused> {
    let source = |e: rustix::io::Errno| LogRefused::Io { what: "look at the log file", source: e.into() };
    let flags = fcntl_getfl(&file).map_err(source)?;
    let writes = [OFlags::WRONLY, OFlags::RDWR].contains(&(flags & OFlags::RWMODE));
    let appends = writes && flags.contains(OFlags::APPEND) && !flags.contains(OFlags::PATH);
    match appends && file_type(file).map_err(source)? == FileType::RegularFile {
        true => Ok(()),
        false => Err(LogRefused::NotForAppending),
    }
}

/// What is closed to say that something is over.
pub(super) fn check_pipe(pipe: impl AsFd) -> Result<(), LogRefused> {
    match file_type(pipe) {
        Ok(FileType::Fifo) => Ok(()),
        _ => Err(LogRefused::NotAPipe),
    }
}

/// From what the kernel knows already: a server that does not answer is not asked.
fn file_type(file: impl AsFd) -> rustix::io::Result<FileType> {
    let stat = statx(file, "", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE)?;
    Ok(FileType::from_raw_mode(stat.stx_mode.into()))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn only_a_regular_file_for_appending_is_a_log() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let open = |options: &mut std::fs::OpenOptions| options.open(&path).unwrap();
        check_log(open(File::options().append(true).create(true))).unwrap();
        check_log(open(File::options().read(true).append(true))).unwrap();
        for bad in [
            open(File::options().write(true)),
            open(File::options().read(true)),
            File::open(folder.path()).unwrap(),
            File::options().append(true).open("/dev/null").unwrap(),
        ] {
            assert!(matches!(check_log(&bad), Err(LogRefused::NotForAppending)), "{bad:?}");
        }
        let path_only = rustix::fs::open(&path, OFlags::PATH | OFlags::APPEND, rustix::fs::Mode::empty());
        assert!(check_log(path_only.unwrap()).is_err());
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        assert!(check_log(&writer).is_err());
        check_pipe(&writer).unwrap();
        check_pipe(&reader).unwrap();
        assert!(check_pipe(open(File::options().append(true))).is_err());
    }
}
