//! The processor's floating-point control word, which a thread may have set to round another way or
//! to flush subnormals (`torch.set_flush_denormal` does).

use std::hint::black_box;

/// What `work` makes of `input` with rounding to nearest even, and subnormals as they are.
pub(crate) fn in_standard_env<I, R>(input: I, work: impl FnOnce(I) -> R) -> R {
    let _standard = FloatEnv::standard();
    // So that the arithmetic stays between the two changes of the control word.
    black_box(work(black_box(input)))
}

/// Rounding to nearest even, and subnormals as they are, for as long as this lives. When dropped,
/// the control word is what it was before.
///
/// The compiler does not know that arithmetic depends on the control word. What is computed from
/// values that were read from memory after this was made, or that went through [`black_box`], is
/// computed under it.
#[derive(Debug)]
pub(crate) struct FloatEnv {
    before: Option<word::Word>,
}

impl FloatEnv {
    #[inline]
    pub(crate) fn standard() -> Self {
        let before = word::read();
        if word::is_standard(before) {
            return Self { before: None };
        }
        word::write(word::standard_with_flags_of(before));
        Self { before: Some(before) }
    }
}

impl Drop for FloatEnv {
    #[inline]
    fn drop(&mut self) {
        if let Some(before) = self.before {
            word::write(word::with_flags_of(before, word::read()));
        }
    }
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
mod word {
    use std::arch::asm;

    pub(super) type Word = u32;

    /// MXCSR: nearest even, subnormals kept, exceptions masked.
    const STANDARD: Word = 0x1f80;

    /// The bits that say which exceptions have been met, and change no result.
    const MET: Word = 0x3f;

    #[inline]
    pub(super) fn is_standard(word: Word) -> bool {
        word & !MET == STANDARD
    }

    #[inline]
    pub(super) fn standard_with_flags_of(word: Word) -> Word {
        with_flags_of(STANDARD, word)
    }

    /// A control word that tells of the exceptions that the other has met: none is forgotten.
    #[inline]
    pub(super) fn with_flags_of(word: Word, met: Word) -> Word {
        word & !MET | met & MET
    }

    #[inline]
    pub(super) fn read() -> Word {
        let mut word: Word = 0;
        // SAFETY: the instruction writes the control word, four bytes, to a place that has as many.
        unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut word, options(nostack, preserves_flags)) };
        word
    }

    #[inline]
    pub(super) fn write(word: Word) {
        // SAFETY: the word is made of the standard one and of words that were read from the
        // register, so that no reserved bit is set.
        unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const word, options(nostack)) };
    }
}

#[cfg(all(target_arch = "aarch64", not(miri)))]
mod word {
    use std::arch::asm;

    pub(super) type Word = u64;

    /// FPCR: nearest even, subnormals and NaNs kept, no traps. The flags are in another register.
    const STANDARD: Word = 0;

    #[inline]
    pub(super) fn is_standard(word: Word) -> bool {
        word == STANDARD
    }

    #[inline]
    pub(super) fn standard_with_flags_of(_: Word) -> Word {
        STANDARD
    }

    #[inline]
    pub(super) fn with_flags_of(word: Word, _: Word) -> Word {
        word
    }

    #[inline]
    pub(super) fn read() -> Word {
        let word: Word;
        // SAFETY: every program may read the register.
        unsafe { asm!("mrs {}, fpcr", out(reg) word, options(nostack, preserves_flags)) };
        word
    }

    #[inline]
    pub(super) fn write(word: Word) {
        // SAFETY: every program may write the register; the word is the standard one, or was read
        // from it.
        unsafe { asm!("msr fpcr, {}", in(reg) word, options(nostack, preserves_flags)) };
    }
}

/// Where the control word is out of reach, results are as the caller's thread rounds.
#[cfg(any(miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
mod word {
    pub(super) type Word = ();

    pub(super) fn is_standard((): Word) -> bool {
        true
    }

    pub(super) fn standard_with_flags_of((): Word) -> Word {}

    pub(super) fn with_flags_of((): Word, (): Word) -> Word {}

    pub(super) fn read() -> Word {}

    pub(super) fn write((): Word) {}
}
