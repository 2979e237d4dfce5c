// What an admin may do here. Each action says what it did, or why it was refused.

import { $, at, name, say } from "./format.js";
import { t } from "./language.js";

/** A request may take thirty seconds there. */
const LIMIT = 35_000;

const switchAt = (cache, tier) => `/api/v1/cache/switches/${encodeURIComponent(cache)}/${tier}`;

export class Actions {
  /** @param {{key: () => string, locked: (detail: string) => void}} to */
  constructor(to) {
    this.to = to;
    $("dismiss").addEventListener("click", () => this.#done(""));
    $("reset").addEventListener("click", () => this.#reset());
    $("invalidate").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#invalidate($("invalidate-cache").value, $("invalidate-key").value);
    });
  }

  async clear(cache) {
    const means = t("Every instance and Redis forget it; reads go to Postgres until they have loaded it again.");
    if (!(await this.#confirm(t("Clear {0}?", name(cache)), means, t("Clear it")))) return;
    await this.#send(`/api/v1/cache/${encodeURIComponent(cache)}`, () => t("Cleared {0} on every instance.", name(cache)));
  }

  async #reset() {
    if (!(await this.#confirm(t("Reset the figures?"), t("What was counted so far is gone on every instance."), t("Reset them")))) return;
    await this.#send("/api/v1/cache/metrics", (done) =>
      done.complete ? t("Every instance counts from zero.") : t("Reset, but these have not answered: {0}.", done.behind.join(", ") || t("unknown")),
    );
  }

  /** Puts a tier aside; "*" is all caches. No minutes: until somebody ends it. */
  async switch({ cache, tier, mode, minutes, reason }) {
    const what = cache === "*" ? t("Put {0} of all caches aside?", tier) : t("Put {0} of {1} aside?", tier, name(cache));
    if (!(await this.#confirm(what, t("Every instance obeys within a second. Reads go on without it, and cost Postgres more."), t("Put it aside")))) return;
    const seconds = minutes ? Math.round(Number(minutes) * 60) : null;
    await this.#send(switchAt(cache, tier), () => t("{0} is {1} on every instance.", tier, t(mode)), { method: "PUT", body: { mode, reason, seconds } });
  }

  async end(cache, tier) {
    await this.#send(switchAt(cache, tier), () => t("{0} is on again on every instance.", tier));
  }

  async #invalidate(cache, key) {
    const path = `/api/v1/cache/${encodeURIComponent(cache)}/${encodeURIComponent(key)}`;
    await this.#send(path, () => t("Invalidated {0} of {1} on every instance.", key, name(cache)));
  }

  async #send(path, said, { method = "DELETE", body: sent } = {}) {
    this.#done(t("working …"));
    const key = this.to.key();
    try {
      const response = await fetch(path, {
        method,
        headers: { ...(key && { authorization: `Bearer ${key}` }), ...(sent && { "content-type": "application/json" }) },
        body: sent && JSON.stringify(sent),
        cache: "no-store",
        credentials: "omit",
        redirect: "error",
        signal: AbortSignal.timeout(LIMIT),
      });
      const body = await response.json().catch(() => ({}));
      if (response.ok) return this.#done(said(body));
      this.#done(t("Refused ({0}): {1}.", response.status, body.detail ?? t("the service does not say why")));
      if (response.status === 401 || response.status === 403) this.to.locked(body.detail);
    } catch {
      this.#done(t("No answer: whether it was done is not known. Try again."));
    }
  }

  #done(text) {
    say($("done"), text && `${at(Date.now())}: ${text}`);
    $("dismiss").hidden = !text;
  }

  #confirm(what, means, yes) {
    const dialog = $("confirm");
    say($("confirm-what"), what);
    say($("confirm-means"), means);
    say($("confirm-yes"), yes);
    dialog.returnValue = "no";
    dialog.showModal();
    return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
  }
}
