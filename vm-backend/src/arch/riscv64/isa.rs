//! What a vCPU can do, and how the devicetree says it.

/// Extensions in the order of KVM's numbers for them (`enum KVM_RISCV_ISA_EXT_ID`, part of the kernel's ABI up to Linux 6.16), as the
/// devicetree binding riscv/extensions.yaml writes them. What a newer kernel adds stays unused.
pub const EXTENSIONS: [&str; 71] = [
    "a",
    "c",
    "d",
    "f",
    "h",
    "i",
    "m",
    "svpbmt",
    "sstc",
    "svinval",
    "zihintpause",
    "zicbom",
    "zicboz",
    "zbb",
    "ssaia",
    "v",
    "svnapot",
    "zba",
    "zbs",
    "zicntr",
    "zicsr",
    "zifencei",
    "zihpm",
    "smstateen",
    "zicond",
    "zbc",
    "zbkb",
    "zbkc",
    "zbkx",
    "zknd",
    "zkne",
    "zknh",
    "zkr",
    "zksed",
    "zksh",
    "zkt",
    "zvbb",
    "zvbc",
    "zvkb",
    "zvkg",
    "zvkned",
    "zvknha",
    "zvknhb",
    "zvksed",
    "zvksh",
    "zvkt",
    "zfh",
    "zfhmin",
    "zihintntl",
    "zvfh",
    "zvfhmin",
    "zfa",
    "ztso",
    "zacas",
    "sscofpmf",
    "zimop",
    "zca",
    "zcb",
    "zcd",
    "zcf",
    "zcmop",
    "zawrs",
    "smnpm",
    "ssnpm",
    "svade",
    "svadu",
    "svvptc",
    "zabha",
    "ziccrse",
    "zaamo",
    "zalrsc",
];

/// Single letters in the order that the ISA manual gives them (chapter on naming conventions).
const SINGLE_LETTERS: &str = "imafdqcbvh";

/// A set of extensions that goes into a devicetree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Isa {
    /// In canonical order.
    extensions: Vec<&'static str>,
}

impl Isa {
    /// The extensions with these numbers of KVM's, less what a guest must not see: `h`, which KVM cannot give it, and `ssaia` where there is
    /// no AIA to use it with.
    #[must_use]
    pub fn new(numbers: impl IntoIterator<Item = u64>, aia: Aia) -> Self {
        let named = numbers.into_iter().filter_map(|n| EXTENSIONS.get(usize::try_from(n).ok()?).copied());
        let mut extensions: Vec<_> =
            named.filter(|name| *name != "h" && (*name != "ssaia" || aia == Aia::Shown)).collect();
        extensions.sort_by_key(|name| (SINGLE_LETTERS.find(name).unwrap_or(usize::MAX), *name));
        extensions.dedup();
        Self { extensions }
    }

    #[must_use]
    pub fn has(&self, extension: &str) -> bool {
        self.extensions.contains(&extension)
    }

    /// For `riscv,isa-extensions`.
    #[must_use]
    pub fn names(&self) -> &[&'static str] {
        &self.extensions
    }

    /// For `riscv,isa`, e.g. `rv64imafdc_zba_zbb`.
    #[must_use]
    pub fn string(&self) -> String {
        let mut string = String::from("rv64");
        for name in &self.extensions {
            if name.len() > 1 {
                string.push('_');
            }
            string.push_str(name);
        }
        string
    }
}

/// Whether the guest is told of Ssaia.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aia {
    Shown,
    /// Its registers would leave KVM for the VMM, which has no AIA.
    Hidden,
}

/// Paging modes, as the devicetree names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mmu {
    Sv39,
    Sv48,
    Sv57,
}

impl Mmu {
    /// By the mode's number in the satp register (privileged ISA, table of satp.MODE).
    #[must_use]
    pub fn from_satp_mode(mode: u64) -> Option<Self> {
        match mode {
            8 => Some(Self::Sv39),
            9 => Some(Self::Sv48),
            10 => Some(Self::Sv57),
            _ => None,
        }
    }

    /// For `mmu-type`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sv39 => "riscv,sv39",
            Self::Sv48 => "riscv,sv48",
            Self::Sv57 => "riscv,sv57",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(name: &str) -> u64 {
        EXTENSIONS.iter().position(|e| *e == name).unwrap() as u64
    }

    #[test]
    fn extensions_come_in_canonical_order_without_those_a_guest_must_not_see() {
        let all = ["zbb", "ssaia", "c", "i", "h", "m", "zba", "d", "a", "f", "sstc"].map(number);
        let isa = Isa::new(all, Aia::Hidden);
        assert_eq!(isa.string(), "rv64imafdc_sstc_zba_zbb");
        assert_eq!(isa.names(), ["i", "m", "a", "f", "d", "c", "sstc", "zba", "zbb"]);
        assert!(Isa::new(all, Aia::Shown).has("ssaia"));
    }

    #[test]
    fn numbers_from_a_newer_kernel_are_left_out() {
        assert_eq!(Isa::new([5, 71, 4000, u64::MAX], Aia::Shown).string(), "rv64i");
    }

    /// Some of the kernel's numbers, by hand from its header.
    #[test]
    fn numbers_are_those_of_the_kernel() {
        for (n, name) in
            [(0, "a"), (14, "ssaia"), (23, "smstateen"), (46, "zfh"), (61, "zawrs"), (70, "zalrsc")]
        {
            assert_eq!(EXTENSIONS[n], name);
        }
    }
}
