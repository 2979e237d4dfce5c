//! A limit for what a server may have us keep: the client puts an answer together in memory, however long it says that it is.
//!
//! A text that is longer than asked for is passed on as an empty one, and what is in it is left out as it comes: to an
//! empty value and to an empty hint everybody is used. What can't be made shorter ends the connection.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// Longest line: a status, a number, an error. Also of the line that says how long a text is.
const MAX_LINE: usize = 16 << 10;
/// Most things in one answer, lists in lists counted. Each takes tens of bytes of memory for as few as three that are sent. What
/// a server says of itself at the start has the most: some for each of its modules.
const MAX_THINGS: usize = 4_096;
/// What may be read in a [`WINDOW`]: several answers may be under way, each within its limit. More waits, at the server.
const WINDOW_BYTES: usize = 24 << 20;
const WINDOW: Duration = Duration::from_millis(50);
/// Read at a time.
const CHUNK: usize = 16 << 10;

/// Finds where answers begin and end, and leaves texts out that are too long.
#[derive(Debug)]
struct Frames {
    /// All texts of one answer together.
    most: usize,
    most_things: usize,
    /// Of this answer.
    texts: usize,
    things: usize,
    /// Things that are still to come, in each list that is open.
    open: Vec<u64>,
    at: At,
    line: Vec<u8>,
}

#[derive(Debug)]
enum At {
    Line,
    /// In a text, with its line end: so many bytes are left.
    Text {
        left: u64,
        passes: bool,
    },
}

fn refused(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("what Redis sends is {why}"))
}

impl Frames {
    const fn new(most: usize) -> Self {
        let most_things = MAX_THINGS;
        Self { most, most_things, texts: 0, things: 0, open: Vec::new(), at: At::Line, line: Vec::new() }
    }

    /// Appends what of `bytes` may pass.
    ///
    /// # Errors
    /// If the rest can't be told apart, or must not be kept.
    fn pass(&mut self, mut bytes: &[u8], passed: &mut Vec<u8>) -> io::Result<()> {
        while !bytes.is_empty() {
            match &mut self.at {
                At::Text { left, passes } => {
                    let here = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    if *passes {
                        passed.extend_from_slice(&bytes[..here]);
                    }
                    bytes = &bytes[here..];
                    *left -= here as u64;
                    if *left == 0 {
                        self.at = At::Line;
                        self.ended();
                    }
                }
                At::Line => {
                    let end = bytes.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
                    let (here, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
                    if self.line.len() + here.len() > MAX_LINE {
                        return Err(refused("a line that is too long"));
                    }
                    self.line.extend_from_slice(here);
                    bytes = rest;
                    if end.is_some() {
                        self.begin(passed)?;
                        self.line.clear();
                    }
                }
            }
        }
        Ok(())
    }

    /// A whole line, which begins something.
    fn begin(&mut self, passed: &mut Vec<u8>) -> io::Result<()> {
        self.things += 1;
        if self.things > self.most_things {
            return Err(refused("too many things in one answer"));
        }
        let kind = self.line[0];
        match kind {
            b'$' | b'=' | b'!' => {
                let Some(length) = self.number()? else {
                    passed.extend_from_slice(&self.line);
                    self.ended();
                    return Ok(());
                };
                let left = length.checked_add(2).ok_or_else(|| refused("a length that is none"))?;
                let all = usize::try_from(length).ok().and_then(|length| self.texts.checked_add(length));
                let passes = all.is_some_and(|all| all <= self.most);
                if passes {
                    self.texts = all.unwrap_or(self.most);
                    passed.extend_from_slice(&self.line);
                } else {
                    passed.extend_from_slice(if kind == b'$' { b"$0\r\n\r\n" } else { b"$-1\r\n" });
                }
                self.at = At::Text { left, passes };
            }
            b'*' | b'~' | b'>' | b'%' | b'|' => {
                let each = if matches!(kind, b'%' | b'|') { 2 } else { 1 };
                let count = self.number()?.unwrap_or(0).saturating_mul(each);
                // An attribute goes before the thing that it is of.
                let count = if kind == b'|' { count.saturating_add(1) } else { count };
                if count > (self.most_things - self.things) as u64 {
                    return Err(refused("a list that is too long"));
                }
                passed.extend_from_slice(&self.line);
                if count == 0 {
                    self.ended();
                } else {
                    self.open.push(count);
                }
            }
            _ => {
                passed.extend_from_slice(&self.line);
                self.ended();
            }
        }
        Ok(())
    }

    /// What the line says after its first byte. `None` where that is less than nothing: there is nothing.
    fn number(&self) -> io::Result<Option<u64>> {
        let text = std::str::from_utf8(&self.line[1..]).ok().map(str::trim_end);
        let number: i64 =
            text.and_then(|text| text.parse().ok()).ok_or_else(|| refused("a length that is none"))?;
        Ok(u64::try_from(number).ok())
    }

    /// Something has ended, and with it each list whose last thing it was.
    fn ended(&mut self) {
        while let Some(left) = self.open.last_mut() {
            *left -= 1;
            if *left > 0 {
                return;
            }
            self.open.pop();
        }
        (self.texts, self.things) = (0, 0);
    }
}

/// Bytes that have been read and that nobody has taken yet.
#[derive(Debug, Clone, Default)]
pub(crate) struct Waiting(Arc<AtomicUsize>);

impl Waiting {
    /// Some were taken.
    pub(crate) fn taken(&self, bytes: usize) {
        let less = |waiting: usize| Some(waiting.saturating_sub(bytes));
        let _always = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
    }

    /// All were.
    pub(crate) fn none_left(&self) {
        self.0.store(0, Ordering::Release);
    }
}

/// A connection that keeps within the limits.
pub(super) struct Limited<S> {
    inner: S,
    frames: Frames,
    chunk: Box<[u8]>,
    passed: Vec<u8>,
    /// So many of them have been taken.
    taken: usize,
    /// Left of the window.
    left: usize,
    began: Instant,
    next_window: Pin<Box<Sleep>>,
    /// For who takes answers later, and how many bytes may wait then.
    waiting: Option<(Waiting, usize)>,
}

impl<S> Limited<S> {
    /// No answer has more bytes of text than `most`.
    pub(super) fn new(inner: S, most: usize) -> Self {
        Self {
            inner,
            frames: Frames::new(most),
            chunk: vec![0; CHUNK].into_boxed_slice(),
            passed: Vec::new(),
            taken: 0,
            left: WINDOW_BYTES,
            began: Instant::now(),
            next_window: Box::pin(tokio::time::sleep(Duration::ZERO)),
            waiting: None,
        }
    }

    /// For an answer that has more of them.
    pub(super) const fn with_things(mut self, most: usize) -> Self {
        self.frames.most_things = most;
        self
    }

    /// Where more bytes wait than that, the connection is over.
    pub(super) fn with_waiting(mut self, waiting: Waiting, most: usize) -> Self {
        self.waiting = Some((waiting, most));
        self
    }

    fn poll_window(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.left == 0 {
            let next = self.began + WINDOW;
            if Instant::now() < next {
                self.next_window.as_mut().reset(next);
                ready!(self.next_window.as_mut().poll(cx));
            }
            (self.began, self.left) = (Instant::now(), WINDOW_BYTES);
        }
        Poll::Ready(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Limited<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.taken == this.passed.len() {
            this.passed.clear();
            this.taken = 0;
            ready!(this.poll_window(cx));
            let most = this.left.min(CHUNK);
            let mut chunk = ReadBuf::new(&mut this.chunk[..most]);
            ready!(Pin::new(&mut this.inner).poll_read(cx, &mut chunk))?;
            if chunk.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.left -= chunk.filled().len();
            this.frames.pass(chunk.filled(), &mut this.passed)?;
            if let Some((waiting, most)) = &this.waiting {
                let before = waiting.0.fetch_add(this.passed.len(), Ordering::AcqRel);
                if before + this.passed.len() > *most {
                    return Poll::Ready(Err(refused("more than is taken")));
                }
            }
        }
        let rest = &this.passed[this.taken..];
        let here = rest.len().min(into.remaining());
        into.put_slice(&rest[..here]);
        this.taken += here;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Limited<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const MOST: usize = 20;

    /// However the stream is cut.
    #[track_caller]
    fn passes(sent: &[u8], expected: &[u8]) {
        for step in 1..=sent.len() {
            let (mut frames, mut passed) = (Frames::new(MOST), Vec::new());
            for bytes in sent.chunks(step) {
                frames.pass(bytes, &mut passed).unwrap();
            }
            let (passed, expected) = (String::from_utf8_lossy(&passed), String::from_utf8_lossy(expected));
            assert_eq!(passed, expected, "in steps of {step}");
            assert!(frames.open.is_empty() && frames.texts == 0 && frames.things == 0, "{frames:?}");
        }
    }

    #[test]
    fn answers_pass_as_they_are() {
        let long = "x".repeat(MOST);
        for answer in [
            "+OK\r\n",
            "-ERR no\r\n",
            ":-1\r\n",
            "$-1\r\n",
            "$0\r\n\r\n",
            "*-1\r\n",
            "*0\r\n",
            "*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$4\r\n\r\n\r\n\r\n",
            "*2\r\n*1\r\n:1\r\n*2\r\n$-1\r\n+a\r\n",
            ">2\r\n+a\r\n,1.5\r\n",
            "%2\r\n+a\r\n:1\r\n+b\r\n*1\r\n:2\r\n",
            "|1\r\n+a\r\n:1\r\n$1\r\nx\r\n",
            "=5\r\ntxt:a\r\n",
            "!3\r\nERR\r\n",
            "_\r\n",
            &format!("${MOST}\r\n{long}\r\n"),
        ] {
            // One after the other: the first has no part in the limit of the second.
            passes(answer.repeat(2).as_bytes(), answer.repeat(2).as_bytes());
        }
    }

    #[test]
    fn a_text_that_is_too_long_is_passed_on_as_an_empty_one() {
        let long = "\r\n$5\r\n".repeat(100);
        let length = long.len();
        passes(format!("${length}\r\n{long}\r\n:1\r\n").as_bytes(), b"$0\r\n\r\n:1\r\n");
        let message = |payload: &str| format!("*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n{payload}:1\r\n");
        passes(message(&format!("${length}\r\n{long}\r\n")).as_bytes(), message("$0\r\n\r\n").as_bytes());
        // All texts of one answer together.
        passes(
            b"*3\r\n$9\r\nnine here\r\n$9\r\nnine here\r\n$9\r\nnine here\r\n",
            b"*3\r\n$9\r\nnine here\r\n$9\r\nnine here\r\n$0\r\n\r\n",
        );
    }

    #[test]
    fn what_cannot_be_made_shorter_is_refused() {
        let nested = "*1\r\n".repeat(MAX_THINGS + 1);
        let (line, list) = (format!("+{}\r\n", "x".repeat(MAX_LINE)), format!("*{MAX_THINGS}\r\n"));
        let lists = format!("*4000\r\n*4000\r\n{}", ":1\r\n".repeat(MAX_THINGS));
        for sent in [
            &*nested,
            &line,
            &line[..MAX_LINE + 1],
            &list,
            &lists,
            "*9223372036854775807\r\n",
            "%9223372036854775807\r\n",
            "$?\r\n",
            "$\r\n",
            "$18446744073709551615\r\n",
            "*x\r\n",
        ] {
            let (mut frames, mut passed) = (Frames::new(MOST), Vec::new());
            let outcome = sent.as_bytes().chunks(7).try_for_each(|bytes| frames.pass(bytes, &mut passed));
            assert!(outcome.is_err(), "{}", &sent[..sent.len().min(40)]);
            assert!(frames.line.len() <= MAX_LINE && passed.len() <= sent.len());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_is_read_in_a_window_than_it_allows() {
        let (server, client) = tokio::io::duplex(64 << 10);
        let mut limited = Limited::new(client, usize::MAX);
        let sending = async {
            let mut server = server;
            let text = format!("${}\r\n{}\r\n", 1 << 20, "x".repeat(1 << 20));
            for _ in 0..100 {
                server.write_all(text.as_bytes()).await.unwrap();
            }
        };
        let began = Instant::now();
        let reading = async {
            let mut read = Vec::new();
            limited.read_to_end(&mut read).await.unwrap();
            read.len()
        };
        let ((), read) = tokio::join!(sending, reading);
        assert!(read > 100 << 20);
        let windows = u32::try_from(read / WINDOW_BYTES).unwrap();
        assert!(
            (WINDOW * windows..WINDOW * (windows + 1)).contains(&began.elapsed()),
            "{:?}",
            began.elapsed()
        );
    }

    #[tokio::test]
    async fn what_is_not_taken_ends_the_connection() {
        let (mut server, client) = tokio::io::duplex(64 << 10);
        let waiting = Waiting::default();
        let mut limited = Limited::new(client, MOST).with_waiting(waiting.clone(), 100);
        let mut take = async || {
            server.write_all(b"$20\r\nxxxxxxxxxxxxxxxxxxxx\r\n").await.unwrap();
            limited.read(&mut [0; 64]).await
        };
        for _ in 0..10 {
            assert_eq!(take().await.unwrap(), 27);
            waiting.taken(27);
        }
        for _ in 0..3 {
            assert_eq!(take().await.unwrap(), 27);
        }
        waiting.none_left();
        for _ in 0..3 {
            assert_eq!(take().await.unwrap(), 27);
        }
        assert!(take().await.is_err());
    }
}
