// The instances: how each is and why, what its caches answer, and the figures of all at a glance.

import { $, at, attr, bar, bytes, count, decimal, el, fill, keyed, mark, percent, rate, say, share, span, time } from "./format.js";
import { stateAt, strip } from "./charts.js";
import { t } from "./language.js";

const SHAPES = { coherent: "good", isolated: "half", unverified: "bad", recovering: "busy", silent: "gone", closed: "gone" };
const word = (state) => t(state).charAt(0).toUpperCase() + t(state).slice(1);

function why(one, now) {
  switch (one.state) {
    case "coherent":
      return "";
    case "isolated":
      if (!now.redis.configured) return t("Runs without Redis, as it was told: writes are seen by polling the log.");
      if (one.remoteUp) return t("Redis answers, but the hints’ subscription does not: writes are seen by polling the log.");
      return t("Redis can’t be used: L1 and Postgres answer alone, and writes are seen by polling the log.");
    case "unverified":
      return t("The log in Postgres was not read within the bound: what it serves is flagged, and may miss writes.");
    case "recovering":
      return t("The log is read anew: until then reads go to Postgres.");
    case "silent":
      return t("Nothing was heard of it since {0}: it may be gone, or not reach Postgres.", at(one.seenAt));
    default:
      return t("It is ending.");
  }
}

/** How often limits have refused since it began, and which, the one that did most first. */
function refused(one) {
  const limits = Object.entries(one.refused ?? {}).sort((a, b) => b[1] - a[1]);
  if (limits.length === 0) return t("none");
  const since = limits.map(([limit, times]) => `${limit} ${count(times)}`).join(", ");
  return one.state === "silent" ? t("since it began {0}", since) : t("{0} a second, since it began {1}", rate(one.refusals), since);
}

/** For how long it was, in milliseconds. */
function notCoherent(points, one, self) {
  let off = 0;
  for (let index = 1; index < points.length; index += 1) {
    const state = stateAt(points[index], one, self);
    if (state && state !== "c" && !points[index - 1].gap) off += points[index].t - points[index - 1].t;
  }
  return off;
}

function makeCard() {
  const parts = { name: el("h3", ""), state: el("span", "mark"), why: el("p", "why"), strip: el("canvas", "strip") };
  attr(parts.strip, "aria-hidden", "true");
  const lease = document.createElement("meter");
  Object.assign(lease, { min: 0, max: 1, low: 0.5, high: 0.8, optimum: 0 });
  parts.lease = lease;
  parts.bar = bar();
  const list = el("dl", "");
  for (const [key, label] of [["age", t("Lease age")], ["hits", t("Answered by a cache")], ["tiers", t("Tiers")], ["reads", t("Reads a second")], ["requests", t("Requests")], ["pool", t("Postgres connections")], ["refused", t("Refused by limits")], ["off", t("Not coherent")], ["repairs", t("Repairs")], ["audits", t("Audited, 1 h")]]) {
    parts[key] = el("dd", "");
    list.append(el("div", "", el("dt", "", label), parts[key]));
    // Pictures of what stands above them.
    if (key === "age") list.append(el("div", "", el("dt", "unseen", t("Of the bound")), el("dd", "wide", lease)));
    if (key === "hits") list.append(el("div", "", el("dt", "unseen", t("Shares")), el("dd", "wide", parts.bar)));
  }
  parts.where = el("p", "quiet");
  const made = el("li", "card", el("div", "bar", parts.name, parts.state), parts.why, parts.strip, list, parts.where);
  return Object.assign(made, { parts });
}

export function showInstances(now, points, view) {
  $("alone").hidden = !now.alone;
  const worst = [...now.instances].sort((a, b) => (a.state === "coherent") - (b.state === "coherent"));
  keyed($("instances"), worst, (one) => one.id, makeCard, (card, one) => {
    const { parts } = card;
    const silent = one.state === "silent";
    const kind = SHAPES[one.state] ?? "bad";
    card.className = `card ${kind}`;
    say(parts.name, one.name);
    mark(parts.state, kind, word(one.state));
    say(parts.why, why(one, now));
    parts.why.hidden = one.state === "coherent";
    const of = one.leaseAgeMs / now.boundMs;
    say(parts.age, silent ? t("unknown") : t("{0} of {1}", time(one.leaseAgeMs), time(now.boundMs)));
    parts.lease.value = silent ? 0 : Math.min(1, of);
    attr(parts.lease, "aria-label", silent ? t("Lease age of {0}: unknown", one.name) : t("Lease age of {0}: {1} of the bound", one.name, percent(of)));
    const [l1, l2, load] = one.reads;
    const all = l1 + l2 + load;
    say(parts.hits, percent(share(l1 + l2, all)));
    fill(parts.bar, one.reads);
    say(parts.tiers, silent ? t("unknown") : all > 0 ? `L1 ${percent(l1 / all)}, L2 ${percent(l2 / all)}, Postgres ${percent(load / all)}` : t("no reads"));
    say(parts.reads, silent ? t("unknown") : t("{0}, {1} by Postgres", rate(all), rate(load)));
    say(parts.requests, silent ? t("unknown") : t("{0} a second, p50 {1}, p99 {2}", rate(one.requests), time(one.p50Ms), time(one.p99Ms)));
    const { requests, loads } = one.pool;
    say(parts.pool, silent ? t("unknown") : t("{0} for requests, {1} for loads", `${requests.inUse}/${requests.max}`, `${loads.inUse}/${loads.max}`));
    say(parts.refused, refused(one));
    const off = notCoherent(points, one, view.self);
    const long = off ? t("about {0}", span(off)) : t("never");
    say(parts.off, view.seconds > 600 ? t("{0} in the last hour", long) : t("{0} in the last 5 minutes", long));
    say(parts.repairs, t("{0}, of {1} hints", count(one.repairs), count(one.hints)));
    const { audits, violations } = one.audits["1h"];
    say(parts.audits, !audits ? t("none yet") : violations === 0 ? t("{0}, all right", count(audits)) : t("{0}, {1} WRONG", count(audits), count(violations)));
    const began = t("{0} · version {1} · began {2} ago", one.address, one.version, span(Date.parse(now.at) - Date.parse(one.startedAt)));
    say(parts.where, silent ? began : `${began} · ${one.remoteUp ? t("L2 used") : t("L2 not used")} · ${one.busUp ? t("hints come") : t("no hints")}`);
    strip(parts.strip, points, view, one);
  });
}

function tile(item) {
  const parts = { label: el("dt", "", item.label), value: el("dd", "big"), sub: el("dd", "quiet") };
  const made = el("div", "tile", parts.label, parts.value, parts.sub);
  if (item.bar) made.append(el("dd", "", (parts.bar = bar())));
  return Object.assign(made, { parts });
}

/** What an operator asks first. */
export function showTiles(now, points, view) {
  const product = now.caches.filter((cache) => cache.name !== "api_key");
  const tiers = [0, 1, 2].map((tier) => product.reduce((sum, cache) => sum + cache.rates[tier], 0));
  const all = tiers[0] + tiers[1] + tiers[2];
  const good = now.instances.filter((one) => one.state === "coherent").length;
  const last = (field) => points.findLast((point) => point[field])?.[field] ?? [null, null];
  const [fresh, longest] = last("staleness");
  const [p50, p99] = last("propagation");
  const repairs = points.reduce((sum, point) => sum + (point.repairs ?? 0), 0);
  const slowest = now.instances.reduce((most, one) => Math.max(most, one.state === "silent" ? 0 : one.p99Ms), 0);
  const requests = now.instances.reduce((sum, one) => sum + one.requests, 0);
  const memory = now.redis.memory;
  const tiles = [
    { label: t("Answered by a cache"), value: percent(share(tiers[0] + tiers[1], all)), sub: all > 0 ? `L1 ${percent(tiers[0] / all)}, L2 ${percent(tiers[1] / all)}` : t("no reads"), bar: tiers },
    { label: t("Reads spared Postgres"), value: `${rate(tiers[0] + tiers[1])} /s`, sub: t("{0} /s reached it, of {1}", rate(tiers[2]), rate(all)) },
    { label: t("Staleness, p99"), value: time(fresh), sub: t("longest {0}, bound {1}", time(longest), time(now.boundMs)) },
    { label: t("Writes seen elsewhere after"), value: time(p50), sub: `p99 ${time(p99)}` },
    { label: t("Coherent instances"), value: t("{0} of {1}", good, now.instances.length), sub: now.alone ? t("others are not known") : good === now.instances.length ? t("all instances") : t("see below why") },
    { label: t("Repaired by the log"), value: count(repairs), sub: view.seconds > 600 ? t("in the last hour") : t("in the last 5 minutes") },
    { label: t("Requests"), value: `${rate(requests)} /s`, sub: t("p99 {0} at the slowest", time(slowest)) },
    { label: "Redis", value: now.redis.up ? bytes(memory.usedMemory) : now.redis.configured ? t("down") : t("none"), sub: now.redis.up ? t("{0} % of its memory", decimal(memory.memoryUsagePercent)) : now.redis.configured ? t("it does not answer") : t("not configured") },
  ];
  keyed($("tiles"), tiles, (item) => item.label, tile, ({ parts }, item) => {
    say(parts.value, item.value);
    say(parts.sub, item.sub);
    if (item.bar) fill(parts.bar, item.bar);
  });
}

export function showImports(now) {
  $("no-imports").hidden = now.imports?.length > 0;
  say($("no-imports"), now.imports ? t("None under way.") : t("Postgres can’t be asked."));
  const make = () => {
    const parts = { title: el("h3", ""), state: el("span", "mark"), text: el("p", ""), problem: el("p", "why"), progress: document.createElement("progress") };
    parts.progress.max = 1;
    return Object.assign(el("li", "card", el("div", "bar", parts.title, parts.state), parts.progress, parts.text, parts.problem), { parts });
  };
  const kinds = { done: "good", failed: "bad", cancelled: "gone" };
  keyed($("imports"), now.imports ?? [], (one) => one.id, make, ({ parts }, one) => {
    const part = one.state === "done" ? 1 : one.bytes > 0 ? one.bytesDone / one.bytes : 0;
    say(parts.title, t("Company {0}, {1}", one.company, one.format));
    mark(parts.state, kinds[one.state] ?? "busy", t(one.state));
    if (one.state === "uploading") parts.progress.removeAttribute("value");
    else parts.progress.value = part;
    attr(parts.progress, "aria-label", t("Import of company {0}: {1}", one.company, percent(part)));
    const who = one.instance ? t(", by {0}", one.instance) : "";
    say(parts.text, t("{0}, {1} rows, {2} accepted, {3} rejected, {4} a second", percent(part), count(one.rows), count(one.accepted), count(one.rejected), rate(one.rowsPerSecond)) + who);
    say(parts.problem, one.problem ?? "");
    parts.problem.hidden = !one.problem;
  });
}
