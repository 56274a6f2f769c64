//! A small reader of devicetrees, written from the specification (v0.4, chapter 5) and not from the writer.

use std::collections::BTreeMap;

/// A node with all below it.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Node {
    pub(super) properties: BTreeMap<String, Vec<u8>>,
    pub(super) children: BTreeMap<String, Node>,
}

impl Node {
    /// By the path from here, e.g. `cpus/cpu@0`.
    pub(super) fn at(&self, path: &str) -> &Node {
        path.split('/')
            .fold(self, |node, name| node.children.get(name).unwrap_or_else(|| panic!("no node {name}")))
    }

    fn property(&self, name: &str) -> &[u8] {
        self.properties.get(name).unwrap_or_else(|| panic!("no property {name}"))
    }

    pub(super) fn cells(&self, name: &str) -> Vec<u32> {
        let (words, rest) = self.property(name).as_chunks_of_four();
        assert!(rest.is_empty(), "{name} is no array of cells");
        words
    }

    pub(super) fn u64s(&self, name: &str) -> Vec<u64> {
        self.cells(name).chunks(2).map(|c| u64::from(c[0]) << 32 | u64::from(c[1])).collect()
    }

    pub(super) fn strings(&self, name: &str) -> Vec<&str> {
        let text = std::str::from_utf8(self.property(name)).unwrap();
        text.strip_suffix('\0').unwrap().split('\0').collect()
    }
}

trait Words {
    fn as_chunks_of_four(&self) -> (Vec<u32>, &[u8]);
}

impl Words for [u8] {
    fn as_chunks_of_four(&self) -> (Vec<u32>, &[u8]) {
        let chunks = self.chunks_exact(4);
        let rest = chunks.remainder();
        (chunks.map(|c| u32::from_be_bytes(c.try_into().unwrap())).collect(), rest)
    }
}

/// The root node of a blob.
pub(super) fn read(blob: &[u8]) -> Node {
    let word = |at: usize| u32::from_be_bytes(blob[at..at + 4].try_into().unwrap()) as usize;
    assert_eq!(word(0), 0xd00d_feed, "magic");
    assert_eq!(word(4), blob.len(), "totalsize");
    let (structure, strings) = (word(8), word(12));
    assert_eq!((word(20), word(24)), (17, 16), "versions");
    let text = |at: usize| {
        let end = blob[at..].iter().position(|b| *b == 0).unwrap();
        std::str::from_utf8(&blob[at..at + end]).unwrap().to_owned()
    };
    let mut open = vec![(String::new(), Node::default())];
    let mut at = structure;
    loop {
        let token = word(at);
        at += 4;
        match token {
            1 => {
                let name = text(at);
                at = (at + name.len() + 4) & !3;
                open.push((name, Node::default()));
            }
            2 => {
                let (name, node) = open.pop().unwrap();
                let parent = &mut open.last_mut().expect("one end too many").1;
                assert!(parent.children.insert(name.clone(), node).is_none(), "two nodes {name}");
            }
            3 => {
                let (len, name) = (word(at), text(strings + word(at + 4)));
                let value = blob[at + 8..at + 8 + len].to_vec();
                at = (at + 8 + len + 3) & !3;
                let node = &mut open.last_mut().unwrap().1;
                assert!(node.children.is_empty(), "property {name} after a child");
                assert!(node.properties.insert(name.clone(), value).is_none(), "two properties {name}");
            }
            4 => {}
            9 => break,
            other => panic!("token {other}"),
        }
    }
    let (_, mut top) = open.pop().unwrap();
    assert!(open.is_empty(), "unclosed nodes");
    top.children.remove("").expect("a root")
}
