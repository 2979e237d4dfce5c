// The stream of figures: read by fetch, for an EventSource can't send a key. Comes back by itself, and says how it is.

import { t } from "./language.js";

/** Without a byte for so long, it is lost: a sleeping machine, a route that has gone. */
const SILENCE = 12_000;
const PAUSES = [1_000, 2_000, 4_000, 8_000, 15_000];
/** It is well again after so long. */
const WELL = 10_000;
/** No event is so long. */
const MOST = 64 << 20;

export class Stream {
  /** @param {{key: () => string, on: (event: string, data: any) => void, state: (state: object) => void}} to */
  constructor(to) {
    this.to = to;
    this.failures = 0;
    setInterval(() => this.#look(), 1_000);
  }

  start() {
    if (this.aborting) return;
    clearTimeout(this.timer);
    this.retryAt = null;
    this.#run();
  }

  stop(state = { is: "paused" }) {
    clearTimeout(this.timer);
    this.retryAt = null;
    this.aborting?.abort();
    this.aborting = null;
    this.to.state(state);
  }

  /** Anew, with another key. */
  restart() {
    this.stop({ is: "connecting" });
    this.failures = 0;
    this.start();
  }

  async #run() {
    const aborting = (this.aborting = new AbortController());
    const mine = () => this.aborting === aborting;
    this.heard = Date.now();
    this.began = null;
    this.to.state({ is: "connecting" });
    let why = t("the service ended the stream");
    let wait = 0;
    try {
      const key = this.to.key();
      const response = await fetch("/api/v1/cache/stream", {
        headers: key ? { authorization: `Bearer ${key}` } : {},
        cache: "no-store",
        credentials: "omit",
        redirect: "error",
        signal: aborting.signal,
      });
      if (response.status === 401 || response.status === 403) {
        const problem = await response.json().catch(() => ({}));
        if (mine()) this.stop({ is: "locked", detail: problem.detail, had: Boolean(key) });
        return;
      }
      if (!response.ok) {
        const problem = await response.json().catch(() => ({}));
        wait = 1_000 * Number(response.headers.get("retry-after") ?? 0);
        throw new Error(problem.detail ?? t("the service answered {0}", response.status));
      }
      await this.#read(response.body, mine);
    } catch (error) {
      why = error instanceof TypeError || error.name === "AbortError" ? t("the service can’t be reached") : error.message;
    }
    if (!mine()) return;
    this.aborting = null;
    const well = this.began && Date.now() - this.began > WELL;
    this.failures = well ? 0 : this.failures + 1;
    const pause = PAUSES[Math.min(this.failures, PAUSES.length - 1)];
    wait = Math.max(wait, pause * (0.7 + 0.6 * Math.random()));
    this.retryAt = Date.now() + wait;
    this.to.state({ is: "lost", why, retryAt: this.retryAt });
    this.timer = setTimeout(() => this.start(), wait);
  }

  async #read(body, mine) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done || !mine()) return;
      this.heard = Date.now();
      text += value;
      if (text.length > MOST) throw new Error(t("what the service sends can’t be read"));
      let end;
      while ((end = text.indexOf("\n\n")) >= 0) {
        const event = text.slice(0, end);
        text = text.slice(end + 2);
        this.#event(event);
      }
    }
  }

  #event(text) {
    let [kind, data] = ["message", ""];
    for (const line of text.split("\n")) {
      if (line.startsWith("event: ")) kind = line.slice(7);
      else if (line.startsWith("data: ")) data += line.slice(6);
    }
    if (!data) return;
    if (!this.began) {
      this.began = Date.now();
      this.to.state({ is: "live" });
    }
    const read = JSON.parse(data);
    try {
      this.to.on(kind, read);
    } catch (error) {
      // A fault of this page is no fault of the stream.
      reportError(error);
    }
  }

  #look() {
    if (this.aborting && Date.now() - this.heard > SILENCE) {
      const lost = this.aborting;
      lost.abort();
    } else if (!this.aborting && this.retryAt && Date.now() > this.retryAt + 2_000) {
      // The timer slept.
      this.start();
    }
  }
}
