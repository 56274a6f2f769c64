//! Records of a PAX extended header: `<length> <key>=<value>\n`, the length in decimal and counting itself.
//!
//! POSIX.1-2017, pax, "pax Extended Header". Values are bytes: a newline or any non-UTF-8 name is legal in them.

use super::error::EntryProblem;

/// What an extended header says about the entry that follows it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Overrides {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    /// Seconds and nanoseconds.
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) sparse: bool,
    /// Names and values of extended attributes.
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Go's archive/tar, star, and libarchive write attributes under this prefix.
const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

impl Overrides {
    /// Reads the body of an extended header and adds what it says.
    pub(super) fn add(&mut self, mut body: &[u8]) -> Result<(), EntryProblem> {
        while !body.is_empty() {
            let (key, value, rest) = record(body).ok_or(EntryProblem::ExtendedHeader)?;
            self.set(key, value)?;
            body = rest;
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), EntryProblem> {
        if let Some(name) = key.strip_prefix(XATTR_PREFIX) {
            if name.is_empty() || name.contains(&0) {
                return Err(EntryProblem::ExtendedHeader);
            }
            self.xattrs.retain(|(known, _)| known != name);
            self.xattrs.push((name.to_vec(), value.to_vec()));
            return Ok(());
        }
        // An empty value takes back what an earlier record said.
        let given = !value.is_empty();
        match key {
            b"path" => self.path = given.then(|| value.to_vec()),
            b"linkpath" => self.link = given.then(|| value.to_vec()),
            b"size" => self.size = given.then(|| decimal(value)).transpose()?,
            b"uid" => self.uid = given.then(|| decimal(value)).transpose()?,
            b"gid" => self.gid = given.then(|| decimal(value)).transpose()?,
            b"mtime" => self.mtime = given.then(|| time(value)).transpose()?,
            key if key.starts_with(b"GNU.sparse.") => self.sparse = true,
            _ => {}
        }
        Ok(())
    }
}

/// Splits off the first record: key, value, rest.
fn record(body: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = body.iter().take(20).position(|&b| b == b' ')?;
    let length = usize::try_from(decimal(&body[..space]).ok()?).ok()?;
    let record = body.get(..length)?.get(space + 1..)?;
    let record = record.strip_suffix(b"\n")?;
    let equals = record.iter().position(|&b| b == b'=')?;
    let key = &record[..equals];
    (!key.is_empty()).then_some((key, &record[equals + 1..], &body[length..]))
}

fn decimal(text: &[u8]) -> Result<u64, EntryProblem> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let number = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    number.filter(|_| digits).ok_or(EntryProblem::ExtendedHeader)
}

/// Seconds since 1970, with an optional sign and fraction.
fn time(text: &[u8]) -> Result<(i64, u32), EntryProblem> {
    let text = std::str::from_utf8(text).map_err(|_| EntryProblem::ExtendedHeader)?;
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds = decimal(seconds.as_bytes())?;
    let seconds = i64::try_from(seconds).map_err(|_| EntryProblem::ExtendedHeader)?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return Err(EntryProblem::ExtendedHeader);
    }
    let nanos = fraction.bytes().chain(std::iter::repeat(b'0')).take(9);
    let nanos = nanos.fold(0, |sum, digit| sum * 10 + u32::from(digit - b'0'));
    match (negative, nanos) {
        (false, nanos) => Ok((seconds, nanos)),
        (true, 0) => Ok((-seconds, 0)),
        // -1.25 is 0.75 after -2.
        (true, nanos) => Ok((-seconds - 1, 1_000_000_000 - nanos)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &[u8]) -> Result<Overrides, EntryProblem> {
        let mut overrides = Overrides::default();
        overrides.add(body).map(|()| overrides)
    }

    #[test]
    fn records_override_the_header() {
        let found = parse(
            b"12 path=a\nb\n30 mtime=1350244992.023960108\n13 uid=70000\n33 SCHILY.xattr.user.k=\x00\x01=v\n\xff\xff\xff\xff\n",
        );
        let found = found.unwrap();
        assert_eq!(found.path.as_deref(), Some(&b"a\nb"[..]));
        assert_eq!(found.mtime, Some((1_350_244_992, 23_960_108)));
        assert_eq!(found.uid, Some(70000));
        assert_eq!(found.xattrs, [(b"user.k".to_vec(), b"\x00\x01=v\n\xff\xff\xff\xff".to_vec())]);
        assert_eq!(parse(b"9 mtime=\n").unwrap().mtime, None);
        assert_eq!(parse(b"12 mtime=-2\n").unwrap().mtime, Some((-2, 0)));
        assert_eq!(parse(b"15 mtime=-1.25\n").unwrap().mtime, Some((-2, 750_000_000)));
        assert!(parse(b"22 GNU.sparse.major=1\n").unwrap().sparse);
    }

    #[test]
    fn malformed_records_are_refused() {
        for body in [
            &b"x"[..],
            b"5 a=b",
            b"999999999999999999999 a=b\n",
            b"18446744073709551615 a=b\n",
            b"0 a=b\n",
            b"3 a=b\n",
            b"6 a=b\n6 a=b\n6",
            b"5 =b\n",
            b"5 ab\n",
            b" 6 a=b\n",
            b"+6 a=b\n",
            b"9 size=-\n",
            b"12 size=+12\n",
            b"29 uid=18446744073709551616\n",
            b"13 mtime=1.x\n",
            b"17 SCHILY.xattr.=\n",
        ] {
            assert_eq!(parse(body), Err(EntryProblem::ExtendedHeader), "{}", body.escape_ascii());
        }
    }
}
