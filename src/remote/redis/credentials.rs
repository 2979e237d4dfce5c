//! Users and passwords that somebody is asked for: tokens that live for minutes, or ones that are rotated.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use redis::{ErrorKind, RedisConnectionInfo, RedisError, RedisResult};
use tokio::time::Instant;

use crate::error::{Cause, chain};

/// How long it may take until they are there. Longer than anybody waits for a connection: what is given up goes on with the next one.
const CREDENTIALS_TIMEOUT: Duration = Duration::from_secs(2);

/// A user and its password, or a token in its place.
#[derive(Clone)]
pub struct Credentials {
    /// None is the URL's, or that of the server for who names none.
    pub user: Option<String>,
    /// The password.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

type Answer = Result<Credentials, Cause>;
type Ask = dyn Fn() -> BoxFuture<'static, Answer> + Send + Sync;

/// Whoever is asked for them. All who dial at a time share one answer.
#[derive(Clone)]
pub(super) struct Asked {
    ask: Arc<Ask>,
    under_way: Arc<Mutex<Option<UnderWay>>>,
}

struct UnderWay {
    answer: Shared<BoxFuture<'static, Answer>>,
    since: Instant,
}

#[derive(Debug, thiserror::Error)]
enum NoCredentials {
    #[error("they did not come within {CREDENTIALS_TIMEOUT:?}")]
    Late,
    #[error("whoever is asked for them panicked")]
    Panicked,
}

impl Asked {
    pub(super) fn new(ask: impl Fn() -> BoxFuture<'static, Answer> + Send + Sync + 'static) -> Self {
        Self { ask: Arc::new(ask), under_way: Arc::default() }
    }

    /// Puts them in place of those that are there.
    ///
    /// # Errors
    /// Why there are none.
    pub(super) async fn into(&self, settings: RedisConnectionInfo) -> RedisResult<RedisConnectionInfo> {
        let none = |error: Cause| {
            let kind = ErrorKind::AuthenticationFailed;
            RedisError::from((kind, "there are no credentials for Redis", chain(&*error)))
        };
        let Credentials { user, password } = self.answer().await.map_err(none)?;
        let settings = settings.set_password(password);
        Ok(match user {
            Some(user) => settings.set_username(user),
            None => settings,
        })
    }

    async fn answer(&self) -> Answer {
        let answer = {
            let mut under_way = self.under_way.lock();
            // One that nobody has waited for any more may be of long ago.
            let fresh = under_way.take().filter(|asked| asked.since.elapsed() < CREDENTIALS_TIMEOUT);
            under_way.insert(fresh.unwrap_or_else(|| self.begin())).answer.clone()
        };
        let answered = answer.clone().await;
        let mut under_way = self.under_way.lock();
        if under_way.as_ref().is_some_and(|asked| asked.answer.ptr_eq(&answer)) {
            *under_way = None;
        }
        answered
    }

    fn begin(&self) -> UnderWay {
        let ask = Arc::clone(&self.ask);
        let asking = AssertUnwindSafe(async move { ask().await }).catch_unwind();
        let answer = async {
            match tokio::time::timeout(CREDENTIALS_TIMEOUT, asking).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(_panic)) => Err(Arc::new(NoCredentials::Panicked) as Cause),
                Err(_elapsed) => Err(Arc::new(NoCredentials::Late) as Cause),
            }
        };
        UnderWay { answer: answer.boxed().shared(), since: Instant::now() }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn asked(takes: Duration) -> (Asked, Arc<AtomicUsize>) {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        let asked = Asked::new(move || {
            let number = counted.fetch_add(1, Ordering::Relaxed);
            async move {
                tokio::time::sleep(takes).await;
                Ok(Credentials { user: None, password: number.to_string() })
            }
            .boxed()
        });
        (asked, count)
    }

    #[tokio::test(start_paused = true)]
    async fn who_dials_at_a_time_shares_an_answer_and_who_dials_later_asks_again() {
        let (asked, count) = asked(Duration::from_millis(10));
        let (one, other) = tokio::join!(asked.answer(), asked.answer());
        assert_eq!((one.unwrap().password, other.unwrap().password), ("0".to_owned(), "0".to_owned()));
        assert_eq!(
            (asked.answer().await.unwrap().password, count.load(Ordering::Relaxed)),
            ("1".to_owned(), 2)
        );
    }

    /// Else one that takes longer than a connection may would never be there.
    #[tokio::test(start_paused = true)]
    async fn what_is_given_up_goes_on_with_the_next_one_as_long_as_it_may_take() {
        let (asked, count) = asked(CREDENTIALS_TIMEOUT - Duration::from_millis(1));
        let mut answer = None;
        while answer.is_none() {
            answer = tokio::time::timeout(Duration::from_millis(500), asked.answer()).await.ok();
        }
        assert_eq!((answer.unwrap().unwrap().password, count.load(Ordering::Relaxed)), ("0".to_owned(), 1));
        // Given up for good, and taken up after a long time.
        assert!(tokio::time::timeout(Duration::from_millis(500), asked.answer()).await.is_err());
        tokio::time::sleep(Duration::from_hours(1)).await;
        assert_eq!(asked.answer().await.unwrap().password, "2");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_never_answers_or_panics_is_an_error_and_is_asked_again() {
        let (never, count) = asked(Duration::MAX);
        for times in 1..3 {
            let late = never.answer().await.unwrap_err().to_string();
            assert_eq!(
                (late.as_str(), count.load(Ordering::Relaxed)),
                ("they did not come within 2s", times)
            );
        }
        let panics = Asked::new(|| async { panic!("in it") }.boxed());
        for _ in 0..2 {
            assert!(panics.answer().await.unwrap_err().to_string().contains("panicked"));
        }
    }
}
