//! Runs a model through the checker and says what was found, in one form for tests and for the command.
//!
//! Invariant: a counterexample that is reported is one of the shortest: the checker reports the last one it meets in a batch of states, so
//! the search is repeated below its depth until nothing is found. It has one thread: several do not visit states in the order of
//! their depth. Not here: what the models are about.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::hash::Hash;
use std::time::{Duration, Instant};

use stateright::{Checker, Expectation, HasDiscoveries, Model};

/// A model with the list of its mutants.
pub trait Mutable: Model<State: Bounds, Action: Clone + Debug + PartialEq> + Clone + Send + Sync + 'static {
    /// Rules that can be left out, and what must fall then.
    fn mutants() -> &'static [Row<Self>];
}

/// What the checker asks of a state.
pub trait Bounds: Clone + Debug + Hash + PartialEq + Send + Sync + 'static {}

impl<T: Clone + Debug + Hash + PartialEq + Send + Sync + 'static> Bounds for T {}

/// One mutant.
pub struct Row<M: 'static> {
    /// Its name on the command line.
    pub name: &'static str,
    /// Which rule is left out.
    pub what: &'static str,
    /// The properties that must be violated.
    pub breaks: &'static [&'static str],
    /// The smallest model in which they are.
    pub model: fn() -> M,
}

/// What an exhaustive run found.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Unique states.
    pub states: usize,
    /// Depth of the search, in states; with one thread, of the state that is farthest away.
    pub depth: usize,
    /// How long it took.
    pub took: Duration,
    /// Properties that must always hold and do not.
    pub violated: Vec<&'static str>,
    /// Situations that must be reachable and are not: without them the run proves nothing.
    pub unreached: Vec<&'static str>,
}

impl Outcome {
    /// Whether everything holds and everything interesting was reached.
    pub fn is_good(&self) -> bool {
        self.violated.is_empty() && self.unreached.is_empty()
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { states, depth, took, violated, unreached } = self;
        write!(f, "{states} unique states, depth {depth}, {:.1} s", took.as_secs_f64())?;
        match (violated.is_empty(), unreached.is_empty()) {
            (true, true) => write!(f, ": no violation"),
            (false, _) => write!(f, ": VIOLATED: {}", violated.join("; ")),
            (true, false) => write!(f, ": no violation, but never reached: {}", unreached.join("; ")),
        }
    }
}

/// Visits every state of `model`.
pub fn explore<M: Mutable>(model: &M, threads: usize) -> Outcome {
    let started = Instant::now();
    let failures = model.properties().iter().filter(|p| p.expectation == Expectation::Always).map(|p| p.name).collect();
    // the checker must go on although every situation was reached, and stop when every invariant has fallen
    let checker = model.clone().checker().threads(threads).finish_when(HasDiscoveries::AllOf(failures)).spawn_bfs().join();
    let found: BTreeSet<_> = checker.discoveries().into_keys().collect();
    let named = |e: Expectation, is_found: bool| {
        let rows = model.properties().into_iter().filter(|p| p.expectation == e && found.contains(p.name) == is_found);
        rows.map(|p| p.name).collect()
    };
    Outcome {
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        took: started.elapsed(),
        violated: named(Expectation::Always, true),
        unreached: named(Expectation::Sometimes, false),
    }
}

/// The actions of one of the shortest paths that lead to `property`: a counterexample, or the example of a situation.
pub fn shortest<M: Mutable>(model: &M, property: &'static str) -> Option<Vec<M::Action>> {
    let mut best = None;
    let mut below = None;
    loop {
        let mut builder = model.clone().checker().finish_when(HasDiscoveries::AnyOf([property].into()));
        if let Some(depth) = below {
            builder = builder.target_max_depth(depth);
        }
        let Some(path) = builder.spawn_bfs().join().discovery(property) else { return best };
        let actions = path.into_actions();
        // a path of n actions ends at depth n + 1, and states at the limit are not looked at
        below = Some(actions.len() + 1);
        let at_once = actions.is_empty();
        best = Some(actions);
        if at_once {
            return best;
        }
    }
}
