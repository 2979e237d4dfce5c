//! A stream that breaks where its other end takes too little for too long: it would hold its place, and its answer, for ever.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// What a client must take of an answer, in bytes a second.
const MIN_RATE: usize = 4 * 1024;
/// Over what time. Who takes nothing is left after it.
const STRETCH: Duration = Duration::from_secs(30);
const LEAST: usize = MIN_RATE * 30;

pub(super) struct Impatient<S> {
    stream: S,
    waiting: Option<Waiting>,
    /// Called where it is left with something unsent.
    reset: fn(&S),
}

/// Something is to be sent, and can't be.
struct Waiting {
    until: Pin<Box<Sleep>>,
    taken: usize,
}

impl<S> Impatient<S> {
    pub(super) const fn new(stream: S, reset: fn(&S)) -> Self {
        Self { stream, waiting: None, reset }
    }

    fn limited(&mut self, cx: &mut Context<'_>, wrote: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(wrote) = wrote {
            if let (Some(waiting), Ok(bytes)) = (&mut self.waiting, &wrote) {
                waiting.taken += bytes;
            }
            return Poll::Ready(wrote);
        }
        let new = || Waiting { until: Box::pin(tokio::time::sleep(STRETCH)), taken: 0 };
        let waiting = self.waiting.get_or_insert_with(new);
        loop {
            ready!(waiting.until.as_mut().poll(cx));
            if waiting.taken < LEAST {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            waiting.taken = 0;
            waiting.until.as_mut().reset(Instant::now() + STRETCH);
        }
    }

    /// Of what brings no bytes out: it ends the wait.
    fn ended(&mut self, cx: &mut Context<'_>, done: Poll<io::Result<()>>) -> Poll<io::Result<()>> {
        match done {
            Poll::Ready(done) => {
                self.waiting = None;
                Poll::Ready(done)
            }
            Poll::Pending => self.limited(cx, Poll::Pending).map_ok(|_none| ()),
        }
    }
}

impl<S> Drop for Impatient<S> {
    fn drop(&mut self) {
        if self.waiting.is_some() {
            (self.reset)(&self.stream);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Impatient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

/// Who flushes has nothing left to send: then nobody is waited for, until more comes.
impl<S: AsyncWrite + Unpin> AsyncWrite for Impatient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.limited(cx, wrote)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.stream).poll_write_vectored(cx, pieces);
        self.limited(cx, wrote)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.ended(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.ended(cx, shut)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    static RESETS: AtomicU32 = AtomicU32::new(0);

    fn count(_: &DuplexStream) {
        RESETS.fetch_add(1, Ordering::Relaxed);
    }

    /// How the sending of a mebibyte ends for who takes so much each so often, and after how long.
    async fn sent(piece: usize, each: Duration) -> (io::Result<()>, Duration) {
        let (ours, mut theirs) = duplex(64 * 1024);
        let mut stream = Impatient::new(ours, count);
        let began = Instant::now();
        let answer = vec![7; 1024 * 1024];
        let sending = async {
            stream.write_all(&answer).await?;
            stream.flush().await
        };
        let taking = async {
            let mut taken = vec![0; piece];
            loop {
                tokio::time::sleep(each).await;
                if theirs.read_exact(&mut taken).await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let ended = tokio::select! { ended = sending => ended, () = taking => Ok(()) };
        (ended, began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_or_next_to_nothing_is_left_and_who_is_slow_is_not() {
        let (nothing, after) = sent(1, Duration::from_hours(1)).await;
        assert_eq!((nothing.unwrap_err().kind(), after), (io::ErrorKind::TimedOut, STRETCH));
        let (drops, after) = sent(64, Duration::from_secs(8)).await;
        assert_eq!((drops.unwrap_err().kind(), after), (io::ErrorKind::TimedOut, STRETCH));
        assert_eq!(RESETS.load(Ordering::Relaxed), 2, "nothing of it is kept");
        let (slow, after) = sent(MIN_RATE * 10, Duration::from_secs(9)).await;
        assert!(slow.is_ok() && after > STRETCH * 4, "{slow:?} after {after:?}");
        assert_eq!(RESETS.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_enough_at_first_and_nothing_then_is_left_after_the_next_stretch() {
        let (ours, mut theirs) = duplex(1024);
        let mut stream = Impatient::new(ours, |_| {});
        let began = Instant::now();
        let answer = vec![7; 2 * LEAST];
        let taking = async {
            theirs.read_exact(&mut vec![0; LEAST + 1]).await.unwrap();
            tokio::time::sleep(STRETCH * 10).await;
        };
        tokio::select! {
            sent = stream.write_all(&answer) => assert_eq!(sent.unwrap_err().kind(), io::ErrorKind::TimedOut),
            () = taking => panic!("it waits for ever"),
        }
        assert_eq!(began.elapsed(), STRETCH * 2);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_taken_before_does_not_count_for_what_is_to_be_taken() {
        let (ours, mut theirs) = duplex(10);
        let mut stream = Impatient::new(ours, |_| {});
        for _ in 0..10 {
            let sending = async {
                stream.write_all(&[7; 20]).await.unwrap();
                stream.flush().await.unwrap();
            };
            tokio::join!(sending, async {
                tokio::time::sleep(STRETCH / 2).await;
                theirs.read_exact(&mut [0; 20]).await.unwrap();
            });
        }
        let began = Instant::now();
        let refused = stream.write_all(&[7; 20]).await.unwrap_err();
        assert_eq!((refused.kind(), began.elapsed()), (io::ErrorKind::TimedOut, STRETCH));
    }
}
