// The page: figures come by the stream, are kept for an hour and shown. All that is shown of others is set as text.

import { $, at, el, keyed, mark, name, say, span } from "./format.js";
import { Actions } from "./actions.js";
import { Caches } from "./caches.js";
import { Charts } from "./charts.js";
import { History } from "./history.js";
import { t } from "./language.js";
import { Stream } from "./stream.js";
import { Switches } from "./switches.js";
import { showAlerts } from "./alerts.js";
import { showImports, showInstances, showTiles } from "./fleet.js";

/** The key stays in this tab: a tab that is closed takes it along. */
const KEY = "perto-key";
/** How long a page that nobody sees goes on asking: a browser has few connections to one place. */
const UNSEEN = 5_000;
/** Older figures are said to be old. */
const OLD = 4_000;

const history = new History();
const charts = new Charts();
const view = { seconds: 300, cache: "", names: [], boundMs: 0, alertHitRate: 0, self: "" };
let now = null;
let heard = 0;
let link = { is: "connecting" };
let before = null;

/** A browser may keep nothing, by its settings: then the page does, until it is loaded anew. */
function keeping(storage) {
  try {
    return storage();
  } catch {
    const kept = new Map();
    return { getItem: (name) => kept.get(name) ?? null, setItem: (name, value) => kept.set(name, value), removeItem: (name) => kept.delete(name) };
  }
}

const keys = keeping(() => sessionStorage);
const wishes = keeping(() => localStorage);
const key = () => keys.getItem(KEY) ?? "";
const actions = new Actions({ key, locked: (detail) => lock(detail, Boolean(key())) });
const caches = new Caches(actions);
const switches = new Switches(actions);
const stream = new Stream({ key, on: take, state });

function take(kind, data) {
  if (kind === "history") history.replace(data);
  if (kind !== "now") return;
  history.add(data);
  now = data.now;
  heard = Date.now();
  $("figures").hidden = false;
  Object.assign(view, { boundMs: now.boundMs, alertHitRate: now.alertHitRate, self: now.instances[0].id });
  name_caches(now.caches.map((cache) => cache.name));
  tell();
  show();
}

function name_caches(names) {
  if (view.names.join() === names.join()) return;
  view.names = names;
  for (const [list, all] of [[$("cache"), ["", ...names]], [$("invalidate-cache"), names], [$("switch-cache"), [...names, "*"]]]) {
    const chosen = list.value;
    list.replaceChildren(...all.map((one) => Object.assign(el("option", "", one && one !== "*" ? name(one) : t("all")), { value: one })));
    list.value = all.includes(chosen) ? chosen : all[0];
  }
}

function show() {
  if (!now || document.hidden) return;
  const points = history.points(view.seconds);
  showTiles(now, points, view);
  showAlerts(now);
  switches.show(now);
  showInstances(now, points, view);
  charts.show(history, view);
  caches.show(now, points, view);
  showImports(now);
  say($("about"), t("Perto {0}, shown by {1}", now.version, now.instance));
  verdict();
}

/** One look: is everything as it should be? */
function verdict() {
  const all = now.instances.length;
  const good = now.instances.filter((one) => one.state === "coherent").length;
  const critical = now.alerts.some((alert) => alert.severity === "critical");
  const wrong = now.alerts.length;
  const text = `${t("{0} of {1} coherent", good, all)}, ${wrong === 0 ? t("no alerts") : wrong === 1 ? t("1 alert") : t("{0} alerts", wrong)}`;
  const old = link.is !== "live" || Date.now() - heard > OLD;
  mark($("verdict"), old ? "gone" : critical ? "bad" : wrong || good < all ? "half" : "good", old ? t("Not live: {0}", text) : text);
  const title = `${old ? "✕" : wrong || good < all ? "!" : "✓"} ${text} · Perto`;
  if (document.title !== title) document.title = title;
}

/** Tells readers of screens what has changed, and nothing else. */
function tell() {
  const states = new Map(now.instances.map((one) => [one.id, one]));
  const alerts = new Set(now.alerts.map((alert) => t("{0} on {1}", alert.name, alert.instance)));
  if (before) {
    const said = [];
    for (const [id, one] of states) if (before.states.get(id)?.state !== one.state) said.push(t("{0} is {1}.", one.name, t(one.state)));
    for (const [id, one] of before.states) if (!states.has(id)) said.push(t("{0} has gone.", one.name));
    for (const alert of alerts) if (!before.alerts.has(alert)) said.push(t("Alert: {0}.", alert));
    for (const alert of before.alerts) if (!alerts.has(alert)) said.push(t("Over: {0}.", alert));
    if (said.length) say($("said"), said.slice(0, 6).join(" "));
  }
  const build = before?.build ?? now.build;
  before = { states, alerts, build, outdated: build !== now.build };
}

function state(is) {
  link = is;
  if (is.is === "locked") lock(is.detail, is.had);
  if (is.is === "live") {
    $("unlock").hidden = true;
    $("forget").hidden = !key();
  }
  if (is.is === "live" || is.is === "lost") say($("said"), is.is === "live" ? t("Live.") : t("The stream of figures is lost."));
  tick();
}

/** Says how old what is shown is, every second. */
function tick() {
  const age = now ? t("figures of {0}, {1} old", at(now.at), span(Date.now() - heard)) : t("no figures yet");
  const text = {
    live: !now || Date.now() - heard > OLD ? t("Connected; {0}", age) : before?.outdated ? t("Live; this page is of an older version: reload it") : t("Live"),
    lost: t("Lost: {0}; {1}; trying again in {2}", link.why, age, span((link.retryAt ?? 0) - Date.now())),
    connecting: t("Connecting …; {0}", age),
    paused: t("Paused; {0}", age),
    locked: t("Locked: needs the admin key"),
  }[link.is];
  say($("live"), text);
  $("live").className = `live ${link.is}`;
  $("figures").classList.toggle("old", Boolean(now) && (link.is !== "live" || Date.now() - heard > OLD));
  if (now) verdict();
}

function lock(detail, had) {
  $("unlock").hidden = false;
  say($("unlock-why"), had ? t("This key was refused: {0}.", detail ?? t("it is not the admin’s")) : t("These figures are for admins. The key stays in this tab and goes when it is closed."));
  $("key").focus();
}

function theme(choose) {
  const choices = ["system", "light", "dark"];
  let chosen = wishes.getItem("perto-theme") ?? "system";
  if (choose) chosen = choices[(choices.indexOf(chosen) + 1) % 3];
  wishes.setItem("perto-theme", chosen);
  if (chosen === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = chosen;
  say($("theme"), t("Theme: {0}", t(chosen)));
  charts.redraw();
  show();
}

$("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = $("key").value.trim();
  $("key").value = "";
  if (!/^[ -~]+$/.test(given)) return lock(t("it has letters that no key has"), true);
  keys.setItem(KEY, given);
  stream.restart();
});
$("forget").addEventListener("click", () => {
  keys.removeItem(KEY);
  location.reload();
});
$("theme").addEventListener("click", () => theme(true));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.redraw());
for (const one of document.getElementsByName("window")) {
  one.addEventListener("change", () => {
    view.seconds = Number(one.value);
    show();
  });
}
$("cache").addEventListener("change", () => {
  view.cache = $("cache").value;
  show();
});

let hiding;
document.addEventListener("visibilitychange", () => {
  clearTimeout(hiding);
  if (document.hidden) hiding = setTimeout(() => stream.stop(), UNSEEN);
  else if (link.is !== "locked") stream.start();
  show();
});

setInterval(tick, 1_000);
theme(false);
if (!document.hidden) stream.start();
