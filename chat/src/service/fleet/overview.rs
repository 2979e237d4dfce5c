//! The whole fleet at one moment, for the dashboard.

use std::time::Duration;

use super::alerts::{self, Alert};
use super::metrics::RedisMetrics;
use super::others::Other;
use super::report::Report;
use super::{Fleet, RECENT};
use crate::service::Service;
use crate::service::imports::UnderWay;

/// What all instances say of themselves, the one that was asked first.
#[derive(Debug)]
pub(crate) struct Overview {
    pub(crate) reports: Vec<Report>,
    /// Postgres could not be asked who else is there.
    pub(crate) alone: bool,
    pub(crate) alerts: Vec<Alert>,
    pub(crate) redis: RedisMetrics,
    /// None where Postgres could not be asked.
    pub(crate) imports: Option<Vec<UnderWay>>,
}

/// What the last second's samples may share: a little less than one, so that each second has its own.
const SECOND: Duration = Duration::from_millis(900);

impl Fleet {
    /// Every wait in it has its limit; together they are some seconds where Postgres is silent.
    pub(crate) async fn overview(&self, service: &Service) -> Overview {
        let (others, info) = tokio::join!(self.others(service, SECOND), self.redis.info(RECENT));
        let imports = match &others {
            Some(_) => self.others.alone(self.rows.imports()).await.ok(),
            None => None,
        };
        let (mut own, _) = self.report(service);
        own.instance.alone = others.is_none();
        let (alerts, _, _) = self.all_alerts(others.as_deref().map(Vec::as_slice));
        let mut reports = vec![own];
        let others = others.iter().flat_map(|others| others.iter());
        reports.extend(others.filter_map(|other| other.report.clone()));
        let redis = RedisMetrics::of(self.redis.is_configured(), info);
        Overview { alone: reports[0].instance.alone, reports, alerts, redis, imports }
    }

    /// Of all instances; how many they are, and whether these are all.
    pub(super) fn all_alerts(&self, others: Option<&[Other]>) -> (Vec<Alert>, u64, bool) {
        let mut alerts = self.alerts.lock().active().to_vec();
        let (mut instances, mut complete) = (1, others.is_some());
        for other in others.into_iter().flatten() {
            match (&other.report, other.silent) {
                (Some(report), false) => {
                    instances += 1;
                    alerts.extend(report.alerts.iter().cloned());
                }
                _ => {
                    complete = false;
                    alerts.extend(other.silence());
                }
            }
        }
        alerts::once_a_server(&mut alerts);
        (alerts, instances, complete)
    }
}
