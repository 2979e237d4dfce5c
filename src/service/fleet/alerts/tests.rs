//! Each threshold from both sides.

use perto::State;

use super::*;

fn thresholds() -> Thresholds {
    let settings = AlertSettings {
        hit_rate: 60,
        redis_memory: 80,
        response_time: Duration::from_secs(2),
        repaired_for: Duration::from_mins(5),
    };
    Thresholds { settings, redis: true }
}

/// All is well.
fn well(second: u64) -> Sample {
    Sample {
        at: Duration::from_secs(second),
        hits: 0,
        reads: 0,
        repairs: 0,
        redis_percent: Some(80.0),
        exhausted: Vec::new(),
        responses: Minute { count: 100, slow: 1, p50: Duration::ZERO, p99: Duration::from_secs(2) },
        state: State::Coherent,
        lease_percent: 80.0,
    }
}

/// The names of what is raised.
fn names(seen: &[Sample]) -> Vec<&'static str> {
    judge(seen, &thresholds()).iter().map(|raised| raised.name).collect()
}

#[test]
fn at_the_thresholds_nothing_is_raised() {
    assert!(names(&[]).is_empty());
    assert!(names(&[well(1), well(2)]).is_empty());
}

#[test]
fn a_hit_rate_under_sixty_percent_of_a_hundred_reads_is_low() {
    // What was counted before the window says nothing.
    let counted = |hits, reads| {
        [(1, 0, 0), (60, hits, reads)].map(|(second, hits, reads)| Sample {
            hits: 1_000 + hits,
            reads: 9_000 + reads,
            ..well(second)
        })
    };
    assert!(names(&counted(60, 100)).is_empty());
    assert_eq!(names(&counted(59, 100)), ["hit-rate-low"]);
    assert!(names(&counted(0, 99)).is_empty(), "too few to say");
    let raised = judge(&counted(66, 200), &thresholds()).remove(0);
    assert_eq!((raised.value, raised.threshold), (33.0, 60.0));
    // A minute later it is forgotten.
    let [old, low] = counted(0, 100);
    let later = |second| Sample { at: Duration::from_secs(second), ..low.clone() };
    assert_eq!(names(&[old.clone(), low.clone(), later(61)]), ["hit-rate-low"]);
    assert!(names(&[old, low.clone(), later(62)]).is_empty());
}

#[test]
fn memory_of_redis_over_eighty_percent_is_high() {
    let used = |percent| [Sample { redis_percent: Some(percent), ..well(1) }];
    assert!(names(&used(80.0)).is_empty());
    assert_eq!(names(&used(80.01)), ["redis-memory-high"]);
    assert!(names(&[Sample { redis_percent: None, ..well(1) }]).is_empty());
}

#[test]
fn a_pool_that_was_exhausted_is_told_of_for_ten_seconds() {
    let full = Sample { exhausted: vec!["requests"], ..well(1) };
    assert_eq!(names(&[full.clone(), well(11)]), ["postgres-pool-exhausted"]);
    assert!(names(&[full.clone(), well(12)]).is_empty());
    let raised = judge(&[full.clone(), full, well(3)], &thresholds()).remove(0);
    assert_eq!((raised.value, raised.severity), (2.0, Severity::Critical));
}

#[test]
fn responses_are_slow_where_more_than_one_of_a_hundred_took_over_two_seconds() {
    let slow = |slow, count| {
        let responses = Minute { count, slow, p50: Duration::ZERO, p99: Duration::from_secs(3) };
        [Sample { responses, ..well(1) }]
    };
    assert!(names(&slow(1, 100)).is_empty() && names(&slow(0, 0)).is_empty());
    assert_eq!(names(&slow(1, 99)), ["responses-slow"]);
    assert_eq!(judge(&slow(2, 100), &thresholds()).remove(0).value, 3.0);
}

#[test]
fn an_instance_is_not_coherent_once_two_samples_say_so() {
    let in_state = |second, state| Sample { state, ..well(second) };
    for state in [State::Isolated, State::Recovering, State::Closed] {
        assert!(names(&[well(1), in_state(2, state)]).is_empty(), "{state} once");
        assert_eq!(names(&[in_state(1, state), in_state(2, state)]), ["instance-not-coherent"], "{state}");
        assert!(names(&[in_state(1, state), in_state(2, state), well(3)]).is_empty(), "{state} no more");
    }
    let raised = judge(&[1, 2, 5].map(|second| in_state(second, State::Isolated)), &thresholds()).remove(0);
    assert_eq!((raised.value, raised.severity), (4.0, Severity::Warning));
    let without = Thresholds { redis: false, ..thresholds() };
    let both = |state| [in_state(1, state), in_state(2, state)];
    assert!(judge(&both(State::Isolated), &without).is_empty(), "as it was set up");
    assert_eq!(judge(&both(State::Recovering), &without).len(), 1);
}

#[test]
fn staleness_is_near_its_bound_when_the_lease_is_old_or_has_lapsed() {
    let old = |percent| [Sample { lease_percent: percent, ..well(1) }, well(11)];
    assert!(names(&old(80.0)).is_empty());
    assert_eq!(names(&old(80.1)), ["staleness-near-bound"]);
    assert!(names(&[old(80.1)[0].clone(), well(12)]).is_empty(), "forgotten");
    let lapsed = [Sample { state: State::Unverified, lease_percent: 0.0, ..well(1) }];
    let raised = judge(&lapsed, &thresholds()).remove(0);
    assert_eq!((raised.name, raised.severity), ("staleness-near-bound", Severity::Critical));
}

#[test]
fn a_repair_is_told_of_for_five_minutes() {
    let repaired = |second| Sample { repairs: 3, ..well(second) };
    let before = Sample { repairs: 2, ..well(1) };
    assert_eq!(names(&[before.clone(), repaired(2), repaired(301)]), ["invalidation-repaired"]);
    assert!(names(&[before, repaired(2), repaired(302)]).is_empty());
    assert!(names(&[repaired(1), repaired(2)]).is_empty(), "none since it was first seen");
}

#[test]
fn an_alert_keeps_its_beginning_for_as_long_as_it_lasts() {
    let mut alerts = Alerts::new(thresholds());
    let at = |second: i64| DateTime::from_timestamp(second, 0).unwrap();
    let high = |second| Sample { redis_percent: Some(90.0), ..well(second) };
    alerts.see(high(1), "a", at(1));
    alerts.see(high(2), "a", at(2));
    assert_eq!((alerts.active()[0].since, alerts.active()[0].instance.as_str()), (at(1), "a"));
    alerts.see(well(3), "a", at(3));
    assert!(alerts.active().is_empty());
    alerts.see(high(4), "a", at(4));
    assert_eq!(alerts.active()[0].since, at(4));
    for second in 5..1_000 {
        alerts.see(well(second), "a", at(0));
    }
    assert_eq!(alerts.seen.len(), 301, "five minutes of samples");
}
