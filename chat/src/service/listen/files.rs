//! Files: each connection takes one, and the system gives a process only so many.

use anyhow::bail;

use super::ENDING;
use super::places::RESERVED;

/// How many of the wanted places there are files for, where so many are kept for other things. Raises the process' own limit
/// as far as it may.
///
/// # Errors
/// Where none is left.
pub(crate) fn fitting(wanted: usize, kept: usize) -> anyhow::Result<usize> {
    let kept = kept + RESERVED + ENDING;
    let files = raised(wanted + kept);
    match files.saturating_sub(kept).min(wanted) {
        0 => bail!(
            "the limit of open files (`ulimit -n`) is {files}, and {kept} are needed beside those of clients"
        ),
        places => Ok(places),
    }
}

#[cfg(unix)]
fn raised(wanted: usize) -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let files =
        |limit: Option<u64>| limit.map_or(usize::MAX, |files| usize::try_from(files).unwrap_or(usize::MAX));
    let (soft, hard) = (files(limit.current), files(limit.maximum));
    let new = wanted.min(hard);
    if new <= soft {
        return soft;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: u64::try_from(new).ok(), ..limit }) {
        Ok(()) => new,
        Err(_refused) => soft,
    }
}

#[cfg(not(unix))]
const fn raised(wanted: usize) -> usize {
    wanted
}
