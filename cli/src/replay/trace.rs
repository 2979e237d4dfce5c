//! Access traces as people have them, and a generated one that runs anywhere.
//!
//! A recorded trace is plain, or packed by gzip, xz or Zstandard. Inside it is one of these:
//!
//! - a key a line;
//! - CSV: time, key and operation, or the seven columns of Twitter's published cache traces (time, key, size of the key, of the value,
//!   client, operation, time to live; <https://github.com/twitter/cache-trace>), with or without a head;
//! - big-endian 32-bit integers.
//!
//! One an access; equal keys are the same row.

use std::collections::HashMap;
use std::fmt::Display;
use std::fs::File;
use std::hash::{DefaultHasher, Hasher};
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, bail};

/// What is done, in order.
#[derive(Debug)]
pub(super) struct Trace {
    /// Each access, as the place of its row in `ids`.
    pub(super) accesses: Vec<u32>,
    /// Which accesses write; `None` where the trace doesn't say.
    pub(super) writes: Option<Vec<bool>>,
    /// The id of each distinct row, in the order of their first access.
    pub(super) ids: Vec<i64>,
}

/// How accesses are written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// A key a line.
    Lines,
    /// Time, key, operation; or the columns of Twitter's traces.
    Csv,
    /// Big-endian 32-bit integers.
    Words,
}

impl Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Lines => "lines",
            Self::Csv => "csv",
            Self::Words => "words",
        })
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "lines" => Ok(Self::Lines),
            "csv" => Ok(Self::Csv),
            "words" => Ok(Self::Words),
            _ => Err(format!("{text:?} is none of lines, csv and words")),
        }
    }
}

/// What a file may ask for to be unpacked. `xz -9` asks for 65 MiB; a corrupt header may ask for 4 GiB. Zstandard's
/// decoder has a limit of its own, 100 MiB.
const MAX_MEMORY_KIB: u32 = 128 << 10;
/// Longest line.
const MAX_LINE: u64 = 64 << 10;
/// How much is looked at to find the format.
const HEAD: u64 = 4 << 10;

impl Trace {
    /// The first `limit` accesses of a file, from its beginning again where it has fewer. Without a format it is found by
    /// looking.
    pub(super) fn recorded(
        path: &Path,
        format: Option<Format>,
        limit: Option<usize>,
    ) -> anyhow::Result<Self> {
        let name = path.display();
        let file = File::open(path).with_context(|| format!("TRACE: {name} can't be opened"))?;
        Self::read(BufReader::new(file), &name, format, limit)
    }

    pub(super) fn read(
        file: impl BufRead,
        name: &dyn Display,
        format: Option<Format>,
        limit: Option<usize>,
    ) -> anyhow::Result<Self> {
        let (mut reader, packed) = unpacked(file).with_context(|| format!("TRACE: {name} can't be read"))?;
        let mut head = Vec::new();
        if (&mut reader).take(HEAD).read_to_end(&mut head).is_err() {
            bail!("TRACE: {name} is cut short or corrupt after 0 accesses");
        }
        let Some(format) = format.or_else(|| Format::of(&head, packed)) else {
            bail!(
                "TRACE: {name} is not a trace: a key a line, CSV of time, key and operation, or with `--format words` big-endian \
                 32-bit integers; plain, or packed by gzip, xz or zstd"
            );
        };
        let reader = BufReader::new(head.as_slice().chain(reader));
        let (accesses, writes, broken) = match format {
            Format::Words => words(reader, limit),
            Format::Lines => lines(reader, limit),
            Format::Csv => csv(reader, limit),
        };
        match broken {
            Some(Broken::Short) => {
                bail!("TRACE: {name} is cut short or corrupt after {} accesses", accesses.len())
            }
            Some(Broken::Line(problem)) => {
                bail!("TRACE: {name}, after {} accesses: {problem}", accesses.len())
            }
            None if accesses.is_empty() => bail!("TRACE: {name} holds no access"),
            None => {}
        }
        Ok(Self::from_raw(&accesses, writes, limit, format == Format::Words))
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
        let raw: Vec<u64> = (0..count)
            .map(|_| {
                let drawn = random.unit() * sum;
                let at = sums.partition_point(|s| *s < drawn);
                // Spread, so that neighbours in rank are not neighbours in the table.
                u64::from(u32::try_from(at).unwrap_or(u32::MAX).wrapping_mul(0x9E37_79B1))
            })
            .collect();
        Self::from_raw(&raw, None, None, true)
    }

    /// Of words the ids are the words themselves; of texts, in turn.
    fn from_raw(raw: &[u64], writes: Option<Vec<bool>>, limit: Option<usize>, words: bool) -> Self {
        let mut places: HashMap<u64, u32> = HashMap::new();
        let mut ids = Vec::new();
        let place = |key: &u64| {
            *places.entry(*key).or_insert_with(|| {
                let next = i64::try_from(ids.len()).unwrap_or(i64::MAX);
                ids.push(if words { i64::try_from(*key).unwrap_or(i64::MAX) } else { next });
                u32::try_from(ids.len() - 1).unwrap_or(u32::MAX)
            })
        };
        let accesses: Vec<u32> = raw.iter().map(place).collect();
        let count = limit.unwrap_or(0).max(accesses.len());
        Self {
            accesses: accesses.iter().copied().cycle().take(count).collect(),
            writes: writes.map(|writes| writes.iter().copied().cycle().take(count).collect()),
            ids,
        }
    }

    /// Whether an access writes, where the trace says so.
    pub(super) fn writes_at(&self, access: usize) -> Option<bool> {
        self.writes.as_ref().map(|writes| writes.get(access).copied().unwrap_or(false))
    }
}

impl Format {
    /// By how the file begins. Integers that are not packed may be anything, so they have to be said.
    fn of(head: &[u8], packed: bool) -> Option<Self> {
        let text = head.iter().all(|byte| *byte >= b' ' && *byte != 0x7f || b"\t\r\n".contains(byte));
        if !text || head.is_empty() {
            return packed.then_some(Self::Words);
        }
        let first = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let columns = first.iter().filter(|byte| **byte == b',').count() + 1;
        Some(if columns == 3 || columns == TWITTER.columns { Self::Csv } else { Self::Lines })
    }
}

/// The file without its packing, and whether it had one. Several packed files in a row are one.
fn unpacked<'a>(mut file: impl BufRead + 'a) -> std::io::Result<(Box<dyn Read + 'a>, bool)> {
    let mut magic = Vec::new();
    (&mut file).take(6).read_to_end(&mut magic)?;
    let kind = magic.clone();
    let file = std::io::Cursor::new(magic).chain(file);
    Ok(match &kind[..] {
        [0xFD, b'7', b'z', b'X', b'Z', 0] => {
            (Box::new(lzma_rust2::XzReader::new_mem_limit(file, true, MAX_MEMORY_KIB)), true)
        }
        [0x1F, 0x8B, ..] => (Box::new(flate2::bufread::MultiGzDecoder::new(file)), true),
        [0x28, 0xB5, 0x2F, 0xFD, ..] => (Box::new(Frames { file, frame: None }), true),
        _ => (Box::new(file), false),
    })
}

/// The frames of a file packed by Zstandard, one after the other.
struct Frames<R: Read> {
    file: R,
    frame: Option<ruzstd::decoding::FrameDecoder>,
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
        let broken = |_error| std::io::Error::from(ErrorKind::InvalidData);
        loop {
            let frame = match &mut self.frame {
                Some(frame) => frame,
                None if self.file.fill_buf()?.is_empty() => return Ok(0),
                none => {
                    let mut frame = FrameDecoder::new();
                    frame.init(&mut self.file).map_err(broken)?;
                    none.insert(frame)
                }
            };
            if !frame.is_finished() && frame.can_collect() == 0 {
                let some = BlockDecodingStrategy::UptoBytes(into.len().max(1));
                frame.decode_blocks(&mut self.file, some).map_err(|_error| ErrorKind::InvalidData)?;
            }
            let read = frame.read(into)?;
            if read > 0 || into.is_empty() {
                return Ok(read);
            }
            if frame.is_finished() {
                self.frame = None;
            }
        }
    }
}

enum Broken {
    /// It ends where it should go on, or what is packed makes no sense.
    Short,
    Line(String),
}

/// Accesses by the number of their key; which of them write; and what ended them before the limit and the end.
type Accesses = (Vec<u64>, Option<Vec<bool>>, Option<Broken>);

fn words(mut reader: impl Read, limit: Option<usize>) -> Accesses {
    let mut accesses = Vec::new();
    let broken = loop {
        if limit.is_some_and(|limit| accesses.len() >= limit) {
            break None;
        }
        match read_word(&mut reader) {
            Ok(Some(word)) => accesses.push(u64::from(word)),
            Ok(None) => break None,
            Err(_broken) => break Some(Broken::Short),
        }
    };
    (accesses, None, broken)
}

/// The next integer; none where the input ends, whole as far as its packing can tell, between two of them.
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

/// Gives each line that holds something to `take`, without its end, until it has enough or refuses one.
fn each_line(
    mut reader: impl BufRead,
    mut take: impl FnMut(&[u8]) -> Result<bool, String>,
) -> Option<Broken> {
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line) {
            Err(_broken) => return Some(Broken::Short),
            Ok(0) => return None,
            Ok(read) if read as u64 == MAX_LINE && line.last() != Some(&b'\n') => {
                return Some(Broken::Line(format!("a line is longer than {MAX_LINE} bytes")));
            }
            Ok(_) => {}
        }
        let text = line.trim_ascii();
        if text.is_empty() {
            continue;
        }
        match take(text) {
            Ok(true) => {}
            Ok(false) => return None,
            Err(problem) => return Some(Broken::Line(problem)),
        }
    }
}

fn lines(reader: impl BufRead, limit: Option<usize>) -> Accesses {
    let mut accesses = Vec::new();
    let broken = each_line(reader, |key| {
        accesses.push(number(key));
        Ok(limit.is_none_or(|limit| accesses.len() < limit))
    });
    (accesses, None, broken)
}

/// Where the key and the operation stand.
struct Columns {
    columns: usize,
    key: usize,
    operation: usize,
}

const SHORT: Columns = Columns { columns: 3, key: 1, operation: 2 };
const TWITTER: Columns = Columns { columns: 7, key: 1, operation: 5 };

fn csv(reader: impl BufRead, limit: Option<usize>) -> Accesses {
    let (mut accesses, mut writes, mut first) = (Vec::new(), Vec::new(), true);
    let broken = each_line(reader, |line| {
        let cells: Vec<&[u8]> = line.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).collect();
        let Some(at) = [SHORT, TWITTER].into_iter().find(|at| at.columns == cells.len()) else {
            return Err(format!("a line has {} columns, neither 3 nor 7", cells.len()));
        };
        let write = is_write(cells[at.operation]);
        let head = std::mem::take(&mut first) && write.is_none();
        if head {
            return Ok(true);
        }
        let Some(write) = write else {
            let operation = String::from_utf8_lossy(cells[at.operation]);
            return Err(format!(
                "{operation:?} is no operation: get, gets, set, add, replace, cas, append, prepend, incr, decr or delete"
            ));
        };
        accesses.push(number(cells[at.key]));
        writes.push(write);
        Ok(limit.is_none_or(|limit| accesses.len() < limit))
    });
    (accesses, Some(writes), broken)
}

fn is_write(operation: &[u8]) -> Option<bool> {
    match operation.to_ascii_lowercase().as_slice() {
        b"get" | b"gets" | b"read" => Some(false),
        b"set" | b"add" | b"replace" | b"cas" | b"append" | b"prepend" | b"incr" | b"decr" | b"delete"
        | b"write" => Some(true),
        _ => None,
    }
}

/// A text's number, the same in each run. Two texts with one number would be one row: of a million, with a likelihood of 1 in
/// 30 million.
fn number(key: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(key);
    hasher.finish()
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
            match Trace::recorded(&file.unwrap().path(), None, Some(10_000)) {
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
            ("binary", b"hello\0world".as_slice()),
            ("empty", b""),
            ("head", &[0xFD, b'7', b'z', b'X', b'Z', 0, 0, 4]),
        ] {
            let path = dir.join(name);
            std::fs::write(&path, bytes).unwrap();
            let error = Trace::recorded(&path, None, None).unwrap_err().to_string();
            assert!(error.starts_with("TRACE: ") && error.contains(name), "{error}");
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }

    fn read(bytes: &[u8], format: Option<Format>) -> anyhow::Result<(Vec<u32>, Option<Vec<bool>>)> {
        let trace = Trace::read(bytes, &"test", format, None)?;
        Ok((trace.accesses, trace.writes))
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut packing = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut packing, bytes).unwrap();
        packing.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
    }

    const TWITTER_LINES: &[u8] = b"0,q:q:1,7,94,4,get,0\n0,q:q:2,7,94,5,set,600\n1,q:q:1,7,94,4,gets,0\n";

    #[test]
    fn a_trace_is_read_as_people_have_it_and_found_by_looking() {
        let lines = b"user:1\r\nuser:2\n\nuser:1\n";
        let csv = b"time,key,op\n0,user:1,get\n0,user:2,SET\n1,user:1,get";
        let (reads, writes) = (vec![0, 1, 0], Some(vec![false, true, false]));
        for (bytes, expected) in [
            (&lines[..], (reads.clone(), None)),
            (csv, (reads.clone(), writes.clone())),
            (TWITTER_LINES, (reads.clone(), writes)),
        ] {
            let twice = [gzip(bytes), gzip(b"\n")].concat();
            for packed in
                [bytes.to_vec(), gzip(bytes), twice, zstd(bytes), [zstd(bytes), zstd(b"\n")].concat()]
            {
                assert_eq!(read(&packed, None).unwrap(), expected);
            }
        }
        let words = [0, 0, 0, 7, 0, 0, 0, 9, 0, 0, 0, 7];
        assert_eq!(read(&gzip(&words), None).unwrap(), (reads.clone(), None));
        assert_eq!(read(&words, Some(Format::Words)).unwrap(), (reads, None));
    }

    #[test]
    fn what_is_no_trace_is_refused_and_says_what_one_is() {
        let refused = |bytes: &[u8], format| read(bytes, format).unwrap_err().to_string();
        assert!(refused(&[0, 0, 0, 7], None).contains("--format words"));
        assert!(refused(b"", None).contains("is not a trace"));
        assert!(refused(b"\n\n", None).contains("holds no access"));
        assert!(
            refused(b"1,a,get\n1,a,steal\n", None).contains("after 1 accesses: \"steal\" is no operation")
        );
        assert!(refused(b"1,a,get\n1,a\n", None).contains("2 columns"));
        assert!(refused(&[0, 0, 0, 7, 1], Some(Format::Words)).contains("cut short"));
        assert!(refused(&vec![b'x'; 70_000], None).contains("longer than"));
        for packed in [gzip(TWITTER_LINES), zstd(TWITTER_LINES)] {
            assert!(refused(&packed[..packed.len() - 4], None).contains("cut short"));
        }
    }

    #[test]
    fn a_short_trace_begins_again_with_its_writes() {
        let trace = Trace::read(TWITTER_LINES, &"test", None, Some(5)).unwrap();
        assert_eq!(trace.accesses, [0, 1, 0, 0, 1]);
        assert_eq!(
            (0..5).map(|at| trace.writes_at(at).unwrap()).collect::<Vec<_>>(),
            [false, true, false, false, true]
        );
    }
}
