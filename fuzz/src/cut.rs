//! How an input arrives: in pieces that follow from its own bytes, so that a file of the corpus is nothing but the input.

/// `input` in a few pieces, some of them empty.
pub(crate) fn pieces(input: &[u8]) -> Vec<&[u8]> {
    let mut state =
        input.iter().fold(FNV_OFFSET, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(FNV_PRIME));
    let mut draw = || {
        state = state.wrapping_mul(KNUTH_FACTOR).wrapping_add(KNUTH_ADDEND);
        (state >> 33) as usize
    };
    let mut cuts: Vec<usize> = (0..draw() % CUTS_MAX).map(|_| draw() % (input.len() + 1)).collect();
    cuts.extend([0, input.len()]);
    cuts.sort_unstable();
    cuts.windows(2).map(|pair| &input[pair[0]..pair[1]]).collect()
}

/// `input` octet by octet.
pub(crate) fn octets(input: &[u8]) -> Vec<&[u8]> {
    input.chunks(1).collect()
}

const CUTS_MAX: usize = 8;
// FNV-1a, 64 bits (draft-eastlake-fnv section 5).
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0100_0000_01b3;
// The linear congruential generator of Knuth's MMIX.
const KNUTH_FACTOR: u64 = 6_364_136_223_846_793_005;
const KNUTH_ADDEND: u64 = 1_442_695_040_888_963_407;
