// An hour of points: each second of the last five minutes, every ten seconds of the hour. Never more, however long it runs.

const FINE = { reach: 300_000, most: 300 };
const COARSE = { reach: 3_600_000, most: 361 };
/** Longer without a point, and the lines of charts break off. */
const GAP = 25_000;

function push(ring, limit, point) {
  const last = ring.at(-1);
  // What a clock that was set back brings, begins anew.
  if (last && point.t <= last.t) {
    if (point.t > last.t - 5_000) return;
    ring.length = 0;
  }
  ring.push(point);
  let old = 0;
  while (ring.length - old > limit.most || ring[old].t < point.t - limit.reach) old += 1;
  if (old) ring.splice(0, old);
}

export class History {
  fine = [];
  coarse = [];

  replace({ fine, coarse }) {
    this.fine = [];
    this.coarse = [];
    for (const point of fine) push(this.fine, FINE, point);
    for (const point of coarse) push(this.coarse, COARSE, point);
  }

  add({ fine, coarse }) {
    push(this.fine, FINE, fine);
    if (coarse) push(this.coarse, COARSE, coarse);
  }

  get last() {
    return this.fine.at(-1) ?? this.coarse.at(-1);
  }

  /** Points of the last seconds, each second where there is one for each, with a null where nothing was seen. */
  points(seconds) {
    const last = this.last;
    if (!last) return [];
    const from = last.t - seconds * 1_000;
    const fine = seconds <= 300 ? this.fine : this.fine.slice(-1);
    const begins = fine[0]?.t ?? Infinity;
    const all = [...this.coarse.filter((point) => point.t < begins), ...fine].filter((point) => point.t >= from);
    const whole = [];
    for (const point of all) {
      const before = whole.at(-1);
      if (before && point.t - before.t > GAP) whole.push({ t: before.t + 1, gap: true });
      whole.push(point);
    }
    return whole;
  }
}
