//! A system's components as Prometheus metrics: what [`System::observe`] knows, read at each scrape.
//!
//! Cargo feature `metrics`. Nothing is kept and nothing runs between scrapes. Each of these bears the label `component`:
//!
//! | metric | type | |
//! |---|---|---|
//! | `kubeedge_actor_queued_messages` | gauge | messages in the queue |
//! | `kubeedge_actor_queue_capacity_messages` | gauge | messages the queue holds at most |
//! | `kubeedge_actor_replies_in_hand` | gauge | asynchronous replies under way |
//! | `kubeedge_actor_running` | gauge | 1 while it handles messages, 0 while it waits to be built again, stops or is gone |
//! | `kubeedge_actor_handling_mean_seconds` | gauge | mean time a message held the arbiter, since the start |
//! | `kubeedge_actor_blocking_seconds` | gauge | how long it has held its arbiter by now, if for half a second or longer |
//! | `kubeedge_actor_handled_messages_total` | counter | messages taken and handled, those that crashed or had expired included |
//! | `kubeedge_actor_expired_asks_total` | counter | asks not handled because nobody waited any more |
//! | `kubeedge_actor_unanswered_asks_total` | counter | asks that ended without an answer |
//! | `kubeedge_actor_overflow_drops_total` | counter | events of topics dropped because the buffer was full |
//! | `kubeedge_actor_superseded_drops_total` | counter | events of topics replaced by a newer one |
//! | `kubeedge_actor_stopped_drops_total` | counter | events of topics dropped because the component stopped |
//! | `kubeedge_actor_panics_total` | counter | panics, in handlers, futures and replies |
//! | `kubeedge_actor_parked_messages_total` | counter | messages that crashed their handler and are not tried again |
//! | `kubeedge_actor_restarts_total` | counter | times it was built again |
//! | `kubeedge_actor_stuck_total` | counter | times it was found to make no progress |
//!
//! What a component tells about itself ([`Figure`](super::Figure)) is a metric of its own, without a label, such as
//! `kubeedge_edgehub_outbox_bytes`; the component's page lists them.
//!
//! ```
//! use kubeedge_actors::system::{System, metrics};
//! use prometheus_client::{encoding::text::encode, registry::Registry};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # actix_rt::System::new().block_on(async {
//! let system = System::builder("gateway").start()?;
//! // In a registry of the program, beside metrics of its own ...
//! let mut registry = Registry::default();
//! metrics::register(&mut registry, &system);
//! let mut page = String::new();
//! encode(&mut page, &registry)?;
//! // ... or alone.
//! assert_eq!(page, metrics::open_metrics(&system)?);
//! # Ok(())
//! # })
//! # }
//! ```

use super::{Observation, Phase, System};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::{Registry, Unit},
};
use std::fmt;

/// What every name begins with.
const PREFIX: &str = "kubeedge_actor";
/// What the name of a component's own metric begins with.
const OWN_PREFIX: &str = "kubeedge";

/// The content type of [`open_metrics`], for an HTTP answer.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Adds the metrics of `system` to a registry of the program; they are read whenever the registry is encoded.
///
/// Once per system and registry: metrics registered twice are listed twice, which OpenMetrics does not allow.
pub fn register(registry: &mut Registry, system: &System) {
    registry.sub_registry_with_prefix(PREFIX).register_collector(Box::new(Components(system.clone())));
    registry.sub_registry_with_prefix(OWN_PREFIX).register_collector(Box::new(Own(system.clone())));
}

/// The metrics of `system` now, as a whole OpenMetrics text page.
///
/// # Errors
/// A component with a name that cannot be written; no [`Component::NAME`](super::Component::NAME) is.
pub fn open_metrics(system: &System) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    register(&mut registry, system);
    let mut page = String::new();
    text::encode(&mut page, &registry)?;
    Ok(page)
}

#[derive(Debug)]
struct Components(System);

/// Name, what it is, unit, and how it is read. The encoder puts unit and `_total` behind the name.
type Gauge = (&'static str, &'static str, Option<Unit>, fn(&Observation) -> f64);
type Counter = (&'static str, &'static str, Option<Unit>, fn(&Observation) -> u64);

fn messages() -> Option<Unit> {
    Some(Unit::Other("messages".to_owned()))
}

/// Exact up to 2^53, which no queue holds.
#[allow(clippy::cast_precision_loss, reason = "see above")]
fn whole(n: usize) -> f64 {
    n as f64
}

fn gauges() -> [Gauge; 6] {
    [
        ("queued", "Messages in the queue", messages(), |one| whole(one.queued)),
        ("queue_capacity", "Messages the queue holds at most", messages(), |one| whole(one.capacity)),
        ("replies_in_hand", "Asynchronous replies under way", None, |one| whole(one.in_hand)),
        ("running", "1 while the component handles messages", None, |one| {
            if one.phase == Phase::Running { 1.0 } else { 0.0 }
        }),
        ("handling_mean", "Mean time a message held the arbiter, since the start", Some(Unit::Seconds), |one| {
            one.mean_handling.as_secs_f64()
        }),
        ("blocking", "How long the component has held its arbiter by now", Some(Unit::Seconds), |one| {
            one.blocking.as_secs_f64()
        }),
    ]
}

fn counters() -> [Counter; 10] {
    [
        ("overflow_drops", "Events of topics dropped because the buffer was full", None, |one| one.dropped.overflow),
        ("superseded_drops", "Events of topics replaced by a newer one", None, |one| one.dropped.superseded),
        ("stopped_drops", "Events of topics dropped because the component stopped", None, |one| one.dropped.stopped),
        ("handled", "Messages taken and handled, those that crashed or had expired included", messages(), |one| {
            one.handled
        }),
        ("expired_asks", "Asks not handled because nobody waited any more", None, |one| one.expired),
        ("unanswered_asks", "Asks that ended without an answer", None, |one| one.unanswered),
        ("panics", "Panics, in handlers, futures and replies", None, |one| one.panics),
        ("parked", "Messages that crashed their handler and are not tried again", messages(), |one| one.parked),
        ("restarts", "Times the component was built again", None, |one| one.restarts),
        ("stuck", "Times the component was found to make no progress", None, |one| one.stuck),
    ]
}

impl Collector for Components {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let components = self.0.observe();
        for (name, help, unit, read) in gauges() {
            let kind = ConstGauge::new(0.0).metric_type();
            let mut metric = encoder.encode_descriptor(name, help, unit.as_ref(), kind)?;
            for one in &components {
                ConstGauge::new(read(one)).encode(metric.encode_family(&[("component", one.name)])?)?;
            }
        }
        for (name, help, unit, read) in counters() {
            let kind = ConstCounter::new(0_u64).metric_type();
            let mut metric = encoder.encode_descriptor(name, help, unit.as_ref(), kind)?;
            for one in &components {
                ConstCounter::new(read(one)).encode(metric.encode_family(&[("component", one.name)])?)?;
            }
        }
        Ok(())
    }
}

/// What the components tell about themselves.
#[derive(Debug)]
struct Own(System);

impl Collector for Own {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for (component, figures) in self.0.figures() {
            for (figure, value) in figures {
                let name = format!("{}_{}", component.replace('-', "_"), figure.name);
                if figure.counter {
                    let counter = ConstCounter::new(value);
                    counter.encode(encoder.encode_descriptor(&name, figure.help, None, counter.metric_type())?)?;
                } else {
                    // Exact up to 2^53.
                    #[allow(clippy::cast_precision_loss, reason = "see above")]
                    let gauge = ConstGauge::new(value as f64);
                    gauge.encode(encoder.encode_descriptor(&name, figure.help, None, gauge.metric_type())?)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::{
        AskError, Figure, Ports,
        tests::probe::{Add, LONG, Log, Probe, Run, SECOND, hold, quick},
    };

    #[actix_rt::test]
    async fn a_scrape_shows_what_each_component_did() {
        tokio::time::pause();
        let log = Log::default();
        let (log0, log3) = (log.clone(), log);
        let system = System::builder("metrics")
            .component(move |ports: &Ports| {
                let spilled = Figure { name: "spilled_bytes", help: "Bytes spilled", counter: true };
                ports.meter(spilled).set(7);
                let level = Figure { name: "level", help: "Level", counter: false };
                let level = ports.meter(level);
                Probe::<0>::new(&log0).on_start(move |_, _| level.set(3))
            })
            .component(move |_: &Ports| Probe::<3>::new(&log3))
            .restart_policy(quick(5))
            .start()
            .unwrap();
        let crashed = system.port::<Run<0>>().ask(Run::new(|_, _| panic!("on purpose")), LONG).await;
        assert_eq!(crashed, Err(AskError::Crashed));
        system.port::<Add<0>>().ask(Add(1), LONG).await.unwrap();
        let _held = hold::<3>(&system).await;
        system.port::<Add<3>>().try_tell(Add(1)).unwrap();
        system.port::<Add<3>>().try_tell(Add(1)).unwrap();

        let page = open_metrics(&system).unwrap();
        for line in [
            "# HELP kubeedge_actor_queued_messages Messages in the queue",
            "# TYPE kubeedge_actor_queued_messages gauge",
            "# UNIT kubeedge_actor_queued_messages messages",
            "kubeedge_actor_queued_messages{component=\"p3\"} 2.0",
            "kubeedge_actor_queued_messages{component=\"p0\"} 0.0",
            "kubeedge_actor_queue_capacity_messages{component=\"p0\"} 4.0",
            "kubeedge_actor_running{component=\"p0\"} 1.0",
            "# UNIT kubeedge_actor_handling_mean_seconds seconds",
            "kubeedge_actor_handled_messages_total{component=\"p0\"} 2",
            "kubeedge_actor_unanswered_asks_total{component=\"p0\"} 1",
            "kubeedge_actor_panics_total{component=\"p0\"} 1",
            "kubeedge_actor_restarts_total{component=\"p0\"} 1",
            "kubeedge_actor_restarts_total{component=\"p3\"} 0",
            "# HELP kubeedge_p0_spilled_bytes Bytes spilled",
            "# TYPE kubeedge_p0_spilled_bytes counter",
            "kubeedge_p0_spilled_bytes_total 7",
            "# TYPE kubeedge_p0_level gauge",
            // It was built again, and has each figure once.
            "kubeedge_p0_level 3.0",
            "# EOF",
        ] {
            assert!(page.lines().any(|have| have == line), "{line} is missing in\n{page}");
        }
        assert_eq!(page.matches("\nkubeedge_p0_").count(), 2, "{page}");
        // Every metric of the module's page is there, and no other.
        let documented: Vec<&str> = include_str!("metrics.rs")
            .lines()
            .filter_map(|line| line.strip_prefix("//! | `")?.split('`').next())
            .collect();
        assert_eq!(documented.len(), gauges().len() + counters().len());
        for name in documented {
            assert!(page.contains(&format!("\n{name}{{component=\"p0\"}} ")), "{name} is missing in\n{page}");
        }

        system.stop(SECOND).await;
        let page = open_metrics(&system).unwrap();
        assert!(page.contains("kubeedge_actor_running{component=\"p0\"} 0.0"), "{page}");
    }
}
