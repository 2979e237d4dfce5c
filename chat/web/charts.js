// The charts: what each shows, and how. Lines differ by their dashes and areas by their hatching, not by colour alone; each
// says in words what it shows, and has its points as a table.

import { $, attr, at, count, el, percent, rate, say, share, time } from "./format.js";
import { t } from "./language.js";

const styles = getComputedStyle(document.documentElement);
// A canvas takes no `light-dark(…)`, which is what the property itself has.
const probe = document.body.appendChild(Object.assign(document.createElement("i"), { hidden: true }));
const color = (name) => {
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
};
const rem = () => Number.parseFloat(styles.fontSize);
const letter = () => Math.round(0.75 * rem());
const font = (px = letter()) => `${px}px system-ui, sans-serif`;
/** Rows of a table of points. */
const ROWS = 12;

/** Reads of one cache, or of all that are the product's. */
const reads = (point, { cache, names }) => {
  if (point.gap) return null;
  const sum = [0, 0, 0];
  point.reads.forEach((tiers, index) => {
    if (tiers && (cache ? names[index] === cache : names[index] !== "api_key")) tiers.forEach((n, tier) => (sum[tier] += n));
  });
  return sum;
};
const ofReads = (pick) => (point, view) => {
  const tiers = reads(point, view);
  return tiers && pick(tiers, tiers[0] + tiers[1] + tiers[2]);
};
const part = (field, index, unit = 1) => (point) => (point[field]?.[index] == null ? null : point[field][index] / unit);
// Hits of L1 are sampled: where there was none the line goes on (undefined), where nothing was seen it breaks off (null).
const latency = (tier, index) => (point) => (point.latency?.[tier] ? point.latency[tier][index] / 1_000 : point.gap || tier ? null : undefined);
/** Places that no line goes through. */
const lonely = (values) => values.flatMap((value, index) => (value != null && values[index - 1] == null && values[index + 1] == null ? [index] : []));
/** Seconds between marks of the time. */
const STEPS = [10, 30, 60, 120, 300, 600, 900, 1_800];
const isPower = (value) => value > 0 && Math.abs(Math.log10(value) - Math.round(Math.log10(value))) < 1e-6;

const CHARTS = [
  {
    id: "reads",
    title: t("Reads a second, by tier"),
    byCache: true,
    form: rate,
    series: [
      // Drawn one upon the other: each as high as itself and those below.
      { label: "L1", ink: "l1", area: "plain", value: ofReads(([l1]) => l1), top: ofReads((_, all) => all) },
      { label: "L2", ink: "l2", area: "lines", value: ofReads(([, l2]) => l2), top: ofReads(([, l2, load]) => l2 + load) },
      { label: "Postgres", ink: "load", area: "dots", value: ofReads(([, , load]) => load) },
    ],
  },
  {
    id: "share",
    title: t("Answered by a cache"),
    byCache: true,
    form: percent,
    axis: (part) => `${Math.round(part * 100)} %`,
    range: () => [0, 1],
    series: [
      { label: t("L1 or L2"), ink: "l2", value: ofReads((tiers, all) => share(tiers[0] + tiers[1], all)) },
      { label: "L1", ink: "l1", dash: [6, 4], value: ofReads(([l1], all) => share(l1, all)) },
      { label: t("alert below"), ink: "limit", dash: [2, 4], value: (point, view) => (point.gap ? null : view.alertHitRate / 100), fixed: true },
    ],
  },
  {
    id: "latency",
    title: t("Latency per tier"),
    form: time,
    log: true,
    series: [
      { label: "L1 p50", ink: "l1", value: latency(0, 0) },
      { label: "L1 p99", ink: "l1", dash: [6, 4], value: latency(0, 1) },
      { label: "L2 p50", ink: "l2", width: 2.5, value: latency(1, 0) },
      { label: "L2 p99", ink: "l2", width: 2.5, dash: [10, 4], value: latency(1, 1) },
      { label: t("load p50"), ink: "load", width: 3.5, value: latency(2, 0) },
      { label: t("load p99"), ink: "load", width: 3.5, dash: [3, 4], value: latency(2, 1) },
    ],
  },
  {
    id: "staleness",
    title: t("Staleness, against the bound"),
    form: time,
    range: (_, most, view) => [0, Math.max(most ?? 0, view.boundMs) * 1.08],
    series: [
      { label: t("longest"), ink: "load", dash: [6, 4], value: part("staleness", 1) },
      { label: "p99", ink: "l1", value: part("staleness", 0) },
      { label: t("bound"), ink: "limit", dash: [2, 4], value: (point, view) => (point.gap ? null : view.boundMs), fixed: true },
    ],
  },
  {
    id: "propagation",
    title: t("From a commit to the eviction elsewhere"),
    form: time,
    log: true,
    series: [
      { label: "p50", ink: "l1", value: part("propagation", 0) },
      { label: "p99", ink: "load", dash: [6, 4], value: part("propagation", 1) },
    ],
  },
  {
    id: "repairs",
    title: t("Repaired by the log"),
    form: count,
    range: (_, most) => [0, Math.max(most ?? 0, 4) * 1.1],
    sum: true,
    series: [{ label: t("repairs"), ink: "load", bars: true, value: (point) => (point.gap ? null : point.repairs) }],
  },
];

/** An opaque fill that can be told from the others without colour. */
function pattern(context, kind, ink) {
  const ratio = devicePixelRatio;
  const tile = document.createElement("canvas");
  const size = Math.round(8 * ratio);
  tile.width = tile.height = size;
  const on = tile.getContext("2d");
  on.fillStyle = color(`${ink}-fill`);
  on.fillRect(0, 0, size, size);
  on.strokeStyle = on.fillStyle = color(ink);
  on.lineWidth = 1.2 * ratio;
  if (kind === "lines") {
    on.beginPath();
    for (const x of [-size, 0, size]) on.moveTo(x, size), on.lineTo(x + size, 0);
    on.stroke();
  } else if (kind === "dots") {
    on.beginPath();
    on.arc(size / 2, size / 2, size / 4, 0, 7);
    on.fill();
  }
  return context.createPattern(tile, "repeat");
}

function sample(series) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  attr(svg, "viewBox", "0 0 28 10");
  attr(svg, "class", "sample");
  attr(svg, "aria-hidden", "true");
  if (series.area || series.bars) {
    const rect = document.createElementNS(svg.namespaceURI, "rect");
    for (const [name, value] of Object.entries({ width: 28, height: 10, class: `area ${series.ink}` })) attr(rect, name, value);
    svg.append(rect);
    const marks = document.createElementNS(svg.namespaceURI, "path");
    const d = { lines: "M2 10 12 0M9 10 19 0M16 10 26 0", dots: "M5 5h.1M14 5h.1M23 5h.1" }[series.area];
    if (d) for (const [name, value] of Object.entries({ d, class: `marks ${series.ink} ${series.area}` })) attr(marks, name, value);
    svg.append(marks);
  } else {
    const line = document.createElementNS(svg.namespaceURI, "path");
    attr(line, "d", "M0 5H28");
    attr(line, "class", `line ${series.ink}`);
    attr(line, "stroke-width", series.width ?? 1.5);
    attr(line, "stroke-dasharray", series.dash?.join(" "));
    svg.append(line);
  }
  return svg;
}

class Chart {
  constructor(what) {
    this.what = what;
    this.title = el("h3", "");
    this.canvas = el("div", "plot");
    attr(this.canvas, "role", "img");
    this.values = what.series.map(() => el("b", ""));
    const legend = el("ul", "legend", ...what.series.map((series, index) => el("li", "", sample(series), `${series.label} `, this.values[index])));
    this.details = el("details", "", el("summary", "", t("As a table")));
    this.table = el("div", "scroll");
    this.details.append(this.table);
    this.details.addEventListener("toggle", () => this.#tabulate());
    this.none = el("p", "none quiet", "");
    this.figure = el("figure", "chart", el("figcaption", "", this.title), legend, this.canvas, this.none, this.details);
  }

  show(points, view) {
    Object.assign(this, { points, view });
    const { what } = this;
    say(this.title, what.byCache && view.cache ? `${what.title}: ${view.cache.replaceAll("_", " ")}` : what.title);
    this.values_ = what.series.map((series) => points.map((point) => series.value(point, view)));
    const nothing = what.series.every((series, index) => series.fixed || this.values_[index].every((value) => value == null));
    say(this.none, nothing ? t("Nothing in this time.") : "");
    const tops = what.series.map((series, index) => (series.top ? points.map((point) => series.top(point, view)) : this.values_[index]));
    const data = [points.map((point) => point.t / 1_000), ...tops];
    if (!this.plot) this.#make(data);
    else this.plot.setData(data);
    this.#read(this.hovered);
    this.#describe();
    this.#tabulate();
  }

  #make(data) {
    const { what } = this;
    const powers = (_, splits) => splits.map((value) => (isPower(value) ? value : null));
    const ink = { stroke: () => color("ink-2"), font: font(), grid: { stroke: () => color("grid"), width: 1 }, ticks: { show: false } };
    const yInk = what.log ? { ...ink, filter: powers, grid: { ...ink.grid, filter: powers } } : ink;
    const range = what.range ?? ((_, most) => [0, Math.max(most ?? 0, 1) * 1.08]);
    const decades = (_, least, most) => (least > 0 ? [10 ** Math.floor(Math.log10(least)), 10 ** Math.ceil(Math.log10(most * 1.05))] : [0.1, 10]);
    this.plot = new uPlot(
      {
        width: 300,
        height: 160,
        legend: { show: false },
        cursor: { y: false, drag: { setScale: false, x: false } },
        scales: {
          x: { time: true, range: () => [this.view.until - this.view.seconds, this.view.until] },
          y: what.log ? { distr: 3, range: decades } : { range: (_, least, most) => range(least, most, this.view) },
        },
        axes: [
          {
            ...ink,
            incrs: STEPS,
            space: () => 4.5 * rem(),
            values: (_, splits) => splits.map((second) => this.#clock(second)),
          },
          {
            ...yInk,
            size: () => 4.2 * rem(),
            space: () => (what.log ? 1 : 2) * rem(),
            values: (_, splits) => splits.map((value) => (value == null ? "" : (what.axis ?? what.form)(value))),
          },
        ],
        series: [
          {},
          ...what.series.map((series) => ({
            label: series.label,
            stroke: () => color(series.ink),
            width: series.area ? 1 : (series.width ?? 1.5),
            dash: series.dash,
            fill: series.area ? (plot) => pattern(plot.ctx, series.area, series.ink) : series.bars ? () => color(series.ink) : undefined,
            paths: series.bars ? uPlot.paths.bars({ size: [0.8, 12, 3] }) : undefined,
            points: { show: !series.bars, size: 4, fill: () => color(series.ink), filter: (plot, index) => lonely(plot.data[index]) },
          })),
        ],
        hooks: { setCursor: [(plot) => this.#read((this.hovered = plot.cursor.idx))] },
      },
      data,
      this.canvas,
    );
    new ResizeObserver(() => this.size()).observe(this.canvas);
    this.size();
  }

  /** A mark of the time; none at the edge, where it would stand upon others. */
  #clock(second) {
    const { until, seconds } = this.view;
    return second < until - 0.94 * seconds ? "" : at(second * 1_000).slice(0, seconds > 600 ? 5 : 8);
  }

  size() {
    const [letters, ratio] = [letter(), devicePixelRatio];
    for (const axis of this.plot.axes) axis.font = [font(Math.round(letters * ratio)), Math.round(letters * ratio), letters];
    this.plot.setSize({ width: Math.max(120, Math.floor(this.canvas.clientWidth)), height: Math.floor(this.canvas.clientHeight) });
  }

  #sums(index) {
    return this.values_[index].reduce((sum, value) => sum + (value ?? 0), 0);
  }

  /** The values under the pointer, or the newest. */
  #read(hovered) {
    this.what.series.forEach((series, index) => {
      const values = this.values_[index];
      const value = hovered == null ? (this.what.sum ? this.#sums(index) : values.findLast((value) => value != null)) : values[hovered];
      say(this.values[index], this.what.form(value));
    });
  }

  #describe() {
    const { what, view } = this;
    const parts = what.series.map((series, index) => {
      const values = this.values_[index].filter((value) => value != null);
      if (!values.length) return t("{0}: none", series.label);
      if (series.fixed) return `${series.label} ${what.form(values.at(-1))}`;
      if (what.sum) return t("{0}: {1} in all", series.label, what.form(this.#sums(index)));
      const [least, most] = values.reduce(([a, b], n) => [Math.min(a, n), Math.max(b, n)], [Infinity, -Infinity]);
      return t("{0} last {1}, between {2} and {3}", series.label, what.form(values.at(-1)), what.form(least), what.form(most));
    });
    attr(this.canvas, "aria-label", `${this.title.textContent}, ${view.seconds > 600 ? t("the last hour") : t("the last five minutes")}. ${parts.join("; ")}.`);
  }

  #tabulate() {
    if (!this.details.open || !this.points) return;
    const { what } = this;
    const step = Math.max(1, Math.ceil(this.points.length / ROWS));
    const rows = this.points.map((_, index) => index).filter((index) => !this.points[index].gap && (this.points.length - 1 - index) % step === 0);
    const cell = (tag, text, scope) => {
      const made = el(tag, "", text);
      attr(made, "scope", scope);
      return made;
    };
    const head = el("tr", "", cell("th", t("Time"), "col"), ...what.series.map((series) => cell("th", series.label, "col")));
    const body = rows.reverse().map((index) => {
      const values = what.series.map((_, which) => cell("td", what.form(this.values_[which][index])));
      return el("tr", "", cell("th", at(this.points[index].t), "row"), ...values);
    });
    const table = el("table", "", el("caption", "unseen", this.title.textContent), el("thead", "", head), el("tbody", "", ...body));
    this.table.replaceChildren(table);
  }
}

export class Charts {
  constructor() {
    this.all = CHARTS.map((what) => new Chart(what));
    $("charts").append(...this.all.map((chart) => chart.figure));
  }

  show(history, view) {
    const points = history.points(view.seconds);
    if (!points.length) return;
    const until = points.at(-1).t / 1_000;
    for (const chart of this.all) chart.show(points, { ...view, until });
  }

  /** Colours and sizes have changed. */
  redraw() {
    for (const chart of this.all) chart.plot?.redraw(false, true);
  }
}

/** Reads of one cache by tier as a small picture beside its name. */
export class Spark {
  constructor(index) {
    this.index = index;
    this.canvas = el("canvas", "spark");
    attr(this.canvas, "aria-hidden", "true");
  }

  draw(points, view) {
    const { canvas } = this;
    const width = Math.round(canvas.clientWidth * devicePixelRatio);
    const height = Math.round(canvas.clientHeight * devicePixelRatio);
    if (!width || !height) return;
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const on = canvas.getContext("2d");
    on.clearRect(0, 0, width, height);
    const until = points.at(-1)?.t;
    const seen = points.map((point) => ({ t: point.t, tiers: point.gap ? null : (point.reads[this.index] ?? [0, 0, 0]) }));
    const most = Math.max(1, ...seen.map(({ tiers }) => (tiers ? tiers[0] + tiers[1] + tiers[2] : 0)));
    const x = (t) => width * (1 - (until - t) / (view.seconds * 1_000));
    [["l1", ([a, b, c]) => a + b + c], ["l2", ([, b, c]) => b + c], ["load", ([, , c]) => c]].forEach(([ink, top]) => {
      on.fillStyle = color(ink === "l1" ? "l1-fill" : ink);
      for (let index = 1; index < seen.length; index += 1) {
        const [then, now] = [seen[index - 1], seen[index]];
        if (!then.tiers || !now.tiers || !top(then.tiers) && !top(now.tiers)) continue;
        on.beginPath();
        on.moveTo(x(then.t), height);
        on.lineTo(x(then.t), height * (1 - top(then.tiers) / most));
        on.lineTo(x(now.t) + 0.5, height * (1 - top(now.tiers) / most));
        on.lineTo(x(now.t) + 0.5, height);
        on.fill();
      }
    });
  }
}

/** How high a state stands in the strip of an instance: the higher, the worse. */
const HEIGHTS = { c: 0.22, i: 0.5, r: 0.75 };

/** The first letter of an instance's state; nothing where it was not there, or nobody knows. */
export function stateAt(point, { id, startedAt }, self) {
  if (point.gap || point.t < Date.parse(startedAt)) return null;
  return point.states[id.replaceAll("-", "").slice(0, 8)] ?? (point.alone && self !== id ? null : "c");
}

/** The states of one instance over time: by height, and by colour. */
export function strip(canvas, points, view, one) {
  const width = Math.round(canvas.clientWidth * devicePixelRatio);
  const height = Math.round(canvas.clientHeight * devicePixelRatio);
  if (!width || !height || !points.length) return;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const on = canvas.getContext("2d");
  on.clearRect(0, 0, width, height);
  const until = points.at(-1).t;
  const x = (t) => width * (1 - (until - t) / (view.seconds * 1_000));
  for (let index = 1; index < points.length; index += 1) {
    const state = stateAt(points[index], one, view.self);
    if (!state || points[index - 1].gap) continue;
    on.fillStyle = color({ c: "good", i: "warn" }[state] ?? "bad");
    const from = Math.floor(x(points[index - 1].t));
    on.fillRect(from, height * (1 - (HEIGHTS[state] ?? 1)), Math.ceil(x(points[index].t)) - from, height);
  }
}
