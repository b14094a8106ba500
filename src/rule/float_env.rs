//! The processor's floating-point control word. A thread may have set it to round another way or to
//! flush subnormals, as `torch.set_flush_denormal` does.

use std::hint::black_box;

/// `work(input)`, computed with rounding to nearest even and with subnormals kept.
pub(crate) fn in_standard_env<I, R>(input: I, work: impl FnOnce(I) -> R) -> R {
    let _standard = FloatEnv::standard();
    // Keeps the compiler from moving arithmetic across the two changes of the control word.
    black_box(work(black_box(input)))
}

/// A guard: while it lives, this thread rounds to nearest even and keeps subnormals. Dropping it
/// restores the control word.
///
/// The compiler does not know that arithmetic depends on the control word. Only arithmetic on
/// values that were read from memory after the guard was made, or that went through [`black_box`],
/// is sure to be done under it.
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

    /// MXCSR: rounds to nearest even, keeps subnormals, masks exceptions.
    const STANDARD: Word = 0x1f80;

    /// The flags of exceptions that have occurred. They change no result.
    const MET: Word = 0x3f;

    #[inline]
    pub(super) fn is_standard(word: Word) -> bool {
        word & !MET == STANDARD
    }

    #[inline]
    pub(super) fn standard_with_flags_of(word: Word) -> Word {
        with_flags_of(STANDARD, word)
    }

    /// `word` with the exception flags of `met` in place of its own.
    #[inline]
    pub(super) fn with_flags_of(word: Word, met: Word) -> Word {
        word & !MET | met & MET
    }

    #[inline]
    pub(super) fn read() -> Word {
        let mut word: Word = 0;
        // SAFETY: the instruction writes four bytes, the control word, to `word`, which has four.
        unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut word, options(nostack, preserves_flags)) };
        word
    }

    #[inline]
    pub(super) fn write(word: Word) {
        // SAFETY: the instruction reads four bytes from `word`, which has four. They are made of
        // the standard word and of words that were read from the register, so no reserved bit is
        // set.
        unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const word, options(nostack)) };
    }
}

#[cfg(all(target_arch = "aarch64", not(miri)))]
mod word {
    use std::arch::asm;

    pub(super) type Word = u64;

    /// FPCR: rounds to nearest even, keeps subnormals and NaNs, traps nothing. The exception flags
    /// are in another register.
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
        // SAFETY: reading FPCR needs no privilege and changes nothing.
        unsafe { asm!("mrs {}, fpcr", out(reg) word, options(nostack, preserves_flags)) };
        word
    }

    #[inline]
    pub(super) fn write(word: Word) {
        // SAFETY: writing FPCR needs no privilege. The word is the standard one or was read from
        // the register.
        unsafe { asm!("msr fpcr, {}", in(reg) word, options(nostack, preserves_flags)) };
    }
}

/// Where the control word is out of reach, the thread's own rounding applies.
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
