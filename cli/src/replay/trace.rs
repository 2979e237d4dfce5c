//! Access traces: recorded ones, and a generated one that runs anywhere.
//!
//! A recorded trace is an xz file of big-endian 32-bit integers, one per access; equal integers are the same row.

use std::collections::HashMap;
use std::fmt::Display;
use std::fs::File;
use std::io::{BufReader, ErrorKind, Read};
use std::path::Path;

use anyhow::{Context, bail};

/// What is read, in order.
#[derive(Debug)]
pub(super) struct Trace {
    /// Each access, as the place of its row in `ids`.
    pub(super) accesses: Vec<u32>,
    /// The id of each distinct row, in the order of their first access.
    pub(super) ids: Vec<i64>,
}

/// What a file may ask for to be unpacked. `xz -9` asks for 65 MiB; a corrupt header may ask for 4 GiB.
const MAX_MEMORY_KIB: u32 = 128 << 10;

const XZ_MAGIC: [u8; 6] = [0xFD, b'7', b'z', b'X', b'Z', 0];

impl Trace {
    /// The first `limit` accesses of a file, from its beginning again where it has fewer.
    pub(super) fn recorded(path: &Path, limit: Option<usize>) -> anyhow::Result<Self> {
        let name = path.display();
        let file = File::open(path).with_context(|| format!("TRACE: {name} can't be opened"))?;
        Self::read(BufReader::new(file), &name, limit)
    }

    pub(super) fn read(
        mut file: impl Read,
        name: &dyn Display,
        limit: Option<usize>,
    ) -> anyhow::Result<Self> {
        let mut magic = [0; 6];
        let read = file.read(&mut magic).with_context(|| format!("TRACE: {name} can't be read"))?;
        if magic[..read] != XZ_MAGIC {
            bail!("TRACE: {name} is not a trace: an xz file of big-endian 32-bit integers, one per access");
        }
        let mut reader = BufReader::new(lzma_rust2::XzReader::new_mem_limit(
            magic.as_slice().chain(file),
            true,
            MAX_MEMORY_KIB,
        ));
        let mut accesses = Vec::new();
        while limit.is_none_or(|limit| accesses.len() < limit) {
            match read_word(&mut reader) {
                Ok(Some(word)) => accesses.push(word),
                Ok(None) => break,
                Err(_broken) => {
                    bail!("TRACE: {name} is cut short or corrupt after {} accesses", accesses.len())
                }
            }
        }
        if accesses.is_empty() {
            bail!("TRACE: {name} holds no access");
        }
        let missing = limit.unwrap_or(0).saturating_sub(accesses.len());
        for at in 0..missing {
            accesses.push(accesses[at]);
        }
        Ok(Self::from_raw(&accesses))
    }

    /// `count` accesses to `keys` rows by Zipf's law with exponent 1: the k-th most frequent is read 1/k as often as the
    /// first.
    pub(super) fn zipf(keys: u32, count: usize, seed: u64) -> Self {
        let mut sums = Vec::with_capacity(keys as usize);
        let mut sum = 0.0;
        for rank in 1..=keys {
            sum += 1.0 / f64::from(rank);
            sums.push(sum);
        }
        let mut random = Random(seed);
        let raw: Vec<u32> = (0..count)
            .map(|_| {
                let drawn = random.unit() * sum;
                let at = sums.partition_point(|s| *s < drawn);
                // Spread, so that neighbours in rank are not neighbours in the table.
                u32::try_from(at).unwrap_or(u32::MAX).wrapping_mul(0x9E37_79B1)
            })
            .collect();
        Self::from_raw(&raw)
    }

    fn from_raw(raw: &[u32]) -> Self {
        let mut places: HashMap<u32, u32> = HashMap::new();
        let mut ids = Vec::new();
        let accesses = raw
            .iter()
            .map(|id| {
                *places.entry(*id).or_insert_with(|| {
                    ids.push(i64::from(*id));
                    u32::try_from(ids.len() - 1).unwrap_or(u32::MAX)
                })
            })
            .collect();
        Self { accesses, ids }
    }
}

/// The next integer; none where the input ends, whole as far as xz can tell, between two of them.
fn read_word(reader: &mut impl Read) -> std::io::Result<Option<u32>> {
    let mut word = [0; 4];
    let mut filled = 0;
    while filled < word.len() {
        match reader.read(&mut word[filled..])? {
            0 if filled == 0 => return Ok(None),
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            read => filled += read,
        }
    }
    Ok(Some(u32::from_be_bytes(word)))
}

/// `SplitMix64` (Steele, Lea, Flood, 2014): good enough to choose keys with, and the same everywhere.
#[derive(Debug, Clone)]
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// In 0..1.
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
    pub(super) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kept_trace_of_the_fuzzer_is_read_or_refused() {
        let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/trace");
        let (mut read, mut refused) = (0, 0);
        for file in std::fs::read_dir(kept).unwrap() {
            match Trace::recorded(&file.unwrap().path(), Some(10_000)) {
                Ok(trace) => {
                    assert!(trace.accesses.iter().all(|at| (*at as usize) < trace.ids.len()));
                    read += 1;
                }
                Err(_) => refused += 1,
            }
        }
        assert!(read > 0 && refused > 0, "{read} read, {refused} refused");
    }

    #[test]
    fn a_generated_trace_is_the_same_for_the_same_seed_and_skewed() {
        let (one, two) = (Trace::zipf(1_000, 10_000, 7), Trace::zipf(1_000, 10_000, 7));
        assert_eq!(one.accesses, two.accesses);
        let mut counts = vec![0; one.ids.len()];
        one.accesses.iter().for_each(|at| counts[*at as usize] += 1);
        let hottest = counts.iter().max().copied().unwrap_or_default();
        assert!((1_000..1_700).contains(&hottest), "1/H(1000) = 13 % of all: {hottest}");
    }

    #[test]
    fn what_is_no_trace_is_refused() {
        let dir = std::env::temp_dir().join(format!("perto-trace-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        for (name, bytes) in [
            ("text", b"hello world".as_slice()),
            ("empty", b""),
            ("head", &[0xFD, b'7', b'z', b'X', b'Z', 0, 0, 4]),
        ] {
            let path = dir.join(name);
            std::fs::write(&path, bytes).unwrap();
            let error = Trace::recorded(&path, None).unwrap_err().to_string();
            assert!(error.starts_with("TRACE: ") && error.contains(name), "{error}");
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
