// The caches: what each answers from where, what it holds, and what went wrong.

import { $, attr, bar, bytes, count, day, el, fill, keyed, name, percent, rate, say, share } from "./format.js";
import { Spark } from "./charts.js";
import { t } from "./language.js";

const TROUBLE = [
  ["loadErrors", (n) => t("{0} loads failed", n)],
  ["unverified", (n) => t("{0} unverified", n)],
  ["l2Refused", (n) => t("{0} L2 refused", n)],
  ["l2Unreadable", (n) => t("{0} L2 unreadable", n)],
  ["insertsRefused", (n) => t("{0} overtaken", n)],
  ["tooLarge", (n) => t("{0} too large", n)],
  ["keysMisread", (n) => t("{0} keys misread", n)],
  ["auditViolations", (n) => t("{0} AUDITS WRONG", n)],
];

export class Caches {
  constructor(to) {
    this.to = to;
  }

  #make(cache, index) {
    const cell = (label, ...children) => {
      const made = el("td", "", ...children);
      attr(made, "role", "cell");
      attr(made, "data-label", label);
      return made;
    };
    const title = el("th", "", name(cache.name));
    attr(title, "scope", "row");
    attr(title, "role", "rowheader");
    const clear = el("button", "", t("Clear"));
    clear.type = "button";
    attr(clear, "aria-label", t("Clear the cache {0}", name(cache.name)));
    clear.addEventListener("click", () => this.to.clear(cache.name));
    const parts = { share: el("span", ""), bar: bar(), spark: new Spark(index), reads: cell(t("Reads a second")), loads: cell(t("Loads")), held: cell(t("In L1")), trouble: cell(t("Trouble")) };
    const made = el("tr", "", title, parts.reads, cell(t("Answered by"), parts.bar, parts.share), cell(t("Over time"), parts.spark.canvas), parts.loads, parts.held, parts.trouble, cell("", clear));
    attr(made, "role", "row");
    return Object.assign(made, { parts });
  }

  show(now, points, view) {
    const rows = now.caches.map((cache, index) => ({ ...cache, index }));
    keyed($("caches").tBodies[0], rows, (cache) => cache.name, (cache) => this.#make(cache, cache.index), (row, cache) => {
      const { parts } = row;
      const [l1, l2, load] = cache.rates;
      const all = l1 + l2 + load;
      row.className = all > 0 ? "" : "idle";
      say(parts.reads, rate(all));
      fill(parts.bar, cache.rates);
      say(parts.share, all > 0 ? `L1 ${percent(share(l1, all))}, L2 ${percent(share(l2, all))}, Postgres ${percent(share(load, all))}` : t("no reads now"));
      say(parts.loads, t("{0} in all", count(cache.loads)));
      say(parts.held, t("{0} entries, {1}", count(cache.entries), bytes(cache.bytes)));
      const trouble = TROUBLE.filter(([field]) => cache[field] > 0).map(([field, told]) => told(count(cache[field])));
      say(parts.trouble, trouble.join(", ") || t("none"));
      parts.spark.draw(points, view);
    });
    say($("since"), t("Loads and trouble are counted since {0}.", day(now.since)));
  }
}
