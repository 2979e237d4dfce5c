// What somebody has put aside: since when, why and until when; and how to put it back.

import { $, at, day, el, keyed, mark, name, say, span } from "./format.js";
import { t } from "./language.js";

export class Switches {
  constructor(to) {
    this.to = to;
    $("switch").addEventListener("submit", (event) => {
      event.preventDefault();
      const [cache, tier, mode, minutes, reason] = ["cache", "tier", "mode", "minutes", "reason"].map((of) => $(`switch-${of}`).value);
      this.to.switch({ cache, tier, mode, minutes, reason });
    });
  }

  #make(one) {
    const parts = { what: el("h3", ""), mark: el("span", "mark"), why: el("p", ""), end: el("button", "", t("Put it on again")) };
    parts.end.type = "button";
    parts.end.addEventListener("click", () => this.to.end(one.cache ?? "*", one.tier));
    const made = el("li", "alert half", el("div", "bar", parts.mark, parts.what, parts.end), parts.why);
    return Object.assign(made, { parts });
  }

  show(now) {
    // An instance of the version before says nothing of them.
    const all = now.switches ?? [];
    $("switched").hidden = all.length === 0;
    keyed($("switches"), all, (one) => `${one.cache ?? "*"} ${one.tier}`, (one) => this.#make(one), ({ parts }, one) => {
      mark(parts.mark, "half", t(one.mode));
      say(parts.what, one.cache ? t("{0} of {1}", one.tier, name(one.cache)) : t("{0} of all caches", one.tier));
      const since = Date.parse(one.since);
      const until = one.until ? t("until {0}", day(one.until)) : t("until somebody ends it");
      const how = t("since {0} ({1}), {2}, by {3}", at(since), span(Date.parse(now.at) - since), until, one.by);
      say(parts.why, one.reason ? `${how}: ${one.reason}` : how);
    });
  }
}
