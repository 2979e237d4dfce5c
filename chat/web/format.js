// Numbers and times as people read them, and the few ways in which this page touches its document: as text, never as markup.

import { locale, t } from "./language.js";

const numbers = (options) => new Intl.NumberFormat(locale, options);
const whole = numbers({ maximumFractionDigits: 0 });
const short = numbers({ notation: "compact", maximumSignificantDigits: 3 });
const [two, three] = [2, 3].map((maximumSignificantDigits) => numbers({ maximumSignificantDigits }));
const [none, tenths] = [0, 1].map((digits) => numbers({ minimumFractionDigits: digits, maximumFractionDigits: digits }));
const hundredths = numbers({ maximumFractionDigits: 2 });
const clock = new Intl.DateTimeFormat(locale, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const NONE = "–";

const digits = (n) => (n >= 100 || n === 0 ? whole.format(n) : (n >= 10 ? three : two).format(n));

export const count = (n) => (n == null ? NONE : n < 10_000 ? whole.format(n) : short.format(n));
export const rate = (n) => (n == null ? NONE : n < 1_000 ? digits(n) : short.format(n));
export const decimal = (n) => (n == null ? NONE : hundredths.format(n));
export const percent = (share) =>
  share == null || Number.isNaN(share) ? NONE : `${(share > 0.9995 || share < 0.0005 ? none : tenths).format(share * 100)} %`;
export const share = (part, all) => (all > 0 ? part / all : null);

/** A duration in milliseconds. */
export function time(ms) {
  if (ms == null) return NONE;
  if (ms === 0) return "0 ms";
  if (ms < 0.001) return `${digits(ms * 1e6)} ns`;
  if (ms < 1) return `${digits(ms * 1e3)} µs`;
  if (ms < 1_000) return `${digits(ms)} ms`;
  return `${digits(ms / 1e3)} s`;
}

/** How long something has been going on, in milliseconds. */
export function span(ms) {
  const s = Math.max(0, Math.round(ms / 1e3));
  if (s < 120) return `${s} s`;
  if (s < 7_200) return `${Math.round(s / 60)} min`;
  if (s < 172_800) return `${Math.round(s / 3_600)} h`;
  return t("{0} days", Math.round(s / 86_400));
}

export function bytes(n) {
  if (n == null) return NONE;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (n >= 1_024 && at < units.length - 1) [n, at] = [n / 1_024, at + 1];
  return `${digits(n)} ${units[at]}`;
}

export const at = (when) => clock.format(new Date(when));
export const day = (when) => new Date(when).toLocaleString(locale === "en" ? "en-GB" : locale);
export const name = (cache) => cache.replaceAll("_", " ");

export const $ = (id) => document.getElementById(id);

/** An element with classes and children, which are elements or texts. */
export function el(tag, classes, ...children) {
  const made = document.createElement(tag);
  if (classes) made.className = classes;
  made.append(...children);
  return made;
}

/** Sets a text, and leaves alone what says it already: readers of screens and selections stay where they are. */
export function say(element, text) {
  text = String(text);
  if (element.textContent !== text) element.textContent = text;
}

export function attr(element, name, value) {
  if (value == null) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

/** Makes the children of `parent` those of `items`, by key: `make` builds one, `update` brings it up to date. */
export function keyed(parent, items, key, make, update) {
  const there = parent.kept ?? (parent.kept = new Map());
  const before = new Map(there);
  let place = parent.firstElementChild;
  for (const item of items) {
    const id = key(item);
    let element = there.get(id);
    if (!element) there.set(id, (element = make(item)));
    before.delete(id);
    if (element === place) place = place.nextElementSibling;
    else parent.insertBefore(element, place);
    update(element, item);
  }
  for (const [id, element] of before) {
    there.delete(id);
    element.remove();
  }
}

const SHAPES = {
  good: "M8 1a7 7 0 1 0 0 14A7 7 0 0 0 8 1Zm-1.2 10.3L3.9 8.4l1.2-1.2 1.7 1.7 4.1-4.2 1.2 1.2Z",
  half: "M8 0.5 15.5 8 8 15.5 0.5 8ZM8 3.3V12.700L12.7 8Z",
  bad: "M8 1 15.5 15H0.5ZM7.200 5.800 7.400 10.500h1.200l.2-4.700Zm0 5.700v1.700h1.600v-1.700Z",
  busy: "M8 1a7 7 0 1 1-7 7h2.200A4.800 4.800 0 1 0 8 3.200V5.500L4.300 2.500 8-.3Z",
  gone: "M3 1 8 6l5-5 2 2-5 5 5 5-2 2-5-5-5 5-2-2 5-5-5-5Z",
};

/** A shape that says what its word says. */
export function shape(kind) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  attr(svg, "viewBox", "0 0 16 16");
  attr(svg, "class", `shape ${kind}`);
  attr(svg, "aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  attr(path, "fill-rule", "evenodd");
  attr(path, "d", SHAPES[kind]);
  svg.append(path);
  return svg;
}

/** A shape and a word; made anew only when they change. */
export function mark(element, kind, word) {
  if (element.dataset.mark === `${kind} ${word}`) return;
  element.dataset.mark = `${kind} ${word}`;
  element.replaceChildren(shape(kind), el("span", "", word));
}

/** A bar of the parts of a whole: widths are attributes of SVG, which a strict policy allows. */
export function bar() {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  attr(svg, "class", "share");
  attr(svg, "aria-hidden", "true");
  attr(svg, "preserveAspectRatio", "none");
  attr(svg, "viewBox", "0 0 100 10");
  // They differ in height too.
  for (const [part, height] of [["l1", 10], ["l2", 7], ["load", 4]]) {
    const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    attr(rect, "class", part);
    attr(rect, "height", height);
    attr(rect, "y", 10 - height);
    svg.append(rect);
  }
  return svg;
}

export function fill(bar, parts) {
  const all = parts.reduce((sum, part) => sum + part, 0);
  let x = 0;
  parts.forEach((part, at) => {
    const width = all > 0 ? (part / all) * 100 : 0;
    attr(bar.children[at], "x", x.toFixed(2));
    attr(bar.children[at], "width", Math.max(0, width - (x + width < 99.9 ? 0.6 : 0)).toFixed(2));
    x += width;
  });
}
