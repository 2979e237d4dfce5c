// The caches: what each answers from where, what it holds, and what went wrong.

import { $, attr, bar, bytes, count, el, fill, keyed, name, percent, rate, say, share } from "./format.js";
import { Spark } from "./charts.js";

const TROUBLE = [
  ["loadErrors", "loads failed"],
  ["unverified", "unverified"],
  ["l2Refused", "L2 refused"],
  ["l2Unreadable", "L2 unreadable"],
  ["insertsRefused", "overtaken"],
  ["tooLarge", "too large"],
  ["keysMisread", "keys misread"],
  ["auditViolations", "AUDITS WRONG"],
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
    const clear = el("button", "", "Clear");
    clear.type = "button";
    attr(clear, "aria-label", `Clear the cache ${name(cache.name)}`);
    clear.addEventListener("click", () => this.to.clear(cache.name));
    const parts = { share: el("span", ""), bar: bar(), spark: new Spark(index), reads: cell("Reads a second"), loads: cell("Loads"), held: cell("In L1"), trouble: cell("Trouble") };
    const made = el("tr", "", title, parts.reads, cell("Answered by", parts.bar, parts.share), cell("Over time", parts.spark.canvas), parts.loads, parts.held, parts.trouble, cell("", clear));
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
      say(parts.share, all > 0 ? `L1 ${percent(share(l1, all))}, L2 ${percent(share(l2, all))}, Postgres ${percent(share(load, all))}` : "no reads now");
      say(parts.loads, `${count(cache.loads)} in all`);
      say(parts.held, `${count(cache.entries)} entries, ${bytes(cache.bytes)}`);
      const trouble = TROUBLE.filter(([field]) => cache[field] > 0).map(([field, label]) => `${count(cache[field])} ${label}`);
      say(parts.trouble, trouble.join(", ") || "none");
      parts.spark.draw(points, view);
    });
    say($("since"), `Loads and trouble are counted since ${new Date(now.since).toLocaleString("en-GB")}.`);
  }
}
