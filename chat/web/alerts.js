// Alerts: what is wrong, since when, and what to do about it.

import { $, at, decimal, el, keyed, mark, say, span, time } from "./format.js";
import { portuguese, t } from "./language.js";
import { TODO } from "./pt.js";

/** One line for each; docs/OPERATIONS.md has more. */
const WHAT_TO_DO = {
  "hit-rate-low": "See below which cache loads most. After a start or a clear it passes; else raise --l1-mib or the cache’s time to live, or look for keys that are read once.",
  "redis-memory-high": "Raise maxmemory, or set an eviction policy (allkeys-lru): nothing in Redis is needed. If others use this Redis, give Perto its own.",
  "postgres-pool-exhausted": "Look for slow statements and locks (pg_stat_activity), and end what holds them; raise --pool-size only if Postgres itself has room.",
  "responses-slow": "Compare the latency of loads with that of L2: the slower one is the cause. If both are fast, look at the processor of the instance.",
  "instance-not-coherent": "Isolated: bring Redis back, or the way to it. Unverified or recovering: look at Postgres first. `perto doctor` says what is wrong with either.",
  "staleness-near-bound": "The log is read too slowly: look at the load of Postgres and for transactions that stay open (pg_stat_activity), then at the instance’s processor.",
  "invalidation-repaired": "Nothing stale stayed. Expected after SQL past the service and after a restart of Redis; if it goes on, hints get lost: look at Redis and the network to it.",
  "unwatched": "Run the `perto watch` that it names, or `perto-chat migrate`; then clear the cache. `perto doctor` finds what else lacks a trigger.",
  "key-fails": "A column or function of the key is gone, or a row has no key: `perto doctor` names it. Watch the table again by a key that fits.",
  "keys-differ": "Spell the key in one way: in the loader’s SQL, in the type of the column (char(n), citext) and in the key that is watched.",
  "values-unstorable": "The type of the value can’t be kept in Redis: change it, or declare the cache local_only. Until then each instance loads for itself.",
  "log-unreadable": "Look at Postgres first: is it there, and may this role read the log? `perto doctor` says which right or table is missing.",
  "log-not-trimmed": "The log grows. `perto doctor` names the right that is missing, or the publication or transaction that is in the way.",
  "loads-failing": "The alert has what the loader said. Was a table or column changed, a right taken away? Else look at Postgres: locks, connections, time.",
  "redis-unusable": "The alert has Redis’ own word. Bring it back, correct REDIS_URL or its password, or point it at the primary. Nothing is lost meanwhile.",
  "fills-refused": "`perto doctor` tries each command and the scripts, and prints the right that is missing; or it names what Redis says, as READONLY or MISCONF.",
  "hints-refused": "Give the user of REDIS_URL the right to publish, as `perto doctor` prints it. Others see the writes by polling meanwhile.",
  "hints-not-received": "Give the user of REDIS_URL the right to subscribe, as `perto doctor` prints it; look at client-output-buffer-limit of Redis.",
  "hints-untrue": "Somebody publishes what no transaction has written: see who else may use this Redis, and give it a password. Nothing stale is served.",
  "switched": "Somebody has put a tier of a cache aside: see below who, since when and why. When the incident is over, put it on again.",
  "postgres-pool-unusable": "The alert has what Postgres says: no place left (max_connections, a role’s limit), or a role or password that it refuses since.",
  "writes-failing": "The alert has what Postgres says. Is it read-only (default_transaction_read_only, a standby), full, or locked? Reads go on meanwhile.",
  "audit-violation": "The value was evicted. Find the write that no trigger covered: `perto doctor` looks for missing triggers and partitions; then clear the cache.",
  "limit-reached": "The alert names the limit. Find who asks so much (the load balancer’s log), and stop it or raise its limit: OPERATIONS.md has the setting of each.",
  "traces-lost": "The collector was away, or is too slow. Requests are not affected: look at it, or sample fewer traces.",
  "instance-silent": "Look whether its process and machine are there, and whether it reaches Postgres. If it was taken away, this passes within a minute.",
};

const value = (unit, n) => (unit === "percent" ? `${decimal(n)} %` : unit === "seconds" ? time(n * 1_000) : n === 1 ? t("once") : t("{0} times", decimal(n)));

const todo = (name) => (portuguese ? TODO : WHAT_TO_DO)[name] ?? t("see the documentation of this version.");

/** One for each name: what to do is the same on every instance. */
function grouped(alerts) {
  const groups = new Map();
  for (const alert of alerts) {
    const group = groups.get(alert.name) ?? { name: alert.name, severity: "warning", all: [] };
    if (alert.severity === "critical") group.severity = "critical";
    group.all.push(alert);
    groups.set(alert.name, group);
  }
  return [...groups.values()].sort((a, b) => (a.severity === b.severity ? 0 : a.severity === "critical" ? -1 : 1));
}

export function showAlerts(now) {
  $("no-alerts").hidden = now.alerts.length > 0;
  const make = () => {
    const parts = { what: el("h3", ""), mark: el("span", "mark"), all: el("ul", ""), todo: el("p", "todo") };
    const made = el("li", "alert", el("div", "bar", parts.mark, parts.what), parts.all, parts.todo);
    return Object.assign(made, { parts });
  };
  keyed($("alerts"), grouped(now.alerts), (group) => group.name, make, (made, { name, severity, all }) => {
    const kind = severity === "critical" ? "bad" : "half";
    made.className = `alert ${kind}`;
    mark(made.parts.mark, kind, severity === "critical" ? t("Critical") : t("Warning"));
    say(made.parts.what, name);
    say(made.parts.todo, t("What to do: {0}", todo(name)));
    keyed(made.parts.all, all, (alert) => `${alert.instance} ${alert.since}`, () => el("li", ""), (line, alert) => {
      const limit = alert.threshold > 0 ? t(", limit {0}", value(alert.unit, alert.threshold)) : "";
      const since = Date.parse(alert.since);
      const how = t("since {0} ({1}): {2}", at(since), span(Date.parse(now.at) - since), value(alert.unit, alert.value) + limit);
      say(line, `${alert.instance}, ${how}; ${alert.detail}.`);
    });
  });
}
