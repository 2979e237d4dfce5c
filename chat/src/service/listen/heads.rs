//! The time that heads of requests may take. A connection keeps one timer for all of its heads: to enter and remove one for each
//! request would take a lock of the whole runtime twice.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::rt::{Sleep, Timer};
use parking_lot::Mutex;

type Kept = Arc<Mutex<Option<Pin<Box<tokio::time::Sleep>>>>>;

/// The timer of a connection.
#[derive(Debug, Default)]
pub(super) struct HeadTimer(Kept);

/// A head that is waited for.
struct Head {
    sleep: Option<Pin<Box<tokio::time::Sleep>>>,
    kept: Kept,
}

impl Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(self.now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        let kept = self.0.lock().take();
        let sleep = match kept {
            Some(mut sleep) => {
                sleep.as_mut().reset(deadline.into());
                sleep
            }
            None => Box::pin(tokio::time::sleep_until(deadline.into())),
        };
        Box::pin(Head { sleep: Some(sleep), kept: Arc::clone(&self.0) })
    }

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into()
    }
}

impl Future for Head {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.sleep.as_mut().map_or(Poll::Ready(()), |sleep| sleep.as_mut().poll(cx))
    }
}

impl Sleep for Head {}

impl Drop for Head {
    fn drop(&mut self) {
        *self.kept.lock() = self.sleep.take();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_head_has_all_of_its_time_though_their_timer_is_one() {
        let (timer, limit) = (HeadTimer::default(), Duration::from_secs(30));
        let began = tokio::time::Instant::now();
        for _ in 0..3 {
            let mut head = timer.sleep(limit);
            assert!(tokio::time::timeout(limit / 2, head.as_mut()).await.is_err(), "it came in time");
            drop(head);
            assert!(timer.0.lock().is_some(), "it is kept");
        }
        // It ends once while a request is answered.
        tokio::time::sleep(limit * 2).await;
        timer.sleep(limit).await;
        assert_eq!(began.elapsed(), limit / 2 * 3 + limit * 2 + limit);
    }
}
