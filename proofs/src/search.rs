//! The search that all models go through, and what it finds.

use std::fmt;
use std::hash::Hash;
use std::time::{Duration, Instant};

use stateright::{Checker, HasDiscoveries, Model};

/// A model whose counterexamples people can read.
pub(crate) trait Explained: Model {
    /// One step, and what came of it.
    fn explain(&self, before: &Self::State, action: Self::Action, after: &Self::State) -> String;

    /// What was served that must not be.
    fn wrong(state: &Self::State) -> Option<&'static str>;
}

/// What a search found.
#[derive(Debug, Clone)]
pub struct Verdict {
    pub states: usize,
    pub depth: usize,
    pub took: Duration,
    /// The property that does not hold, and the steps that lead there.
    pub found: Option<(String, Vec<String>)>,
}

impl Verdict {
    /// The length of the counterexample.
    pub fn steps(&self) -> usize {
        self.found.as_ref().map_or(0, |(_, steps)| steps.len())
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} states, depth {}, {:.1} s, ", self.states, self.depth, self.took.as_secs_f32())?;
        let Some((what, steps)) = &self.found else { return write!(f, "holds") };
        write!(f, "FAILS: {what}")?;
        steps.iter().enumerate().try_for_each(|(at, step)| write!(f, "\n{:>3}. {step}", at + 1))
    }
}

/// Goes through all states of a model, or until something is wrong. `progress` is told of the states so far, now and then.
pub(crate) fn search<M>(model: M, threads: usize, progress: impl Fn(usize)) -> Verdict
where
    M: Explained + Clone + Send + Sync + 'static,
    M::State: Clone + std::fmt::Debug + Hash + PartialEq + Send + Sync,
    M::Action: Copy + std::fmt::Debug + PartialEq + Send + Sync,
{
    let began = Instant::now();
    let checker =
        model.clone().checker().threads(threads).finish_when(HasDiscoveries::AnyFailures).spawn_bfs();
    let mut told = began;
    while !checker.is_done() {
        std::thread::sleep(Duration::from_millis(5));
        if told.elapsed() > Duration::from_secs(5) {
            told = Instant::now();
            progress(checker.unique_state_count());
        }
    }
    let checker = checker.join();
    let found = checker.discoveries().into_iter().next().map(|(property, path)| {
        let mut steps = Vec::new();
        let mut what = property.to_owned();
        for (before, action) in path.into_vec() {
            if let Some(action) = action {
                let after = model.next_state(&before, action).unwrap_or_else(|| before.clone());
                steps.push(model.explain(&before, action, &after));
                what = M::wrong(&after).map_or(what, str::to_owned);
            }
        }
        (what, steps)
    });
    Verdict { states: checker.unique_state_count(), depth: checker.max_depth(), took: began.elapsed(), found }
}
