// The instances: how each is and why, what its caches answer, and the figures of all at a glance.

import { $, at, attr, bar, bytes, count, el, fill, keyed, mark, percent, rate, say, share, span, time } from "./format.js";
import { stateAt, strip } from "./charts.js";

const SHAPES = { coherent: "good", isolated: "half", unverified: "bad", recovering: "busy", silent: "gone", closed: "gone" };
const word = (state) => state.charAt(0).toUpperCase() + state.slice(1);

function why(one, now) {
  switch (one.state) {
    case "coherent":
      return "";
    case "isolated":
      if (!now.redis.configured) return "Runs without Redis, as it was told: writes are seen by polling the log.";
      if (one.remoteUp) return "Redis answers, but the hints’ subscription does not: writes are seen by polling the log.";
      return "Redis can’t be used: L1 and Postgres answer alone, and writes are seen by polling the log.";
    case "unverified":
      return "The log in Postgres was not read within the bound: what it serves is flagged, and may miss writes.";
    case "recovering":
      return "The log is read anew: until then reads go to Postgres.";
    case "silent":
      return `Nothing was heard of it since ${at(one.seenAt)}: it may be gone, or not reach Postgres.`;
    default:
      return "It is ending.";
  }
}

/** How often limits have refused since it began, and which, the one that did most first. */
function refused(one) {
  const limits = Object.entries(one.refused).sort((a, b) => b[1] - a[1]);
  if (limits.length === 0) return "none";
  const now = one.state === "silent" ? "" : `${rate(one.refusals)} a second, `;
  return `${now}since it began ${limits.map(([limit, times]) => `${limit} ${count(times)}`).join(", ")}`;
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
  for (const [key, label] of [["age", "Lease age"], ["hits", "Answered by a cache"], ["tiers", "Tiers"], ["reads", "Reads a second"], ["requests", "Requests"], ["pool", "Postgres connections"], ["refused", "Refused by limits"], ["off", "Not coherent"], ["repairs", "Repairs"], ["audits", "Audited, 1 h"]]) {
    parts[key] = el("dd", "");
    list.append(el("div", "", el("dt", "", label), parts[key]));
    // Pictures of what stands above them.
    if (key === "age") list.append(el("div", "", el("dt", "unseen", "Of the bound"), el("dd", "wide", lease)));
    if (key === "hits") list.append(el("div", "", el("dt", "unseen", "Shares"), el("dd", "wide", parts.bar)));
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
    say(parts.age, silent ? "unknown" : `${time(one.leaseAgeMs)} of ${time(now.boundMs)}`);
    parts.lease.value = silent ? 0 : Math.min(1, of);
    attr(parts.lease, "aria-label", `Lease age of ${one.name}: ${silent ? "unknown" : percent(of)} of the bound`);
    const [l1, l2, load] = one.reads;
    const all = l1 + l2 + load;
    say(parts.hits, percent(share(l1 + l2, all)));
    fill(parts.bar, one.reads);
    say(parts.tiers, silent ? "unknown" : all > 0 ? `L1 ${percent(l1 / all)}, L2 ${percent(l2 / all)}, Postgres ${percent(load / all)}` : "no reads");
    say(parts.reads, silent ? "unknown" : `${rate(all)}, ${rate(load)} by Postgres`);
    say(parts.requests, silent ? "unknown" : `${rate(one.requests)} a second, p50 ${time(one.p50Ms)}, p99 ${time(one.p99Ms)}`);
    const { requests, loads } = one.pool;
    say(parts.pool, silent ? "unknown" : `${requests.inUse}/${requests.max} for requests, ${loads.inUse}/${loads.max} for loads`);
    say(parts.refused, refused(one));
    const off = notCoherent(points, one, view.self);
    say(parts.off, `${off ? `about ${span(off)}` : "never"} in the last ${view.seconds > 600 ? "hour" : "5 minutes"}`);
    say(parts.repairs, `${count(one.repairs)}, of ${count(one.hints)} hints`);
    const { audits, violations } = one.audits["1h"];
    say(parts.audits, audits ? `${count(audits)}, ${violations === 0 ? "all right" : `${count(violations)} WRONG`}` : "none yet");
    const began = `${one.address} · version ${one.version} · began ${span(Date.parse(now.at) - Date.parse(one.startedAt))} ago`;
    say(parts.where, silent ? began : `${began} · ${one.remoteUp ? "L2 used" : "L2 not used"} · ${one.busUp ? "hints come" : "no hints"}`);
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
    { label: "Answered by a cache", value: percent(share(tiers[0] + tiers[1], all)), sub: all > 0 ? `L1 ${percent(tiers[0] / all)}, L2 ${percent(tiers[1] / all)}` : "no reads", bar: tiers },
    { label: "Reads spared Postgres", value: `${rate(tiers[0] + tiers[1])} /s`, sub: `${rate(tiers[2])} /s reached it, of ${rate(all)}` },
    { label: "Staleness, p99", value: time(fresh), sub: `longest ${time(longest)}, bound ${time(now.boundMs)}` },
    { label: "Writes seen elsewhere after", value: time(p50), sub: `p99 ${time(p99)}` },
    { label: "Coherent instances", value: `${good} of ${now.instances.length}`, sub: now.alone ? "others are not known" : good === now.instances.length ? "all" : "see below why" },
    { label: "Repaired by the log", value: count(repairs), sub: `in the last ${view.seconds > 600 ? "hour" : "5 minutes"}` },
    { label: "Requests", value: `${rate(requests)} /s`, sub: `p99 ${time(slowest)} at the slowest` },
    { label: "Redis", value: now.redis.up ? bytes(memory.usedMemory) : now.redis.configured ? "down" : "none", sub: now.redis.up ? `${memory.memoryUsagePercent} % of its memory` : now.redis.configured ? "it does not answer" : "not configured" },
  ];
  keyed($("tiles"), tiles, (item) => item.label, tile, ({ parts }, item) => {
    say(parts.value, item.value);
    say(parts.sub, item.sub);
    if (item.bar) fill(parts.bar, item.bar);
  });
}

export function showImports(now) {
  $("no-imports").hidden = now.imports?.length > 0;
  say($("no-imports"), now.imports ? "None under way." : "Postgres can’t be asked.");
  const make = () => {
    const parts = { title: el("h3", ""), state: el("span", "mark"), text: el("p", ""), problem: el("p", "why"), progress: document.createElement("progress") };
    parts.progress.max = 1;
    return Object.assign(el("li", "card", el("div", "bar", parts.title, parts.state), parts.progress, parts.text, parts.problem), { parts });
  };
  const kinds = { done: "good", failed: "bad", cancelled: "gone" };
  keyed($("imports"), now.imports ?? [], (one) => one.id, make, ({ parts }, one) => {
    const part = one.state === "done" ? 1 : one.bytes > 0 ? one.bytesDone / one.bytes : 0;
    say(parts.title, `Company ${one.company}, ${one.format}`);
    mark(parts.state, kinds[one.state] ?? "busy", one.state);
    if (one.state === "uploading") parts.progress.removeAttribute("value");
    else parts.progress.value = part;
    attr(parts.progress, "aria-label", `Import of company ${one.company}: ${percent(part)}`);
    const who = one.instance ? `, by ${one.instance}` : "";
    say(parts.text, `${percent(part)}, ${count(one.rows)} rows, ${count(one.accepted)} accepted, ${count(one.rejected)} rejected, ${rate(one.rowsPerSecond)} a second${who}`);
    say(parts.problem, one.problem ?? "");
    parts.problem.hidden = !one.problem;
  });
}
