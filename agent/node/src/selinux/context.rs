//! Security contexts: user:role:type:level.

use std::fmt;
use std::str::FromStr;

use hartpod_proto::cri::v1 as cri;

/// A security context of an MLS or MCS policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Context {
    pub(crate) user: String,
    pub(crate) role: String,
    pub(crate) typ: String,
    pub(crate) level: String,
}

impl FromStr for Context {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.splitn(4, ':').map(str::to_owned);
        let mut part = || parts.next().filter(|part| !part.is_empty()).ok_or(());
        Ok(Self { user: part()?, role: part()?, typ: part()?, level: part()? })
    }
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}:{}", self.user, self.role, self.typ, self.level)
    }
}

impl Context {
    /// With what the options name in place of its own.
    pub(crate) fn with(mut self, options: &cri::SeLinuxOption) -> Self {
        for (part, asked) in [
            (&mut self.user, &options.user),
            (&mut self.role, &options.role),
            (&mut self.typ, &options.r#type),
            (&mut self.level, &options.level),
        ] {
            if !asked.is_empty() {
                part.clone_from(asked);
            }
        }
        self
    }
}

/// A level as containerd takes it (internal/cri/server, checkSelinuxLevel): `s0`, `s0-s1`, `s0:c1,c5`, `s0:c1.c5`.
pub(crate) fn is_level(text: &str) -> bool {
    let number = |text: &str, letter: char| {
        let digits = text.strip_prefix(letter).unwrap_or_default();
        !digits.is_empty() && digits.len() <= 9 && digits.bytes().all(|byte| byte.is_ascii_digit())
    };
    let (range, categories) = text.split_once(':').map_or((text, None), |(range, rest)| (range, Some(rest)));
    let sensitivity = |text: &str| number(text, 's');
    let range =
        range.split_once('-').map_or_else(|| sensitivity(range), |(a, b)| sensitivity(a) && sensitivity(b));
    let category = |text: &str| number(text, 'c');
    let categories = categories.is_none_or(|list| {
        list.split(',')
            .all(|one| one.split_once('.').map_or_else(|| category(one), |(a, b)| category(a) && category(b)))
    });
    range && categories
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_by_table() {
        for good in ["s0", "s0-s15", "s0:c4,c5", "s0:c1.c1023", "s0-s0:c0.c3,c7"] {
            assert!(is_level(good), "{good}");
        }
        for bad in [
            "",
            "s",
            "0",
            "s0,c4,c5",
            "s0:",
            "s0:c",
            "s0:c1,",
            "s0:c1.c2.c3",
            "s0-s1-s2",
            "s0:c1 ",
            "s0:c1:c2",
        ] {
            assert!(!is_level(bad), "{bad}");
        }
    }

    #[test]
    fn a_context_has_four_parts_and_takes_what_is_asked() {
        let context: Context = "system_u:system_r:container_t:s0:c1,c2".parse().unwrap();
        assert_eq!(context.level, "s0:c1,c2");
        assert_eq!(context.to_string(), "system_u:system_r:container_t:s0:c1,c2");
        let options = cri::SeLinuxOption { r#type: "spc_t".into(), level: "s0".into(), ..Default::default() };
        assert_eq!(context.with(&options).to_string(), "system_u:system_r:spc_t:s0");
        for bad in ["", "a:b:c", "a::c:s0", "a:b:c:"] {
            bad.parse::<Context>().unwrap_err();
        }
    }
}
