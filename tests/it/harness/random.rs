//! Random choices that come again: whoever knows the seed gets the same ones.

/// xorshift64*.
pub struct Random(u64);

impl Random {
    /// Neighbouring seeds give unlike numbers (splitmix64's mixing).
    pub fn new(seed: u64) -> Random {
        let seed = (seed ^ seed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let seed = (seed ^ seed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        Random((seed ^ seed >> 31).max(1))
    }

    /// A number from 0 up to, and not with, `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
        usize::try_from(high).expect("31 bits") % bound
    }

    /// True this often out of a hundred times.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }
}

/// The seed in `PGT_SEED`, which makes a failure come again.
pub fn given_seed() -> Option<u64> {
    std::env::var("PGT_SEED").ok().map(|text| text.parse().expect("PGT_SEED is a number"))
}

/// The seed in `PGT_SEED`, or a new one.
pub fn seed() -> u64 {
    given_seed().unwrap_or_else(|| getrandom::u64().expect("random bytes"))
}
