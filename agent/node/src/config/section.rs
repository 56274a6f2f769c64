//! One declaration per section gives the struct, its defaults and the comments of the sample file.

/// A section with a comment for each key.
pub(super) trait Section {
    /// Lines of comment above the section.
    const ABOUT: &'static [&'static str];
    /// Key and its lines of comment, in the order of the sample file.
    const KEYS: &'static [(&'static str, &'static [&'static str])];
}

/// Declares structs whose keys have a default each: `/// comment` `Name { /// comment` `key: Type = default, .. }`.
/// The doc comments are what the sample file says, so neither can be without the other.
macro_rules! sections {
    ($( $(#[doc = $about:literal])* $name:ident {
        $( $(#[doc = $comment:literal])* $key:ident : $ty:ty = $default:expr, )*
    } )*) => { $(
        $(#[doc = $about])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            $( $(#[doc = $comment])* pub $key: $ty, )*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $key: $default, )* }
            }
        }

        impl section::Section for $name {
            const ABOUT: &'static [&'static str] = &[$($about),*];
            const KEYS: &'static [(&'static str, &'static [&'static str])] =
                &[$( (stringify!($key), &[$($comment),*]) ),*];
        }
    )* };
}

pub(super) use sections;
