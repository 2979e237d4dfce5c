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
        unusable: Vec::new(),
        writes: Writes::default(),
        spans_failed: 0,
        refused: Refused::default(),
        now: SystemTime::UNIX_EPOCH + Duration::from_secs(second),
        troubles: Vec::new(),
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

#[test]
fn a_pool_to_which_postgres_gives_nothing_is_told_of_once_it_was_seen_twice_in_ten_seconds() {
    let refused = |second| Sample { unusable: vec![("loads", "no place".to_owned())], ..well(second) };
    assert!(names(&[refused(1), well(2)]).is_empty(), "once");
    assert_eq!(names(&[refused(1), refused(2), well(11)]), ["postgres-pool-unusable"]);
    let raised = judge(&[refused(1), refused(2)], &thresholds()).remove(0);
    assert!(raised.value == 2.0 && raised.detail.contains("for loads: no place"), "{}", raised.detail);
    assert!(names(&[refused(1), refused(2), well(12)]).is_empty());
}

#[test]
fn writes_fail_where_three_and_more_than_half_of_a_minute_do_or_three_heartbeats_in_a_row() {
    let counted = |second, done, failed| Sample {
        writes: Writes { done, failed, ..Writes::default() },
        ..well(second)
    };
    let before = counted(1, 100, 100);
    assert_eq!(names(&[before.clone(), counted(2, 102, 103)]), ["writes-failing"]);
    assert!(names(&[before.clone(), counted(2, 103, 103)]).is_empty(), "half of them");
    assert!(names(&[before.clone(), counted(2, 100, 102)]).is_empty(), "two say nothing");
    assert!(names(&[before, counted(61, 100, 103), counted(122, 100, 103)]).is_empty(), "a minute ago");
    let silent = |silent| {
        let writes = Writes { silent, why: "read-only".to_owned(), ..Writes::default() };
        [Sample { writes, ..well(1) }]
    };
    assert!(names(&silent(2)).is_empty());
    assert_eq!(names(&silent(3)), ["writes-failing"]);
    let raised = judge(&silent(4), &thresholds()).remove(0);
    assert!(raised.value == 4.0 && raised.detail.contains("4 heartbeats: read-only"), "{}", raised.detail);
}

#[test]
fn spans_that_could_not_be_sent_are_told_of_for_a_minute() {
    let lost = |second, spans_failed| Sample { spans_failed, ..well(second) };
    assert_eq!(names(&[lost(1, 5), lost(2, 6), lost(61, 6)]), ["traces-lost"]);
    assert!(names(&[lost(1, 5), lost(2, 6), lost(62, 6)]).is_empty());
}

#[test]
fn limits_that_refuse_in_ten_seconds_of_a_minute_are_told_of_by_their_names() {
    let refused = |second, rate: u64, strangers: u64| {
        let mut refused = Refused::default();
        refused[Limit::Rate as usize] = rate;
        refused[Limit::Strangers as usize] = strangers;
        Sample { refused, ..well(second) }
    };
    let lasting =
        |seconds: u64| (0..=seconds).map(move |second| refused(second, 7 * second, 3 * second.min(9)));
    assert!(names(&lasting(9).collect::<Vec<_>>()).is_empty(), "nine seconds");
    let all: Vec<Sample> = lasting(10).collect();
    let raised = judge(&all, &thresholds()).remove(0);
    assert_eq!((raised.name, raised.value, raised.unit), ("limit-reached", 10.0, Unit::Seconds));
    assert_eq!(raised.detail, "limits refused in the last minute: too-many-requests 70 times");
    let once = [all[0].clone(), refused(30, 9_000, 9_000), refused(31, 9_000, 9_000)];
    assert!(names(&once).is_empty(), "a burst");
    let later: Vec<Sample> = all.into_iter().chain([refused(62, 70, 27)]).collect();
    assert!(names(&later).is_empty(), "a minute ago");
}

#[test]
fn the_troubles_of_a_kind_are_one_alert_once_two_samples_have_them() {
    let lasting = |kind, detail: &str, second| Lasting {
        kind,
        detail: detail.to_owned(),
        since: SystemTime::UNIX_EPOCH + Duration::from_secs(second),
    };
    let with = |second, troubles: &[Lasting]| Sample { troubles: troubles.to_vec(), ..well(second) };
    let unwatched: Vec<Lasting> =
        (1..=5).map(|n| lasting(TroubleKind::Unwatched, &format!("table {n}"), 10 - n)).collect();
    let refused = lasting(TroubleKind::FillsRefused, "NOPERM", 9);
    assert!(names(&[well(10), with(11, &unwatched)]).is_empty(), "once");
    assert!(names(&[with(11, &unwatched), well(12)]).is_empty(), "no more");
    let all = [&unwatched[..], &[refused]].concat();
    let raised = judge(&[with(11, &unwatched), with(12, &all), with(15, &all)], &thresholds());
    assert_eq!(raised.len(), 2);
    assert_eq!(
        (raised[0].name, raised[0].severity, raised[0].value),
        ("unwatched", Severity::Critical, 10.0)
    );
    assert_eq!(raised[0].detail, "table 1; table 2; table 3; and 2 more");
    assert_eq!((raised[1].name, raised[1].severity), ("fills-refused", Severity::Warning));
}

/// Whatever kinds there will be.
#[test]
fn a_trouble_of_any_kind_is_an_alert_of_its_name_for_as_long_as_it_lasts() {
    for kind in TroubleKind::ALL {
        let mut alerts = Alerts::new(thresholds());
        let at = |second: u64| DateTime::from_timestamp(i64::try_from(second).unwrap(), 0).unwrap();
        let lasting = Lasting { kind: *kind, detail: "as it is".to_owned(), since: well(1).now };
        let with = |second| Sample { troubles: vec![lasting.clone()], ..well(second) };
        for second in 1..=3 {
            alerts.see(with(second), "a", at(second));
            assert_eq!(alerts.active().len(), usize::from(second > 1), "{kind} at {second}");
        }
        let alert = &alerts.active()[0];
        assert_eq!((alert.name.as_str(), alert.since), (kind.name(), at(2)));
        assert_eq!((alert.value, alert.unit, alert.detail.as_str()), (2.0, Unit::Seconds, "as it is"));
        alerts.see(well(4), "a", at(4));
        assert_eq!(alerts.active(), [], "{kind} is over");
    }
}

#[test]
fn each_alert_begins_and_ends_with_a_line_at_most_once_a_minute() {
    let mut alerts = Alerts::new(thresholds());
    let told = |alerts: &Alerts| alerts.told.get("redis-memory-high").copied();
    let high = |second| Sample { redis_percent: Some(90.0), ..well(second) };
    let at = DateTime::from_timestamp(0, 0).unwrap();
    alerts.see(high(1), "a", at);
    assert_eq!(told(&alerts), Some((Duration::from_secs(1), false)));
    alerts.see(well(2), "a", at);
    assert_eq!(told(&alerts), Some((Duration::from_secs(1), true)));
    for second in 3..61 {
        let sample = if second % 2 == 0 { well(second) } else { high(second) };
        alerts.see(sample, "a", at);
        assert_eq!(told(&alerts), Some((Duration::from_secs(1), true)), "{second}");
    }
    alerts.see(high(61), "a", at);
    assert_eq!(told(&alerts), Some((Duration::from_secs(61), false)));
}

/// A name that is missing somewhere is found at night.
#[test]
fn each_alert_is_in_the_api_the_runbooks_the_dashboard_and_the_rules() {
    let read = |path: &str| {
        let path = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join(path);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let (api, runbooks) = (read("docs/API.md"), read("docs/OPERATIONS.md"));
    let (page, rules) = (read("chat/web/alerts.js"), read("otel/prometheus/rules.yml"));
    let described = read("chat/src/service/fleet/alerts.rs");
    for name in NAMES.into_iter().chain(TroubleKind::ALL.iter().map(|kind| kind.name())) {
        assert!(described.contains(&format!("`{name}`")), "the field `name` says nothing of {name}");
        assert!(api.contains(&format!("| `{name}` |")), "docs/API.md has no row for {name}");
        assert!(page.contains(&format!("  \"{name}\": ")), "chat/web/alerts.js says nothing of {name}");
        let (_, runbook) =
            runbooks.split_once(&format!("\n### {name}\n")).unwrap_or_else(|| panic!("no runbook of {name}"));
        let runbook = runbook.split("\n### ").next().unwrap();
        for part in ["**Meaning**", "**Look**", "**Do**"] {
            assert!(runbook.contains(part), "the runbook of {name} has no {part}");
        }
        let words = name.split('-').map(|word| format!("{}{}", word[..1].to_uppercase(), &word[1..]));
        let rule = format!("alert: Perto{}\n", words.collect::<String>());
        assert!(rules.contains(&rule), "no rule: {rule}");
    }
    // That of a violation says of which cache, by what was audited.
    for kind in TroubleKind::ALL.iter().filter(|kind| **kind != TroubleKind::AuditViolation) {
        let looked_at = format!("perto_troubles{{perto_kind=\"{kind}\"}}");
        assert!(rules.contains(&looked_at), "no rule looks at {looked_at}");
    }
}
