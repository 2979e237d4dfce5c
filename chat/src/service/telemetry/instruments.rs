//! The service's own instruments, with their help; those of the caches are the library's. Read when the pipeline collects.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use axum::http::StatusCode;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{AsyncInstrument, BoundHistogram, Histogram, Meter};

use super::Telemetry;
use crate::service::Service;
use crate::service::limits::Limit;

const POOL: &str = "db.client.connection.pool.name";
const OUTCOME: &str = "perto.outcome";

/// How long answers of the API take.
#[derive(Debug)]
pub(crate) struct RequestDurations {
    histogram: Histogram<f64>,
    /// To look them up by their attributes would cost a request a twentieth.
    first: OnceLock<Box<Bound>>,
}

/// Those of a method and a status, and the next: there are few, and the most frequent were there first. No list is locked.
#[derive(Debug)]
struct Bound {
    of: (&'static str, StatusCode),
    histogram: BoundHistogram<f64>,
    next: OnceLock<Box<Self>>,
}

impl RequestDurations {
    /// <https://opentelemetry.io/docs/specs/semconv/http/http-metrics/>
    pub(crate) fn new(telemetry: &Telemetry) -> Self {
        let meter = telemetry.meter();
        let builder = meter.f64_histogram("http.server.request.duration").with_unit("s");
        let histogram =
            builder.with_description("How long answers of the API took, save those to uploads.").build();
        Self { histogram, first: OnceLock::new() }
    }

    pub(crate) fn record(&self, method: &'static str, status: StatusCode, took: Duration) {
        let mut next = &self.first;
        loop {
            let bound = next.get_or_init(|| self.bind(method, status));
            if bound.of == (method, status) {
                return bound.histogram.record(took.as_secs_f64());
            }
            next = &bound.next;
        }
    }

    fn bind(&self, method: &'static str, status: StatusCode) -> Box<Bound> {
        let attributes = [
            KeyValue::new("http.request.method", method),
            KeyValue::new("http.response.status_code", i64::from(status.as_u16())),
        ];
        let histogram = self.histogram.bind(&attributes);
        Box::new(Bound { of: (method, status), histogram, next: OnceLock::new() })
    }
}

/// Makes all but the first. They end with the service, and keep nothing of it alive.
pub(crate) fn begin(service: &Arc<Service>) {
    let meter = service.telemetry.meter();
    let of = Observed { service: Arc::downgrade(service), meter };
    of.service.upgrade().iter().for_each(|service| service.perto.instrument(&of.meter));
    pools(&of);
    writes(&of);
    limits(&of);
    redis(&of);
    of.gauge("perto.imports.running", "", "Imports that this instance works on.", |service, observed| {
        observed.observe(count(&service.imports.worked.running), &[]);
    });
    of.counter("perto.import.rows", "Rows of imports that this instance took.", |service, observed| {
        let worked = &service.imports.worked;
        observed.observe(count(&worked.accepted), &[KeyValue::new(OUTCOME, "accepted")]);
        observed.observe(count(&worked.rejected), &[KeyValue::new(OUTCOME, "rejected")]);
    });
    let help = "Spans that ended, that were taken by whoever collects them, and that were not.";
    of.counter("perto.telemetry.spans", help, |service, observed| {
        let spans = &service.telemetry.spans;
        for (value, outcome) in
            [(&spans.ended, "ended"), (&spans.exported, "exported"), (&spans.failed, "failed")]
        {
            observed.observe(count(value), &[KeyValue::new(OUTCOME, outcome)]);
        }
    });
}

/// <https://opentelemetry.io/docs/specs/semconv/database/database-metrics/>
fn pools(of: &Observed) {
    let help = "Connections to Postgres, by what they are for.";
    of.gauge("db.client.connection.count", "", help, |service, observed| {
        for gauge in &service.fleet.gauges {
            let (idle, used) = gauge.connections();
            for (value, state) in [(idle, "idle"), (used, "used")] {
                let labels =
                    [KeyValue::new(POOL, gauge.what), KeyValue::new("db.client.connection.state", state)];
                observed.observe(value.into(), &labels);
            }
        }
    });
    of.gauge("db.client.connection.max", "", "Most connections to Postgres.", |service, observed| {
        for gauge in &service.fleet.gauges {
            observed.observe(gauge.max().into(), &[KeyValue::new(POOL, gauge.what)]);
        }
    });
    let help =
        "Times that, looking once a second, there was no connection to be had for a tenth of a second.";
    of.counter("perto.pool.exhausted", help, |service, observed| {
        for gauge in &service.fleet.gauges {
            observed.observe(gauge.exhausted(), &[KeyValue::new(POOL, gauge.what)]);
        }
    });
    let help = "Times that, looking once a second, Postgres gave no connection: it has no place, or refuses the role.";
    of.counter("perto.pool.unusable", help, |service, observed| {
        for gauge in &service.fleet.gauges {
            observed.observe(gauge.unusable(), &[KeyValue::new(POOL, gauge.what)]);
        }
    });
}

/// Requests that write, and the heartbeats, which an instance writes by itself.
fn writes(of: &Observed) {
    let help = "Requests that may write, all but GET: answered, or failed for no fault of who asked.";
    of.counter("perto.writes", help, |service, observed| {
        let writes = &service.fleet.writes;
        observed.observe(count(&writes.done), &[KeyValue::new(OUTCOME, "ok")]);
        observed.observe(count(&writes.failed), &[KeyValue::new(OUTCOME, "error")]);
    });
    let help = "Heartbeats, one a second: rows that this instance wrote, or could not write.";
    of.counter("perto.heartbeats", help, |service, observed| {
        let writes = &service.fleet.writes;
        observed.observe(count(&writes.beats), &[KeyValue::new(OUTCOME, "ok")]);
        observed.observe(count(&writes.beats_failed), &[KeyValue::new(OUTCOME, "error")]);
    });
}

/// What is refused, and how much of what is limited is in use.
fn limits(of: &Observed) {
    let help = "Times that a limit refused: a request, or a connection's place.";
    of.counter("perto.refused", help, |service, observed| {
        for (limit, refused) in Limit::ALL.iter().zip(service.limits.refused()) {
            observed.observe(refused, &[KeyValue::new("perto.limit", limit.name())]);
        }
    });
    let help = "Connections: those that have shown a valid key, and strangers.";
    of.gauge("perto.connections", "", help, |service, observed| {
        let (strangers, known) = service.places.held();
        for (held, kind) in [(known, "known"), (strangers, "stranger")] {
            observed.observe(held as u64, &[KeyValue::new("perto.kind", kind)]);
        }
    });
    let help = "Memory of bodies and answers that are under way; what is small is not counted.";
    of.gauge("perto.buffered", "By", help, |service, observed| {
        observed.observe(service.budget.used() as u64, &[]);
    });
    of.gauge("perto.buffered.max", "By", "Most memory of what is under way.", |service, observed| {
        observed.observe(service.budget.most() as u64, &[]);
    });
}

/// As it said within the last seconds: whoever collects does not ask it.
fn redis(of: &Observed) {
    // Nothing is said of it where there is none: it is not down, and no alert is to say so.
    of.gauge("perto.redis.up", "", "Whether Redis told its figures.", |service, observed| {
        if service.fleet.redis.is_configured() {
            observed.observe(service.fleet.redis.last().is_some().into(), &[]);
        }
    });
    of.gauge("perto.redis.memory.used", "By", "Memory of Redis.", |service, observed| {
        let used = service.fleet.redis.last().and_then(|info| info.used_memory);
        used.iter().for_each(|used| observed.observe(*used, &[]));
    });
    of.gauge("perto.redis.clients", "", "Connections that Redis has.", |service, observed| {
        let clients = service.fleet.redis.last().and_then(|info| info.connected_clients);
        clients.iter().for_each(|clients| observed.observe(*clients, &[]));
    });
    let help = "Memory of Redis, of what it may use: maxmemory, or else the machine's.";
    of.ratio("perto.redis.memory", help, |service| service.fleet.redis.last()?.memory_percent);
    let help = "Keys that were there, of those looked up, since the start of Redis, whoever asked.";
    of.ratio("perto.redis.hit", help, |service| service.fleet.redis.last()?.hit_percent);
}

impl Telemetry {
    /// Spans that could not be sent, since the start.
    pub(crate) fn spans_failed(&self) -> u64 {
        count(&self.spans.failed)
    }
}

fn count(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

struct Observed {
    service: Weak<Service>,
    meter: Meter,
}

impl Observed {
    /// Callbacks live as long as the pipeline, which the service owns.
    fn looking<T>(
        &self,
        look: impl Fn(&Service, &dyn AsyncInstrument<T>) + Send + Sync + 'static,
    ) -> impl Fn(&dyn AsyncInstrument<T>) + Send + Sync + 'static {
        let service = Weak::clone(&self.service);
        move |observed| {
            if let Some(service) = service.upgrade() {
                look(&service, observed);
            }
        }
    }

    fn counter(
        &self,
        name: &'static str,
        help: &'static str,
        look: impl Fn(&Service, &dyn AsyncInstrument<u64>) + Send + Sync + 'static,
    ) {
        let builder = self.meter.u64_observable_counter(name).with_description(help);
        let _instrument = builder.with_callback(self.looking(look)).build();
    }

    fn gauge(
        &self,
        name: &'static str,
        unit: &'static str,
        help: &'static str,
        look: impl Fn(&Service, &dyn AsyncInstrument<u64>) + Send + Sync + 'static,
    ) {
        let builder = self.meter.u64_observable_gauge(name).with_unit(unit).with_description(help);
        let _instrument = builder.with_callback(self.looking(look)).build();
    }

    /// Of a percentage.
    fn ratio(
        &self,
        name: &'static str,
        help: &'static str,
        look: impl Fn(&Service) -> Option<f64> + Send + Sync + 'static,
    ) {
        let look = self.looking(move |service, observed: &dyn AsyncInstrument<f64>| {
            look(service).iter().for_each(|percent| observed.observe(*percent / 100.0, &[]));
        });
        let builder = self.meter.f64_observable_gauge(name).with_unit("1").with_description(help);
        let _instrument = builder.with_callback(look).build();
    }
}
