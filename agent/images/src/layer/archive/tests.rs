use super::*;
use crate::testing::archive::Tar;

fn names(bytes: &[u8]) -> Result<Vec<(Kind, String, u64)>, Fault> {
    let mut archive = Archive::new(bytes, 100);
    let mut found = Vec::new();
    while let Some(entry) = archive.next_entry()? {
        found.push((entry.kind, String::from_utf8(entry.path).unwrap(), entry.size));
    }
    Ok(found)
}

#[test]
fn data_is_skipped_when_nobody_reads_it() {
    let tar = Tar::new().file("a", &[1; 700]).file("b", b"").file("c", &[2; 512]).file("d", b"x");
    let expected = [("a", 700), ("b", 0), ("c", 512), ("d", 1)].map(|(n, s)| (Kind::File, n.to_owned(), s));
    assert_eq!(names(&tar.finish()).unwrap(), expected);
}

#[test]
fn only_files_have_data() {
    // Go's reader takes the next header right after this one, whatever size it claims.
    let tar = Tar::new()
        .entry(b'1', "link", b"", |header| header.set_size(512))
        .entry(b'5', "dir", b"", |header| header.set_size(99))
        .entry(b'\0', "old/", b"", |_| {})
        .file("b", b"");
    let kinds: Vec<_> =
        names(&tar.finish()).unwrap().into_iter().map(|(kind, _, size)| (kind, size)).collect();
    assert_eq!(kinds, [(Kind::HardLink, 0), (Kind::Folder, 0), (Kind::Folder, 0), (Kind::File, 0)]);
}

#[test]
fn extended_headers_count_for_one_entry() {
    let tar = Tar::new()
        .entry(b'g', "global", b"15 path=ignored\n", |_| {})
        .pax(&[("path", b"one"), ("size", b"3")])
        .entry(b'0', "x", b"abc", |header| header.set_size(0))
        .file("two", b"");
    assert_eq!(
        names(&tar.finish()).unwrap(),
        [(Kind::File, "one".to_owned(), 3), (Kind::File, "two".to_owned(), 0)]
    );
}

#[test]
fn the_end_may_be_missing_but_nothing_may_follow_it() {
    let tar = Tar::new().file("a", b"x");
    assert_eq!(names(&tar.clone().cut()).unwrap().len(), 1);
    let mut one_block = tar.clone().cut();
    one_block.extend([0; 512]);
    assert_eq!(names(&one_block).unwrap().len(), 1);
    one_block.extend(tar.clone().cut());
    assert!(matches!(names(&one_block), Err(Fault::Archive("something follows its end"))));
    let pending = tar.pax(&[("path", b"nobody")]);
    assert!(matches!(names(&pending.finish()), Err(Fault::Archive(_))));
}

#[test]
fn numbers_come_in_many_forms() {
    for (field, value) in [
        (&b"0000644\0"[..], Some(0o644)),
        (b"   644 \0", Some(0o644)),
        (b"644", Some(0o644)),
        (b"\0\0\0\0", Some(0)),
        (b"    ", Some(0)),
        (b"\x80\0\0\0\0\0\x01\x00", Some(256)),
        (b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
        (b"\xff\xff\xff\xff", None),
        (b"99", None),
        (b"-1", None),
        (b"+1", None),
    ] {
        assert_eq!(number(field), value, "{}", field.escape_ascii());
    }
}

#[test]
fn a_changed_header_is_noticed() {
    let mut tar = Tar::new().file("a", b"x").finish();
    tar[0] ^= 1;
    assert!(matches!(names(&tar), Err(Fault::Archive("a header with a wrong checksum"))));
}
